"""Stages on Ray's workers: on this machine's devices, or on those of a cluster that runs already.

A worker is a Ray actor: Ray places it where its GPUs and cores are free, and its process keeps the base model
loaded. Ray sends stages between processes as Python objects: whoever is let into a cluster can run code
there. One that is started here listens on this machine only, and lets in who has its token.
"""

import asyncio
import itertools
import logging
import math
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled
from ray.exceptions import RayError, RayTaskError

from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import EngineConfig
from sapo.data.records import BASE
from sapo.experiments.engine.local import TURN, LocalEngine, Turn, Watcher, ignore
from sapo.experiments.engine.stage import Stage
from sapo.experiments.engine.store import OWNED, Store, Stored, own_folder
from sapo.experiments.model.identity import cpu_cores

START_NOTICE = 60.0  # seconds without any worker after which the user is told what is waited for
SIGHT = 60.0  # seconds in which a network file system shows here what was written elsewhere
_ASK = 0.01  # seconds that a run has to ask for its next stage before a worker takes another run's
# What a worker of a cluster must see as the driver does; a local one is the driver's child.
_VARIABLES = (
    "SAPO_CACHE", "SAPO_CONF", "SAPO_DATA", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"
)  # fmt: skip
_OBJECT_MEMORY = 200 * 2**20  # bytes for what is sent: stages hold texts, and results go through the store
_TOKEN = secrets.token_hex(32)  # of all clusters of this process: Ray may still read the last one's


class StageWorker:
    """What runs inside an actor: computes stages into the shared store, one at a time."""

    def __init__(self, root: str, folder: str) -> None:
        if os.path.isdir(folder):  # so that relative paths mean what they mean to the driver
            os.chdir(folder)
        self.store = Store(Path(root))
        # Ray has a worker's own output in a file that nobody looks at.
        self.warnings = BufferingHandler(10_000)
        self.warnings.setLevel(logging.WARNING)
        logging.getLogger("sapo").addHandler(self.warnings)

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
        if stage.state != BASE:
            asyncio.run(in_sight(self.store, "train", stage.state))
        self.warnings.flush()
        engine = LocalEngine(self.store, force=again)
        asyncio.run(engine.run(stage))
        said = [f"{self.where()}: {line.getMessage()}" for line in self.warnings.buffer]
        return key in engine.computed, said


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
        # The lowest turn goes first, then what was asked for first; `deaths` are of workers that were at it.
        self._waiting: asyncio.PriorityQueue[tuple[int, int, Stage, bool, int]] = asyncio.PriorityQueue()
        self._numbers = itertools.count()
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
            self._start_workers()
            answer = self._asked[key] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(lambda _: self._asked.pop(key))
            self._waiting.put_nowait(((TURN.get() or Turn()).number, next(self._numbers), stage, again, 0))
            try:
                # A run that is cancelled must not take the stage from the others that wait for it.
                is_new = await asyncio.shield(answer)
            except BaseException:
                self.watch(stage, "failed")
                raise
        await in_sight(self.store, stage.kind, key)
        return self._finished(stage, key, is_new)

    def _start_workers(self) -> None:
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
        loop = asyncio.get_running_loop()
        self._workers = {loop.create_task(self._work()) for _ in range(size)}
        notice = (
            f"Waiting for workers: {size} are asked for, and none has started yet. They start when "
            "the cluster has the GPUs and cores free (`ray status`)."
        )
        loop.call_later(START_NOTICE, lambda: self._has_worked or self.tell(notice))

    async def _work(self) -> None:
        """Has one worker after another compute what waits; ends when too many in a row cannot start."""
        failures = 0
        while failures <= self.cluster.config.retries:
            worker = None
            try:
                worker = self.cluster.worker(self.store.root.absolute())
                where = await worker.where.remote()
                self._has_worked = True
                while await self._compute(worker, where):
                    await asyncio.sleep(_ASK)
                failures = 0
            except Exception as error:  # whatever it is: the stages that wait must hear of it
                failures, reason = failures + 1, self._death(error)
            finally:
                self.cluster.stop(worker)
        if all(task.done() for task in self._workers - {asyncio.current_task()}):
            self._refused = WorkError(f"No worker could be started: {reason}")
            while not self._waiting.empty():
                self._asked[self._waiting.get_nowait()[2].key].set_exception(self._refused)

    async def _compute(self, worker: Any, where: str) -> bool:
        """Has a worker compute the stage that is next; whether it is fit for another one."""
        turn, number, stage, again, deaths = await self._waiting.get()
        answer, is_begun = self._asked[stage.key], False
        try:
            await worker.where.remote()  # it may have died since its last stage, which counts against none
            is_begun = True
            self.watch(stage, "begin")
            is_new, warnings = await worker.compute.remote(stage, stage.key, again)
        except RayTaskError as error:
            answer.set_exception(error.cause)
            return isinstance(error.cause, UserError)  # else it is left with who knows what
        except RayError as error:
            death, work = self._death(error), f"{stage.kind} of {stage.name}"
            doing = f"{work} ran" if is_begun else "it had nothing to do"
            self.tell(f"The worker on {where} died while {doing}: {death}")
            deaths += is_begun
            if deaths <= self.cluster.config.retries:
                self._waiting.put_nowait((turn, number, stage, again, deaths))
            else:
                given_up = f"{work} ({stage.key[:12]}) was given up: {deaths} workers died of it."
                answer.set_exception(WorkError(f"{given_up} The last one, on {where}: {death}"))
            return False
        except Exception as error:  # whatever it is: the stage's asker must hear of it
            answer.set_exception(error)
            return False
        for warning in warnings:
            self.tell(warning)
        answer.set_result(is_new)
        return True

    def _death(self, error: Exception) -> str:
        """What is known of a worker's end; Ray's logs are then kept."""
        return f"{_reason(error)} (logs: {self.cluster.keep_logs()})"


class Cluster:
    """A cluster that runs at `engine.address`, or one of this process on this machine."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.options: dict[str, Any] = {}
        self._folder: Path | None = None
        self._held = ExitStack()

    def start(self) -> int:
        """Starts or joins Ray; how many workers there are to be. UserError if that, or so many, cannot be."""
        config, options = self.config, {}
        if config.address is None:
            failure = "cannot start Ray on this machine"
            mend = "Its folder is under /tmp, or under RAY_TMPDIR. engine=local does without Ray."
            options = self._local()
        else:
            failure = f"engine.address={config.address}: cannot join a Ray cluster"
            mend = "Start one with `ray start --head`, or leave engine.address out: one is then started here."
            variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
            options = {"address": config.address, "runtime_env": {"env_vars": variables}}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # of any kind: Ray raises plain ones, too
            raise UserError(f"{failure} ({_reason(error)}). {mend}") from error
        finally:
            # Ray would exit at once, with its workers' remains left on the disk, where we end in good order.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_terminate)
        return self.plan(*(node["Resources"] for node in ray.nodes() if node["Alive"]))

    def _local(self) -> dict[str, Any]:
        """How Ray starts here: on the loopback address, behind a token, in a folder of this user's alone.

        The folders of drivers that were killed go.
        """
        # TMPDIR is often too long for the names of sockets.
        parent = os.environ.get("RAY_TMPDIR") or "/tmp"  # noqa: S108 (mkdtemp makes the folder its own)
        try:
            self._folder = self._held.enter_context(own_folder("sapo-ray-", parent))
        except OSError as error:
            raise UserError(
                f"No folder for Ray's sockets and logs can be made in {parent}: {error}. Set RAY_TMPDIR to "
                "another one, with a short name."
            ) from error
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
        # Ray's own way to the loopback address, which is its default elsewhere than on Linux.
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
        # Ray read the variables when it was imported.
        ray_constants.ENABLE_RAY_CLUSTER = False
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()
        # Otherwise all else on the machine would go before the workers, as it does not with engine=local.
        os.environ.setdefault("RAY_worker_niceness", "0")
        return {
            "address": "local",
            "num_cpus": max(cpu_cores(), math.ceil((self.config.workers or 1) * self.config.cpus)),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_MEMORY,
            "_temp_dir": str(self._folder),
        }

    def plan(self, *machines: dict[str, float]) -> int:
        """Sets what each worker asks for; how many workers the machines' GPUs and cores suffice for."""
        config = self.config
        there = {name: sum(machine.get(name, 0.0) for machine in machines) for name in ("GPU", "CPU")}
        gpus, cpus = config.gpus, config.cpus * config.devices
        if gpus is None:
            gpus = float(config.devices) if config.device in ("auto", "cuda") and there["GPU"] >= 1 else 0.0
        needs = {"GPU": gpus, "CPU": cpus}
        self.options = {"num_gpus": gpus, "num_cpus": cpus}
        # A worker's devices are on one machine. 1 / 0.1 is a little less than 10.
        room = sum(
            math.floor(min(machine.get(name, 0.0) / need for name, need in needs.items() if need) + 1e-9)
            for machine in machines
        )
        size = config.workers or room
        if not size or (size > room and config.address is None):
            raise UserError(
                f"No room for {size or 1} workers of {gpus:g} GPUs and {cpus:g} cores: Ray has "
                f"{there['GPU']:g} GPUs and {there['CPU']:g} cores. Set engine.gpus (0.5: two share one), "
                "engine.devices (all on one machine) and engine.cpus; on a cluster, engine.workers waits for "
                "machines that are still to join."
            )
        return size

    def worker(self, root: Path) -> Any:
        """An actor that works into the store at `root`; Ray places it when its GPUs and cores are free."""
        return ray.remote(StageWorker).options(**self.options).remote(str(root), os.getcwd())

    def stop(self, worker: Any) -> None:
        """Kills a worker, which may be hanging, so that it lets go of its stage's lock."""
        if worker is not None and ray.is_initialized():
            ray.kill(worker)

    def keep_logs(self) -> str:
        """Has the logs stay, and says where they are."""
        if self._folder:
            (self._folder / OWNED).unlink(missing_ok=True)  # without it nobody sweeps the folder
        return str(self._folder or "in Ray's session folder on that machine")

    def close(self) -> None:
        """Leaves the cluster; one that was started here ends, and its folder goes unless a worker died."""
        ray.shutdown()
        self._held.close()


async def in_sight(store: Store, kind: str, key: str) -> None:
    """Waits until a stage that another machine has stored is seen here; WorkError if it never is."""
    folder, end = store.root / "stages" / kind, time.monotonic() + SIGHT
    while store.find(kind, key) is None:
        if time.monotonic() > end:
            raise WorkError(
                f"A worker stored {kind} {key[:12]}, and it is not in {store.root} here: the store must be a "
                "folder on a file system that all machines share. Set store.root=FOLDER."
            )
        # Reading the folder has a network file system ask again what is in it.
        list(folder.iterdir() if folder.is_dir() else ())
        await asyncio.sleep(0.5)


def _reason(error: Exception) -> str:
    """The first lines of Ray's long explanations."""
    return " ".join(str(error).split())[:300] or type(error).__name__
