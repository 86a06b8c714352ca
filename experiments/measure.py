"""Rates of this device with a model, measured in a minute through the stages themselves.

Each kind of stage is run with 1, 4, 16, … rows of a task, and last with as many as its share of the time is
enough for: the first says what a stage takes whatever its size, the last what its rows take. The state is one
that training has left, so that adapters of earlier tasks, the method's penalty and the comparison with the
untouched model are in it.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import nn

from sapo.conf.errors import UserError
from sapo.conf.schema import Config
from sapo.data.benchmarks import load_tasks
from sapo.data.prompts import Prompt
from sapo.data.tasks import Task
from sapo.experiments.costs import Estimate, Rates, Work, place_of
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store
from sapo.experiments.model.forward import pass_tokens
from sapo.experiments.model.load import load_model
from sapo.experiments.model.rows import TrainingTask
from sapo.experiments.stages import BASE, Evaluate, Score, Stage, Train

SECONDS = 60.0  # for all of it, after the model is loaded
_SHARES = {"train": 0.45, "score": 0.2, "evaluate": 0.35}
_GROWTH = 4


@dataclass
class Steps:
    """Passes of a model that read one token a row after another such pass: steps of generation."""

    passes: int = 0
    tokens: int = 0
    seconds: float = 0.0
    _last: float | None = None

    @contextmanager
    def counted(self, embedding: nn.Module) -> Iterator[None]:
        """Inside, what goes through the model's embedding is counted, and the time from one to the next."""

        def note(_: nn.Module, given: tuple[Any, ...]) -> None:
            now, is_step = time.monotonic(), given[0].shape[-1] == 1
            if is_step and self._last is not None:
                self.passes, self.tokens = self.passes + 1, self.tokens + given[0].numel()
                self.seconds += now - self._last
            self._last = now if is_step else None

        handle = embedding.register_forward_pre_hook(note)
        try:
            yield
        finally:
            handle.remove()


Measured = tuple[float, Work, Steps]


@dataclass
class _Growing:
    """Runs stages of one kind with ever more rows of a task."""

    engine: LocalEngine
    task: Task
    embedding: nn.Module
    tell: Callable[[str], object]
    estimate: Estimate = field(default_factory=Estimate)

    def some(self, count: int) -> Task:
        """The task with so many rows."""
        return replace(self.task, train=self.task.train[:count], test=self.task.test[:count])

    def __call__(self, kind: str, made: Callable[[Task], Stage], rows: int) -> list[Measured]:
        """Seconds, work and steps of stages with 1, 4, 16, … rows, and as many as the share has time for."""
        found: list[Measured] = []
        left, count, largest = _SHARES[kind] * SECONDS, 1, 0
        while count > largest:
            stage, begun = made(self.some(count)), time.monotonic()
            with (steps := Steps()).counted(self.embedding):
                asyncio.run(self.engine.run(stage))
            took = time.monotonic() - begun
            found.append((took, self.estimate.work(stage)[1], steps))
            self.tell(f"{kind}, {count} rows: {took:.2f} s")
            left, largest = left - took, count
            count = min(rows, _GROWTH * count, int(0.9 * left / took * count))
        return found


def measure(config: Config, tell: Callable[[str], object]) -> Rates:
    """Measures the rates of the config's model on its device, with rows of its sequence's first task.

    `tell` gets a line a measurement. UserError if the task has no training rows.
    """
    task = load_tasks(config)[0][0]
    if not task.train:
        raise UserError(f"Task {task.name} has no training rows to measure with.")
    is_bound = config.method.name in ("zero_shot", "multitask", "single")
    config = replace(
        config,
        engine=replace(config.engine, devices=1),
        trainer=replace(config.trainer, epochs=1, report_to=[]),
        evaluator=replace(config.evaluator, answers=True),
        scorer=replace(config.scorer, name="full"),
        # One that trains one task after another: bounds that do not are as fast.
        method=replace(config.method, name="lorainc" if is_bound else config.method.name),
    )
    base = load_model(config).base
    prompt, a_pass, embedding = Prompt(task.instruction), pass_tokens(base), base.get_input_embeddings()
    with TemporaryDirectory(prefix="sapo-measure-") as scratch:
        engine = LocalEngine(Store(Path(scratch)))
        grow = _Growing(engine, replace(task, test=(*task.test, *task.train)), embedding, tell)
        first = Train(config, BASE, 0, (TrainingTask(grow.some(1), (prompt,)),))
        state = asyncio.run(engine.run(first)).key  # not measured: the first pass of all takes longer

        def learned(some: Task) -> Train:
            return Train(config, state, 1, (TrainingTask(some, (prompt,)),))

        def scored(some: Task) -> Score:
            return Score(config, state, some, some.train, (prompt,))

        train = grow("train", learned, len(task.train))
        score = grow("score", scored, len(task.train))
        evaluate = grow("evaluate", lambda some: Evaluate(config, state, some, prompt), len(grow.task.test))
    beside_training, training = _line([(took, work.trained) for took, work, _ in train])
    beside_scoring, reading = _line([(took, work.read) for took, work, _ in score])
    passes, tokens, generating = (
        sum(getattr(steps, name) for *_, steps in evaluate) for name in ("passes", "tokens", "seconds")
    )
    beside_evaluating = min(took - work.read / reading - steps.seconds for took, work, steps in evaluate)
    # Where all answers were right at once, a step is taken for a pass that reads.
    generation = (passes * a_pass + tokens) / generating if passes else reading
    rows = max(1, round(tokens / max(1, passes)))
    return Rates(
        place=place_of(config),
        training=training,
        reading=reading,
        steps=generation / (a_pass + rows),
        rows=rows,
        beside={"train": beside_training, "score": beside_scoring, "evaluate": max(0.0, beside_evaluating)},
        a_pass=a_pass,
    )


def _line(measured: list[tuple[float, float]]) -> tuple[float, float]:
    """Seconds at no work, and work a second, of seconds and work of several sizes."""
    seconds, work = zip(*measured, strict=True)
    slope = float(np.polyfit(work, seconds, 1)[0]) if len(set(work)) > 1 else 0.0
    rate = 1 / slope if slope > 0 else work[-1] / seconds[-1]  # disturbed, or one size alone
    return max(0.0, min(took - done / rate for took, done in measured)), rate
