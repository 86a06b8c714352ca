"""Every shell block of README and docs runs: as it stands where quick, on the tiny model elsewhere."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from sapo.experiments import targets

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = (
    *("model=tiny_llama", "data.train_examples=4", "data.test_examples=2", "scorer.examples=2"),
    *("paraphrases.count=2", "trainer.epochs=1", "evaluator.max_new_tokens=2", "data.max_input_tokens=2048"),
)
CHOICE = ("model=tiny_llama", "scorer.examples=4", "paraphrases.count=2")
FEW = ("data.train_examples=4", "data.test_examples=2", "method.buffer=4")
ADDED = {  # what makes a command small
    "train": SMALL,
    "show example": ("model=tiny_llama",),
    "select": CHOICE,
    "compare": CHOICE[:2],
    "paraphrase": ("--dry-run",),
}
NEEDS_NETWORK = ("sapo fetch",)


def shown_commands() -> list[str]:
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    texts = [page.read_text(encoding="utf-8").replace("\\\n", " ") for page in pages]
    blocks = [block for text in texts for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)]
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("export ")))


@pytest.fixture(autouse=True)
def _few_targets(monkeypatch):
    """What each target plans is other tests' subject."""
    few = {name: targets.TARGETS[name] for name in ("table1", "figure1", "claims")}
    monkeypatch.setattr(targets, "TARGETS", few)


COMMANDS = shown_commands()
assert len(COMMANDS) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs(sapo, command, request, tmp_path, monkeypatch):
    if command.startswith(NEEDS_NETWORK):
        # What it would do is another test's; here the words must be ones that the command knows.
        command = " ".join(command.split()[:3]) + " --help"
    words = shlex.split(command)
    if words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=REPOSITORY, capture_output=True, check=True)
        return
    if words[0] == "python":
        assert (REPOSITORY / words[1]).is_file()  # what it does is its own test's
        return
    assert words[0] == "sapo"
    if "RUN" in words:  # the reader's own: there is none here
        words = [*words[:2], "--help"]
    if any(word in command for word in ("ni_seq", "--scale paper", "--scale small")):
        words = [word for word in words if word != "data.root=benchmarks"]
        words += [f"data.root={request.getfixturevalue('benchmarks')}", *FEW]
        words += ["sequence.tasks=[NI195,NI1343]"] if "ni_seq_c1" in command else []
    if words[1:3] == ["reproduce", "claims"]:
        words = ["sapo", "reproduce", "claims", "--scale", "mini", "--dry-run"]
    elif words[1] == "claims":
        words = words[:2]  # names of runs that a reader may have
    elif "paper" in words and "--dry-run" not in words:
        words += ["--dry-run", "sequence=ni_seq_c1"]
    words += ADDED.get(words[1], ADDED.get(" ".join(words[1:3]), ()))
    (tmp_path / "docs").symlink_to(REPOSITORY / "docs")
    monkeypatch.chdir(tmp_path)
    done = sapo(*words[1:])
    # `doctor` answers 1 where the model is not on the machine: a finding, not a failure.
    assert done.code in ({0, 1} if words[1] == "doctor" else {0}), done.err
    assert done.out.strip() or "no runs" in done.err
