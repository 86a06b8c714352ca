"""Files: JSON and YAML as users write them, and JSON as it is stored."""

import errno
import hashlib
import json
import os
import shlex
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from sapo.conf.errors import UserError, WorkError, system_error


def read_json(path: Path, mend: str = "") -> Any:
    """A JSON file's content; UserError names file and place of a fault, and the `mend` where it is absent."""
    return json_of(read_text(path, mend), path)


def json_of(text: str, path: Path, line: int = 1, **options: Any) -> Any:
    """The JSON in a text that begins in a file's line, by options of `json.loads`; UserError as above."""
    try:
        return json.loads(text, **options)
    except json.JSONDecodeError as error:
        place = f"line {line + error.lineno - 1}, column {error.colno}"
        raise UserError(f"{path}: broken JSON at {place}: {error.msg}.") from error
    except (ValueError, RecursionError) as error:
        what = "a number has too many digits, or lists are nested too deeply"
        raise UserError(f"{path}, line {line}: {what}.") from error


def read_yaml(path: Path, what: str = "file") -> Any:
    """A YAML file's content, plain values only; UserError names the file and what is wrong."""
    text = read_text(path)
    try:
        # The reader in C, where PyYAML has it, is ten times as fast: a pool may be large.
        return getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text).get_single_data()
    except yaml.YAMLError as error:
        raise UserError(f"Cannot read the {what} {path}: {' '.join(str(error).split())}") from error
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        # What the YAML reader lets through: a date that does not exist, `!!int x`, nesting without end.
        raise UserError(f"Cannot read the {what} {path}: a value in it is not what its type says.") from error


def user_path(name: str) -> Path:
    """A path as a user writes it: `~/` is the home folder, and a `~` that names no user's is a character."""
    return Path(os.path.expanduser(name))


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is a text that can be written: JSON and YAML can spell half of a surrogate pair."""
    try:  # a search for surrogates takes a hundred times as long
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def read_text(path: Path, mend: str = "") -> str:
    """A UTF-8 file's text; UserError if it cannot be read, with `mend` where there is none."""
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
    except PermissionError as error:
        raise unreadable(path, error) from error
    except (OSError, ValueError, RecursionError) as error:
        mend = f"Delete {path.parent} to make it again."
        raise WorkError(f"Damaged: cannot read {path} ({error}). {mend}") from error


def write_whole(path: Path, content: str | bytes | Iterable[str]) -> None:
    """`content` (texts as UTF-8) at `path` by one rename: it is there whole, or what was there before."""
    pieces = [content] if isinstance(content, str | bytes) else content
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.writelines(piece.encode() if isinstance(piece, str) else piece for piece in pieces)
        scratch.replace(path)
    finally:
        with suppress(OSError):
            scratch.unlink()


def write_json(path: Path, content: Any) -> None:
    """JSON at `path`, whole or not at all."""
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_result(path: Path, content: str | bytes, what: str = "") -> Path:
    """A file of results at `path`, which it returns, whole or not at all, its folder made if need be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise system_error(error, f"Cannot write {what}{path}") from error
    return path


def flush(folder: Path) -> None:
    """Has the system write a folder's files to the disk: they outlast a loss of power.

    Files get the permissions of the folder, which follow the umask, whatever a library wrote them with.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)
    for path in (*folder.rglob("*"), folder):
        if path != folder and not path.is_symlink():
            path.chmod(mode if path.is_dir() else mode & 0o666)
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


def unreadable(path: Path, error: OSError) -> UserError:
    """The error for a file that is there and cannot be read: whose it is, and the mend."""
    mend = "It may be sound: look after the disk or mount it lies on, and try again."
    if isinstance(error, PermissionError):
        owner = ""
        with suppress(OSError, KeyError):
            owner = f" ({path.owner()})"
        mend = f"Have its owner{owner} run `chmod -R g+rX {shlex.quote(str(path.parent))}` for your group."
    return UserError(f"Cannot read {path}: {error.strerror or error}. {mend}")


def sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
