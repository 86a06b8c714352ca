"""Made-up run folders in the shape that `sapo train` leaves."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

TASKS = ("task195_sentiment", "task363_sst2", "task1343_reviews")


def scores_of(
    tasks: Sequence[str], states: int, seed: int, shift: float, n: int
) -> dict[tuple[int, str], np.ndarray]:
    """ROUGE-L per (state, task): learned tasks near 70, others near 40, plus `shift` after training."""
    rng = np.random.default_rng(seed)
    return {
        (after, task): rng.normal(70 if column < after else 40, 4, n) + shift * (after > 0)
        for after in range(states + 1)
        for column, task in enumerate(tasks)
    }


def predictions_of(scores: dict[tuple[int, str], np.ndarray]) -> pd.DataFrame:
    frames = []
    for (after, task), values in scores.items():
        n = len(values)
        columns = {
            "after": after,
            "task": task,
            "prompt_index": -1,
            "example": range(n),
            "prediction": ["yes"] * n,
            "target": ["no"] * n,
            "rougeL": values,
            "exact_match": 100.0 * (values > 50),
            "nll": 5.0 - values / 25.0,
            "target_tokens": 3,
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def record_of(name: str, tasks: Sequence[str], **changes: Any) -> dict[str, Any]:
    candidates = [
        {
            "index": index,
            "text": f"Wording {index}",
            "loss": 1.5 - 0.1 * index,
            "n_examples": 10,
            "n_tokens": 30,
        }
        for index in (-1, 0, 1)
    ]
    trained = list(tasks)
    record = {
        "id": name,
        "sequence": "mini_three",
        "tasks": trained,
        "unseen": [],
        "model": "smollm2_135m",
        "method": "lorainc",
        "policy": "static",
        "seed": 0,
        "parity": "paper",
        "demonstration": True,
        "prompts": {task: f"Answer {task}." for task in trained},
        "choices": [
            {"task": task, "index": 1, "text": "Wording 1 | {of} many", "candidates": candidates}
            for task in trained
        ],
        "stages": [],
        "shortened": {},
        "environment": {},
    }
    record |= changes
    evaluated = [*record["tasks"], *record["unseen"]]
    record.setdefault(
        "comparable",
        {
            "model": "sha-of-model",
            "data": {task: f"sha-{task}" for task in evaluated},
            "evaluator": {"max_new": 128},
        },
    )
    return record


def write_run(
    folder: Path,
    name: str = "run",
    scores: dict[tuple[int, str], np.ndarray] | None = None,
    tasks: Sequence[str] = TASKS,
    shift: float = 0.0,
    n: int = 20,
    **changes: Any,
) -> Path:
    """A run folder `folder`/`name`; `changes` go into run.json, `shift` into the scores of trained states."""
    path = folder / name
    path.mkdir(parents=True)
    record = record_of(path.name, tasks, **changes)
    evaluated = [*record["tasks"], *record["unseen"]]
    if scores is None:
        scores = scores_of(evaluated, len(record["tasks"]), record["seed"], shift, n)
    (path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    predictions_of(scores).sample(frac=1, random_state=0).to_parquet(path / "predictions.parquet")
    return path


def with_columns(path: Path, loss: float, labels: bool = True) -> Path:
    """The run with label matches and, for learned tasks, rows tested under the original instruction.

    These score `loss` less in ROUGE-L, and 0 in exact match.
    """
    record = json.loads((path / "run.json").read_text())
    frame = pd.read_parquet(path / "predictions.parquet").assign(column="trained")
    if labels:
        frame["label_match"] = frame["exact_match"].astype("Float64")
    place = frame["task"].map({task: number for number, task in enumerate(record["tasks"])})
    learned = place < frame["after"]
    common = frame[learned].assign(column="common", rougeL=frame["rougeL"] - loss, exact_match=0.0)
    frame.loc[learned, "prompt_index"] = 1
    pd.concat([frame, common]).to_parquet(path / "predictions.parquet")
    (path / "run.json").write_text(json.dumps(record | {"identity": {"common_prompt": True}}))
    return path


@pytest.fixture(name="with_columns")
def _with_columns() -> Callable[..., Path]:
    """`with_columns(path, loss)`."""
    return with_columns


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """`run_folder(name, **changes)` writes a run under tmp_path."""
    return partial(write_run, tmp_path)
