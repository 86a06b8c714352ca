"""Every shell block of the README runs: as it stands where that is quick, on the tiny model elsewhere."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from sapo.cli.app import main

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = (
    "model=tiny_llama",
    "sequence.train_examples=4",
    "data.train_examples=4",
    "data.test_examples=2",
    "scorer.examples=2",
    "paraphrases.count=2",
    "trainer.epochs=1",
    "evaluator.max_new_tokens=2",
    "data.max_input_tokens=2048",
)
NEEDS_NETWORK = ("sapo fetch",)


def readme_commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.M | re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("export ")]


def test_there_are_commands_to_run():
    assert len(readme_commands()) > 10


@pytest.mark.parametrize("command", readme_commands())
def test_command_runs(command, request, tmp_path, monkeypatch, capfd):
    if command.startswith(NEEDS_NETWORK):
        # What it would do is another test's; here the words must be ones that the command knows.
        command = " ".join(command.split()[:3]) + " --help"
    words = shlex.split(command)
    if words[0] == "make":
        done = subprocess.run(
            ["make", "--dry-run", *words[1:]], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return
    assert words[0] == "sapo"
    if any(word in command for word in ("ni_seq", "--scale paper")):
        words.append(f"data.root={request.getfixturevalue('benchmarks')}")
        words = [word for word in words if word != "data.root=benchmarks"]
    if words[1] == "train":
        words += SMALL
    elif "paper" in words:
        words += ["--dry-run", "sequence=ni_seq_c1"]
    elif words[1:3] == ["show", "example"]:
        words.append("model=tiny_llama")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        main(words[1:])
    out, err = capfd.readouterr()
    # `doctor` answers 1 where the model is not on the machine: a finding, not a failure.
    assert done.value.code in ({0, None, 1} if words[1] == "doctor" else {0, None}), err
    assert out.strip() or "no runs" in err
