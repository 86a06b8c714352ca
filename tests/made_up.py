"""Made-up folders of runs and probes in the shape that `sapo train` and `sapo reproduce` leave."""

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sapo.data.files import write_json
from sapo.data.records import manifest_of

TASKS = ("task195_sentiment", "task363_sst2", "task1343_reviews")
KEY = "0123456789abcdef" * 4


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
        places = {"after": after, "task": task, "column": "trained", "prompt_index": -1}
        rows = {"example": range(len(values)), "row": range(len(values)), "rougeL": values}
        measures = {"exact_match": 100.0 * (values > 50), "nll": 5.0 - values / 25.0, "label_match": np.nan}
        texts = {"prediction": "yes", "target": "no", "is_unfinished": False}
        texts |= {"input": [f"input {row}" for row in range(len(values))]}
        frames.append(pd.DataFrame(places | rows | measures | texts))
    return pd.concat(frames, ignore_index=True)


def record_of(name: str, tasks: Sequence[str], **changes: Any) -> dict[str, Any]:
    """A whole `run.json`; `changes` replace parts of it, of stages and pools the parts that are named."""
    candidates = [candidate(index, 1.5 - 0.1 * index) for index in (-1, 0, 1)]
    choice = {"index": 1, "text": "Wording 1 | {of} many", "candidates": candidates}
    record = {
        "id": Path(name).name,
        "sequence": "mini_three",
        "tasks": list(tasks),
        "model": "smollm2_135m",
        "method": "lorainc",
        "policy": "static",
        "seed": 0,
        "parity": "paper",
        "trainer": "mini",
        "demonstration": True,
        "prompts": {task: f"Answer {task}." for task in tasks},
        "pool": None,
        "choices": [{"task": task, **choice} for task in tasks],
        **{part: [] for part in ("unseen", "stages", "states", "notes")},
        **{part: {} for part in ("kept", "shortened", "identity", "environment")},
    } | changes
    record.setdefault("label", record["method"])
    stage = {"kind": "train", "key": KEY, "task": "a", "device": "cpu", "seconds": 1.0, "tokens": 1}
    record["stages"] = [stage | given for given in record["stages"]]
    record["pool"] = record["pool"] and {"digest": KEY} | record["pool"]
    data = {task: f"sha-{task}" for task in (*record["tasks"], *record["unseen"])}
    evaluator = {"max_new": 128}
    record.setdefault("comparable", {"model": "sha-of-model", "data": data, "evaluator": evaluator})
    return record


def candidate(index: int, loss: float, n_examples: int = 10, text: str | None = None) -> dict[str, Any]:
    """A prompt that was scored, as `run.json` has it."""
    text = text or f"Wording {index}"
    return {"index": index, "text": text, "loss": loss, "n_examples": n_examples, "n_tokens": 30}


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
    return seal(path)


def seal(folder: Path) -> Path:
    """The folder with a manifest of what it holds now."""
    write_json(folder / "manifest.json", manifest_of(folder))
    return folder


def edit_run(
    folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame | None] = lambda frame: frame, **facts: Any
) -> Path:
    """The run with `change` made to its predictions, sorted by state, task and example, and to its record."""
    file = folder / "predictions.parquet"
    frame = pd.read_parquet(file).sort_values(["after", "task", "example"], ignore_index=True)
    changed = change(frame)
    (frame if changed is None else changed).to_parquet(file)
    write_json(folder / "run.json", json.loads((folder / "run.json").read_text()) | facts)
    return seal(folder)


def with_columns(path: Path, loss: float, labels: bool = True) -> Path:
    """The run with label matches and, for learned tasks, rows tested under the original instruction.

    These score `loss` less in ROUGE-L, and 0 in exact match.
    """
    tasks = json.loads((path / "run.json").read_text())["tasks"]

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        if labels:
            frame["label_match"] = frame["exact_match"]
        learned = frame["task"].map({task: number for number, task in enumerate(tasks)}) < frame["after"]
        common = frame[learned].assign(column="common", rougeL=frame["rougeL"] - loss, exact_match=0.0)
        frame.loc[learned, "prompt_index"] = 1
        return pd.concat([frame, common])

    return edit_run(path, change, identity={"common_prompt": True})


PROMPT_EFFECT = 3.0  # ROUGE-L points: how far a wording moves the tasks that are not current


def write_probe(
    folder: Path,
    name: str = "probe",
    n_prompts: int = 21,
    tasks: Sequence[str] = ("task589_amazon", "task339_record"),
    unseen: Sequence[str] = tuple(f"task{number}_x" for number in (618, 511, 1290, 1355, 163, 488, 24, 141)),
    n: int = 12,
    gradients: bool = True,
    noise: float = 1.0,
    **changes: Any,
) -> Path:
    """A probe folder `folder`/probes/`name` with its runs and a planted structure.

    A hidden quality per prompt moves every task that is not current by PROMPT_EFFECT times as much as the
    current one, and lowers the pre-update loss. `changes` go into probe.json.
    """
    record = {
        "id": name,
        "sequence": "ni_probe_g1",
        "model": "smollm2_135m",
        "method": "lorainc",
        "seed": 0,
        "tasks": list(tasks),
        "unseen": list(unseen),
        "demonstration": True,
        "n_scored": n,
        "n_cut": 0,
        "missing": [],
        "stages": [],
        "identity": {"scorer": {"reduction": "token", "include_original": True}},
    } | changes
    rng = np.random.default_rng(record["seed"] + 100)
    quality = rng.normal(size=n_prompts)
    indexes = range(-1, n_prompts - 1)
    record["prompts"] = {
        str(index): f"Wording {index}: " + "answer well, " * (index + 2) for index in indexes
    }
    record["runs"] = {str(index): f"{name}-{index}" for index in indexes}
    test_rows = rng.normal(0, 5, (len(tasks) + len(unseen), n))
    for index, good in zip(indexes, quality, strict=True):
        scores = {}
        for column, task in enumerate((*tasks, *unseen)):
            effect = good if task == tasks[1] else PROMPT_EFFECT * (good + noise * rng.normal())
            for after in range(3):
                scores[after, task] = 50 + test_rows[column] + effect * (after == 2)
        wording = {tasks[0]: "first", tasks[1]: record["prompts"][str(index)]}
        facts = {key: record[key] for key in ("sequence", "model", "method", "seed", "demonstration")}
        facts |= {"unseen": list(unseen), "policy": "fixed", "prompts": wording}
        facts["choices"] = [
            {"task": task, "index": number, "text": wording[task]}
            for task, number in zip(tasks, (-1, index), strict=True)
        ]
        path = write_run(folder / "runs", f"{name}-{index}", scores, tasks, **facts)
    record.setdefault("comparable", json.loads((path / "run.json").read_text())["comparable"])
    probe = folder / "probes" / name
    probe.mkdir(parents=True)
    (probe / "probe.json").write_text(json.dumps(record), encoding="utf-8")
    _write_before(probe, list(indexes), quality, n, rng)
    if gradients:
        ranked = np.argsort(-quality)[np.linspace(0, n_prompts - 1, 4).astype(int)] - 1
        gradients_of(ranked, tasks[0], unseen, rng).to_parquet(probe / "gradients.parquet")
    return seal(probe)


def _write_before(
    probe: Path, indexes: list[int], quality: np.ndarray, n: int, rng: np.random.Generator
) -> None:
    """losses.parquet and answers.parquet: the better the prompt, the lower the loss."""
    tokens = rng.integers(1, 6, n)
    keys = pd.DataFrame({"prompt": np.repeat(indexes, n), "example": np.tile(range(n), len(indexes))})
    good = np.repeat(quality, n)
    per_token = 2.0 - 0.3 * good + 0.1 * np.abs(rng.normal(size=len(keys)))
    losses = keys.assign(n_tokens=np.tile(tokens, len(indexes)))
    losses = losses.assign(nll=per_token * losses["n_tokens"], entropy=0.5 * losses["n_tokens"] + good**2)
    losses.to_parquet(probe / "losses.parquet")
    rouge = np.clip(30 + 5 * good + rng.normal(size=len(keys)), 0, 100)
    answers = keys.assign(rougeL=rouge, exact_match=100.0 * (rouge > 30), prediction="yes", target="no")
    answers.to_parquet(probe / "answers.parquet")


def gradients_of(
    prompts: Sequence[int], trained: str, unseen: Sequence[str], rng: np.random.Generator
) -> pd.DataFrame:
    """Cosines that fall with the rank of the prompt: 2 projections of 6 layers, T1 and three unseen tasks."""
    ranked = zip((1, 7, 13, 20), map(int, prompts), strict=True)
    cells = [*product(ranked, (trained, *unseen[:3]), ("q_proj", "v_proj"), range(18, 24))]
    rows = [(prompt, rank, task, projection, layer) for (rank, prompt), task, projection, layer in cells]
    frame = pd.DataFrame(rows, columns=["prompt", "rank", "task", "projection", "layer"])
    return frame.assign(
        role=np.where(frame["task"] == trained, "trained", "unseen"),
        module=[f"model.layers.{layer}.self_attn.{projection}" for *_, projection, layer in rows],
        cosine=np.clip(0.5 - 0.02 * frame["rank"] + 0.1 * rng.normal(size=len(rows)), -1, 1),
    )
