"""Runs stages one after another in this process, each at most once, ever."""

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sapo.experiments.engine.store import Store, Stored

Result = TypeVar("Result")


class Stage(Protocol):
    """What an engine needs to know of a stage."""

    kind: str
    state: str

    @property
    def key(self) -> str:
        """The digest of its identity."""
        ...

    @property
    def name(self) -> str:
        """What it works on, for people."""
        ...

    def identity(self) -> dict[str, Any]:
        """Everything that can change its result."""
        ...

    def build(self, store: Store, folder: Path) -> None:
        """Computes it and writes its files to `folder`."""
        ...


# Told a stage and `begin`, then its end, `done` or `failed`; or that it was `stored`.
Watcher = Callable[[Any, str], None]


def ignore(*_: object) -> None:
    """Watches nothing."""


class LocalEngine:
    """Answers a stage from the store, or computes it and stores it."""

    def __init__(self, store: Store, watch: Watcher = ignore, force: bool = False) -> None:
        """`force` computes stored stages again, each once."""
        self.store = store
        self.watch = watch
        self.force = force
        self.computed: set[str] = set()

    async def run(self, stage: Stage) -> Stored:
        """The finished stage."""
        return (await self.ask(stage))[0]

    async def ask(self, stage: Stage, turn: int = 0) -> tuple[Stored, bool]:
        """The finished stage, and whether it was computed for this asker.

        Of stages that wait for a worker, one with a lower `turn` goes first: the number of its run.
        """
        del turn  # nothing waits here
        key = stage.key
        again = self.force and key not in self.computed
        try:
            is_new = compute(stage, key, self.store, again, lambda: self.watch(stage, "begin"))
        except BaseException:
            self.watch(stage, "failed")
            raise
        return self._finished(stage, key, is_new), is_new

    def _finished(self, stage: Stage, key: str, is_new: bool) -> Stored:
        """Notes a stage that is in the store, and returns it."""
        if is_new:
            self.computed.add(key)
        stored = self.store.find(stage.kind, key, stage.identity())
        if stored is None:
            raise RuntimeError(f"stage {key} vanished")
        self.watch(stage, "done" if is_new else "stored")
        return stored

    def complete(self, works: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
        """What the works return, in order.

        On one device they go one after another: mixing gains nothing, and this way a run is whole, with its
        folder, before the next begins.
        """
        try:
            return [asyncio.run(work) for work in works]
        finally:
            for work in works:
                work.close()


def compute(stage: Stage, key: str, store: Store, again: bool, begin: Callable[[], None]) -> bool:
    """Computes the stage under its lock unless it is stored; whether it did. `again`: also if it is."""
    with store.lock(key):
        is_new = again or store.find(stage.kind, key, stage.identity()) is None
        if is_new:
            begin()
            with store.building(stage.kind, key) as folder:
                stage.build(store, folder)
        # Not before the stage is in its place: a kill, or a disk that is full by then, would cost all of it.
        shutil.rmtree(store.checkpoints(key), ignore_errors=True)
        return is_new
