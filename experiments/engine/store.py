"""The store: a folder a stage, under the key of its meaning, there entirely or not at all.

Layout: `ROOT/stages/<kind>/<key>/` with `result.json`, `config.yaml`, `identity.json`, `environment.json`,
tables as parquet, adapters as PEFT folders, and `manifest.json` with every file's SHA-256, written last.
A folder is built under `ROOT/building` and moved in by one rename.
"""

import errno
import glob
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from sapo.conf.errors import UserError, WorkError, is_full
from sapo.data.files import flush, stored_json, sync, write_json
from sapo.data.records import MANIFEST, StageResult, damage, manifest_of, parse

EXAMPLES = "examples.parquet"
GC = "gc"  # the lock of who deletes what no finished run refers to
KINDS = ("score", "train", "evaluate", "gradient")
_NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


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
        mend = f"Delete {self.folder} to make it again."
        return parse(StageResult, self.folder / "result.json", mend)

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

    def find(self, kind: str, key: str, whole: bool = True) -> Stored | None:
        """The finished stage, or None. Raises WorkError if its files are not those of its manifest.

        Every file is read and compared the first time that a stage is found; without `whole`, which is for
        those that only ask what there is, files are compared by size alone.
        """
        folder = self.root / "stages" / kind / key
        if not (folder / MANIFEST).is_file():
            return None
        if key not in self._intact:
            for line in damage(folder, whole):
                raise WorkError(f"Damaged: {line}. {self._mend(folder)}")
            if whole:
                self._intact.add(key)
        return Stored(key, folder)

    def _mend(self, folder: Path) -> str:
        return (
            f"Delete {folder}, or everything that is damaged with `sapo store verify --delete --root "
            f"{self.root}`; the command that made it computes it again."
        )

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Held while a stage is computed, so that processes that share the store wait for each other."""
        self._make(self.root / "locks")
        lock = _file_lock(self.root / "locks" / f"{key}.lock")
        try:
            lock.acquire()
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
    def at_work(self) -> Iterator[None]:
        """Held while runs are under way, which hold no other lock between one stage and the next.

        Waits for a process that deletes what no finished run refers to; that one refuses while this is held.
        """
        name = f"driver-{uuid.uuid4().hex}"
        with ExitStack() as held:
            with self.lock(GC):
                self._sweep_drivers()
                held.enter_context(self.lock(name))
            held.callback((self.root / "locks" / f"{name}.lock").unlink, missing_ok=True)
            yield

    def _sweep_drivers(self) -> None:
        """Deletes the lock files of commands that were killed at work; no command begins or sweeps now."""
        for path in (self.root / "locks").glob("driver-*.lock"):
            with taken(path) as is_mine, suppress(FileNotFoundError):
                if is_mine:
                    path.unlink()

    @contextmanager
    def building(self, kind: str, key: str) -> Iterator[Path]:
        """A folder to build a stage in; left without an error, it moves into place with its manifest."""
        # A folder without a manifest is what an interrupted copy left; it is not a stage.
        with self.replacing(self.root / "stages" / kind / key, f"{kind}-{key[:12]}") as scratch:
            yield scratch
            write_json(scratch / MANIFEST, manifest_of(scratch))

    @contextmanager
    def replacing(self, final: Path, mark: str) -> Iterator[Path]:
        """A folder that, left without an error, takes the place of `final`; the caller holds the lock.

        `mark` is the lock's own, so what lies among the unfinished under it is a killed process's.
        """
        with self.scratch(mark) as built:
            yield built
            flush(built)
            final.parent.mkdir(parents=True, exist_ok=True)
            # Deleted in its place, it would be a damaged stage for a while, and for good after a kill.
            old = built.with_name(f"{built.name}-old")
            if final.exists():
                final.rename(old)
            built.rename(final)
            sync(final.parent)  # what it was made of, a checkpoint perhaps, may go now
            shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def scratch(self, mark: str) -> Iterator[Path]:
        """An empty folder among the unfinished, gone afterwards; one that a killed process left goes now."""
        self._make(self.root / "building")
        for leftover in (self.root / "building").glob(f"{glob.escape(mark)}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{mark}-", dir=self.root / "building"))
        try:
            yield folder
        except (OSError, SafetensorError) as error:
            if not is_full(error):
                raise
            raise self._not_writable(error) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def checkpoints(self, key: str) -> Path:
        """Where a training keeps its checkpoints until it is done."""
        return self.root / "checkpoints" / key

    def run_folder(self, run: str) -> Path:
        """The folder of a run."""
        return self.root / "runs" / run

    def probe_folder(self, probe: str) -> Path:
        """The folder of a probe."""
        return self.root / "probes" / probe

    def stages(self) -> Iterator[tuple[str, Stored]]:
        """Every finished stage with its kind."""
        for kind in KINDS:
            for path in sorted((self.root / "stages" / kind).glob(f"*/{MANIFEST}")):
                yield kind, Stored(path.parent.name, path.parent)

    def runs(self) -> Iterator[Path]:
        """The folder of every finished run; those with a leading dot are being written."""
        yield from sorted(path.parent for path in self.root.glob("runs/[!.]*/run.json"))

    def damaged(self) -> Iterator[tuple[Path, str]]:
        """Every damaged folder of a stage, run or probe, with a line for each file that has changed.

        One that was written without a manifest cannot be judged, and is passed over.
        """
        for pattern in (f"stages/*/*/{MANIFEST}", f"runs/[!.]*/{MANIFEST}", f"probes/[!.]*/{MANIFEST}"):
            for manifest in sorted(self.root.glob(pattern)):
                for line in damage(manifest.parent):
                    yield manifest.parent, line

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_writable(error) from error

    def _not_writable(self, error: Exception) -> UserError:
        failure = f"Cannot write to the store {self.root}: {error}."
        if is_full(error):
            return WorkError(f"{failure} Make room; what is finished is kept, and the same command goes on.")
        return UserError(f"{failure} Set store.root=FOLDER.")


@contextmanager
def taken(path: Path) -> Iterator[bool]:
    """Whether this process got the lock of a file without waiting; it has it inside."""
    lock = _file_lock(path, timeout=0)
    try:
        lock.acquire()
    except (Timeout, OSError):  # what cannot be opened may be held as well
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _file_lock(path: Path, timeout: float = -1) -> FileLock:
    # What it would fall back to outlives a process that is killed, and locks everybody out.
    return FileLock(path, timeout=timeout, fallback_to_soft=False)
