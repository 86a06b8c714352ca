"""Output: foreign text takes no effect, and no terminal, encoding or disk makes it fail with a raw error."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from sapo.conf.text import printable

MARK = "[bold]m[/bold][/x]:smile:"
NASTY = f"x\x1b]0;t\x07\x9b31m\u202e\u2028{MARK}"
MAIN = "from sapo.cli.app import main; main()"


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A folder with an own task, data, pools and a model's settings that hold foreign text."""
    rows = [{"input": f"{i} {NASTY}", "output": NASTY} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / f"{MARK.replace('/', '')}\x1b\u202e.csv").write_text("after,a\n0,x\n")
    prompts = [f"Say {word} what this is {NASTY}" for word in ("plainly", "shortly", "quickly")]
    pool = {"prompts": prompts, "original": f"Say what this is {NASTY}"}
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump(pool), encoding="utf-8")
    sound = [f"{MARK} Sort the ticket into its kind.", f"Which kind of ticket is it? {MARK}"]
    good = {"prompts": sound, "original": "Tell what sort of thing stands there."}
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(good), encoding="utf-8")
    task = {"instruction": pool["original"], "suffix": NASTY, "data": "rows.jsonl"}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    shutil.copy(tmp_path / "rows.jsonl", tmp_path / "data")
    (tmp_path / "conf" / "model").mkdir(parents=True)
    settings = yaml.safe_dump({"name": "odd", "source": "tiny:llama", "revision": NASTY})
    (tmp_path / "conf" / "model" / "odd.yaml").write_text(f"# {MARK}\n{settings}", encoding="utf-8")
    monkeypatch.setenv("SAPO_CONF", str(tmp_path / "conf"))
    monkeypatch.setenv("SAPO_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SOME_KEY", "k")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FAST = ("model=tiny_llama", "engine.device=cpu", "scorer.examples=4", "data.max_input_tokens=900")
FILE = "paraphrases.file=pool.yaml"
GOOD = "paraphrases.file=good.yaml"
TASK = ("task=mine", "sequence=own", "sequence.tasks=[mine]", FILE)
ASKING = ("paraphrases=openai", "paraphrases.key_variable=SOME_KEY")
SHOWN = [
    (("ls", "models"), 0),
    (("ls", "tasks"), 0),
    (("show", "task", *TASK), 0),
    (("show", "model", "odd"), 0),
    (("show", "example", *TASK, "model=tiny_llama", "index=0", "data.max_input_tokens=900"), 0),
    (("select", "data=rows.jsonl", *FAST, GOOD), 0),
    (("select", "data=rows.jsonl", f"instruction={NASTY}", *FAST, FILE), 2),
    (("select", "data=rows.jsonl", f"columns=[{MARK},b]", *FAST, GOOD), 2),
    (("metrics", f"{MARK.replace('/', '')}\x1b\u202e.csv"), 2),
    (("analyze", f"no{NASTY}"), 2),
    (("store", "ls", "--root", NASTY), 2),
    (("paraphrase", f"instruction={NASTY}", *ASKING, "--dry-run"), 0),
    (("plan", f"policy={MARK}"), 2),
]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(("command", "code"), SHOWN, ids=lambda value: ascii(value)[:40])
def test_foreign_text_is_shown_not_sent(sapo, foreign, command, code, as_json):
    done = sapo(*command, *(["--json"] if as_json else []))
    assert done.code == code, done.err
    for text in (done.out, re.sub("\rLoading weights.*", "", done.err)):  # a library's bar
        assert printable(text) == text
    # The token-by-token view has a bar between tokens.
    shown = "".join((done.out + done.err).split()).replace("|", "")
    assert "[bold" in shown
    assert "\\[bold" not in shown


# --- where nothing can be written --------------------------------------------------------------------------


def process(*arguments, stdout=None, code=MAIN, **options):
    """A process of its own, since streams of this one are not the system's."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, **options.pop("env", {})}
    return subprocess.run(
        command, stdout=stdout or subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **options
    )


@pytest.mark.slow  # a process a command
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("options", [["--json"], []])
def test_an_output_that_is_full(tmp_path, options):
    (tmp_path / "matrix.csv").write_text("after,a\n0,1\n1,2\n")
    with open("/dev/full", "w") as full:
        done = process("metrics", tmp_path / "matrix.csv", *options, stdout=full)
        assert done.returncode == 1
        assert done.stderr.decode() == (
            "sapo: Cannot write the result to the output: No space left on device. "
            "What was computed is kept: the same command shows it again.\n"
        )
        # Where only the notices are lost, the work is done.
        code = "import sys; sys.stderr = open('/dev/full', 'w', buffering=1)\n" + MAIN
        assert process("ls", "runs", "--json", code=code, cwd=tmp_path).returncode == 0


@pytest.mark.slow  # a process a command
def test_a_terminal_that_lacks_characters(sapo, tmp_path):
    (tmp_path / "matrix.csv").write_text("after,第3页\n0,1\n1,2\n", encoding="utf-8")
    odd = {"PYTHONIOENCODING": "cp1252"}
    for command in (["metrics", tmp_path / "matrix.csv"], ["ls", "tasks"], ["ls", "第3页"]):
        plain, as_json = process(*command, env=odd), process(*command, "--json", env=odd)
        assert plain.returncode == as_json.returncode == (2 if "第3页" in command else 0)
        if plain.returncode == 0:
            assert json.loads(as_json.stdout.decode("ascii")) == sapo(*command, "--json").document
        else:
            assert b"\\u7b2c3\\u9875" in plain.stderr


def test_a_folder_that_was_deleted(tmp_path):
    code = "import os; os.rmdir(os.getcwd())\n" + MAIN
    (tmp_path / "gone").mkdir()
    done = process("ls", "models", code=code, cwd=tmp_path / "gone")
    assert done.returncode == 2
    assert done.stderr == b"sapo: The present folder has been deleted: `cd` to one that is there.\n"


def test_the_package_is_the_command():
    done = subprocess.run([sys.executable, "-m", "sapo.cli", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("sapo 0.")


def test_a_disk_that_is_full_while_a_figure_is_drawn(sapo, trained, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    done = sapo("analyze", trained.adaptive["id"], "--output", tmp_path / "out")
    assert (done.code, done.out) == (1, "")
    assert "No space left on device. Make room" in done.err
    assert done.err.count("\n") == 1
