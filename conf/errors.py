"""Errors that the user can mend: one legible message, no traceback, a defined exit code."""

import difflib
import errno
import re
from collections.abc import Iterable


class UserError(Exception):
    """What was asked cannot be done as asked. The message names what, where, and the mend. Exit code 2."""

    exit_code = 2


class WorkError(UserError):
    """The request was right, but the work failed (a loss is not finite, a stage is damaged). Exit code 1."""

    exit_code = 1


def message_of(error: BaseException) -> str:
    """What an error says; of what is no UserError, its kind too."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """An error for an unknown name, with the nearest known names and the list of them, cut if it is long."""
    known = sorted(known, key=lambda each: re.sub("[0-9]+", lambda number: number[0].zfill(9), each))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    # A store may hold thousands of runs: the first are named, in no more than 1,000 characters.
    n = next((n for n in range(min(len(known), 60), 1, -1) if len(", ".join(known[:n])) <= 1000), 1)
    rest = f" and {len(known) - n:,} more" if len(known) > n else ""
    return UserError(f"Unknown {what} '{name}'.{hint} Known: {', '.join(known[:n]) or 'none'}{rest}.")


def is_full(error: Exception) -> bool:
    """Whether a disk, a quota or a limit of the system let no more be written."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in codes or any(f"(os error {code})" in str(error) for code in codes)


def system_error(error: Exception, said: str = "") -> UserError:
    """What the system refused: path, or what is `said` of it, reason, remedy; a full disk is WorkError."""
    names = [getattr(error, name, None) for name in ("filename", "filename2")]
    where = said or " and ".join(str(name) for name in names if name is not None)
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    message = f"{where}: {reason}." if where else f"{reason}."
    if is_full(error):
        return WorkError(f"{message} Make room, and run the same command again: what is finished is kept.")
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return UserError(
            f"{message} Name a folder that you may write (store.root=, SAPO_STORE, --output), or have its "
            "owner allow it to you."
        )
    return (UserError if where else WorkError)(f"{message} Choose another folder." if said else message)
