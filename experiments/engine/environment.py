"""What a result was computed with: versions, device, and the commit of the code."""

import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("sapo-prompts", "torch", "transformers", "peft", "accelerate", "tokenizers", "rouge-score")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and code of this process."""
    is_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_gpu else platform.processor() or platform.machine()
    packages = {package: _version(package) for package in _PACKAGES}
    python, shown = platform.python_version(), f"{device.type} ({name})"
    return {"python": python, "packages": packages, "device": shown, **_commit()}


@cache
def _version(package: str) -> str:
    with suppress(PackageNotFoundError):
        return version(package)
    return "not installed"


@cache
def _commit() -> dict[str, Any]:
    """The git commit of the code and whether files differ from it; nothing for an installed wheel."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 (fixed command)
        return None if done.returncode else done.stdout.strip()

    try:
        # A wheel that lies inside some other repository is not that repository's commit.
        if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
            return {}
        commit, status = git("rev-parse", "HEAD"), git("status", "--porcelain")
    except OSError:  # no git here
        return {}
    return {} if commit is None else {"commit": commit, "dirty": bool(status)}
