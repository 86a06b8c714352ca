"""Runs stages one after another in this process, each at most once, ever."""

import shutil
from collections.abc import Callable

from sapo.experiments.engine.stages import Stage, stage_key
from sapo.experiments.engine.store import Store, Stored
from sapo.experiments.engine.work import do

Watcher = Callable[[Stage, str], None]


class LocalEngine:
    """Answers a stage from the store, or computes it and stores it."""

    def __init__(self, store: Store, watch: Watcher | None = None, force: bool = False) -> None:
        """`watch` is told a stage's `begin` and its end, `done` or `failed`, or that it was `stored`.

        `force` computes stored stages again.
        """
        self.store = store
        self.watch = watch or ignore
        self.force = force
        self.computed: set[str] = set()

    async def run(self, stage: Stage) -> Stored:
        """The finished stage."""
        key = stage_key(stage)
        again = self.force and key not in self.computed
        try:
            is_new = compute(stage, key, self.store, again, lambda: self.watch(stage, "begin"))
        except BaseException:
            self.watch(stage, "failed")
            raise
        if is_new:
            self.computed.add(key)
            self.watch(stage, "done")
        else:
            self.watch(stage, "stored")
        stored = self.store.find(stage.kind, key)
        if stored is None:
            raise RuntimeError(f"stage {key} vanished")
        return stored


def compute(stage: Stage, key: str, store: Store, again: bool, begin: Callable[[], None]) -> bool:
    """Computes the stage under its lock unless it is stored; whether it did. `again`: also if it is."""
    with store.lock(key):
        is_new = again or store.find(stage.kind, key) is None
        if is_new:
            begin()
            with store.building(stage.kind, key) as folder:
                do(stage, store, folder)
        # Not before the stage is in its place: a kill, or a disk that is full by then, would cost all of it.
        shutil.rmtree(store.checkpoints(key), ignore_errors=True)
        return is_new


def ignore(stage: Stage, event: str) -> None:
    """The watcher of an engine that nobody watches."""
    del stage, event
