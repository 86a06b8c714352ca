"""Tasks of EleutherAI's lm-evaluation-harness on a run's states: forgetting, measured on what others report.

The harness brings a task's documents, prompts and metrics, and puts its wrapper of Transformers' models
around our state. What it says is a stage like an evaluation of ours.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from sapo.conf.errors import UserError, WorkError, unknown
from sapo.data.tasks import digest
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.stage import Reading, Stage
from sapo.experiments.engine.store import EXAMPLES, Store, Stored
from sapo.experiments.model.load import LanguageModel
from sapo.experiments.reevaluation import FinishedRun, asked_states, measured
from sapo.experiments.stages import in_state

PREFIX = "lm_eval:"


@dataclass(frozen=True)
class Harness(Stage):
    """A task, or a group of tasks, by the harness's own metrics, on its first `limit` documents."""

    task: str
    limit: int | None = None

    kind = "evaluate"
    verb = "evaluating"
    settings = ("model",)

    @property
    def readings(self) -> list[Reading]:
        """None of our tasks' rows."""
        return []

    @property
    def name(self) -> str:
        """The task's name in the harness."""
        return f"{PREFIX}{Path(self.task).stem}"

    def __str__(self) -> str:
        return f"{self.verb} {self.name}"

    def inputs(self) -> dict[str, Any]:
        """The harness, and everything that it reads: the tasks' settings and documents."""
        return {"harness": version("lm_eval"), "tasks": _digests(self.task, self.limit)}

    def compute(self, store: Store, language_model: LanguageModel, folder: Path) -> dict[str, Any]:
        """A row a document and metric."""
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        batch = 8 if language_model.base.device.type == "cpu" else "auto"  # what fits, on a GPU
        with in_state(language_model, store, self.state) as model:
            wrapped = HFLM(pretrained=model, tokenizer=language_model.tokenizer, batch_size=batch)
            found = simple_evaluate(
                wrapped, tasks=[self.task], task_manager=_manager(), limit=self.limit, bootstrap_iters=0
            )
        rows = [
            {"task": name, "example": sample["doc_id"], "metric": metric, "value": float(sample[metric])}
            for name, samples in found["samples"].items()
            for sample in samples
            for metric in sample["metrics"]
            if isinstance(sample[metric], int | float)
        ]
        pd.DataFrame(rows, columns=["task", "example", "metric", "value"]).to_parquet(folder / EXAMPLES)
        name = next(iter(_loaded(self.task)["groups"] or _loaded(self.task)["tasks"]))
        said = {**found["results"], **found.get("groups", {})}[name]
        metrics = {
            key.partition(",")[0]: float(value)
            for key, value in said.items()
            if "," in key and "_stderr" not in key and isinstance(value, int | float)
        }
        return {"metrics": metrics, "examples": sum(map(len, found["samples"].values())), "tokens": 0}


@cache
def _digests(task: str, limit: int | None) -> dict[str, str]:
    """Of each task that a name means: SHA-256 of its settings and documents."""
    found = {}
    for name, each in _loaded(task)["tasks"].items():
        read = [each.dump_config(), list(each.eval_docs)[:limit]]
        found[name] = digest(json.dumps(read, default=str, sort_keys=True))
    return found


@cache
def _manager() -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            "Tasks of the harness need the package `lm_eval`: pip install 'sapo-prompts[lm-eval]'"
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager()


@cache
def _loaded(task: str) -> dict[str, Any]:
    """The tasks and groups of a name or YAML file; what they read is downloaded by `datasets` if need be."""
    is_file = task.endswith((".yaml", ".yml"))
    if is_file and not Path(task).is_file():
        raise UserError(f"{PREFIX}{task}: there is no such file.")
    if not is_file and task not in _manager().all_tasks:
        raise unknown("task of the harness", task, _manager().all_tasks)
    try:
        return dict(_manager().load([task]))
    except Exception as error:  # a file that is no task; no network: classes of several packages
        raise WorkError(f"{PREFIX}{task} cannot be loaded: {' '.join(str(error).split())[:300]}") from error


def evaluate(
    run: FinishedRun, names: Sequence[str], state: str = "all", engine: LocalEngine | None = None
) -> list[dict[str, Any]]:
    """The harness's metrics of a run's states on its tasks, a row for each state and task.

    `names` are tasks or groups of the harness, or YAML files of one's own; the rest is as in
    `reevaluation.evaluate`.
    """
    if not names:
        raise UserError(f"tasks={PREFIX}: name tasks of the harness, such as {PREFIX}arc_easy,hellaswag.")
    for name in names:
        _loaded(name)
    asked = [
        (each, Harness(run.config, each.key, name, run.config.data.test_examples))
        for each in asked_states(run, state)
        for name in names
    ]

    def scores(_: Harness, stored: Stored) -> dict[str, Any]:
        return {"metrics": (stored.result.model_extra or {})["metrics"]}

    return measured(run, asked, scores, engine)
