"""Copies of the tiny model, to be damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sapo.conf.load import load_one
from sapo.experiments.model.fetch import model_folder


@pytest.fixture(scope="session")
def tiny_source() -> Path:
    """The tiny Llama's own folder, not to be changed."""
    return model_folder(load_one(["model=tiny_llama"]).model)


@pytest.fixture
def tiny_folder(tmp_path: Path, tiny_source: Path) -> Path:
    """A copy of the tiny Llama's folder."""
    return Path(shutil.copytree(tiny_source, tmp_path / "model"))


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """`edit_json(FILE, key=value)` sets entries of a JSON file."""

    def edit(file: Path, **entries: Any) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))

    return edit
