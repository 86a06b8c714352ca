"""Stages on Ray's workers: on this machine's devices, or on those of a cluster that runs already.

A worker is a Ray actor: Ray places it where its GPUs and cores are free, and its process keeps the base model
loaded. Ray sends stages between processes as Python objects: whoever is let into a cluster can run code
there. One that is started here listens on this machine only, and lets in who has its token.
"""

import asyncio
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled
from ray.exceptions import RayError, RayTaskError

from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import EngineConfig
from sapo.experiments.engine.local import TURN, LocalEngine, Stage, Turn, Watcher, ignore
from sapo.experiments.engine.store import Store, Stored, try_lock

START_NOTICE = 60.0  # seconds without any worker after which the user is told what is waited for
SIGHT = 60.0  # seconds in which a network file system shows here what was written elsewhere
_ASK = 0.01  # seconds that a run has to ask for its next stage before a worker takes another run's
# What a worker of a cluster must see as the driver does; a local one is the driver's child.
_VARIABLES = (
    "SAPO_CACHE", "SAPO_CONF", "SAPO_DATA", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"
)  # fmt: skip
_PREFIX = "sapo-ray-"  # of the folder of a Ray that a driver has started
_LOCK = "driver.lock"  # in it; held while that driver lives
_OBJECT_MEMORY = 200 * 2**20  # bytes for what is sent: stages hold texts, and results go through the store
_TOKEN = secrets.token_hex(32)  # of all clusters of this process: Ray may still read the last one's


class StageWorker:
    """What runs inside an actor: computes stages into the shared store, one at a time."""

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
        # Ray has a worker's own output in a file that nobody looks at.
        handler, warnings = logging.Handler(logging.WARNING), []
        handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger("sapo")
        logger.addHandler(handler)
        try:
            engine = LocalEngine(self.store, force=again)
            asyncio.run(engine.run(stage))
        finally:
            logger.removeHandler(handler)
        return key in engine.computed, [f"{self.where()}: {warning}" for warning in warnings]


@dataclass(order=True)
class _Request:
    """A stage that waits for a worker: the lowest turn first, then the one that was asked for first."""

    turn: int
    asked: float
    stage: Stage = field(compare=False)
    key: str = field(compare=False)
    again: bool = field(compare=False)
    answer: "asyncio.Future[bool]" = field(compare=False)
    deaths: int = field(default=0, compare=False)


class RayEngine(LocalEngine):
    """Answers a stage from the store, or has one of Ray's workers compute it.

    Asking for a stage that is asked for already waits for the first asker's. A stage whose worker died goes
    to another one, `engine.retries` times; its own errors are its asker's. Ray starts with the first stage
    that is not in the store.
    """

    at_once = True  # thousands may be under way: a run that waits is a coroutine

    def __init__(
        self,
        cluster: "Cluster",
        store: Store,
        tell: Callable[[str], object],
        watch: Watcher = ignore,
        force: bool = False,
    ) -> None:
        """`tell` gets a line when a worker died or warned, or when none comes; the rest is LocalEngine's."""
        super().__init__(store, watch, force)
        self.cluster = cluster
        self.tell = tell
        self._loop = asyncio.Runner()
        self.wait = self._loop.run  # type: ignore[assignment]  # the same but for its options
        self._asked: dict[str, asyncio.Future[bool]] = {}
        self._waiting: asyncio.PriorityQueue[_Request] = asyncio.PriorityQueue()
        self._workers: set[asyncio.Task[None]] = set()
        self._has_worked = False
        self._refused: UserError | None = None

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the workers, and Ray if it was started here."""
        try:
            self._loop.close()
        finally:
            self.cluster.close()

    async def run(self, stage: Stage) -> Stored:
        """The finished stage."""
        key, is_new = stage.key, False
        again = self.force and key not in self.computed
        if key in self._asked:
            await asyncio.shield(self._asked[key])
        elif again or self.store.find(stage.kind, key, stage.identity()) is None:
            loop = asyncio.get_running_loop()
            self._start_workers(loop)
            answer = self._asked[key] = loop.create_future()
            answer.add_done_callback(lambda _: self._asked.pop(key))
            turn = TURN.get() or Turn()
            self._waiting.put_nowait(_Request(turn.number, loop.time(), stage, key, again, answer))
            try:
                # A run that is cancelled must not take the stage from the others that wait for it.
                is_new = await asyncio.shield(answer)
            except BaseException:
                self.watch(stage, "failed")
                raise
        await in_sight(self.store, stage.kind, key)
        return self._finished(stage, key, is_new)

    def _start_workers(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts Ray and its workers with the first stage, or raises what kept them from starting then."""
        if self._refused:
            raise self._refused
        if self._workers:
            return
        try:
            size = self.cluster.start()
        except UserError as error:
            self._refused = error  # a hundred runs must not try a hundred times
            raise
        self._workers = {loop.create_task(self._work()) for _ in range(size)}

        def notice() -> None:
            if not self._has_worked:
                self.tell(
                    f"Waiting for workers: {size} are asked for, and none has started yet. They start when "
                    "the cluster has the GPUs and cores free (`ray status`)."
                )

        loop.call_later(START_NOTICE, notice)

    async def _work(self) -> None:
        """Gives stages to a worker, and when it died to another; ends when too many in a row cannot start."""
        failures = 0
        while failures <= self.cluster.config.retries:
            worker = None
            try:
                worker = self.cluster.worker(self.store.root.absolute())
                where = await worker.where.remote()
                self._has_worked = True
                await self._serve(worker, where)
                failures = 0
            except Exception as error:  # whatever it is: the stages that wait must hear of it
                failures, reason = failures + 1, self._death(error)
            finally:
                if worker is not None:
                    self.cluster.stop(worker)
        if all(task.done() for task in self._workers - {asyncio.current_task()}):
            self._refused = WorkError(f"No worker could be started: {reason}")
            while not self._waiting.empty():
                _fail(self._waiting.get_nowait().answer, self._refused)

    async def _serve(self, worker: Any, where: str) -> None:
        """Has a worker compute stages until it died, or is left with who knows what: a model half changed."""
        is_fit = True
        while is_fit:
            request = await self._waiting.get()
            try:
                await worker.where.remote()
            except RayError as error:  # not of this stage, which must not be given up for it
                self.tell(f"The worker on {where} died while it had nothing to do: {self._death(error)}")
                self._waiting.put_nowait(request)
                return
            self.watch(request.stage, "begin")
            is_fit = await self._compute(worker, where, request)
            await asyncio.sleep(_ASK)

    async def _compute(self, worker: Any, where: str, request: _Request) -> bool:
        """Has a worker compute a stage, and answers the request; whether the worker can go on."""
        stage, answer = request.stage, request.answer
        try:
            is_new, warnings = await worker.compute.remote(stage, request.key, request.again)
        except RayTaskError as error:
            _fail(answer, error.cause)
            return isinstance(error.cause, UserError)
        except RayError as error:
            death = self._death(error)
            self.tell(f"The worker on {where} died while {stage.kind} of {stage.name} ran: {death}")
            request.deaths += 1
            if request.deaths <= self.cluster.config.retries:
                self._waiting.put_nowait(request)
            else:
                given_up = f"{stage.kind} of {stage.name} ({request.key[:12]}) was given up"
                last = f"{request.deaths} workers died of it. The last one, on {where}: {death}"
                _fail(answer, WorkError(f"{given_up}: {last}"))
            return False
        except Exception as error:  # whatever it is: the stage's asker must hear of it
            _fail(answer, error)
            return False
        for warning in warnings:
            self.tell(warning)
        if not answer.done():
            answer.set_result(is_new)
        return True

    def _death(self, error: Exception) -> str:
        """What is known of a worker's end; Ray's logs are then kept."""
        return f"{_reason(error)} (logs: {self.cluster.keep_logs()})"


def _fail(answer: "asyncio.Future[bool]", error: Exception) -> None:
    if not answer.done():  # else whoever asked is gone
        answer.set_exception(error)


class Cluster:
    """A cluster that runs at `engine.address`, or one of this process on this machine."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.options: dict[str, Any] = {}
        self._own: ExitStack = ExitStack()
        self._folder: Path | None = None
        self._is_evidence = False

    def start(self) -> int:
        """Starts or joins Ray; how many workers there are to be. UserError if that, or so many, cannot be."""
        if self.config.address is None:
            return self._start_local()
        variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        self._init(
            f"engine.address={self.config.address}: cannot join a Ray cluster",
            "Start one with `ray start --head`, or leave engine.address out: one is then started here.",
            address=self.config.address,
            runtime_env={"env_vars": variables},
        )
        return self.plan(ray.cluster_resources())

    def worker(self, root: Path) -> Any:
        """An actor that works into the store at `root`; Ray places it when its GPUs and cores are free."""
        return ray.remote(StageWorker).options(**self.options).remote(str(root), os.getcwd())

    def stop(self, worker: Any) -> None:
        """Kills a worker, which may be hanging, so that it lets go of its stage's lock."""
        if ray.is_initialized():
            ray.kill(worker)

    def close(self) -> None:
        """Leaves the cluster; one that was started here ends, and its folder goes unless a worker died."""
        self._own.close()

    def keep_logs(self) -> str:
        """Has the logs stay, and says where they are."""
        self._is_evidence = True
        return str(self._folder or "in Ray's session folder on that machine")

    def _start_local(self) -> int:
        config = self.config
        gpus = torch.cuda.device_count() if config.device in ("auto", "cuda") else 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        size = self.plan({"GPU": gpus, "CPU": cores})
        if size * self.options["num_gpus"] > gpus:
            raise UserError(
                f"engine.workers={size} with engine.gpus={self.options['num_gpus']:g} each: this machine "
                f"has {gpus} GPUs. Set fewer workers, or a part of a GPU for each (engine.gpus=0.5)."
            )
        self._folder = folder = self._new_folder()
        token = folder / "token"
        token.touch(0o600)
        token.write_text(_TOKEN, encoding="utf-8")
        os.environ |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            # Ray's own way to the loopback address, which is its default elsewhere than on Linux.
            ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
        }
        # Ray read the variables when it was imported.
        ray_constants.ENABLE_RAY_CLUSTER = False
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()
        # Otherwise all else on the machine would go before the workers, as it does not with engine=local.
        os.environ.setdefault("RAY_worker_niceness", "0")
        self._init(
            "cannot start Ray on this machine",
            "Its folder is under /tmp, or under RAY_TMPDIR. engine=local does without Ray.",
            address="local",
            num_cpus=max(1, math.ceil(size * config.cpus)),
            num_gpus=gpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_MEMORY,
            _temp_dir=str(folder),
        )
        return size

    def _new_folder(self) -> Path:
        """A folder of this user's alone for sockets, logs and token; those of drivers that were killed go."""
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
        self._own.callback(self._remove, folder)
        self._own.enter_context(try_lock(folder / _LOCK))
        return folder

    def _remove(self, folder: Path) -> None:
        if self._is_evidence:  # nobody sweeps it: it has no lock, and no token either
            (folder / _LOCK).unlink(missing_ok=True)
            (folder / "token").unlink(missing_ok=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)

    def _init(self, failure: str, mend: str, **options: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._own.callback(ray.shutdown)  # from here on there are processes to end, even if it is interrupted
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # of any kind: Ray raises plain ones, too
            raise UserError(f"{failure} ({_reason(error)}). {mend}") from error
        finally:
            # Ray would exit at once, with its workers' remains left on the disk, where we end in good order.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_terminate)

    def plan(self, there: dict[str, float]) -> int:
        """Sets what each worker asks for; how many workers what is there, in GPUs and cores, suffices for."""
        config = self.config
        gpus = config.gpus
        if gpus is None:
            gpus = 1.0 if config.device in ("auto", "cuda") and there.get("GPU", 0) >= 1 else 0.0
        self.options = {"num_cpus": config.cpus, "num_gpus": gpus}
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


async def in_sight(store: Store, kind: str, key: str) -> None:
    """Waits until a stage that another machine has stored is seen here; WorkError if it never is."""
    folder, waited, pause = store.root / "stages" / kind, 0.0, 0.05
    while store.find(kind, key) is None:
        if waited >= SIGHT:
            raise WorkError(
                f"A worker stored {kind} {key[:12]}, and it is not in {store.root} here: the store must be a "
                "folder on a file system that all machines share. Set store.root=FOLDER."
            )
        # Reading the folder has a network file system ask again what is in it.
        list(folder.iterdir() if folder.is_dir() else ())
        await asyncio.sleep(pause)
        waited, pause = waited + pause, 2 * pause


def _reason(error: Exception) -> str:
    """The first lines of Ray's long explanations."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300] or type(error).__name__
