"""Copies of the tiny model, to be damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sapo.conf.schema import ModelConfig
from sapo.experiments.model.fetch import model_folder


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A copy of the tiny Llama's folder."""
    return Path(shutil.copytree(model_folder(ModelConfig("tiny", "tiny:llama")), tmp_path / "model"))


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """`edit_json(FILE, key=value)` sets entries of a JSON file."""

    def edit(file: Path, **entries: Any) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))

    return edit
