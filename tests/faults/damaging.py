"""One stored file of every kind, and what can become of it."""

import random
from collections.abc import Callable
from pathlib import Path

from sapo.data.records import MANIFEST

Kind = tuple[str, ...]


def stored_files(root: Path) -> dict[Kind, Path]:
    """One file of every kind: of each kind of stage, of a run, of a probe."""
    found: dict[Kind, Path] = {}
    for pattern in ("stages/*/*/**/*", "runs/*/*", "probes/*/*"):
        for path in sorted(root.glob(pattern)):
            parts = path.relative_to(root).parts
            kind = (*parts[:2], *parts[3:]) if parts[0] == "stages" else (parts[0], parts[-1])
            if path.is_file() and kind not in found and in_manifest(path):
                found[kind] = path
    return found


def in_manifest(path: Path) -> bool:
    """Whether a stage, run or probe is made of it; what the analysis puts beside is made again."""
    folder = next(parent for parent in path.parents if (parent / MANIFEST).is_file())
    name = path.relative_to(folder).as_posix()
    return name == MANIFEST or f'"{name}"' in (folder / MANIFEST).read_text(encoding="utf-8")


def flip(path: Path, draw: random.Random) -> None:
    """Turns one bit over."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(content))


def cut(path: Path, draw: random.Random) -> None:
    """Takes the end away."""
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {"flipped bit": flip, "cut file": cut}
