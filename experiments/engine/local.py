"""Runs stages one after another in this process, each at most once, ever."""

from collections.abc import Callable

from sapo.experiments.engine.stages import Stage, stage_key
from sapo.experiments.engine.store import Store, Stored
from sapo.experiments.engine.work import do

Watcher = Callable[[Stage, str], None]


class LocalEngine:
    """Answers a stage from the store, or computes it and stores it."""

    def __init__(self, store: Store, watch: Watcher | None = None, force: bool = False) -> None:
        """`watch` is told `begin`, `done` or `stored` of a stage; `force` computes stored ones again."""
        self.store = store
        self.watch = watch or _ignore
        self.force = force
        self.computed: set[str] = set()

    async def run(self, stage: Stage) -> Stored:
        """The finished stage."""
        key = stage_key(stage)
        with self.store.lock(key):
            again = self.force and key not in self.computed
            stored = None if again else self.store.find(stage.kind, key)
            if stored is None:
                self.watch(stage, "begin")
                with self.store.building(stage.kind, key) as folder:
                    do(stage, self.store, folder)
                self.computed.add(key)
                self.watch(stage, "done")
            else:
                self.watch(stage, "stored")
        stored = self.store.find(stage.kind, key)
        if stored is None:
            raise RuntimeError(f"stage {key} vanished")
        return stored


def _ignore(stage: Stage, event: str) -> None:
    """The watcher of an engine that nobody watches."""
    del stage, event
