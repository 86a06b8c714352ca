"""A store with two finished runs of the random tiny model, and what tests of commands are called."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny import SMALL, Done, call

from sapo.experiments import costs


def pytest_make_parametrize_id(val: object) -> str | None:
    """Files' contents and commands as readable ids of any size: these parameters are texts of any kind."""
    if isinstance(val, tuple) and all(isinstance(word, str) for word in val):
        val = " ".join(val)
    return ascii(val)[:60] if isinstance(val, str | bytes) else None


@pytest.fixture(autouse=True)
def _nothing_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rates of this machine's user."""
    monkeypatch.setattr(costs, "cache_folder", lambda: tmp_path / "cache")


class Trained(NamedTuple):
    """A store with a `static` and a `sapo` run, and what `sapo train --json` said of them."""

    root: Path
    done: Done
    static: dict[str, Any]
    adaptive: dict[str, Any]


def stored(root: Path) -> set[Path]:
    """The stages and runs of a store."""
    return {*root.glob("stages/*/*"), *root.glob("runs/*"), *root.glob("probes/*")}


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    root = tmp_path_factory.mktemp("trained") / "store"
    done = call("train", *SMALL, "policy=static,sapo", f"store.root='{root}'", "--json")
    before = stored(root)
    yield Trained(root, done, *done.document["runs"])
    assert stored(root) == before, "a test has changed what all share: let it take a copy"


@pytest.fixture
def trained(_trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """The finished runs, which tests leave as they are; commands find their store by SAPO_STORE."""
    monkeypatch.setenv("SAPO_STORE", str(_trained.root))
    return _trained


@pytest.fixture
def copy(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of their store, which commands find."""
    root = shutil.copytree(trained.root, tmp_path / "copy")
    monkeypatch.setenv("SAPO_STORE", str(root))
    return root
