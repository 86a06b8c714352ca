"""Getting the benchmarks: the reference's SuperNI and TRACE, and all tasks of Natural Instructions."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sapo.conf.errors import UserError, WorkError
from sapo.data import natural
from sapo.data.benchmarks import FOLDERS

REPOSITORY = "https://github.com/Eric8932/SAPO"
NATURAL = "https://github.com/allenai/natural-instructions"


def fetch_benchmarks(target: Path, repository: str = REPOSITORY) -> bool:
    """Puts SUPERNI and TRACE, as the paper's authors used them, into `target`; False if they are there."""
    return _fetch(target, repository, list(FOLDERS.values()), "instructions.json")


def fetch_natural(target: Path, repository: str = NATURAL) -> bool:
    """The same of the folder `tasks` of Natural Instructions: a file a task, some 1,600 of them."""
    return _fetch(target, repository, [natural.FOLDER], "task*_*.json")


def _fetch(target: Path, repository: str, folders: Sequence[str], holds: str) -> bool:
    """Puts folders of a repository, each of which holds such a file, into `target`.

    The clone is made beside `target` and moved in when it is complete.
    """
    missing = [name for name in folders if not (target / name).is_dir()]
    if not missing:
        return False
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file. Choose another folder with --to DIR.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".fetching-", dir=target.parent))
    except OSError as error:
        raise UserError(f"Cannot write to {target}: {error}. Choose another folder with --to DIR.") from error
    try:
        clone, by_hand = scratch / "clone", f"Clone {repository} elsewhere and set SAPO_DATA to that folder."
        command = ["git", "clone", "--quiet", "--depth", "1", repository, str(clone)]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 (fixed command)
        if done.returncode:
            raise WorkError(f"git cannot clone {repository}: {done.stderr.strip()}\n{by_hand}")
        for name in missing:
            if not any((clone / name).glob(holds)):
                raise WorkError(f"{repository} has no {name}/{holds} (any more).")
        target.mkdir(exist_ok=True)
        for name in missing:
            (clone / name).rename(target / name)
    except FileNotFoundError as error:
        raise WorkError(f"git is not installed. Install it, or: {by_hand}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True
