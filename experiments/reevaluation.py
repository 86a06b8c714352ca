"""Evaluating the states of a finished run again: on other tasks, or under other prompts."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapo.conf.errors import UserError
from sapo.conf.schema import Config
from sapo.data.benchmarks import load_task
from sapo.data.pools import load_pool
from sapo.data.prompts import Prompt
from sapo.data.tasks import Task
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.stages import BASE, Evaluate
from sapo.experiments.engine.store import Store, Stored, read_json
from sapo.experiments.runs import read_config


@dataclass(frozen=True)
class Wish:
    """What is evaluated: a task in the state after `after` trained tasks, under a prompt."""

    after: int
    state: str
    task: Task
    prompt: Prompt


@dataclass(frozen=True)
class Reevaluation:
    """A finished run whose states are evaluated."""

    record: dict[str, Any]
    config: Config

    @property
    def states(self) -> list[str]:
        """Keys of the run's states, the untouched model first."""
        return self.record["states"]

    def wishes(self, names: Sequence[str], prompt: str, state: str) -> list[Wish]:
        """Every state and task that is asked for; the run's own tasks where `names` is empty.

        `prompt` is `original`, `trained` (the original where a state has not learned the task) or an index
        into the task's pool; `state` is `all`, `base`, `last` or a number of trained tasks.
        """
        names = names or [*self.record["tasks"], *self.record["unseen"]]
        tasks = [load_task(name, self.config) for name in names]
        return [
            Wish(after, self.states[after], task, self._prompt(task, after, prompt))
            for after in self._which(state)
            for task in tasks
        ]

    def _which(self, state: str) -> list[int]:
        last = len(self.states) - 1
        named = {"all": list(range(last + 1)), "base": [0], "last": [last]}
        if state in named:
            return named[state]
        if not state.isdecimal() or int(state) > last:
            raise UserError(
                f"--state {state}: run {self.record['id']} has states 0 (base) to {last} (last), or all."
            )
        return [int(state)]

    def _prompt(self, task: Task, after: int, prompt: str) -> Prompt:
        if prompt == "original":
            return Prompt(task.instruction)
        if prompt == "trained":
            learned = {choice["task"]: choice for choice in self.record["choices"][:after]}
            choice = learned.get(task.name)
            return Prompt(choice["text"], choice["index"]) if choice else Prompt(task.instruction)
        pool = load_pool(task, self.config.paraphrases)
        return pool.at(_index(prompt))


def open_run(folder: Path) -> Reevaluation:
    """The run in a folder."""
    return Reevaluation(read_json(folder / "run.json"), read_config(folder))


def require_states(run: Reevaluation, wishes: Sequence[Wish], store: Store) -> None:
    """UserError if the store does not hold a wished state (any more)."""
    for wish in wishes:
        if wish.state != BASE and store.find("train", wish.state) is None:
            names = ("sequence", "model", "method", "policy", "seed")
            again = " ".join(f"{name}={run.record[name]}" for name in names)
            raise UserError(
                f"State {wish.after} of run {run.record['id']} is not in the store {store.root}. Train it "
                f"again: sapo train {again} (settings: config.yaml of the run)."
            )


def evaluate(run: Reevaluation, wishes: Sequence[Wish], engine: LocalEngine) -> list[Stored]:
    """The evaluations of the wishes, in order."""

    async def everything() -> list[Stored]:
        stages = (Evaluate(run.config, wish.state, wish.task, wish.prompt) for wish in wishes)
        return [await engine.run(stage) for stage in stages]

    return asyncio.run(everything())


def _index(prompt: str) -> int:
    try:
        return int(prompt)
    except ValueError as error:
        raise UserError(
            f"--prompt {prompt}: must be original, trained, or a number of the pool (0, 1, …)."
        ) from error
