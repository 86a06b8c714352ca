"""A finished run taken up again: its states evaluated on other tasks, under other prompts, or elsewhere."""

import asyncio
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from sapo.conf.errors import UserError
from sapo.conf.load import choices, load_one, settled
from sapo.conf.models import argument_of
from sapo.conf.schema import Config, with_settings
from sapo.data.benchmarks import load_task
from sapo.data.pools import load_pool
from sapo.data.prompts import Prompt
from sapo.data.records import BASE, ChoiceRecord, RunRecord, StateRecord, read_record
from sapo.data.tasks import Task
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.stage import Stage
from sapo.experiments.engine.store import Store, Stored
from sapo.experiments.model.evaluation import mean_label_match
from sapo.experiments.model.identity import model_identity
from sapo.experiments.model.preflight import preflight
from sapo.experiments.runs import read_config
from sapo.experiments.stages import Evaluate

# What may be another than it was when the run was made: where things are, and how they are computed.
OVERRIDES = (
    "data.root",
    "data.test_examples",
    "engine.device",
    "evaluator.batch_tokens",
    "model.path",
    "paraphrases",
    "sequence.benchmark",
    "store.root",
)


AnyStage = TypeVar("AnyStage", bound=Stage)


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its record, its config as it is computed now, and the store with its states."""

    record: RunRecord
    config: Config
    store: Store

    @property
    def sequence(self) -> str:
        """The arguments by which `sapo train` trains the run's sequence."""
        ours, root = self.config.sequence, self.config.data.root
        name = ours.name if ours.name in choices("sequence") else "own"
        known = load_one([f"sequence={name}", "task=any"])  # beside a task, a sequence may be without tasks
        settings = [f"sequence={known.sequence.name}"]
        for field in fields(ours):
            value = getattr(ours, field.name)
            if value != getattr(known.sequence, field.name):
                text = f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
                settings.append(f"sequence.{field.name}={text}")
        if root and root != known.data.root:
            settings.append(f"data.root={root}")
        return shlex.join(settings)

    def learned(self, state: StateRecord) -> tuple[ChoiceRecord, ...]:
        """The choices that a state was trained with: its own task's where each task was trained alone."""
        learned = self.record.choices[: state.after]
        if self.config.method.name == "single":
            return tuple(choice for choice in learned if choice.task in state.tasks)
        return learned

    def missing(self, after: int) -> UserError:
        """The error for a state that the store does not hold (any more), with the command that mends it."""
        names = (f"{name}={getattr(self.record, name)}" for name in ("method", "policy", "seed"))
        again = shlex.join([f"model={argument_of(self.config.model)}", *names])
        return UserError(
            f"State {after} of run {self.record.id} is not in the store {self.store.root}. Train it "
            f"again: sapo train {self.sequence} {again} (settings: config.yaml of the run)."
        )

    def require_same_base(self) -> None:
        """UserError if the base model on this machine is not the one that the run trained."""
        # The device decides only the precision, which is not compared: a run from a GPU goes on without one.
        config = replace(self.config, engine=replace(self.config.engine, device="cpu"))
        now, then = model_identity(config), self.record.identity["model"]
        parts = ("weights", "tokenizer", "chat_template")
        changed = [part for part in parts if now.get(part) != then.get(part)]
        if changed:
            raise UserError(
                f"The {', '.join(changed).replace('_', ' ')} of model {config.model.name} "
                f"({config.model.path or config.model.source}) changed since run {self.record.id}. "
                "An adapter belongs to the very model it was trained on: put that back, or say where it is "
                "with model.path=FOLDER."
            )


def open_run(folder: Path, overrides: Sequence[str] = ()) -> FinishedRun:
    """The run in a folder `ROOT/runs/ID`, its config with `overrides` of `OVERRIDES` applied.

    Where its benchmark data has gone, or it had none, the present SAPO_DATA is read. Raises WorkError if the
    run's files are not those that were written, UserError for other overrides.
    """
    record, config = read_record(RunRecord, folder), read_config(folder)
    keys = [override.partition("=")[0] for override in overrides]
    for key in keys:
        if key not in OVERRIDES and not key.startswith("paraphrases."):
            raise UserError(f"{key}: a run's settings stay as they were, but for {', '.join(OVERRIDES)}.")
    given = load_one(list(overrides))
    is_there = config.data.root and Path(config.data.root).expanduser().is_dir()
    if not is_there and (given.data.root or config.sequence.benchmark != "own"):
        keys.append("data.root")
    config = with_settings(config, given, keys)
    return FinishedRun(record, settled(config), Store(folder.parent.parent))


def asked_states(run: FinishedRun, state: str) -> list[StateRecord]:
    """The run's states that `all`, `base`, `last` or a number of trained tasks means; UserError for none."""
    last = run.record.states[-1].after
    number = {"base": 0, "last": last}.get(state, int(state) if state.isdecimal() else -1)
    states = [each for each in run.record.states if state == "all" or each.after == number]
    if not states:
        raise UserError(f"--state {state}: run {run.record.id} has states 0 (base) to {last} (last), or all.")
    return states


def evaluate(
    run: FinishedRun,
    names: Sequence[str] = (),
    prompt: str = "trained",
    state: str = "all",
    engine: LocalEngine | None = None,
) -> list[dict[str, Any]]:
    """Evaluates states of a finished run on tasks, and returns a row of scores for each pair.

    `names` are tasks, also ones that the run does not have; the run's own if there are none. `prompt` is
    `original`, `trained` (the original where a state has not learned the task), or an index into the task's
    pool; `state` is `all`, `base`, `last`, or a number of trained tasks.

    Raises UserError for what is not there: a task, a prompt, a state, or the model that was trained.
    """
    states = asked_states(run, state)
    try:
        tasks = [load_task(name, run.config) for name in names or [*run.record.tasks, *run.record.unseen]]
    except UserError as error:
        if run.config.sequence.benchmark != "own":
            raise
        moved = f"If the data has moved, say where it is: data.root=FOLDER (it was {run.config.data.root})."
        raise UserError(f"{error} {moved}") from error
    asked = [
        (each, Evaluate(run.config, each.key, task, _prompt(run, task, each, prompt)))
        for each in states
        for task in tasks
        if names or task.name in each.tasks
    ]
    preflight(run.config, [(stage.task, [stage.prompt]) for _, stage in asked], trains=False)

    def scores(stage: Evaluate, stored: Stored) -> dict[str, Any]:
        return {
            "prompt": {"index": stage.prompt.index, "text": stage.prompt.text},
            **{name: getattr(stored.result, name) for name in ("rougeL", "exact_match", "nll")},
            "label_match": mean_label_match(stored.examples(), stage.task.labels),
        }

    return measured(run, asked, scores, engine)


def measured(
    run: FinishedRun,
    asked: Sequence[tuple[StateRecord, AnyStage]],
    scores: Callable[[AnyStage, Stored], dict[str, Any]],
    engine: LocalEngine | None,
) -> list[dict[str, Any]]:
    """A row of `scores` for each stage in a state, those that the store has not computed now.

    UserError unless the store has the states, and this machine the base model that they belong to.
    """
    for key, after in {each.key: each.after for each, _ in asked}.items():
        if key != BASE and run.store.find("train", key) is None:
            raise run.missing(after)
    run.require_same_base()
    engine, rows = engine or LocalEngine(run.store), []
    engine.expect(Counter(evaluate=len(asked)))
    with run.store.at_work():  # nothing is deleted until it is read
        for each, stage in asked:
            stored = asyncio.run(engine.run(stage))
            facts = {"after": each.after, "state": each.key, "task": stage.name}
            rows.append(facts | scores(stage, stored) | {"examples": stored.result.examples})
    return rows


def _prompt(run: FinishedRun, task: Task, state: StateRecord, wanted: str) -> Prompt:
    if wanted in ("original", "trained"):
        learned = {choice.task: choice for choice in run.learned(state)} if wanted == "trained" else {}
        choice = learned.get(task.name)
        return Prompt(choice.text, choice.index) if choice else Prompt(task.instruction)
    if not wanted.removeprefix("-").isdecimal():
        raise UserError(f"--prompt {wanted}: must be original, trained, or a number of the pool (0, 1, …).")
    return load_pool(task, run.config.paraphrases).at(int(wanted))
