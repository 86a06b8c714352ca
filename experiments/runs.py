"""Run folders: what a finished run leaves for people and for the analysis."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sapo.conf.errors import UserError
from sapo.conf.names import DIGEST, run_name
from sapo.conf.schema import Config, identity_values
from sapo.data.files import MANIFEST, flush, manifest_of, write_json
from sapo.data.hygiene import distinct_rows
from sapo.data.tasks import Task, digest, examples_digest
from sapo.experiments.continual import Run, pool_for
from sapo.experiments.engine.store import Store, Stored
from sapo.experiments.methods import method_label, method_note
from sapo.experiments.model.evaluation import label_match
from sapo.experiments.model.load import model_identity

RUN_FILES = ("predictions.parquet", "config.yaml", MANIFEST, "run.json")


def write_run(run: Run, store: Store) -> Path:
    """Writes `run.json`, `predictions.parquet`, `config.yaml` and their manifest, and returns the folder."""
    pool = _pool(run)
    identity = _identity(run, pool)
    folder = store.run_folder(run_id(run, identity))
    with store.lock(folder.name), store.scratch(folder.name) as building:
        _predictions(run).to_parquet(building / "predictions.parquet")
        OmegaConf.save(OmegaConf.structured(run.config), building / "config.yaml")
        write_json(building / "run.json", {"id": folder.name, **_facts(run, identity), "pool": pool})
        write_json(building / MANIFEST, manifest_of(building))
        put_run(building, folder)
    return folder


def put_run(building: Path, folder: Path) -> None:
    """Moves a run's files to its folder; run.json goes last: a folder that has it is a finished run.

    What the analysis has put there already stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flush(building)
    for name in RUN_FILES:
        (building / name).replace(folder / name)


def read_config(folder: Path) -> Config:
    """The config that a run was made with; UserError if its file is missing or is not such a config."""
    path = folder / "config.yaml"
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"Cannot read the config of run {folder.name} ({path}): {error}") from error


def run_id(run: Run, identity: dict[str, Any]) -> str:
    """A name that people can read, and enough of the identity's digest to be one run's own."""
    return f"{run_name(run.config)}-{digest(json.loads(json.dumps(identity)))[:DIGEST]}"


def _identity(run: Run, pool: dict[str, Any] | None) -> dict[str, Any]:
    """What makes this run another than that one: settings, rows and prompts."""
    config = run.config
    return {
        "model": model_identity(config),
        "method": identity_values(config.method),
        "policy": _policy_identity(config),
        "scorer": vars(config.scorer),
        "trainer": identity_values(config.trainer),
        "evaluator": {
            **identity_values(config.evaluator),
            "truncation": config.data.truncation,
            "max_input_tokens": config.data.max_input_tokens,
        },
        "common_prompt": config.evaluator.common_prompt,
        "tasks": [task.name for task in run.tasks],
        "train": {task.name: examples_digest(task.train) for task in run.tasks},
        "test": _test_digests(run),
        "drawn": {choice.task: [prompt.text for prompt in choice.drawn] for choice in run.choices},
        "prompts": {name: prompt.text for name, prompt in run.prompts.items()},
        "seed": config.seed,
        **_pool_identity(config, pool),
    }


def _pool_identity(config: Config, pool: dict[str, Any] | None) -> dict[str, Any]:
    """What a policy chose from: another pool is another run, even where the same prompts were chosen.

    The bank's first 20 are left out, as policies that choose nothing are.
    """
    is_bank = (config.paraphrases.source, config.paraphrases.name) == ("bank", "bank")
    if pool is None or (is_bank and pool["size"] == 20) or config.policy.name == "fixed":
        return {}
    return {"pool": pool["digest"]}


def _pool(run: Run) -> dict[str, Any] | None:
    """The pools that a run read: their name, the paraphrases of the largest, and their texts' digest."""
    texts = {task.name: _paraphrases(task, run.config) for task in run.tasks}
    size = max(map(len, texts.values()))
    config = run.config.paraphrases
    name = Path(str(config.file)).stem if config.source == "file" else config.name
    return {"name": name, "size": size, "digest": digest(texts)} if size else None


def _paraphrases(task: Task, config: Config) -> list[str]:
    return [prompt.text for prompt in pool_for(task, config).paraphrases]


def _policy_identity(config: Config) -> dict[str, Any]:
    """The policy's settings; a switch that is off leaves runs the ids that they had before there was one."""
    return {name: value for name, value in vars(config.policy).items() if name != "last_only" or value}


def _facts(run: Run, identity: dict[str, Any]) -> dict[str, Any]:
    config = run.config
    return {
        "sequence": config.sequence.name,
        "tasks": [task.name for task in run.tasks],
        "unseen": [task.name for task in run.unseen],
        "model": config.model.name,
        "method": config.method.name,
        "label": method_label(config.method),
        "policy": config.policy.name,
        "seed": config.seed,
        "parity": config.parity.name,
        "trainer": config.trainer.name,
        "demonstration": is_demonstration(config),
        "prompts": {name: prompt.text for name, prompt in run.prompts.items()},
        "choices": _choices(run),
        "comparable": {
            "data": identity["test"],
            **{name: identity[name] for name in ("model", "evaluator", "trainer", "train")},
        },
        **_computed(run),
        "notes": [
            *filter(None, [method_note(config.method)]),
            *(note for task in (*run.tasks, *run.unseen) for note in _notes(task, config)),
        ],
        "identity": identity,
        "environment": _environment(_stored(run)[0]),
    }


def _choices(run: Run) -> list[dict[str, Any]]:
    """The prompt of each task, and what it was chosen from."""
    return [
        {
            "task": choice.task,
            "index": choice.prompt.index,
            "text": choice.prompt.text,
            "candidates": choice.candidates,
            "drawn": [prompt.text for prompt in choice.drawn] or None,
        }
        for choice in run.choices
    ]


def _computed(run: Run) -> dict[str, Any]:
    """What the run's stages left, and what it took."""
    return {
        "states": [
            {"after": state.after, "key": state.key, "tasks": [task.name for task in state.tested]}
            for state in run.states
        ],
        "kept": {stored.key: stored.result["kept"] for stored in run.trained if isinstance(stored, Stored)},
        "stages": _stages(run),
        "shortened": _shortened(run),
    }


def is_demonstration(config: Config) -> bool:
    """Whether a result is a demonstration on a small model or small data, not a reproduction."""
    is_real = config.sequence.benchmark in {"superni", "trace"} and config.scale.name == "paper"
    return not (is_real and config.model.parameters >= 5)


def _notes(task: Task, config: Config) -> Iterator[str]:
    """What a reader of the results must know of a task."""
    if not task.instruction.strip() and config.policy.name != "static":
        yield f"{task.name}: an empty instruction has no paraphrases; policy {config.policy.name} keeps it."
    empty = sum(not example.target for example in (*task.train, *task.test))
    if empty:
        yield f"{task.name}: {empty} rows have an empty target, to which the right answer is nothing."


def _test_digests(run: Run) -> dict[str, str]:
    """What each task is tested with: its rows, its frame, and the labels that answers are matched with."""
    return {
        task.name: digest([task.instruction, task.suffix, task.separator, list(task.labels), rows])
        for task in (*run.tasks, *run.unseen)
        for rows in [examples_digest(task.test)]
    }


def _stored(run: Run) -> list[Stored]:
    """The run's stages: what was scored, trained and evaluated."""
    scored = [choice.scored for choice in run.choices]
    everything = [*scored, *run.trained, *(evaluation.stored for evaluation in run.evaluations)]
    return [stored for stored in everything if isinstance(stored, Stored)]


def _environment(stored: Stored) -> dict[str, Any]:
    return json.loads((stored.folder / "environment.json").read_text())


def _stages(run: Run) -> list[dict[str, Any]]:
    return [
        {
            "kind": stored.folder.parent.name,
            "key": stored.key,
            "device": _environment(stored)["device"],
            **_brief(stored.result),
        }
        for stored in _stored(run)
    ]


def _brief(result: dict[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in ("task", "seconds", "tokens", "shortened") if name in result}


def _shortened(run: Run) -> dict[str, int]:
    """Most inputs of a task that any of its stages had to shorten."""
    counts: dict[str, int] = {}
    for stored in _stored(run):
        task = stored.result["task"]
        counts[task] = max(counts.get(task, 0), _n_shortened(stored))
    return counts


def _n_shortened(stored: Stored) -> int:
    """Examples that a stage had to shorten: of a scoring, under any of its prompts."""
    count = stored.result["shortened"]
    if not count or stored.folder.parent.name != "score":
        return count
    table = stored.examples()
    return int(table.loc[table["is_shortened"], "example"].nunique())


def _predictions(run: Run) -> pd.DataFrame:
    """Every test example's scores in every evaluation; `label_match` is null for a task without labels.

    `row` is the number of the first test example with the same input and target: repeated rows are one.
    """
    tasks = (*run.tasks, *run.unseen)
    labels = {task.name: task.labels for task in tasks}
    first_equal = {task.name: distinct_rows(task.test) for task in tasks}
    tables = []
    for evaluation in run.evaluations:
        if not isinstance(evaluation.stored, Stored):
            raise ValueError("a planned run has no predictions")
        table = evaluation.stored.examples()
        table.insert(0, "after", evaluation.after)
        table.insert(1, "task", evaluation.task)
        table.insert(2, "prompt_index", evaluation.prompt.index)
        table.insert(3, "column", evaluation.column)
        table["row"] = [first_equal[evaluation.task][example] for example in table["example"]]
        answers = zip(table["prediction"], table["target"], strict=True)
        matches = [label_match(answer, target, labels[evaluation.task]) for answer, target in answers]
        table["label_match"] = pd.array(matches, dtype="Float64")
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
