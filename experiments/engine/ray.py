"""Workers as Ray actors: on this machine's devices, or on those of a cluster that runs already.

Ray sends stages between processes as Python objects: whoever reaches a cluster's ports can run code there.
"""

import asyncio
import logging
import math
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import EngineConfig
from sapo.experiments.engine.concurrent import ConcurrentEngine, WorkerDied, in_sight
from sapo.experiments.engine.local import Stage, Watcher, compute
from sapo.experiments.engine.store import Store, try_lock

# What a worker of a cluster must see as the driver does; a local one is the driver's child.
_VARIABLES = (
    "SAPO_CACHE", "SAPO_CONF", "SAPO_DATA", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"
)  # fmt: skip
_PREFIX = "sapo-ray-"  # of the folder of a Ray that a driver has started
_LOCK = "driver.lock"  # in it; held while that driver lives
_OBJECT_MEMORY = 200 * 2**20  # bytes for what is sent: stages hold texts, and results go through the store


@contextmanager
def ray_engine(
    config: EngineConfig, store: Store, tell: Callable[[str], None], watch: Watcher, force: bool
) -> Iterator[ConcurrentEngine]:
    """An engine on Ray's workers, gone when it is left. Ray starts with the first stage to compute."""
    cluster = RayCluster(config, store.root.absolute(), tell)
    try:
        yield ConcurrentEngine(store, cluster, retries=config.retries, tell=tell, watch=watch, force=force)
    finally:
        cluster.close()


class StageWorker:
    """What runs inside an actor: computes stages into the shared store, with the base model kept loaded."""

    def __init__(self, root: str, folder: str) -> None:
        if os.path.isdir(folder):  # so that relative paths mean what they mean to the driver
            os.chdir(folder)
        self.store = Store(Path(root))

    def where(self) -> str:
        """Machine and process, for people."""
        return f"{socket.gethostname()} (process {os.getpid()})"

    def compute(self, stage: Stage, key: str, again: bool) -> tuple[bool, list[str]]:
        """Computes the stage unless it is stored; whether it did, and what it warned of.

        Raises WorkError if the stage means something else here: then its result would not be the driver's.
        """
        if stage.key != key:
            raise WorkError(
                f"{stage.kind} of {stage.name} has another key on {self.where()}: precision (here "
                f"{stage.identity()['model']['dtype']}), model files or sapo's version differ from the "
                "driver's. Set model.dtype and engine.device, and install the same version on all machines."
            )
        if stage.state != "base":
            asyncio.run(in_sight(self.store, "train", stage.state))
        with _warnings() as warnings:
            is_new = compute(stage, key, self.store, again, begin=lambda: None)
        return is_new, [f"{self.where()}: {warning}" for warning in warnings]


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What sapo warns of meanwhile: Ray has a worker's own output in a file that nobody looks at."""
    handler, lines = logging.Handler(logging.WARNING), []
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("sapo")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


class RayWorker:
    """The driver's side of an actor."""

    def __init__(
        self, actor: Any, tell: Callable[[str], None], died: Callable[[RayError], WorkerDied]
    ) -> None:
        self.actor = actor
        self.tell = tell
        self.died = died

    async def ready(self) -> str:
        """Waits until Ray has found a place for it and it has imported what it needs."""
        try:
            return await self.actor.where.remote()
        except RayError as error:
            raise self.died(error) from error

    async def compute(self, stage: Stage, key: str, again: bool) -> bool:
        """Computes the stage on the actor; tells its warnings; its own error is raised as it was there."""
        try:
            is_new, warnings = await self.actor.compute.remote(stage, key, again)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            raise self.died(error) from error
        for warning in warnings:
            self.tell(warning)
        return is_new

    def stop(self) -> None:
        """Kills the actor, which may be hanging, so that it lets go of the stage's lock."""
        if ray.is_initialized():
            ray.kill(self.actor)


class RayCluster:
    """A cluster that runs at `engine.address`, or one of this process on this machine."""

    def __init__(self, config: EngineConfig, root: Path, tell: Callable[[str], None]) -> None:
        self.config = config
        self.root = root
        self.tell = tell
        self._size = 0
        self._is_begun = False
        self._options: dict[str, Any] = {}
        self._scratch: Path | None = None
        self._alive = ExitStack()
        self._refused: UserError | None = None
        self._is_evidence = False

    def size(self) -> int:
        """How many workers; starts or joins Ray. Raises UserError if that, or so many, cannot be."""
        if self._refused:
            raise self._refused
        if not self._size:
            try:
                self._size = self._start_local() if self.config.address is None else self._join()
            except UserError as error:
                self._refused = error  # a hundred runs must not try a hundred times
                raise
        return self._size

    def start(self) -> RayWorker:
        """An actor, which Ray places as soon as it finds its GPUs and cores free."""
        self.size()
        try:
            actor = ray.remote(StageWorker).options(**self._options)
            return RayWorker(actor.remote(str(self.root), os.getcwd()), self.tell, self._death)
        except RayError as error:
            raise self._death(error) from error

    def close(self) -> None:
        """Ends the workers and leaves the cluster; one that was started here ends too."""
        if self._is_begun:
            ray.shutdown()
        if self._scratch and self._is_evidence:
            (self._scratch / _LOCK).unlink(missing_ok=True)  # nobody sweeps it
        elif self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
        self._alive.close()

    def _death(self, error: RayError) -> WorkerDied:
        """What is known of a worker's end; Ray's logs are then kept."""
        self._is_evidence = True
        logs = self._scratch or "in Ray's session folder on that machine"
        return WorkerDied(f"{_reason(error)} (logs: {logs})")

    def _start_local(self) -> int:
        config = self.config
        gpus = torch.cuda.device_count() if config.device in ("auto", "cuda") else 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        size = self._plan({"GPU": gpus, "CPU": cores})
        if size * self._options["num_gpus"] > gpus:
            raise UserError(
                f"engine.workers={size} with engine.gpus={self._options['num_gpus']:g} each: this machine "
                f"has {gpus} GPUs. Set fewer workers, or a part of a GPU for each (engine.gpus=0.5)."
            )
        # Otherwise all else on the machine would go before the workers, as it does not with engine=local.
        os.environ.setdefault("RAY_worker_niceness", "0")
        self._scratch = self._own_folder()
        self._init(
            "cannot start Ray on this machine",
            "Its folder is under /tmp, or under RAY_TMPDIR. engine=local does without Ray.",
            address="local",
            num_cpus=max(1, math.ceil(size * config.cpus)),
            num_gpus=gpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_MEMORY,
            _temp_dir=str(self._scratch),
        )
        return size

    def _own_folder(self) -> Path:
        """A new folder for Ray's sockets and logs; those of drivers that were killed go."""
        # TMPDIR is often too long for the names of sockets.
        parent = Path(os.environ.get("RAY_TMPDIR") or "/tmp")  # noqa: S108 (mkdtemp makes the folder its own)
        for lock in parent.glob(f"{_PREFIX}*/{_LOCK}"):
            with try_lock(lock) as is_of_nobody:
                if is_of_nobody:
                    shutil.rmtree(lock.parent, ignore_errors=True)
        try:
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        except OSError as error:
            raise UserError(
                f"No folder for Ray's sockets and logs can be made in {parent}: {error}. Set RAY_TMPDIR to "
                "another one, with a short name."
            ) from error
        self._alive.enter_context(try_lock(folder / _LOCK))
        return folder

    def _join(self) -> int:
        variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        self._init(
            f"engine.address={self.config.address}: cannot join a Ray cluster",
            "Start one with `ray start --head`, or leave engine.address out: one is then started here.",
            address=self.config.address,
            runtime_env={"env_vars": variables},
        )
        try:
            return self._plan(ray.cluster_resources())
        except UserError:
            ray.shutdown()
            raise

    def _init(self, failure: str, mend: str, **options: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._is_begun = True  # from here on there are processes to end, even if it is interrupted
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # of any kind: Ray raises plain ones, too
            raise UserError(f"{failure} ({_reason(error)}). {mend}") from error
        finally:
            # Ray would exit at once, with its workers' remains left on the disk, where we end in good order.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_terminate)

    def _plan(self, there: dict[str, float]) -> int:
        """Sets what each worker asks for; how many workers what is there, in GPUs and cores, suffices for."""
        config = self.config
        gpus = config.gpus
        if gpus is None:
            gpus = 1.0 if config.device in ("auto", "cuda") and there.get("GPU", 0) >= 1 else 0.0
        self._options = {"num_cpus": config.cpus, "num_gpus": gpus}
        if config.workers:
            return config.workers
        needs = {"GPU": gpus, "CPU": config.cpus}
        rooms = [there.get(name, 0) / need for name, need in needs.items() if need]
        size = math.floor(min(rooms) + 1e-9)  # 1 / 0.1 is a little less than 10
        if not size:
            raise UserError(
                f"A worker of {gpus:g} GPUs and {config.cpus:g} cores finds no room: Ray has "
                f"{there.get('GPU', 0):g} GPUs and {there.get('CPU', 0):g} cores. Set engine.gpus and "
                "engine.cpus, or engine.workers to wait for machines that are still to join."
            )
        return size


def _reason(error: Exception) -> str:
    """The first lines of Ray's long explanations."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300] or type(error).__name__
