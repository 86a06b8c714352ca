"""A small experiment, and processes that run it and are disturbed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tiny import SMALL

from sapo.data.records import MANIFEST
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


class Drivers:
    """Commands in processes of their own, forked from one that has everything imported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("drivers.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self.ask({"warm": list(EXPERIMENT)}) == "ready"

    def start(self, root: Path, *arguments: str, **faults: Any) -> "Driver":
        """The experiment, or another command, on a store; with faults: see `drivers.py`."""
        self.count += 1
        output = self.folder / f"output-{self.count}"
        order = {
            "arguments": list(arguments) or [*EXPERIMENT, f"store.root='{root}'"],
            "output": str(output),
            "log": str(log_of(root)),
            **faults,
        }
        return Driver(self, self.ask({"start": order}), output)

    def run(self, root: Path, *arguments: str, **faults: Any) -> "Driver":
        """The same, when it is over."""
        driver = self.start(root, *arguments, **faults)
        driver.wait()
        return driver

    def ask(self, order: dict[str, Any]) -> Any:
        """The server's answer."""
        assert self.server.stdin
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        assert self.server.stdout
        return json.loads(self.server.stdout.readline())

    def close(self) -> None:
        """Ends the server."""
        assert self.server.stdin
        self.server.stdin.close()
        self.server.wait()


@dataclass
class Driver:
    """A process that runs a command."""

    drivers: Drivers
    id: int
    output: Path
    code: int | None = None

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        if self.code is None:
            until(lambda: not self.is_running, self)
            self.code = self.drivers.ask({"wait": self.id})
        return self.code

    def signal(self, number: int) -> int:
        """Its exit code after a signal."""
        os.kill(self.id, number)
        return self.wait()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended: a process that nobody has waited for is a zombie then."""
        status = Path(f"/proc/{self.id}/stat").read_text(encoding="utf-8")
        return status.rsplit(")", 1)[1].split()[0] != "Z"

    @property
    def text(self) -> str:
        """What it wrote."""
        return self.output.read_text(encoding="utf-8")


def log_of(root: Path) -> Path:
    """Where the stages are noted that begin and are stored in a store."""
    return root.with_name(f"{root.name}.log")


def stages_noted(root: Path, event: str) -> Counter[str]:
    """How often each stage has begun, or was stored."""
    log = log_of(root)
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return Counter(" ".join(line.split()[1:3]) for line in lines if line.startswith(event))


def workers_noted(root: Path) -> list[int]:
    """Live processes of Ray's workers that have begun a stage in a store."""
    log = log_of(root)
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    ids = sorted({int(line.split()[3]) for line in lines})
    return [number for number in ids if _command_line(number).startswith(b"ray::")]


def _command_line(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()  # empty for a zombie
    except (FileNotFoundError, ProcessLookupError):
        return b""


def until(condition: Callable[[], bool], driver: Driver | None = None) -> None:
    """Looks again and again; a fault strikes at a moment of the work, not of the clock.

    Also returns when the driver has ended. What never comes is an error with what the driver has said.
    """
    end = time.monotonic() + LONGEST_WAIT
    while not condition() and (driver is None or driver.is_running):
        if time.monotonic() > end:
            if driver:
                os.kill(driver.id, signal.SIGKILL)
            raise AssertionError(f"waited in vain{': ' + driver.text if driver else ''}")
        time.sleep(0.01)


@dataclass(frozen=True)
class Outcome:
    """The numbers of a finished experiment: everything that may not depend on what happened on the way."""

    record: dict[str, Any]
    predictions: pd.DataFrame
    digests: dict[str, dict[str, str]]


def outcome(root: Path) -> Outcome:
    """What the one run of a store came to, and the digests of all tables and weights, by stage."""
    (folder,) = Store(root).runs()
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    stages = [{key: stage[key] for key in ("kind", "key", "task")} for stage in record["stages"]]
    digests = {}
    for kind, stored in Store(root).stages():
        manifest = json.loads((stored.folder / MANIFEST).read_text(encoding="utf-8"))
        digests[f"{kind} {stored.key}"] = {
            name: facts["sha256"]
            for name, facts in manifest.items()
            if name.endswith((".parquet", ".safetensors"))
        }
    kept = {name: value for name, value in record.items() if name not in ("stages", "environment")}
    return Outcome(kept | {"stages": stages}, pd.read_parquet(folder / "predictions.parquet"), digests)


@dataclass(frozen=True)
class Whole:
    """The experiment that nothing disturbed: its store, its numbers, and the seconds that its stages took."""

    root: Path
    outcome: Outcome
    seconds: float

    def copy(self, root: Path) -> Path:
        """A copy of its store."""
        shutil.copytree(self.root, root)
        return root

    def assert_same(self, root: Path) -> None:
        """The store holds the same numbers, each to the bit, and nothing unfinished."""
        found = outcome(root)
        assert found.record == self.outcome.record
        assert found.digests == self.outcome.digests
        pd.testing.assert_frame_equal(found.predictions, self.outcome.predictions)
        assert not verify(Store(root))
        assert not list(root.glob("building/*"))
        assert not list(root.glob("checkpoints/*"))
