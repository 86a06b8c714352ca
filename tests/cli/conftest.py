"""The command line in this process, and a store with two finished runs of the random tiny model."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SMALL

from sapo.cli.app import main
from sapo.experiments import costs


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        assert self.code == 0, self.err
        return json.loads(self.out, parse_constant=_refuse)

    def refused(self, code: int = 2) -> str:
        """The one legible message of a refused command, which wrote nothing else."""
        assert (self.code, self.out) == (code, ""), self
        assert self.err.startswith("sapo: ")
        # But for the line on how many rows are taken.
        assert [" training rows a task" in line for line in self.err.split("sapo: ")[1:]].count(False) == 1
        assert "Traceback" not in self.err
        assert len(self.err) < 6000
        return self.err


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} in JSON")


def short(value: object) -> str:
    """A readable id of a test's parameter, of any size."""
    return ascii(" ".join(value) if isinstance(value, tuple) else value)[:60]


def pytest_make_parametrize_id(val: object) -> str | None:
    """Files' contents and commands as ids: the parameters of these tests are texts of any kind."""
    is_text = isinstance(val, str | bytes) or (
        isinstance(val, tuple) and all(isinstance(v, str) for v in val)
    )
    return short(val) if is_text else None


def call(*arguments: object) -> Done:
    """Runs `sapo ARGUMENTS` in this process."""
    out, err = StringIO(), StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Done(int(exit_.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other take longer than the tiny model itself."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _nothing_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rates of this machine's user."""
    monkeypatch.setattr(costs, "cache_folder", lambda: tmp_path / "cache")


@pytest.fixture(scope="session")
def sapo() -> Callable[..., Done]:
    """`sapo("train", …)` runs the command."""
    return call


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Overrides that make a run take a second."""
    return SMALL


@dataclass(frozen=True)
class Trained:
    """A store with a `static` and a `sapo` run, and what `sapo train --json` said of them."""

    root: Path
    done: Done

    @property
    def static(self) -> dict[str, Any]:
        """The document of the `static` run."""
        return self.done.document["runs"][0]

    @property
    def adaptive(self) -> dict[str, Any]:
        """The document of the `sapo` run."""
        return self.done.document["runs"][1]


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("trained") / "store"
    return Trained(root, call("train", *SMALL, "policy=static,sapo", f"store.root='{root}'", "--json"))


@pytest.fixture
def trained(_trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """The finished runs; commands find their store by SAPO_STORE. Tests leave it as it is, or add to it."""
    monkeypatch.setenv("SAPO_STORE", str(_trained.root))
    return _trained
