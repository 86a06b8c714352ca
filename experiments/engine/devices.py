"""Computing one stage: in this process, or on several devices of this machine, a process each.

Every process runs the whole stage on its share of the rows (`model/ranks.py`), and the first one writes. They
live as long as this one and keep the base model loaded, as a single one does: those of PyTorch's and
Accelerate's launchers end with the one function that they were started for, and would load it for each stage.
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
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from logging.handlers import QueueHandler
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import distributed

from sapo.conf.errors import UserError, WorkError, message_of
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
    write_record(folder / "result.json", StageResult.model_validate({**common, **facts}, strict=False))
    write_json(folder / "identity.json", stage.identity())
    write_json(folder / "environment.json", environment(model.base.device))
    text = yaml.safe_dump(stage.config_read(), sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(text, encoding="utf-8")


class _DiedError(Exception):
    """A process is gone that nobody has ended."""


class _Group:
    """The processes by the pipes to them, waiting for a stage or at one."""

    def __init__(self, size: int, device: str) -> None:
        self._held = ExitStack()
        meeting = self._held.enter_context(own_folder("sapo-devices-", tempfile.gettempdir()))
        context, level = get_context("spawn"), logging.getLogger("sapo").getEffectiveLevel()
        self.processes: dict[Any, Any] = {}
        for rank in range(size):
            pipe, theirs = context.Pipe()
            given = (rank, size, device, meeting, theirs, level)
            self.processes[pipe] = context.Process(target=_work, args=given, daemon=True)
            self.processes[pipe].start()
            theirs.close()  # so that the end of a process is the end of its pipe

    def compute(self, stage: Stage, folder: Path, root: Path) -> None:
        """Has all of them compute the stage; on any error none of them is left."""
        said, waiting = set[str](), [*self.processes]
        try:
            for pipe in self.processes:
                pipe.send((stage, folder, root))
            while waiting:
                ready: list[Any] = connection.wait(waiting)
                for pipe in ready:
                    found = pipe.recv()
                    if found is None:
                        waiting.remove(pipe)
                    elif isinstance(found, Exception):
                        raise found
                    elif (text := found.getMessage()) not in said:
                        said.add(text)
                        logging.getLogger(found.name).handle(found)
        except UserError:
            raise
        except Exception as error:
            time.sleep(0.2)  # where one was killed, the others fail in what they exchange with it
            for process in self.processes.values():
                if (process.exitcode or 0) < 0:
                    name = signal.Signals(-process.exitcode).name
                    raise _DiedError(f"process {process.pid} ended by {name}.") from error
            if isinstance(error, EOFError | ConnectionError):
                raise _DiedError("a process ended.") from error
            raise
        finally:
            if waiting:
                close()

    def close(self) -> None:
        """Ends the processes."""
        for pipe, process in self.processes.items():
            pipe.close()
            process.kill()  # nothing of theirs is half done: what they write lies aside until it is whole
            process.join()
        self._held.close()


_groups: dict[tuple[int, str], _Group] = {}  # one at most, like the model that is loaded


def _group(stage: Stage) -> _Group:
    """The processes for a stage, started once and kept; other ones take their place."""
    wanted = (stage.config.engine.devices, device_of(stage.config).type)
    if wanted not in _groups:
        close()
        require_devices(stage.config)
        _groups[wanted] = _Group(*wanted)
    return _groups[wanted]


@atexit.register
def close() -> None:
    """Ends the processes that wait for a stage, if there are any."""
    while _groups:
        _groups.popitem()[1].close()


def _work(rank: int, size: int, device: str, meeting: Path, pipe: Any, level: int) -> None:
    """What each process does: joins the others, and computes what it is sent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.filterwarnings("ignore")  # libraries', as in every command
    sender, logger = QueueHandler(pipe), logging.getLogger("sapo")
    sender.enqueue = pipe.send  # type: ignore[method-assign]
    logger.addHandler(sender)
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
        init_method=f"file://{meeting / 'store'}",
        rank=rank,
        world_size=size,
        timeout=_PATIENCE,
    )
    while True:
        try:
            stage, folder, root = pipe.recv()
        except EOFError:
            return
        answer = None
        with tempfile.TemporaryDirectory(dir=meeting) as aside:
            try:
                target = Path(aside) if rank else folder
                with described(stage, target) as (model, facts):
                    facts |= stage.compute(Store(root), model, target)
            except Exception as error:
                answer = portable(error)
        pipe.send(answer)


def portable(error: Exception) -> Exception:
    """The error as another process can raise it, with its traceback; what is not ours goes as its text."""
    ours = next((kind for kind in (WorkError, UserError) if isinstance(error, kind)), RuntimeError)
    found = ours(message_of(error))
    found.add_note("".join(traceback.format_exception(error)))
    return found


def _end_with_parent(timeout: float | None = None) -> None:
    """Ends this process, whatever it is at, when the one that started it is gone."""
    parent: Any = parent_process()
    if connection.wait([parent.sentinel], timeout):
        os._exit(1)
