"""The real `sapo` in processes of its own, on the random tiny model."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import read_json


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """An empty working folder; its store is `runs`, the default."""
    return tmp_path


@pytest.fixture
def start(workplace: Path) -> Callable[..., subprocess.CompletedProcess]:
    """`start("train", …)` runs `sapo` in the working folder, with one thread for the tiny model."""
    program = Path(sys.executable).with_name("sapo")
    environment = {name: value for name, value in os.environ.items() if name != "SAPO_STORE"}
    environment |= {"OMP_NUM_THREADS": "1"}

    def run(*arguments: object) -> subprocess.CompletedProcess:
        command = [str(program), *map(str, arguments)]
        return subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture
def document(start: Callable[..., subprocess.CompletedProcess]) -> Callable[..., Any]:
    """`document("train", …)` is the JSON that `sapo … --json` prints, and nothing else on stdout."""

    def read(*arguments: object) -> Any:
        done = start(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return read_json(done.stdout)

    return read
