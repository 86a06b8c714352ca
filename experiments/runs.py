"""Run folders: what a finished run leaves for people and for the analysis."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sapo.conf.errors import UserError
from sapo.conf.names import DIGEST, plain, run_name
from sapo.conf.schema import Config, identity_values
from sapo.data import records
from sapo.data.files import write_json
from sapo.data.hygiene import distinct_rows
from sapo.data.prompts import Prompt
from sapo.data.tasks import Task, digest, examples_digest
from sapo.experiments.engine.store import Store, Stored, put_record
from sapo.experiments.methods import METHODS
from sapo.experiments.model.evaluation import label_matches
from sapo.experiments.model.identity import model_identity
from sapo.experiments.policies import POLICIES

_NAMED = ("sequence", "model", "method", "policy", "parity", "trainer")  # groups that a record names


@dataclass(frozen=True)
class Planned(Stored):
    """A stage that is to do: it has a key, and nothing in a folder yet."""

    folder: Path = Path()


@dataclass(frozen=True)
class Choice:
    """The prompt that a policy chose for a task, and what it chose from.

    `drawn` are the prompts that training draws from, for a policy that never settles on one: the task is then
    tested with `prompt`. `paraphrases` are the pool's. `scored` is the stage that measured the candidates'
    losses, for a policy that reads them.
    """

    task: str
    prompt: Prompt
    candidates: tuple[records.Candidate, ...] | None = None
    drawn: tuple[Prompt, ...] = ()
    paraphrases: tuple[str, ...] = ()
    scored: Stored | None = None


@dataclass(frozen=True)
class State:
    """A state of the model on the way: the key of the training that made it, after `after` tasks.

    `prompts` are the learned tasks' prompts, by task; `tasks` are those that it is evaluated on.
    """

    after: int
    key: str
    prompts: dict[str, Prompt]
    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class Evaluation:
    """A task evaluated under a prompt after `after` trained tasks.

    `column` is `trained`: learned tasks under the prompt they were trained with; or `common`: a learned task
    under its original instruction, where that is another prompt.
    """

    after: int
    task: Task
    prompt: Prompt
    column: str
    stored: Stored


@dataclass(frozen=True)
class Run:
    """What came out of one sequence under one configuration."""

    config: Config
    tasks: list[Task]
    unseen: list[Task]
    choices: list[Choice] = field(default_factory=list)
    trained: list[Stored] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def prompts(self) -> dict[str, Prompt]:
        """The prompt that each task was trained with."""
        return {choice.task: choice.prompt for choice in self.choices}

    def add_state(
        self, trained: Stored | None, after: int, learned: Sequence[Choice], tasks: Sequence[Task] = ()
    ) -> str:
        """Adds a state to evaluate, on all tasks if not said otherwise, and returns its key.

        `trained` is the training that made it; None for the untouched model.
        """
        key = trained.key if trained else records.BASE
        self.trained.extend([trained] if trained else [])
        prompts = {choice.task: choice.prompt for choice in learned}
        self.states.append(State(after, key, prompts, tuple(tasks) or (*self.tasks, *self.unseen)))
        return key


def write_run(run: Run, store: Store) -> Path:
    """Writes the files of a run, with their manifest, and returns the folder."""
    texts = {choice.task: list(choice.paraphrases) for choice in run.choices}  # of the pools that it read
    pool, asked = None, run.config.paraphrases
    if size := max(map(len, texts.values())):
        pool_name = Path(str(asked.file)).stem if asked.source == "file" else asked.name
        pool = records.PoolRecord(name=pool_name, size=size, digest=digest(texts))
    identity = json.loads(json.dumps(_identity(run, pool)))
    name = id_of([run_name(run.config)], identity)
    predictions = pd.concat(map(_predictions, run.evaluations), ignore_index=True)
    # Of every optimizer step of each training, with the penalty and the gradient's norm if there are any.
    losses = [pd.DataFrame(columns=["task", "step", "loss"])]
    for result in (trained.result for trained in run.trained):
        table = {"loss": result.losses, "penalty": result.penalties, "gradient_norm": result.gradient_norms}
        steps = range(1, len(result.losses or ()) + 1)
        told = {column: values for column, values in table.items() if values}
        losses.append(pd.DataFrame({"task": result.task, "step": steps, **told}))
    with store.lock(name), store.scratch(name) as building:
        predictions.to_parquet(building / "predictions.parquet")
        pd.concat(losses[1:] or losses, ignore_index=True).to_csv(building / records.LOSSES, index=False)
        OmegaConf.save(OmegaConf.structured(run.config), building / "config.yaml")
        write_last(building, _record(name, run, identity, pool))
        put_record(building, store.run_folder(name))
    return store.run_folder(name)


def _predictions(evaluation: Evaluation) -> pd.DataFrame:
    """A row a test example; `row` is the first with the same input and target: repeated rows are one."""
    task, table = evaluation.task, evaluation.stored.examples()
    first_equal, examples = distinct_rows(task.test), table["example"].tolist()
    facts = {
        "after": evaluation.after,
        "task": task.name,
        "prompt_index": evaluation.prompt.index,
        "column": evaluation.column,
        "example": examples,
        "input": [task.test[example].input for example in examples],
    }
    label_match = pd.array(label_matches(table, task.labels), dtype="Float64")
    rows = [first_equal[example] for example in examples]
    return pd.DataFrame({**facts, **table, "row": rows, "label_match": label_match})


def id_of(names: Iterable[str], identity: dict[str, Any]) -> str:
    """What a run's or probe's folder is called: names for people, and the beginning of a digest."""
    return plain("-".join([*names, digest(identity)[:DIGEST]]))


def write_last(folder: Path, record: records.RunRecord | records.ProbeRecord) -> None:
    """Writes the record of a run or probe, and then the manifest of all that lies in its folder."""
    records.write_record(folder / record.FILE, record)
    write_json(folder / records.MANIFEST, records.manifest_of(folder))


def read_config(folder: Path) -> Config:
    """The config that a run was made with; UserError if its file is missing or is not such a config."""
    path = folder / "config.yaml"
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"Cannot read the config of run {folder.name} ({path}): {error}") from error


def _identity(run: Run, pool: records.PoolRecord | None) -> dict[str, Any]:
    """What makes this run another than that one: settings, rows and prompts.

    A policy that chooses among prompts is another with another pool, even where it chose the same ones.
    """
    config = run.config
    return {
        "model": model_identity(config),
        "method": identity_values(config.method),
        "policy": vars(config.policy),
        "scorer": vars(config.scorer),
        "trainer": identity_values(config.trainer),
        "evaluator": {
            **identity_values(config.evaluator),
            "truncation": config.data.truncation,
            "max_input_tokens": config.data.max_input_tokens,
            **({"layout": config.data.layout} if config.data.layout else {}),
        },
        "common_prompt": config.evaluator.common_prompt,
        "tasks": [task.name for task in run.tasks],
        "train": {task.name: examples_digest(task.train) for task in run.tasks},
        # What each task is tested with: its rows, its frame, and the labels that answers are matched with.
        "test": {
            task.name: digest(
                [task.instruction, task.suffix, task.separator, list(task.labels), examples_digest(task.test)]
            )
            for task in (*run.tasks, *run.unseen)
        },
        "drawn": {choice.task: [prompt.text for prompt in choice.drawn] for choice in run.choices},
        "prompts": {name: prompt.text for name, prompt in run.prompts.items()},
        "seed": config.seed,
        **({"pool": pool.digest} if pool and config.policy.name != "fixed" else {}),
    }


def _record(name: str, run: Run, identity: dict[str, Any], pool: Any) -> records.RunRecord:
    config = run.config
    asked = (*(c.scored for c in run.choices), *run.trained, *(e.stored for e in run.evaluations))
    stages = [stage for stage in asked if stage is not None]
    parts = {part: identity[part] for part in ("model", "evaluator", "trainer", "train")}
    is_real = config.sequence.benchmark in {"superni", "trace"} and config.scale.name == "paper"
    return records.RunRecord(
        id=name,
        **{group: getattr(config, group).name for group in _NAMED},
        tasks=tuple(task.name for task in run.tasks),
        unseen=tuple(task.name for task in run.unseen),
        label=METHODS[config.method.name].label(config.method),
        seed=config.seed,
        # On a small model or small data it is no reproduction.
        demonstration=not (is_real and config.model.parameters >= 5),
        prompts={task: prompt.text for task, prompt in run.prompts.items()},
        choices=tuple(
            records.ChoiceRecord(
                task=choice.task,
                index=choice.prompt.index,
                text=choice.prompt.text,
                candidates=choice.candidates,
                drawn=tuple(prompt.text for prompt in choice.drawn) or None,
            )
            for choice in run.choices
        ),
        comparable={"data": identity["test"], **parts},
        states=tuple(
            records.StateRecord(after=each.after, key=each.key, tasks=tuple(task.name for task in each.tasks))
            for each in run.states
        ),
        kept={stage.key: stage.result.kept or {} for stage in run.trained},
        stages=tuple(map(stage_record, stages)),
        shortened=shortened(stages),
        notes=tuple(_notes(run)),
        identity=identity,
        environment=stages[0].environment,
        pool=pool,
    )


def stage_record(stored: Stored) -> records.StageRecord:
    """What a run or probe says of a stage that it is made of."""
    took = {name: getattr(stored.result, name) for name in ("task", "seconds", "tokens", "shortened")}
    return records.StageRecord(kind=stored.kind, key=stored.key, device=stored.environment["device"], **took)


def _notes(run: Run) -> Iterator[str]:
    """What a reader of the results must know of method, policy and tasks."""
    method, policy = run.config.method, run.config.policy.name
    yield from filter(None, [METHODS[method.name].note(method), POLICIES[policy].note])
    for task in (*run.tasks, *run.unseen):
        if run.config.sequence.benchmark != "own":  # a user's own are notes on their files
            yield from task.notes
        if not task.instruction.strip() and policy != "static":
            yield f"{task.name}: an empty instruction has no paraphrases; policy {policy} keeps it."
        if empty := sum(not example.target for example in (*task.train, *task.test)):
            yield f"{task.name}: {empty} rows have an empty target, to which the right answer is nothing."
    trained = [each.stored.result for each in run.evaluations if each.after]
    if unfinished := sum(result.unfinished for result in trained):
        yield (
            f"{unfinished} of {sum(result.examples or 0 for result in trained)} answers of trained states "
            f"ran into evaluator.max_new_tokens={run.config.evaluator.max_new_tokens} before they ended."
        )


def shortened(stages: Iterable[Stored]) -> dict[str, int]:
    """Most inputs of a task that any of the stages had to shorten; a scoring, under any of its prompts."""
    counts: dict[str, int] = {}
    for stored in stages:
        task, count = stored.result.task, stored.result.shortened
        if count and stored.kind == "score":
            table = stored.examples()
            count = int(table.loc[table["is_shortened"], "example"].nunique())
        counts[task] = max(counts.get(task, 0), count)
    return counts
