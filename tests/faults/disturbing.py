"""A small experiment, processes that run it and are disturbed, and what can become of stored files."""

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tiny import SMALL

from sapo.cli import app
from sapo.data.records import MANIFEST, read_manifest
from sapo.experiments.engine.garbage import verify
from sapo.experiments.engine.store import Store

EXPERIMENT = (
    "train",
    *SMALL,
    "trainer.epochs=2",
    "trainer.global_batch=4",
    "trainer.checkpoint_steps=1",
    "method.dropout=0.1",
    "policy=sapo",
)
LONGEST_WAIT = 600  # seconds; everything that is waited for takes seconds
# Commands are forked from a process that has everything imported: one that is killed costs no imports.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("pytest", "matplotlib.pyplot", "peft", "transformers.models.llama.modeling_llama"),
        *("sapo.analysis.matrices", "sapo.analysis.tables", "sapo.analysis.render"),
        *("sapo.cli.app", "sapo.cli.train", "sapo.cli.views", "sapo.experiments.run"),
    ]
)


# --- processes ---------------------------------------------------------------------------------------------


def command(
    arguments: Sequence[str],
    output: Path,
    log: Path,
    *,
    ray: str = "",
    largest_file: int = 0,
    clock: float = 0.0,
) -> None:
    """Runs a command in this process, under whatever fault is asked for; its stages are noted in the log."""
    for descriptor in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), descriptor)
    if ray:
        os.environ["RAY_TMPDIR"] = ray
        note_workers(log)
    else:
        note_stages(log)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    now = time.time
    time.time = lambda: now() + clock
    app.main(list(arguments))


def note_stages(log: Path) -> None:
    """Has this process note the stages that it begins and stores, at once: it may be killed right after."""
    building = Store.building

    def note(line: str) -> None:
        with log.open("ab", buffering=0) as file:
            file.write(f"{line} {os.getpid()}\n".encode())

    @contextmanager
    def noted(store: Store, kind: str, key: str) -> Iterator[Path]:
        note(f"begin {kind} {key}")
        with building(store, kind, key) as folder:
            yield folder
        note(f"stored {kind} {key}")

    Store.building = noted  # type: ignore[method-assign]


def note_workers(log: Path) -> None:
    """Has Ray's workers note theirs, too."""
    from ray import cloudpickle

    from sapo.experiments.engine import ray

    class Noting(ray.StageWorker):
        def __init__(self, root: str, folder: str) -> None:
            super().__init__(root, folder)
            note_stages(log)

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # they cannot import this file
    ray.StageWorker = Noting  # type: ignore[misc]


@dataclass(frozen=True)
class Driver:
    """A process that runs a command on a store."""

    process: Any
    output: Path
    root: Path

    @property
    def code(self) -> int:
        """Its exit code, when it has ended."""
        until(lambda: not self.process.is_alive(), self)
        return self.process.exitcode

    @property
    def text(self) -> str:
        """What it wrote."""
        return self.output.read_text(encoding="utf-8")

    def signal(self, number: int) -> int:
        """Its exit code after a signal."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
        return self.code

    def kill(self) -> None:
        """SIGKILL while it is at work."""
        assert self.signal(signal.SIGKILL) == -signal.SIGKILL, self.text

    def until_begun(self, number: int) -> None:
        """Waits until so many stages have begun in its store."""
        until(lambda: noted(self.root, "begin").total() >= number, self)


def until(condition: Callable[[], bool], driver: Driver | None = None) -> None:
    """Looks again and again; a fault strikes at a moment of the work, not of the clock.

    Also returns when the driver has ended. What never comes is an error with what the driver has said.
    """
    end = time.monotonic() + LONGEST_WAIT
    while not condition() and (driver is None or driver.process.is_alive()):
        if time.monotonic() > end:
            if driver:
                driver.process.kill()
            raise AssertionError(f"waited in vain{': ' + driver.text if driver else ''}")
        time.sleep(0.01)


def wait(seconds: float, driver: Driver) -> None:
    """Waits for some seconds, or until the driver has ended."""
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() > end, driver)


def log_of(root: Path) -> Path:
    """Where the stages are noted that begin and are stored in a store."""
    return root.with_name(f"{root.name}.log")


def noted(root: Path, event: str) -> Counter[str]:
    """How often each stage has begun (`begin`), or was `stored`."""
    return Counter(f"{kind} {key}" for what, kind, key, _ in _lines(root) if what == event)


def processes_noted(root: Path) -> list[int]:
    """The processes of that, in order."""
    return [int(process) for *_, process in _lines(root)]


def _lines(root: Path) -> list[list[str]]:
    log = log_of(root)
    return [line.split() for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []


# --- what an experiment came to ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """The experiment that nothing disturbed: its store, its numbers, and the seconds that its stages took."""

    root: Path
    seconds: float
    record: dict[str, Any]
    predictions: str
    digests: dict[str, dict[str, str]]

    def assert_same(self, root: Path) -> None:
        """The store holds the same numbers, each to the bit, and nothing unfinished."""
        assert outcome(root) == (self.record, self.predictions, self.digests)
        assert not verify(Store(root))
        assert not list(root.glob("building/*"))
        assert not list(root.glob("checkpoints/*"))

    def assert_nothing_lost(self, root: Path) -> None:
        """The numbers are the same, and nothing that was stored was computed again."""
        self.assert_same(root)
        assert set(noted(root, "stored").values()) == {1}


def outcome(root: Path) -> tuple[dict[str, Any], str, dict[str, dict[str, str]]]:
    """Everything that may not depend on what happened on the way.

    Record and predictions of the one run of a store, and the digests of all tables and weights, by stage.
    """
    (folder,) = Store(root).runs()
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    del record["environment"]
    record["stages"] = [[stage[key] for key in ("kind", "key", "task")] for stage in record["stages"]]
    digests = {
        f"{kind} {stored.key}": {
            name: facts.sha256
            for name, facts in read_manifest(stored.folder).items()
            if name.endswith((".parquet", ".safetensors"))
        }
        for kind, stored in Store(root).stages()
    }
    return record, pd.read_parquet(folder / "predictions.parquet").to_csv(), digests


# --- stored files ------------------------------------------------------------------------------------------


def stored_files(root: Path) -> dict[tuple[str, ...], Path]:
    """One file of every kind: of each kind of stage, of a run, of a probe.

    What the analysis puts beside them is in no manifest.
    """
    found: dict[tuple[str, ...], Path] = {}
    for manifest in sorted(root.glob(f"*/**/{MANIFEST}")):
        folder = manifest.parent
        parts = folder.relative_to(root).parts[:-1]
        for name in (*read_manifest(folder), MANIFEST):
            found.setdefault((*parts, *Path(name).parts), folder / name)
    return found


def flip(path: Path, draw: random.Random) -> None:
    """Turns one bit over."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(content))


def cut(path: Path, draw: random.Random) -> None:
    """Takes the end away."""
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


DAMAGES = {"flipped bit": flip, "cut file": cut}
