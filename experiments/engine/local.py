"""Runs stages one after another in this process, each at most once, ever."""

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from sapo.experiments.engine import devices
from sapo.experiments.engine.stage import Stage
from sapo.experiments.engine.store import Store, Stored

Result = TypeVar("Result")

# Told a stage and `begin`, then its end, `done` or `failed`; or that it was `stored`.
Watcher = Callable[[Any, str], None]


def ignore(*_: object) -> None:
    """Watches nothing."""


@dataclass
class Turn:
    """The run that asks: its place among the runs of a command, and what became of the stages it asked for.

    `computed` and `stored` count the stages that were computed for it, and that the store had already.
    """

    number: int = 0
    computed: int = 0
    stored: int = 0


TURN: ContextVar[Turn | None] = ContextVar("turn", default=None)


class LocalEngine:
    """Answers a stage from the store, or computes it and stores it."""

    at_once = False  # On one device runs go one after another: each is whole before the next begins.
    wait = staticmethod(asyncio.run)
    expect: Callable[[Counter[str]], object] = staticmethod(ignore)  # told how many stages are asked for next

    def __init__(self, store: Store, watch: Watcher = ignore, force: bool = False) -> None:
        """`force` computes stored stages again, each once."""
        self.store = store
        self.watch = watch
        self.force = force
        self.computed: set[str] = set()

    async def run(self, stage: Stage) -> Stored:
        """The finished stage."""
        key = stage.key
        again = self.force and key not in self.computed
        try:
            with self.store.lock(key):
                is_new = again or self.store.find(stage.kind, key, stage.identity()) is None
                if is_new:
                    self.watch(stage, "begin")
                    with self.store.building(stage.kind, key) as folder:
                        if stage.config.engine.devices > 1:
                            devices.compute(stage, self.store, folder)
                        else:  # here, so that the way to an optimizer step stays short
                            with devices.described(stage, folder) as (model, facts):
                                facts |= stage.compute(self.store, model, folder)
                # Not before the stage is in its place: a kill, or a disk that is full by then, would cost it.
                shutil.rmtree(self.store.checkpoints(key), ignore_errors=True)
        except BaseException:
            self.watch(stage, "failed")
            raise
        return self._finished(stage, key, is_new)

    def _finished(self, stage: Stage, key: str, is_new: bool) -> Stored:
        """Notes a stage that is in the store, and returns it."""
        if is_new:
            self.computed.add(key)
        stored = self.store.find(stage.kind, key, stage.identity())
        if stored is None:
            raise RuntimeError(f"stage {key} vanished")
        self.watch(stage, "done" if is_new else "stored")
        if turn := TURN.get():
            turn.computed += is_new
            turn.stored += not is_new
        return stored

    def complete(self, works: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
        """What the works return, in order; all are under way at once where there are workers for them."""

        async def all_of_them() -> list[Result]:
            return list(await asyncio.gather(*works))

        return self.wait(all_of_them())
