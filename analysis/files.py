"""Writing result files so that a reader never meets half of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sapo.conf.errors import UserError, WorkError, is_full


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` (same suffix) that replaces it when the block ends without an error.

    Raises UserError where the folder cannot be written, WorkError where there is no room.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        failure = f"Cannot write {path}: {error.strerror or error}."
        if is_full(error):
            raise WorkError(f"{failure} Make room, and run the same command again.") from error
        raise UserError(f"{failure} Choose another folder.") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def write_text(path: Path, text: str) -> Path:
    """`text` as UTF-8 at `path`, whole or not at all; returns the path."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
