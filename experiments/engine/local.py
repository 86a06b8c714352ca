"""Runs stages one after another in this process, each at most once, ever."""

import asyncio
import shutil
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import yaml

from sapo.conf.errors import WorkError
from sapo.conf.schema import Config
from sapo.data.files import write_json
from sapo.data.records import StageResult, write_record
from sapo.experiments.engine.environment import environment
from sapo.experiments.engine.store import Store, Stored
from sapo.experiments.model.budgets import DoesNotFitError
from sapo.experiments.model.load import LanguageModel, load_model

Result = TypeVar("Result")


class Stage(Protocol):
    """What an engine needs to know of a stage."""

    kind: ClassVar[str]

    @property
    def config(self) -> Config:
        """The settings that it reads."""

    @property
    def state(self) -> str:
        """The key of the training that made the state, or `base`."""

    @property
    def key(self) -> str:
        """The digest of its identity."""

    @property
    def name(self) -> str:
        """What it works on, for people."""

    @property
    def groups(self) -> list[str]:
        """The groups of the config that it reads."""

    def identity(self) -> dict[str, Any]:
        """Everything that can change its result."""

    def compute(self, store: Store, language_model: LanguageModel, folder: Path) -> dict[str, Any]:
        """Computes the result, writes its tables or weights to `folder`, and returns its facts."""


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
                        model = load_model(stage.config)
                        begun = time.monotonic()
                        facts = stage.compute(self.store, model, folder)
                        _describe(stage, facts, time.monotonic() - begun, model, folder)
                # Not before the stage is in its place: a kill, or a disk that is full by then, would cost it.
                shutil.rmtree(self.store.checkpoints(key), ignore_errors=True)
        except BaseException as error:
            self.watch(stage, "failed")
            if isinstance(error, DoesNotFitError):
                raise WorkError(f"Task {stage.name} ({stage.kind}): {error}") from error
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


def _describe(
    stage: Stage, facts: Mapping[str, Any], seconds: float, model: LanguageModel, folder: Path
) -> None:
    """Writes what a stage took and measured, what it is, and with what it was computed."""
    seconds = round(seconds + facts.get("earlier_seconds", 0.0), 3)
    common = {"task": stage.name, "model": stage.config.model.name, "seconds": seconds}
    result = StageResult.model_validate({**common, **facts}, strict=False)
    write_record(folder / "result.json", result)
    write_json(folder / "identity.json", stage.identity())
    write_json(folder / "environment.json", environment(model.base.device))
    read = {group: value for group, value in asdict(stage.config).items() if group in stage.groups}
    text = yaml.safe_dump(read, sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
