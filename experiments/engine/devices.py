"""Computing one stage: in this process, or on several devices of this machine, a process each.

Every process runs the whole stage on its share of the rows (`model/ranks.py`), and the first one writes. They
live as long as this one and keep the base model loaded, as a single one does, which is why PyTorch starts
them here as it does for Accelerate's launchers: those end with the one function that they were started for,
and would load the model anew for each stage.
"""

import atexit
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from logging.handlers import QueueHandler
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import distributed
from torch.multiprocessing import get_context, start_processes

from sapo.conf.errors import UserError, WorkError
from sapo.data.files import write_json
from sapo.data.records import StageResult, write_record
from sapo.experiments.engine.environment import environment
from sapo.experiments.engine.stage import Stage
from sapo.experiments.engine.store import Store, own_folder
from sapo.experiments.model.budgets import DoesNotFitError
from sapo.experiments.model.identity import device_of, require_devices
from sapo.experiments.model.load import LanguageModel, load_model

# A process that is waited for is watched from here: nobody has to give up waiting.
_PATIENCE = timedelta(days=30)
_END = 5.0  # seconds that a process has to end in before it is killed
_log = logging.getLogger(__name__)


def compute(stage: Stage, store: Store, folder: Path) -> None:
    """Computes a stage into a folder, on several devices (`engine.devices`).

    If one of several processes dies, the stage begins again, `engine.retries` times, a training from its last
    checkpoint. Whatever else ends it is raised; the processes are then gone.
    """
    engine = stage.config.engine
    for left in range(engine.retries, -1, -1):
        try:
            _group(stage).compute(stage, folder, store.root.absolute())
            return
        except _DiedError as error:
            what = f"{stage.kind} of {stage.name} on {engine.devices} devices: {error}"
            if not left:
                raise WorkError(f"{what} It was given up (engine.retries). Nothing was stored.") from error
            _log.warning("%s It is begun again, a training from its last checkpoint.", what)
            shutil.rmtree(folder)
            folder.mkdir()


@contextmanager
def described(stage: Stage, folder: Path) -> Iterator[tuple[LanguageModel, dict[str, Any]]]:
    """The model to compute a stage with in this process, and a dict for what it measures.

    Writes these beside the result, what the stage is, and with what it was made.
    """
    facts: dict[str, Any] = {}
    model = load_model(stage.config)
    begun = time.monotonic()
    try:
        yield model, facts
    except DoesNotFitError as error:
        raise WorkError(f"Task {stage.name} ({stage.kind}): {error}") from error
    seconds = round(time.monotonic() - begun + facts.get("earlier_seconds", 0.0), 3)
    common = {"task": stage.name, "model": stage.config.model.name, "seconds": seconds}
    result = StageResult.model_validate({**common, **facts}, strict=False)
    write_record(folder / "result.json", result)
    write_json(folder / "identity.json", stage.identity())
    write_json(folder / "environment.json", environment(model.base.device))
    read = {group: value for group, value in asdict(stage.config).items() if group in stage.groups}
    text = yaml.safe_dump(read, sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(text, encoding="utf-8")


class _DiedError(Exception):
    """A process is gone that nobody has ended."""


class _Group:
    """The processes, waiting for a stage or at one."""

    def __init__(self, size: int, device: str) -> None:
        self._held = ExitStack()
        meeting = self._held.enter_context(own_folder("sapo-devices-", tempfile.gettempdir()))
        pairs = [get_context("spawn").Pipe() for _ in range(size)]
        self._pipes = [ours for ours, _ in pairs]
        level = logging.getLogger("sapo").getEffectiveLevel()
        theirs = [end for _, end in pairs]
        given = (size, device, str(meeting / "store"), theirs, level)
        self._context = start_processes(_work, given, nprocs=size, join=False, daemon=True)
        for end in theirs:  # so that the end of a process is the end of its pipe
            end.close()

    def compute(self, stage: Stage, folder: Path, root: Path) -> None:
        """Has all of them compute the stage; on any error none of them is left."""
        try:
            for pipe in self._pipes:
                with suppress(OSError):  # it has died: that is noticed below
                    pipe.send((stage, folder, root))
            said: set[str] = set()
            waiting = list(self._pipes)
            while waiting:
                ready: list[Any] = connection.wait(waiting)
                for pipe in ready:
                    found = pipe.recv()
                    if isinstance(found, logging.LogRecord):
                        if found.getMessage() not in said:
                            said.add(found.getMessage())
                            logging.getLogger(found.name).handle(found)
                    elif found is not None:
                        raise found
                    else:
                        waiting.remove(pipe)
        except (EOFError, ConnectionError):
            self._raise_cause()
        except BaseException:
            self.close()
            raise

    def _raise_cause(self) -> None:
        """Of the process that died first; the others then fail in what they exchange with it."""
        time.sleep(0.2)
        killed = [p for p in self._context.processes if p.exitcode is not None and p.exitcode < 0]
        try:
            if killed:
                name = signal.Signals(-killed[0].exitcode).name
                raise _DiedError(f"process {killed[0].pid} ended by {name}.")
            # Raises what a process has raised, with its traceback.
            self._context.join(_END, grace_period=_END)
            raise _DiedError("a process ended.")
        finally:
            self.close()

    def close(self) -> None:
        """Ends the processes."""
        global _running  # one a process, like the model that is loaded
        _running = None
        for pipe in self._pipes:
            pipe.close()
        for process in self._context.processes:
            process.kill()  # nothing of theirs is half done: what they write lies aside until it is whole
            process.join()
        self._held.close()


_running: tuple[Any, _Group] | None = None


def _group(stage: Stage) -> _Group:
    """The processes for a stage, started once and kept; other ones take their place."""
    global _running
    config = stage.config
    wanted = (config.engine.devices, device_of(config).type)
    if _running and _running[0] != wanted:
        _running[1].close()
    if not _running:
        require_devices(config)
        _running = wanted, _Group(*wanted)
    return _running[1]


@atexit.register
def close() -> None:
    """Ends the processes that wait for a stage, if there are any."""
    if _running:
        _running[1].close()


class _Sender(QueueHandler):
    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.send(record)  # type: ignore[attr-defined]  # a pipe


def _work(rank: int, size: int, device: str, meeting: str, pipes: list[Any], level: int) -> None:
    """What each process does: joins the others, and computes what it is sent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    pipe = pipes.pop(rank)
    for other in pipes:
        other.close()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.filterwarnings("ignore")  # libraries', as in every command
    logger = logging.getLogger("sapo")
    logger.addHandler(_Sender(pipe))
    logger.setLevel(level)
    # Accelerate looks for these. Threads are shared by all processes.
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    threads = max(1, torch.get_num_threads() // size)
    os.environ |= {name: str(value) for name, value in {**own, "OMP_NUM_THREADS": threads}.items()}
    if device == "cuda":
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(threads)
        if sys.platform == "linux":  # what is exchanged stays on this machine
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # What follows waits for ever, and lets no other thread run, if the folder was swept.
    _end_with_parent(0.0)
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=size,
        timeout=_PATIENCE,
    )
    while True:
        try:
            stage, folder, root = pipe.recv()
        except EOFError:
            return
        with tempfile.TemporaryDirectory(dir=Path(meeting).parent) as aside:
            answer, target = None, Path(aside) if rank else folder
            try:
                with described(stage, target) as (model, facts):
                    facts |= stage.compute(Store(root), model, target)
            except UserError as error:
                answer = error
        pipe.send(answer)


def _end_with_parent(timeout: float | None = None) -> None:
    """Ends this process, whatever it is at, when the one that started it is gone."""
    parent: Any = parent_process()
    if connection.wait([parent.sentinel], timeout):
        os._exit(1)
