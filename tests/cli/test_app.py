"""The frame around all commands: help, exit codes, and what errors look like."""

import os
import signal
import subprocess
import sys

import pytest

from sapo.conf.errors import UserError, WorkError

COMMANDS = (
    "paraphrase",
    "train",
    "eval",
    "export",
    "analyze",
    "reproduce",
    "plan",
    "select",
    "metrics",
    "ls",
    "show",
    "fetch",
    "doctor",
    "store",
)
GROUPS = {
    "show": ("config", "run", "task", "pool", "model", "example"),
    "fetch": ("model", "benchmarks"),
}


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


@pytest.mark.parametrize("command", [*COMMANDS, *(f"{g} {c}" for g, cs in GROUPS.items() for c in cs)])
def test_every_command_explains_itself(sapo, command):
    done = sapo(*command.split(), "--help")
    assert done.code == 0
    assert f"Usage: sapo {command}" in done.out


def test_version(sapo):
    assert sapo("--version").out.startswith("sapo 0.")


def test_no_command_shows_help(sapo):
    done = sapo()
    assert done.code == 2
    assert "Usage: sapo" in done.out + done.err


@pytest.mark.parametrize(
    "arguments", [["frobnicate"], ["train", "--frobnicate"], ["eval"], ["show", "tasks"]]
)
def test_a_wrong_command_line_is_exit_code_2(sapo, arguments):
    done = sapo(*arguments)
    assert done.code == 2
    assert not done.out


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("say it so"), 2, "sapo: say it so\n"),
        (WorkError("it broke"), 1, "sapo: it broke\n"),
        (
            ZeroDivisionError("division\nby zero"),
            1,
            "sapo: ZeroDivisionError: division by zero; run again with --debug for the traceback\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_are_one_message(sapo, monkeypatch, error, code, message):
    def fail(group):
        raise error

    monkeypatch.setattr("sapo.conf.load.choices", fail)
    done = sapo("ls", "models", "--json")
    assert (done.code, done.out, done.err) == (code, "", message)


@pytest.mark.parametrize("arguments", [["--debug", "ls", "models"], ["ls", "models", "--debug"]])
def test_debug_shows_the_traceback(sapo, monkeypatch, arguments):
    def fail(group):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("sapo.conf.load.choices", fail)
    done = sapo(*arguments)
    assert done.code == 1
    assert "Traceback" in done.err
    assert done.err.endswith("sapo: ZeroDivisionError: oops\n")


def test_interrupt_stops_at_once_and_keeps_what_is_finished(sapo, small, monkeypatch, tmp_path):
    from sapo.experiments.engine.store import Store

    building, root = Store.building, tmp_path / "store"

    def interrupted(store, kind, key):
        if list((root / "stages").glob("*/*/manifest.json")):
            os.kill(os.getpid(), signal.SIGINT)
        return building(store, kind, key)

    monkeypatch.setattr(Store, "building", interrupted)
    done = sapo("train", *small, "policy=static", f"store.root='{root}'", "--json")
    assert (done.code, done.out) == (130, "")
    assert "the same command goes on" in done.err
    assert len(list((root / "stages").glob("*/*/manifest.json"))) == 1
    assert not list((root / "building").iterdir())
