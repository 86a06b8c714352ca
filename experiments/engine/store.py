"""The store: a folder a stage, under the key of its meaning, there entirely or not at all.

Layout: `ROOT/stages/<kind>/<key>/` with `result.json`, `config.yaml`, `identity.json`, `environment.json`,
tables as parquet, adapters as PEFT folders, and `manifest.json` with every file's SHA-256, written last.
A folder is built under `ROOT/building` and moved in by one rename.
"""

import errno
import glob
import json
import logging
import os
import shlex
import shutil
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from sapo.conf.errors import UserError, WorkError, is_full
from sapo.conf.text import printable
from sapo.data import records
from sapo.data.files import flush, stored_json, sync, unreadable, write_json
from sapo.data.records import LOSSES, MANIFEST, ProbeRecord, RunRecord, StageResult

EXAMPLES = "examples.parquet"
RUN_FILES = ("predictions.parquet", LOSSES, "config.yaml", MANIFEST, RunRecord.FILE)
PROBE_FILES = ("losses.parquet", "answers.parquet", "gradients.parquet", MANIFEST, ProbeRecord.FILE)
OWNED = "driver.lock"  # in a folder of a process; held while it lives
GC = "gc"  # the lock of who deletes anything stored
KINDS = ("score", "train", "evaluate", "gradient")
PATIENCE = 3.0  # seconds after which whoever waits for a lock says for whom
_NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """A finished stage."""

    key: str
    folder: Path

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return self.folder.parent.name

    @cached_property
    def result(self) -> StageResult:
        """What the stage took and measured."""
        path = self.folder / "result.json"
        return records.parse(StageResult, path, f"Delete {self.folder} to make it again.")

    @property
    def identity(self) -> dict[str, Any]:
        """What its key is the digest of."""
        return stored_json(self.folder / "identity.json")

    @property
    def environment(self) -> dict[str, Any]:
        """What it was computed with: versions, device, and the commit of the code."""
        return stored_json(self.folder / "environment.json")

    def examples(self) -> pd.DataFrame:
        """The stage's table of examples."""
        return pd.read_parquet(self.folder / EXAMPLES)


class Store:
    """Finished stages and runs under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._intact: set[str] = set()

    def find(
        self, kind: str, key: str, identity: dict[str, Any] | None = None, whole: bool = True
    ) -> Stored | None:
        """The finished stage, or None.

        A stored one that was computed as another than `identity` is refused. `whole`: every file is read and
        compared the first time that a stage is found; without, which is for those that only ask what there
        is, files are compared by size alone. WorkError if its files are not those of its manifest, or its
        identity is another, UserError if they may not be read.
        """
        stored = Stored(key, self.root / "stages" / kind / key)
        try:
            (stored.folder / MANIFEST).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise unreadable(stored.folder, error) from error
        if key not in self._intact:
            for line in records.lasting_damage(stored.folder, whole):
                if not stored.folder.exists():  # deleted meanwhile
                    return None
                raise WorkError(
                    f"Damaged: {line}. Delete {stored.folder}, or everything that is damaged with `sapo "
                    f"store verify --delete --root {shlex.quote(str(self.root))}`; the command that made it "
                    "computes it again."
                )
            if whole:
                self._intact.add(key)
        asked = json.loads(json.dumps(identity))
        for line in records.differences(stored.identity, asked) if asked else ():
            raise WorkError(
                f"Stage {kind}/{key[:12]} in {self.root} was computed as another than is asked for: {line} "
                f"(stored -> asked). Delete {stored.folder}; the command that made it computes it again."
            )
        return stored

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Held while a stage is computed, so that processes that share the store wait for each other.

        Whoever waits longer than PATIENCE says for whom.
        """
        path = self.root / "locks" / f"{key}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _file_lock(path)
            try:
                lock.acquire(timeout=PATIENCE)
            except Timeout:
                _log.warning("Waiting for %s, which holds %s.", holder(path), path)
                lock.acquire()
            command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
            since = datetime.now().astimezone().isoformat(timespec="seconds")
            who = f"`{command}` (process {os.getpid()} on {socket.gethostname()}, since {since})"
            with suppress(OSError):  # a full disk takes locks, and no text
                path.write_text(who, encoding="utf-8")
        except OSError as error:
            if error.errno in _NO_FLOCK:
                raise UserError(
                    f"The store {self.root} lies on a file system without file locks (flock: {error}). Mount "
                    "it with them (NFS 4; Lustre: -o flock), or set store.root=FOLDER on another one."
                ) from error
            raise self._not_writable(error) from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def at_work(self, required: bool = True) -> Iterator[None]:
        """Held while a command relies on what is stored: between two stages it holds no other lock.

        Waits for a process that deletes anything stored; that one refuses while this is held.
        Who only reads goes on without (not `required`) in a store that he may not write.
        """
        name = f"driver-{uuid.uuid4().hex}"
        with ExitStack() as held:
            with nullcontext() if required else suppress(UserError), self.lock(GC):
                held.enter_context(self.lock(name))
                held.callback((self.root / "locks" / f"{name}.lock").unlink, missing_ok=True)
            yield

    @contextmanager
    def building(self, kind: str, key: str) -> Iterator[Path]:
        """A folder to build a stage in; left without an error, it moves into place with its manifest."""
        with self.scratch(f"{kind}-{key[:12]}") as built:
            yield built
            write_json(built / MANIFEST, records.manifest_of(built))
            flush(built)
            final = self.root / "stages" / kind / key
            final.parent.mkdir(parents=True, exist_ok=True)
            # Deleted in its place, it would be a damaged stage for a while, and for good after a kill.
            old = built.with_name(f"{built.name}-old")
            if final.exists():  # computed before, or without a manifest: what an interrupted copy left
                final.rename(old)
            built.rename(final)
            sync(final.parent)  # what it was made of, a checkpoint perhaps, may go now
            shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def scratch(self, mark: str) -> Iterator[Path]:
        """An empty folder among the unfinished, gone afterwards; the caller holds the lock of `mark`.

        So what lies among the unfinished under it is a killed process's, and goes now.
        """
        building = self.root / "building"
        for leftover in building.glob(f"{glob.escape(mark)}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        # Not `tempfile`, which keeps others out whatever the umask is.
        folder = building / f"{mark}-{uuid.uuid4().hex[:8]}"
        try:
            folder.mkdir(parents=True)
            yield folder
        except (OSError, SafetensorError) as error:
            if is_full(error) or isinstance(error, PermissionError) or not building.is_dir():
                raise self._not_writable(error) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def checkpoints(self, key: str) -> Path:
        """Where a training keeps its checkpoints until it is done."""
        return self.root / "checkpoints" / key

    def run_folder(self, run: str) -> Path:
        """The folder of a run."""
        return self.root / "runs" / run

    def stages(self) -> Iterator[tuple[str, Stored]]:
        """Every finished stage with its kind."""
        for kind in KINDS:
            for path in sorted((self.root / "stages" / kind).glob(f"*/{MANIFEST}")):
                yield kind, Stored(path.parent.name, path.parent)

    def runs(self) -> Iterator[Path]:
        """The folder of every finished run; those with a leading dot are being written."""
        yield from sorted(path.parent for path in self.root.glob("runs/[!.]*/run.json"))

    def _not_writable(self, error: Exception) -> UserError:
        failure = f"Cannot write to the store {self.root}: {error}."
        if is_full(error):
            return WorkError(f"{failure} Make room; what is finished is kept, and the same command goes on.")
        if isinstance(error, PermissionError):
            return UserError(
                f"{failure} It is another user's: set store.root=FOLDER, or share it by a group (`chgrp -R "
                f"GROUP` and `chmod -R g+rwXs` on {self.root}, and umask 002 for all who use it)."
            )
        if not self.root.exists():
            return WorkError(f"{failure} It was deleted meanwhile: run the same command again.")
        return UserError(f"{failure} Set store.root=FOLDER.")


def holder(path: Path) -> str:
    """Who holds a lock and since when, as far as its file says."""
    with suppress(OSError, ValueError):
        return printable(path.read_text(encoding="utf-8")) or "another command"
    return "another command"


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Whether this process got the lock of a file without waiting; it has it inside."""
    try:
        lock = _file_lock(path)
        lock.acquire(timeout=0)
    except (Timeout, OSError):  # what cannot be opened may be held as well
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def own_folder(prefix: str, parent: str) -> Iterator[Path]:
    """A folder under `parent` while this process is inside; those that killed processes have left go.

    One without its lock belongs to nobody, and stays: it is kept for people to look at.
    """
    for lock in Path(parent).glob(f"{prefix}*/{OWNED}"):
        with try_lock(lock) as is_of_nobody:
            if is_of_nobody:
                shutil.rmtree(lock.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    lock = folder / OWNED
    with try_lock(lock):
        try:
            yield folder
        finally:
            if lock.exists():
                shutil.rmtree(folder, ignore_errors=True)


def _file_lock(path: Path) -> FileLock:
    if path.is_symlink():  # nobody holds it: a lock is opened only where it lies
        path.unlink(missing_ok=True)
    # What it would fall back to outlives a process that is killed, and locks everybody out.
    return FileLock(path, fallback_to_soft=False)


def put_record(building: Path, folder: Path) -> None:
    """Moves a run's or a probe's files to its folder; its record goes last: a folder that has it is finished.

    What the analysis has put there already stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flush(building)
    names = RUN_FILES if (building / RunRecord.FILE).is_file() else PROBE_FILES
    for name in (name for name in names if (building / name).is_file()):
        (building / name).replace(folder / name)
    sync(folder)
