"""Writing result files so that a reader never meets half of one."""

import os
from contextlib import suppress
from pathlib import Path

from sapo.conf.errors import UserError, WorkError, is_full


def write_file(path: Path, content: str | bytes) -> Path:
    """`content` (a text as UTF-8) at `path`, whole or not at all; returns the path.

    Raises UserError where the folder cannot be written, WorkError where there is no room.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError as error:
        failure = f"Cannot write {path}: {error.strerror or error}."
        if is_full(error):
            raise WorkError(f"{failure} Make room, and run the same command again.") from error
        raise UserError(f"{failure} Choose another folder.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return path
