"""Files: JSON and YAML as users write them, JSON as it is stored, and manifests.

A manifest holds the SHA-256 of a finished folder's files and is written last: without, it is not finished.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from sapo.conf.errors import UserError, WorkError

MANIFEST = "manifest.json"


def read_json(path: Path, mend: str = "") -> Any:
    """A JSON file's content; UserError names the file and the position of what is wrong.

    `mend` is added where there is no such file.
    """
    text = _text(path, mend)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: a number has too many digits, or lists are nested too deeply.") from error


def read_yaml(path: Path, what: str = "file") -> Any:
    """A YAML file's content, plain values only; UserError names the file and what is wrong."""
    text = _text(path)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"Cannot read the {what} {path}: {' '.join(str(error).split())}") from error
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        # What the YAML reader lets through: a date that does not exist, `!!int x`, nesting without end.
        raise UserError(f"Cannot read the {what} {path}: a value in it is not what its type says.") from error


def is_text(value: Any) -> bool:
    """Whether a value is a text that can be written: JSON and YAML can spell half of a surrogate pair."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(path: Path, mend: str = "") -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"No file {path}." + (f" {mend}" if mend else "")) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: byte {error.start}.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error


def stored_json(path: Path) -> dict[str, Any]:
    """The JSON object in a stored file; WorkError if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        return content
    except (OSError, ValueError) as error:
        raise WorkError(
            f"Damaged: cannot read {path} ({error}). Delete {path.parent} to make it again."
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Writes JSON by way of a temporary file and one rename, so that the file is never half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def flush(folder: Path) -> None:
    """Has the system write a folder's files to the disk: they outlast a loss of power."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def sync(path: Path) -> None:
    """Has the system write a file to the disk, or which names a folder holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems do so by themselves, and refuse it for folders
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


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
