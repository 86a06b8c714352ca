"""What a result was computed with: versions, device, and the commit of the code."""

import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("sapo-prompts", "torch", "transformers", "peft", "accelerate", "tokenizers", "rouge-score")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and code of this process."""
    is_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_gpu else platform.processor() or platform.machine()
    return {"python": platform.python_version(), "device": f"{device.type} ({name})", **_code()}


@cache
def _code() -> dict[str, Any]:
    """The packages, and the git commit and whether files differ from it; no commit for an installed wheel."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 (fixed command)
        return done.stdout.strip()

    found: dict[str, Any] = {"packages": {package: version(package) for package in _PACKAGES}}
    with suppress(OSError, subprocess.CalledProcessError):  # no git here
        # A wheel that lies inside some other repository is not that repository's commit.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        found |= {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    return found
