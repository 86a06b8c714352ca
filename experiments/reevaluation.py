"""Evaluating the states of a finished run again: on other tasks, or under other prompts."""

import asyncio
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from sapo.conf.errors import UserError, WorkError
from sapo.conf.load import choices, load_one, settled
from sapo.conf.schema import Config
from sapo.data.benchmarks import load_task
from sapo.data.files import stored_json
from sapo.data.pools import load_pool
from sapo.data.prompts import Prompt
from sapo.data.records import MANIFEST, damage
from sapo.data.tasks import Task
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store, Stored
from sapo.experiments.model.preflight import preflight
from sapo.experiments.runs import read_config
from sapo.experiments.stages import BASE, Evaluate

# What may be another than it was when the run was made: where things are, and how they are computed.
OVERRIDES = (
    "data.root",
    "data.test_examples",
    "engine.device",
    "evaluator.batch_tokens",
    "paraphrases",
    "sequence.benchmark",
)


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
    def states(self) -> list[dict[str, Any]]:
        """The run's states, the untouched model first: `after`, `key`, and the `tasks` that it tested."""
        return self.record["states"]

    @property
    def sequence(self) -> str:
        """The arguments by which `sapo train` trains the run's sequence."""
        ours, root = self.config.sequence, self.config.data.root
        name = ours.name if ours.name in choices("sequence") else "own"
        known = load_one([f"sequence={name}", "task=any"])  # beside a task, a sequence may be without tasks
        said = [
            f"sequence.{f.name}={_written(getattr(ours, f.name))}"
            for f in fields(ours)
            if getattr(ours, f.name) != getattr(known.sequence, f.name)
        ]
        where = [f"data.root={root}"] if root and root != known.data.root else []
        return shlex.join([f"sequence={known.sequence.name}", *said, *where])

    def wishes(self, names: Sequence[str], prompt: str, state: str) -> list[Wish]:
        """Every state and task that is asked for; the run's own tasks where `names` is empty.

        `prompt` is `original`, `trained` (the original where a state has not learned the task) or an index
        into the task's pool; `state` is `all`, `base`, `last` or a number of trained tasks.
        """
        is_named = bool(names)
        names = names or [*self.record["tasks"], *self.record["unseen"]]
        tasks = [load_task(name, self.config) for name in names]
        return [
            Wish(found["after"], found["key"], task, self._prompt(task, found, prompt))
            for found in self._which(state)
            for task in tasks
            if is_named or task.name in found["tasks"]
        ]

    def _which(self, state: str) -> list[dict[str, Any]]:
        last = self.states[-1]["after"]
        if state == "all":
            return self.states
        number = {"base": 0, "last": last}.get(state, int(state) if state.isdecimal() else -1)
        found = [known for known in self.states if known["after"] == number]
        if not found:
            raise UserError(
                f"--state {state}: run {self.record['id']} has states 0 (base) to {last} (last), or all."
            )
        return found

    def _prompt(self, task: Task, state: dict[str, Any], prompt: str) -> Prompt:
        if prompt == "original":
            return Prompt(task.instruction)
        if prompt == "trained":
            learned = {choice["task"]: choice for choice in self.learned(state)}
            choice = learned.get(task.name)
            return Prompt(choice["text"], choice["index"]) if choice else Prompt(task.instruction)
        pool = load_pool(task, self.config.paraphrases)
        return pool.at(_index(prompt))

    def learned(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """The choices that a state was trained with: its own task's where each task was trained alone."""
        choices = self.record["choices"][: state["after"]]
        if self.config.method.name == "single":
            return [choice for choice in choices if choice["task"] in state["tasks"]]
        return choices


def _written(value: object) -> str:
    """A value as an override has it."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def open_run(folder: Path, overrides: Sequence[str] = ()) -> Reevaluation:
    """The run in a folder, its config with `overrides` of `OVERRIDES` applied.

    Where its benchmark data has gone, or it had none, the present SAPO_DATA is read. Raises WorkError if the
    run's files are not those that were written, UserError for other overrides.
    """
    again = "Run its command again: only what is missing is computed."
    if (folder / MANIFEST).is_file():
        for line in damage(folder):
            raise WorkError(f"Damaged: {line}. {again}")
    record = stored_json(folder / "run.json")
    missing = [name for name in ("id", "tasks", "unseen", "states", "choices") if name not in record]
    if missing:
        raise WorkError(f"Damaged: {folder / 'run.json'} has no {', '.join(missing)}. {again}")
    return Reevaluation(record, _with(read_config(folder), overrides))


def _with(config: Config, overrides: Sequence[str]) -> Config:
    """The config with what the overrides say, and with benchmark data that is there."""
    keys = [override.partition("=")[0] for override in overrides]
    for key in keys:
        if key not in OVERRIDES and not key.startswith("paraphrases."):
            raise UserError(f"{key}: a run's settings stay as they were, but for {', '.join(OVERRIDES)}.")
    said = load_one(list(overrides))
    if not (config.data.root and Path(config.data.root).expanduser().is_dir()):
        keys.append("data.root")
    for key in keys:
        group, _, setting = key.partition(".")
        value = getattr(said, group)
        if setting:
            value = replace(getattr(config, group), **{setting: getattr(value, setting)})
        config = replace(config, **{group: value})
    return settled(config)


def require_states(run: Reevaluation, wishes: Sequence[Wish], store: Store) -> None:
    """UserError if model, tasks and prompts do not fit, or the store does not hold a state (any more)."""
    preflight(run.config, [(wish.task, [wish.prompt]) for wish in wishes], trains=False)
    for wish in wishes:
        if wish.state != BASE and store.find("train", wish.state) is None:
            raise missing_state(run, wish.after, store)


def missing_state(run: Reevaluation, after: int, store: Store) -> UserError:
    """The error for a state that the store does not hold (any more), with the command that mends it."""
    names = ("model", "method", "policy", "seed")
    again = " ".join([run.sequence, *(f"{name}={run.record[name]}" for name in names)])
    return UserError(
        f"State {after} of run {run.record['id']} is not in the store {store.root}. Train it "
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
