"""What a finished folder holds, by SHA-256: written last, so that a folder without it is not finished."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def manifest_of(folder: Path, names: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """SHA-256 and bytes of the named files of a folder, or of all that lie in it at any depth."""
    files = [folder / name for name in names] or [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in sorted(files)
        if path.name != MANIFEST
    }


def damage(folder: Path, whole: bool = True) -> Iterator[str]:
    """A line for every file that is not what the folder's manifest says, or if that itself cannot be read.

    With `whole` files are compared by SHA-256, without by size, which reads none of them. A file that a name
    leads to outside the folder is never opened.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = [(folder / name, facts["bytes"], facts["sha256"]) for name, facts in manifest.items()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        yield f"cannot read {path} ({error})"
        return
    for file, size, digest in files:
        if not _is_within(file, folder):
            yield f"{path} names {file}, which does not lie in its folder"
            continue
        try:
            if file.stat().st_size != size or (whole and sha256(file) != digest):
                yield f"{file} is not what was stored"
        except (OSError, ValueError) as error:  # a name that no file can have is a ValueError
            yield f"{file} is gone" if isinstance(error, FileNotFoundError) else f"cannot read {error}"


def _is_within(file: Path, folder: Path) -> bool:
    return file.is_relative_to(folder) and ".." not in file.relative_to(folder).parts


def sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
