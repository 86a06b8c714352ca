"""What a result was computed with: versions, device, and the commit of the code."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("sapo-prompts", "torch", "transformers", "peft", "accelerate", "tokenizers", "rouge-score")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and code of this process."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "device": f"{device.type} ({name})",
        **_commit(),
    }


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@cache
def _commit() -> dict[str, Any]:
    """The git commit of the code and whether files differ from it; nothing for an installed wheel."""
    try:
        # A wheel that lies inside some other repository is not that repository's commit.
        if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
            return {}
        commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    except OSError:  # no git here
        return {}
    return {} if commit is None else {"commit": commit, "dirty": bool(status)}


def _git(*arguments: str) -> str | None:
    """What git says in this file's folder; None if it refuses."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 (fixed command)
    return None if done.returncode else done.stdout.strip()
