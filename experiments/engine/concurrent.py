"""Runs stages on many workers at once: which worker computes what, and what happens when one dies.

What a worker is stays open here: anything that computes a stage into the shared store, and that may die.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sapo.conf.errors import UserError, WorkError
from sapo.experiments.engine.local import LocalEngine, Result, Stage, Watcher, ignore
from sapo.experiments.engine.pace import Pace
from sapo.experiments.engine.store import Store, Stored

START_NOTICE = 60.0  # seconds without any worker after which the user is told what is waited for
TURNS = 10  # of the event loop, from a worker's answer to the next question of the run that waited for it
SIGHT = 60.0  # seconds in which a network file system shows here what was written elsewhere


class WorkerDied(Exception):  # noqa: N818 (an event, and none that a user sees)
    """A worker's process is gone, or never came; what it was doing may be done elsewhere."""


class Worker(Protocol):
    """A process that computes stages, one at a time, and keeps its base model loaded."""

    async def ready(self) -> str:
        """Waits until it runs, and says where, for people. Raises WorkerDied if it cannot."""
        ...

    async def compute(self, stage: Stage, key: str, again: bool) -> bool:
        """Computes the stage unless it is stored; whether it did. Raises the stage's error, or WorkerDied."""
        ...

    def stop(self) -> None:
        """Ends the process, whatever it does."""
        ...


class Cluster(Protocol):
    """Where workers come from."""

    def size(self) -> int:
        """How many workers there are to be."""
        ...

    def start(self) -> Worker:
        """Another worker; it may take long until it is ready. Raises WorkerDied if there can be none."""
        ...


@dataclass(eq=False)
class _Seat:
    """A worker, and what its process holds: a base model, and the state that it worked in last."""

    worker: Worker
    where: str = ""
    is_idle: bool = False
    model: str | None = None
    state: str | None = None
    stage: Stage | None = None


@dataclass(frozen=True, eq=False)
class _Request:
    """A stage that waits for a worker."""

    stage: Stage
    turn: tuple[int, int]
    seat: "asyncio.Future[_Seat]"


class ConcurrentEngine(LocalEngine):
    """Answers a stage from the store, or has a worker compute it.

    Asking for a stage in flight waits for the first asker's. Workers are started when the first stage is not
    in the store. A stage whose worker died goes to another one, `retries` times; its own errors are its
    asker's.
    """

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        *,
        retries: int,
        tell: Callable[[str], None],
        watch: Watcher = ignore,
        force: bool = False,
    ) -> None:
        """`watch` and `force` are LocalEngine's; `tell` gets a line when a worker dies or a stage is slow."""
        super().__init__(store, watch, force)
        self.cluster = cluster
        self.retries = retries
        self.tell = tell
        self.pace = Pace(tell)
        self._flights: dict[str, asyncio.Task[Stored]] = {}
        self._seats: list[_Seat] = []
        self._starting: set[asyncio.Task[None]] = set()
        self._waiting: list[_Request] = []
        self._failed_starts: list[str] = []
        self._notice: asyncio.TimerHandle | None = None
        self._asked = 0

    async def ask(self, stage: Stage, turn: int = 0) -> tuple[Stored, bool]:
        """The finished stage, and whether it was computed for this asker."""
        key = stage.key
        flight = self._flights.get(key)
        if flight is not None:
            # A run that is cancelled must not take the stage from the others that wait for it.
            stored = await asyncio.shield(flight)
            self.watch(stage, "stored")
            return stored, False
        again = self.force and key not in self.computed
        found = None if again else self.store.find(stage.kind, key, stage.identity())
        if found is not None:
            self.watch(stage, "stored")
            return found, False
        flight = self._flights[key] = asyncio.create_task(self._fly(stage, key, again, turn))
        return await asyncio.shield(flight), True

    def complete(self, works: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
        """What the works return, in order; all of them are under way at once."""
        return asyncio.run(_all(works))

    async def _fly(self, stage: Stage, key: str, again: bool, turn: int) -> Stored:
        try:
            is_new = await self._try(stage, key, again, turn)
            stored = await in_sight(self.store, stage.kind, key)
        except BaseException:
            self.watch(stage, "failed")
            raise
        finally:
            del self._flights[key]
        if is_new:
            self.computed.add(key)
        self.watch(stage, "done" if is_new else "stored")
        return stored

    async def _try(self, stage: Stage, key: str, again: bool, turn: int) -> bool:
        """Whether a worker computed it, or found it stored; given to another worker if the first one dies."""
        deaths: list[str] = []
        while len(deaths) <= self.retries:
            seat = await self._take_living(stage, turn)
            try:
                return await self._compute(seat, stage, key, again)
            except WorkerDied as death:
                deaths.append(f"{seat.where}: {death}")
                self.tell(f"The worker on {seat.where} died while {stage.kind} of {stage.name} ran: {death}")
        raise WorkError(
            f"{stage.kind} of {stage.name} ({key[:12]}) was given up: {len(deaths)} workers died of it. "
            f"The last one, on {deaths[-1]}"
        )

    async def _compute(self, seat: _Seat, stage: Stage, key: str, again: bool) -> bool:
        """Has the worker compute; afterwards it is free, or gone if its process may be broken."""
        self.watch(stage, "begin")
        self.pace.begin(stage, seat.where)
        is_new = False
        try:
            is_new = await seat.worker.compute(stage, key, again)
        except UserError:
            self._free(seat, stage, stage.state)
            raise
        except Exception:  # it died, or is left with who knows what: a model half changed, a lost device
            self._replace(seat)
            raise
        except BaseException:  # the asker is gone, and the worker still busy
            self._drop(seat)
            raise
        finally:
            self.pace.end(stage, counts=is_new)
        self._free(seat, stage, key if stage.kind == "train" else stage.state)
        return is_new

    async def _take(self, stage: Stage, turn: int = 0) -> _Seat:
        """Waits for a worker, which is then this stage's."""
        self._fill()
        if not self._seats:
            raise self._no_worker()
        # Runs in the order in which they began: the first ones are whole while the last ones wait.
        self._asked += 1
        request = _Request(stage, (turn, self._asked), asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._match()
        try:
            return await request.seat
        except asyncio.CancelledError:
            if request in self._waiting:
                self._waiting.remove(request)
            elif not request.seat.cancelled():
                self._free(request.seat.result())
            raise

    async def _take_living(self, stage: Stage, turn: int) -> _Seat:
        """A worker that answers: one that died while it was idle has not died of the stage.

        With a machine go all its workers, and a stage must not be given up for meeting one after another.
        """
        while True:
            seat = await self._take(stage, turn)
            try:
                await seat.worker.ready()
            except WorkerDied as death:
                self.tell(f"The worker on {seat.where} died while it had nothing to do: {death}")
                self._replace(seat)
            except BaseException:
                self._drop(seat)
                raise
            else:
                return seat

    def _match(self) -> None:
        """Gives idle workers to waiting stages; one whose asker is gone waits no more."""
        self._waiting = [request for request in self._waiting if not request.seat.done()]
        while self._waiting and (idle := [seat for seat in self._seats if seat.is_idle]):
            seat, request = max(
                ((seat, request) for seat in idle for request in self._waiting),
                key=lambda pair: _preference(*pair),
            )
            seat.is_idle = False
            self._waiting.remove(request)
            request.seat.set_result(seat)

    def _free(self, seat: _Seat, stage: Stage | None = None, state: str | None = None) -> None:
        """The worker takes the next stage; after a stage it holds that one's model and state."""
        if stage is not None:
            seat.model, seat.state = _model(stage), state
        seat.is_idle = True
        self._soon(TURNS)

    def _soon(self, turns: int) -> None:
        """Matches after the run that got its answer has had time to ask for its next stage."""
        if turns:
            asyncio.get_running_loop().call_soon(self._soon, turns - 1)
        else:
            self._match()

    def _drop(self, seat: _Seat) -> None:
        if seat in self._seats:
            self._seats.remove(seat)
            seat.worker.stop()

    def _replace(self, seat: _Seat) -> None:
        """Another worker in the place of one that is gone; if there can be none, what waits has failed."""
        self._drop(seat)
        self._fill()
        if not self._seats:
            for request in self._waiting:
                if not request.seat.done():
                    request.seat.set_exception(self._no_worker())
            self._waiting.clear()

    def _fill(self) -> None:
        """Starts the workers that are missing, unless starting them has failed too often."""
        while len(self._seats) < self.cluster.size() and len(self._failed_starts) <= self.retries:
            try:
                seat = _Seat(self.cluster.start())
            except WorkerDied as death:
                self._failed_starts.append(str(death))
                continue
            self._seats.append(seat)
            self._expect_notice()
            starting = asyncio.create_task(self._start(seat))
            self._starting.add(starting)
            starting.add_done_callback(self._starting.discard)

    async def _start(self, seat: _Seat) -> None:
        try:
            seat.where = await seat.worker.ready()
        except Exception as death:  # whatever it is: the stages that wait for this worker must hear of it
            self._failed_starts.append(str(death) or type(death).__name__)
            self._replace(seat)
        except BaseException:
            self._drop(seat)
            raise
        else:
            self._failed_starts.clear()
            self._free(seat)

    def _no_worker(self) -> WorkError:
        return WorkError(f"No worker could be started: {self._failed_starts[-1]}")

    def _expect_notice(self) -> None:
        """Has it told if, after a while, no worker has started, whenever the last one was asked for."""
        if self._notice:
            self._notice.cancel()
        self._notice = asyncio.get_running_loop().call_later(START_NOTICE, self._tell_waiting)

    def _tell_waiting(self) -> None:
        if self._waiting and not any(seat.where for seat in self._seats):
            self.tell(
                f"Waiting for workers: {len(self._seats)} are asked for, and none has started yet. They "
                "start when the cluster has the GPUs and cores free (`ray status`)."
            )


def _preference(seat: _Seat, request: _Request) -> tuple[int, int, bool, int]:
    """What decides who takes what: a model that need not be loaded, the run's turn, the state, the wait."""
    model = _model(request.stage)
    holds = 2 if seat.model == model else 1 if seat.model is None else 0
    run, asked = request.turn
    return holds, -run, seat.state == request.stage.state, -asked


def _model(stage: Stage) -> str:
    """What of a stage says which base model a worker must hold."""
    return repr(stage.config.model)  # type: ignore[attr-defined]


async def _all(works: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    return list(await asyncio.gather(*works))


async def in_sight(store: Store, kind: str, key: str) -> Stored:
    """A stage that another machine has stored, as soon as it is seen here; WorkError if it never is."""
    folder, waited, pause = store.root / "stages" / kind, 0.0, 0.05
    while (stored := store.find(kind, key)) is None and waited < SIGHT:
        # Reading the folder has a network file system ask again what is in it.
        list(folder.iterdir() if folder.is_dir() else ())
        await asyncio.sleep(pause)
        waited, pause = waited + pause, 2 * pause
    if stored is None:
        raise WorkError(
            f"A worker stored {kind} {key[:12]}, and it is not in {store.root} here: the store must be a "
            "folder on a file system that all machines share. Set store.root=FOLDER."
        )
    return stored
