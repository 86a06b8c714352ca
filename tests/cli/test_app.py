"""The frame around all commands: help, exit codes, and what errors look like."""

import re
import signal
import subprocess
import sys

import pytest
from typer.main import get_command

from sapo.cli.app import EXAMPLES, app, interrupt
from sapo.cli.console import may_replace
from sapo.conf.errors import UserError, WorkError

COMMANDS = list(dict.fromkeys(line.split()[1] for line in EXAMPLES))
PARTS = {
    "show": ("config", "run", "task", "model", "example"),
    "fetch": ("model", "benchmarks", "superni"),
    "store": ("verify", "ls", "gc", "export", "import"),
}


def help_texts(command, where="sapo"):
    """Each help text of the command's parameters and of its subcommands'."""
    for parameter in command.params:
        yield f"{where} {parameter.name}", getattr(parameter, "help", None) or ""
    for name, below in getattr(command, "commands", {}).items():
        yield from help_texts(below, f"{where} {name}")


def test_no_help_text_has_what_rich_would_take_for_markup():
    found = [where for where, text in help_texts(get_command(app)) if re.search(r"\[[a-z#/@]", text)]
    assert found == []


def test_help_loads_nothing_heavy():
    code = """
import sys
from sapo.cli.app import main
try:
    main(["--help"])
except SystemExit as exit_:
    assert not exit_.code
heavy = ["torch", "transformers", "hydra", "omegaconf", "pandas", "numpy", "matplotlib", "yaml"]
print("LOADED", [name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_has_two_examples(sapo, command):
    for words in ((command,), *((command, part) for part in PARTS.get(command, ()))):
        done = sapo(*words, "--help")
        assert done.code == 0
        assert f"Usage: sapo {' '.join(words)}" in done.out
    shown = "".join(sapo(command, "--help").out.split())
    examples = [line for line in EXAMPLES if line.split()[1] == command]
    assert len(examples) == 2
    assert all(example.replace(" ", "") in shown for example in examples)


def test_a_file_is_replaced_by_nobody_but_who_is_asked(monkeypatch, tmp_path):
    path, asked = tmp_path / "rows.jsonl", []
    monkeypatch.setattr("typer.confirm", lambda text, **_: asked.append(text) or True)
    path.touch()
    assert not may_replace(path)
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)
    assert may_replace(path)
    assert not may_replace(tmp_path / "new")
    assert asked == [f"{path} is there already. Replace it?"]


def test_no_command_shows_help(sapo):
    done = sapo()
    assert done.code == 2
    assert "Usage: sapo" in done.out + done.err


ERRORS = [
    (UserError("say it so"), 2, "sapo: say it so\n"),
    (WorkError("it broke"), 1, "sapo: it broke\n"),
    (
        ZeroDivisionError("division\nby zero"),
        1,
        "sapo: ZeroDivisionError: division by zero; run again with --debug for the traceback\n",
    ),
    (KeyboardInterrupt(), 130, ""),
    (PermissionError(13, "Permission denied", "/a/b"), 2, "/a/b: Permission denied. Name a folder that you"),
    (OSError(30, "Read-only file system", "/a"), 2, "/a: Read-only file system. Name a folder"),
    (OSError(28, "No space left on device", "/a"), 1, "/a: No space left on device. Make room, and run"),
    (OSError("I/O error: No space left on device (os error 28)"), 1, "(os error 28). Make room"),
    (FileNotFoundError(2, "No such file or directory", "/a"), 2, "/a: No such file or directory."),
    (ConnectionResetError(104, "Connection reset by peer"), 1, "Connection reset by peer."),
]


@pytest.fixture
def failing(monkeypatch):
    """`failing(ERROR)` has `sapo ls models` raise it."""

    def fail_with(error):
        def fail(group):
            raise error

        monkeypatch.setattr("sapo.conf.load.choices", fail)

    return fail_with


@pytest.mark.parametrize(("error", "code", "message"), ERRORS, ids=lambda value: type(value).__name__)
def test_errors_are_one_message(sapo, failing, error, code, message):
    failing(error)
    done = sapo("ls", "models", "--json")
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert done.err.count("\n") == bool(message)


@pytest.mark.parametrize("arguments", [["--debug", "ls", "models"], ["ls", "models", "--debug"]])
def test_debug_shows_the_traceback(sapo, failing, arguments):
    failing(ZeroDivisionError("oops"))
    done = sapo(*arguments)
    assert done.code == 1
    assert "Traceback" in done.err
    assert done.err.endswith("sapo: ZeroDivisionError: oops\n")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["train", "me"], ["method="]),
        (["train", "seed=1", "trainer.sch"], ["trainer.schedule="]),
        (["train", "seed=1", "method=lo"], ["method=lorainc"]),
        (["train", "method=nothing"], [""]),
        (["train", "nothing=x"], [""]),
        (["train", "trainer.schedule=w"], ["trainer.schedule=warmup_log_constant"]),
        (["train", "seed", "=", "1", "method", "=", "lo"], ["lorainc"]),  # as bash divides it
        (["reproduce", "figure15"], ["figure15"]),
        (["fetch", "model", "tiny_l"], ["tiny_llama"]),
        (["ls", "polic"], ["policies"]),
    ],
)
def test_a_shell_completes_what_can_be_said(sapo, monkeypatch, words, found):
    monkeypatch.setenv("_SAPO_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(["sapo", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    assert sapo().out.strip("\n").split("\n") == found


def test_interrupt_stops_at_once_and_keeps_what_is_finished(sapo, small, monkeypatch, tmp_path):
    from sapo.experiments.engine.store import Store

    building, root = Store.building, tmp_path / "store"

    def interrupted(store, kind, key):
        if list((root / "stages").glob("*/*/manifest.json")):
            assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is interrupt
            interrupt()
        return building(store, kind, key)

    monkeypatch.setattr(Store, "building", interrupted)
    done = sapo("train", *small, "policy=static", f"store.root='{root}'", "--json")
    assert (done.code, done.out) == (130, "")
    assert "the same command goes on" in done.err
    assert len(list((root / "stages").glob("*/*/manifest.json"))) == 1
    assert not list((root / "building").iterdir())
