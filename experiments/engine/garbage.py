"""Upkeep of a store: what is damaged in it, and what nothing refers to any more and may go."""

import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapo.conf.errors import UserError, WorkError
from sapo.data import records
from sapo.data.files import unreadable
from sapo.data.records import BASE, MANIFEST, ProbeRecord, RunRecord
from sapo.data.tasks import digest
from sapo.experiments.engine.store import GC, KINDS, Store, Stored, holder, try_lock

RECORDS: dict[str, type[RunRecord] | type[ProbeRecord]] = {"runs": RunRecord, "probes": ProbeRecord}
LOCK = "lock that nobody holds"  # `what` of a leftover lock


@dataclass(frozen=True)
class Problem:
    """What is wrong with a stage, run or probe.

    `path` is what is to go, so that its command makes it again; None where something is missing, or may not
    be read.
    """

    line: str
    path: Path | None = None


def verify(store: Store, with_stages: bool = True) -> list[Problem]:
    """Reads everything in the store; what is being written meanwhile is not judged.

    Without stages, which results alone do not have, none is missing.
    """
    found: list[Problem] = []
    with store.at_work(required=False):
        for part in (*(f"stages/{kind}" for kind in KINDS), *RECORDS):
            try:
                folders = sorted((store.root / part).iterdir())
            except FileNotFoundError:
                continue
            except OSError as error:
                found.append(Problem(str(unreadable(store.root / part, error))))
                continue
            for folder in folders:
                if not folder.is_dir() or folder.name.startswith("."):
                    continue
                if _problems(folder):
                    with _unwritten(store, folder.name) as is_so:
                        found += _problems(folder) if is_so else []
                found += _missing(store, folder, with_stages) if part in RECORDS else []
    return found


def _unwritten(store: Store, lock: str) -> AbstractContextManager[bool]:
    """Whether no command writes what the lock is for; inside, none does."""
    path = store.root / "locks" / f"{lock}.lock"
    # Where it cannot be opened nobody holds it, or nobody may write here.
    return try_lock(path) if os.access(path, os.W_OK) else nullcontext(True)


def _problems(folder: Path) -> list[Problem]:
    """What is wrong with the files of a stage, run or probe."""
    kind, key = RECORDS.get(folder.parent.name), folder.name
    try:
        if kind:
            # A folder with neither is what a killed command left.
            is_there = (folder / kind.FILE).exists() or (folder / MANIFEST).exists()
            if is_there:
                records.read_record(kind, folder)  # under any name: people rename and copy what is theirs
            return []
        stored = Stored(key, folder)
        if lines := records.lasting_damage(folder):
            # What is deleted meanwhile is no damage: runs that need it lack it.
            return [Problem(line, folder) for line in lines if folder.exists()]
        listed = {folder / name for name in (*records.read_manifest(folder), MANIFEST)}
        paths = (Path(base, name) for base, _, names in os.walk(folder) for name in names)
        if extra := sorted(set(paths) - listed):
            return [Problem(f"{path} is not in its stage's manifest", path) for path in extra]
        if digest(stored.identity) != key or stored.identity.get("kind") != stored.kind:
            return [Problem(f"{folder} holds another stage than its name says", folder)]
        _ = stored.result
    except UserError as error:
        is_damaged = isinstance(error, WorkError) or (kind and not (folder / kind.FILE).exists())
        return [Problem(str(error), folder if is_damaged else None)]
    return []


def _missing(store: Store, folder: Path, with_stages: bool) -> list[Problem]:
    """Stages and runs that a run or probe is made of and that are not there."""
    kind, remedy, found = RECORDS[folder.parent.name], records.mend(folder), list[Problem]()
    try:
        record = records.parse(kind, folder / kind.FILE, remedy)
    except UserError:  # it is damaged, or being written again
        return []
    parts = {
        f"stages/{stage.kind}/{stage.key}/{MANIFEST}": f"{stage.kind} {stage.key[:12]} of {stage.task}"
        for stage in record.stages
        if with_stages
    }
    for run in record.runs.values() if isinstance(record, ProbeRecord) else ():
        parts[f"runs/{run}/{RunRecord.FILE}"] = f"run {run}"
    for name, what in parts.items():
        path = store.root / name
        if not path.exists():
            with _unwritten(store, path.parent.name) as is_so:
                line = f"{kind.WHAT.capitalize()} {folder.name} lacks {what}: {path.parent} is gone. {remedy}"
                found += [Problem(line)] if is_so and not path.exists() else []
    return found


def delete_damaged(store: Store, problems: Sequence[Problem]) -> list[Path]:
    """Deletes what is damaged, unless it has been made again meanwhile; the paths that are gone."""
    paths = dict.fromkeys(problem.path for problem in problems if problem.path)
    if not paths:
        return []
    with undisturbed(store):
        return [path for path in paths if (not path.is_dir() or _problems(path)) and _delete(store, path)]


@dataclass(frozen=True)
class Leftover:
    """A file or folder that nothing refers to.

    `is_of_no_run` marks the results and checkpoints that a run may still want which has not finished.
    """

    path: Path
    what: str
    bytes: int
    is_of_no_run: bool = False

    @property
    def age(self) -> float:
        """Seconds since it was last changed by this machine's clock: for people, never for a decision."""
        with suppress(FileNotFoundError):  # whose it was has come and taken it away
            return max(0.0, time.time() - self.path.lstat().st_mtime)
        return 0.0


def leftovers(store: Store) -> list[Leftover]:
    """Everything that can go; what is being built or computed is left out."""
    # Listed before anyone is asked for a lock: what is begun meanwhile is not on the list.
    found = [
        # A file is what somebody else has put there.
        Leftover(path, what if path.is_dir() else "stray file", size_of(path), is_of_no_run)
        for path, what, is_of_no_run in _unreferred(store)
    ]
    held = locked(store).keys() - {GC}  # which no folder is computed under
    free = [item for item in found if not any(key[:12] in item.path.name for key in held)]
    locks = sorted(store.root.glob("locks/*.lock"))
    return [*free, *(Leftover(path, LOCK, 0) for path in locks if path.stem not in {*held, GC})]


def _unreferred(store: Store) -> Iterator[tuple[Path, str, bool]]:
    """What leftovers are made of but for locks: path, what, and whether a run may still want it."""
    for path in sorted(store.root.glob("building/*")):
        yield path, "folder of a process that died", False
    for path in sorted(store.root.glob("stages/*/*")):
        if not (path / MANIFEST).is_file():
            yield path, "stage without its manifest", False
    for part, record in RECORDS.items():
        for path in sorted(store.root.glob(f"{part}/*")):
            if path.is_dir() and not (path / record.FILE).is_file():
                yield path, f"{record.WHAT} without its {record.FILE}", False
    for path in sorted(store.root.glob("checkpoints/*")):
        is_done = (store.root / "stages" / "train" / path.name / MANIFEST).is_file()
        what = f"checkpoint of {'a finished' if is_done else 'an unfinished'} training"
        yield path, what, path.is_dir() and not is_done
    wanted = referred(store)
    for kind, stored in store.stages():
        # What was scored or evaluated in a run's trained states is the run's.
        if stored.key not in wanted and (kind == "train" or str(stored.identity.get("state")) not in wanted):
            yield stored.folder, f"{kind} stage of no finished run", True


def locked(store: Store) -> dict[str, Path]:
    """The locks that some process holds now, and their files.

    A file by itself is no lock, since a dead process holds nothing; nor is what is no plain file.
    """
    held = {}
    for path in sorted(store.root.glob("locks/*.lock")):
        if path.is_file() and not path.is_symlink():
            with try_lock(path) as is_mine:
                if not is_mine:
                    held[path.stem] = path
    return held


def collect(store: Store, items: Sequence[Leftover]) -> list[Leftover]:
    """Deletes those of the items that are still left over; returns those that are gone.

    A run that has finished since they were listed keeps its stages.
    """
    with undisturbed(store):
        still = {item.path for item in leftovers(store)}
        left = [item for item in items if item.path in still or not os.path.lexists(item.path)]
        return [item for item in left if _delete(store, item.path)]


@contextmanager
def undisturbed(store: Store) -> Iterator[None]:
    """Held while something is deleted: no command is at work, and one that is about to begin waits.

    UserError names who is at work.
    """
    with store.lock(GC):
        if held := [path for key, path in locked(store).items() if key != GC]:
            raise UserError(f"At work in {store.root}: {holder(held[0])} ({len(held)} locks). Wait for it.")
        yield
        # Whoever waits for this lock sees that the name is gone, and makes the file anew.
        (store.root / "locks" / f"{GC}.lock").unlink(missing_ok=True)


def _delete(store: Store, path: Path) -> bool:
    """Deletes a file or folder, entirely or not at all; False if it is a lock that somebody holds."""
    if path.is_dir() and not path.is_symlink():
        # Out of its place by one rename first: a kill leaves no half of it there.
        away = store.root / "building" / f"gone-{uuid.uuid4().hex[:8]}"
        away.parent.mkdir(exist_ok=True)
        path.rename(away)
        shutil.rmtree(away, ignore_errors=True)
        return True
    with try_lock(path) if path.parent == store.root / "locks" else nullcontext(True) as may_go:
        if may_go:
            path.unlink(missing_ok=True)
    return may_go


def contents(store: Store) -> dict[str, Any]:
    """Every finished stage, how many things there are of each kind, and what they take on the disk."""
    entries: list[dict[str, Any]] = []
    sizes: dict[str, list[int]] = {}
    for kind, stored in store.stages():
        try:
            text = f"{stored.result.task}, {stored.result.model}, {stored.result.seconds:.1f} s"
        except UserError as error:
            text = f"not readable ({type(error).__name__})"
        entry = {"name": f"{kind}/{stored.key[:12]}", "description": text, "key": stored.key}
        entries.append({**entry, "bytes": size_of(stored.folder)})
        sizes.setdefault(kind, []).append(entries[-1]["bytes"])
    for kind in ("runs", "probes", "checkpoints", "building"):
        sizes[kind] = [size_of(folder) for folder in store.root.glob(f"{kind}/*")]
    kinds = {kind: {"count": len(found), "bytes": sum(found)} for kind, found in sizes.items()}
    return {"stages": entries, "kinds": kinds, "bytes": sum(kind["bytes"] for kind in kinds.values())}


def size_of(path: Path) -> int:
    """Bytes of a file, or of all the files in a folder."""
    size = 0
    for file in path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]:
        with suppress(FileNotFoundError):  # it is being built, or moved to its place
            size += file.lstat().st_size if file.is_file() else 0
    return size


def referred(store: Store) -> set[str]:
    """Keys of the stages that finished runs and probes refer to; WorkError if one cannot be read."""
    keys: set[str] = set()
    for part, kind in RECORDS.items():
        for path in store.root.glob(f"{part}/[!.]*/{kind.FILE}"):
            record = records.read_record(kind, path.parent)
            keys |= {stage.key for stage in record.stages}
            keys |= {state.key for state in record.states} if isinstance(record, RunRecord) else set()
    return keys - {BASE}
