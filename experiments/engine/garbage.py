"""What lies in a store that nothing refers to any more, and how it is deleted without disturbing anyone."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from sapo.conf.errors import UserError, WorkError
from sapo.data.files import stored_json
from sapo.data.records import MANIFEST, damage
from sapo.experiments.engine.store import GC, Store, taken

LOCK = "lock that nobody holds"  # `what` of a leftover lock


@dataclass(frozen=True)
class Leftover:
    """A file or folder that nothing refers to, and the lock under which it may go.

    `is_of_no_run` marks the results and checkpoints that a run may still want which has not finished; `lacks`
    is the file that makes a folder whole, which may have come by the time that the folder is to go.
    """

    path: Path
    what: str
    lock: str
    bytes: int
    is_of_no_run: bool
    lacks: str | None = None

    @property
    def age(self) -> float:
        """Seconds since it was last changed by this machine's clock: for people, never for a decision."""
        with suppress(FileNotFoundError):  # whose it was has come and taken it away
            return max(0.0, time.time() - self.path.stat().st_mtime)
        return 0.0

    def is_left(self) -> bool:
        """Whether nobody has finished it since it was listed."""
        return self.lacks is None or not (self.path / self.lacks).is_file()


def leftovers(store: Store) -> list[Leftover]:
    """Everything that can go; what is being built or computed is left out."""
    # Listed before anyone is asked for a lock: what is begun meanwhile is not on the list.
    found = [*_unfinished(store), *_of_no_run(store)]
    held = locked(store)
    free = [item for item in found if not any(key[:12] in item.path.name for key in held)]
    locks = [
        Leftover(path, LOCK, path.stem, 0, is_of_no_run=False)
        for path in sorted(store.root.glob("locks/*.lock"))
        if path.stem not in held
    ]
    return [*free, *locks]


def locked(store: Store) -> set[str]:
    """The locks that some process holds now. A lock file by itself is none: a dead process holds nothing."""
    held = set()
    for path in sorted(store.root.glob("locks/*.lock")):
        with taken(path) as is_mine:
            if not is_mine:
                held.add(path.stem)
    return held


def collect(store: Store, items: list[Leftover]) -> list[Leftover]:
    """Deletes the items; returns those that are gone. One whose lock another process holds stays."""
    is_wanted = any(item.is_of_no_run for item in items)
    with _alone(store) if is_wanted else nullcontext():
        return [item for item in items if discard(store, item.path, item.lock, item.is_left)]


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """No command works in the store now, and one that is about to begin waits."""
    with store.lock(GC):
        if held := locked(store) - {GC}:
            raise UserError(
                f"A command is at work in {store.root} ({len(held)} locks held), and may need what no "
                "finished run refers to. Wait for it, or leave out --unfinished."
            )
        yield
        (store.root / "locks" / f"{GC}.lock").unlink(missing_ok=True)


def discard(store: Store, path: Path, lock: str, is_left: Callable[[], bool]) -> bool:
    """Deletes a file or folder, entirely or not at all; False if another process holds its lock.

    False also if, under the lock, it is not left any more: it was found without, and may be whole by now.
    """
    locks = store.root / "locks"
    locks.mkdir(exist_ok=True)
    with taken(locks / f"{lock}.lock") as is_mine:
        if not is_mine or not is_left():
            return False
        if path.is_dir():
            # Out of its place by one rename first: a kill leaves no half of it there.
            building = store.root / "building"
            building.mkdir(exist_ok=True)
            away = Path(tempfile.mkdtemp(prefix="gone-", dir=building))
            path.rename(away / path.name)
            shutil.rmtree(away, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        # Whoever waits for this lock sees that the name is gone, and makes the file anew.
        (locks / f"{lock}.lock").unlink(missing_ok=True)
    return True


def size_of(path: Path) -> int:
    """Bytes of a file, or of all the files in a folder."""
    size = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        with suppress(FileNotFoundError):  # it is being built, or moved to its place
            size += file.stat().st_size if file.is_file() else 0
    return size


def _unfinished(store: Store) -> Iterator[Leftover]:
    root = store.root
    for path in sorted(root.glob("building/*")):
        # `kind-key…`, or the name of the very lock, and a few random characters.
        yield _leftover(path, "folder of a process that died", f"gone-{path.name}")
    for path in sorted(root.glob("stages/*/*")):
        if not (path / MANIFEST).is_file():
            yield _leftover(path, "stage without its manifest", path.name, lacks=MANIFEST)
    for path in sorted(root.glob("runs/*")):
        if path.is_dir() and not (path / "run.json").is_file():
            yield _leftover(path, "run without its run.json", path.name, lacks="run.json")
    for path in sorted(root.glob("checkpoints/*")):
        is_done = (root / "stages" / "train" / path.name / MANIFEST).is_file()
        what = "checkpoint of a finished training" if is_done else "checkpoint of an unfinished training"
        yield _leftover(path, what, path.name, is_of_no_run=not is_done)


def _of_no_run(store: Store) -> Iterator[Leftover]:
    """Stages of no finished run; what was scored or evaluated in a run's trained states is the run's."""
    wanted = referred(store)
    for kind, stored in store.stages():
        if stored.key in wanted:
            continue
        if kind != "train" and str(stored_json(stored.folder / "identity.json").get("state")) in wanted:
            continue
        yield _leftover(stored.folder, f"{kind} stage of no finished run", stored.key, is_of_no_run=True)


def referred(store: Store) -> set[str]:
    """Keys of the stages that finished runs and probes refer to; WorkError if one cannot be read."""
    keys: set[str] = set()
    for record in [*store.root.glob("runs/[!.]*/run.json"), *store.root.glob("probes/[!.]*/probe.json")]:
        for line in damage(record.parent) if (record.parent / MANIFEST).is_file() else ():
            raise WorkError(f"Damaged: {line}. What it refers to cannot be told: run its command again.")
        content = stored_json(record)
        # Keys are SHA-256 digests; whatever a record calls them, they are kept.
        keys |= set(_digests(content))
    return keys


def _digests(content: object) -> Iterator[str]:
    if isinstance(content, dict):
        content = [*content.keys(), *content.values()]
    if isinstance(content, list):
        for item in content:
            yield from _digests(item)
    elif isinstance(content, str) and len(content) == 64 and not set(content) - set("0123456789abcdef"):
        yield content


def _leftover(
    path: Path, what: str, lock: str, is_of_no_run: bool = False, lacks: str | None = None
) -> Leftover:
    """A folder with what it is, or a file that somebody else has put in the place of one."""
    return Leftover(path, what if path.is_dir() else "stray file", lock, size_of(path), is_of_no_run, lacks)
