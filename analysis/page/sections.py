"""What the report's page says of its runs: what ran, what to beware of, matrices, and prompts with losses."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from sapo.analysis.matrices import EFFECTS
from sapo.analysis.metrics import METRICS, continual_metrics
from sapo.analysis.results import LOWER_IS_BETTER, RunResult, score_matrix
from sapo.analysis.tables import DEMONSTRATION
from sapo.data.prompts import ORIGINAL
from sapo.data.tasks import short_name

NONE = "–"
DIGEST = 64  # letters of a SHA-256


@dataclass(frozen=True)
class Cell:
    """A table cell; `tone` (good, bad, or amount) and `shade` (0-1) say how a number is coloured."""

    text: str
    tone: str = ""
    shade: float = 0.0
    is_number: bool = False
    title: str = ""


@dataclass(frozen=True)
class Grid:
    """A table: the columns' names, and rows whose first cell is their name."""

    columns: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class RunPage:
    """A run as the page shows it: `label` is short and no other run's; `record` is its run.json."""

    run: RunResult
    label: str
    record: dict[str, Any] = field(repr=False)


def run_pages(runs: Sequence[RunResult]) -> list[RunPage]:
    """The runs with labels of what tells them apart: settings, else prompts too, else the run's id too."""
    names = ("model", "sequence", "method", "pool", "pool_size")
    varying = [name for name in names if len({getattr(run, name) for run in runs}) > 1]
    labels = [_label(run, varying) for run in runs]
    for more in (_prompt_names, lambda run: run.id):
        labels = [
            label if labels.count(label) == 1 else f"{label} · {more(run)}"
            for run, label in zip(runs, labels, strict=True)
        ]
    return [
        RunPage(
            run,
            label,
            json.loads((run.path / "run.json").read_text(encoding="utf-8")),
        )
        for run, label in zip(runs, labels, strict=True)
    ]


def _label(run: RunResult, varying: Sequence[str]) -> str:
    values = {name: getattr(run, name) for name in varying} | {"policy": run.policy}
    if values.get("pool_size"):
        values["pool_size"] = f"K={values['pool_size']}"
    return " · ".join([*(value for value in values.values() if value), f"seed {run.seed}"])


def _prompt_names(run: RunResult) -> str:
    return "prompts " + ", ".join(candidate_name(choice["index"]) for choice in run.choices)


# --- what ran ----------------------------------------------------------------------------------------------


def overview(pages: Sequence[RunPage]) -> Grid:
    """A row a run: what was run, on how many tasks, and how long its stages took."""
    numbers = ("seed", "tasks", "unseen", "stages took")
    names = ("run", "sequence", "model", "method", "policy", *numbers, "id")
    rows = []
    for page in pages:
        run = page.run
        seconds = f"{sum(stage.get('seconds', 0) for stage in run.stages):.0f} s" if run.stages else NONE
        texts = (page.label, run.sequence, run.model, run.method, run.policy)
        counts = (str(run.seed), str(len(run.tasks)), str(len(run.unseen)), seconds)
        rows.append((*map(Cell, texts), *(Cell(text, is_number=True) for text in counts), Cell(run.id)))
    return Grid(tuple(Cell(name, is_number=name in numbers) for name in names), tuple(rows))


def shared_facts(pages: Sequence[RunPage]) -> list[tuple[str, Cell]]:
    """Settings, versions and data that all the runs have in common, by name."""
    every = [_facts(page) for page in pages]
    return [
        (name, _fact(value))
        for name, value in every[0].items()
        if all(facts.get(name) == value for facts in every)
    ]


def other_facts(pages: Sequence[RunPage]) -> Grid | None:
    """The settings, versions and data in which the runs differ; None where there is no such thing."""
    every = [_facts(page) for page in pages]
    names = list(dict.fromkeys(name for facts in every for name in facts))
    names = [name for name in names if any(facts.get(name) != every[0].get(name) for facts in every)]
    rows = [(Cell(name), *(_fact(facts.get(name, NONE)) for facts in every)) for name in names]
    columns = (Cell("setting"), *(Cell(page.label, title=page.run.id) for page in pages))
    return Grid(columns, tuple(rows)) if rows else None


def _facts(page: RunPage) -> dict[str, str]:
    run, record = page.run, page.record
    environment = record.get("environment") or {}
    changed = " with uncommitted changes" if environment.get("dirty") else ""
    facts = {
        "tasks": ", ".join(run.tasks),
        "unseen tasks": ", ".join(run.unseen) or "none",
        "parity": str(run.parity),
        "device": "; ".join(sorted(run.devices())) or environment.get("device", NONE),
        "git commit": str(environment.get("commit") or NONE) + changed,
        "python": environment.get("python", NONE),
        **(environment.get("packages") or {}),
    }
    groups = ("model", "method", "policy", "scorer", "trainer", "evaluator", "common_prompt")
    identity = record.get("identity") or {}
    facts |= dict(_flat(record.get("pool"), "pool"))
    facts |= {name: value for group in groups for name, value in _flat(identity.get(group), group)}
    for name, of_task in (
        ("test data", run.comparable.get("data")),
        ("training data", identity.get("train")),
    ):
        facts |= {f"{name}, {task}": str(digest) for task, digest in (of_task or {}).items()}
    return facts


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """`trainer.epochs`, `3` and so on of nested settings."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}")
    elif value is not None:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _fact(text: str) -> Cell:
    """Digests are cut; the page shows them whole where the pointer rests."""
    return Cell(f"{text[:12]}…", title=text) if len(text) == DIGEST and " " not in text else Cell(text)


# --- what to beware of -------------------------------------------------------------------------------------


def warnings(pages: Sequence[RunPage]) -> list[str]:
    """What a reader must know before believing a number, each followed by the runs that it is about."""
    found: dict[str, list[str]] = {}
    for page in pages:
        for text in _warnings(page):
            found.setdefault(text, []).append(page.label)
    return [
        text if len(labels) == len(pages) else f"{text} ({'; '.join(labels)})"
        for text, labels in found.items()
    ]


def _warnings(page: RunPage) -> Iterator[str]:
    record = page.record
    if page.run.demonstration:
        yield DEMONSTRATION
    for task, count in (record.get("shortened") or {}).items():
        if count:
            yield f"{short_name(task)}: {count} inputs were too long and have been shortened."
    for choice in page.run.choices:
        tied = ties(choice)
        if len(tied) > 1:
            names = ", ".join(candidate_name(index) for index in tied)
            yield f"{short_name(choice['task'])}: candidates {names} tie: one loss, of which one was taken."
    yield from map(str, record.get("notes") or [])
    if (record.get("environment") or {}).get("dirty"):
        yield "Run with uncommitted changes: the git commit does not say all of the code."


def ties(choice: dict[str, Any]) -> list[int]:
    """The candidates whose loss is the chosen one's, read on as many examples; itself among them."""
    candidates = choice.get("candidates") or []
    chosen = next((c for c in candidates if c["index"] == choice["index"]), None)
    if chosen is None or chosen["loss"] is None:
        return []
    return [
        c["index"]
        for c in candidates
        if c["loss"] is not None
        and c.get("n_examples") == chosen.get("n_examples")
        and math.isclose(c["loss"], chosen["loss"], rel_tol=1e-12)
    ]


# --- matrices ----------------------------------------------------------------------------------------------


def metrics_grid(run: RunResult, measure: str) -> Grid:
    """AP, BWT and FWT of a run in all definitions."""
    digits = 3 if measure in LOWER_IS_BETTER else 2
    rows = [
        (Cell(name), *(_number(values[metric], f".{digits}f") for metric in METRICS))
        for name, values in continual_metrics(score_matrix(run, measure)).items()
    ]
    columns = (Cell("definition"), *(Cell(metric, is_number=True) for metric in METRICS))
    return Grid(columns, tuple(rows), "AP, BWT and FWT")


def matrix_grids(run: RunResult, measure: str) -> list[Grid]:
    """The score matrix of a measure, forgetting and generalization; none of a measure that no task has."""
    scores = score_matrix(run, measure)
    if scores.isna().all(axis=None):
        return []
    digits = 3 if measure in LOWER_IS_BETTER else 1
    top = float(scores.max(axis=None)) if measure in LOWER_IS_BETTER else 100.0
    grids = [_grid(run, scores, "Scores", f".{digits}f", top, "amount")]
    for compute, title in EFFECTS.values():
        changes = compute(scores)
        if not changes.isna().all(axis=None):
            limit = float(changes.abs().max(axis=None))
            sign = "lower" if measure in LOWER_IS_BETTER else "higher"
            grids.append(_grid(run, changes, f"{title} ({sign} is better)", f"+.{digits}f", limit, sign))
    return grids


def _grid(run: RunResult, values: pd.DataFrame, caption: str, form: str, top: float, kind: str) -> Grid:
    columns = [Cell(short_name(task), is_number=True, title=task) for task in values.columns]
    rows = []
    for after, scores in values.iterrows():
        name = f"after {short_name(run.tasks[int(str(after)) - 1])}" if after else "untouched model"
        rows.append((Cell(name), *(_shaded(float(score), form, top, kind) for score in scores)))
    return Grid((Cell("state"), *columns), tuple(rows), caption)


def _shaded(value: float, form: str, top: float, kind: str) -> Cell:
    """`kind`: amount, or for changes what is better, `higher` or `lower`."""
    if math.isnan(value):
        return Cell("", is_number=True)
    tone = kind
    if kind != "amount":
        tone = "good" if (value > 0) == (kind == "higher") else "bad"
    shade = min(abs(value) / top, 1.0) if top > 0 else 0.0
    return Cell(format(value, form), tone, round(shade, 3), True)


def _number(value: float | None, form: str) -> Cell:
    return Cell(NONE if value is None else format(value, form), is_number=True)


# --- prompts -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """One wording that was scored before the task was trained; `change` is against the original's loss."""

    name: str
    text: str
    loss: str
    change: str
    n_examples: str
    is_chosen: bool
    is_partial: bool  # read on fewer examples than others: its loss cannot be compared


@dataclass(frozen=True)
class Choice:
    """The prompt that a task was trained with, and all that could have been, the lowest loss first."""

    task: str
    name: str
    text: str
    candidates: tuple[Candidate, ...]
    n_tied: int


def candidate_name(index: int | None) -> str:
    """`original`, or the number of a paraphrase."""
    if index is None:
        return NONE
    return "original" if index == ORIGINAL else str(index)


def choices(page: RunPage) -> list[Choice]:
    """The choices of a run, in the order of its tasks."""
    return [
        Choice(
            short_name(choice["task"]),
            candidate_name(choice["index"]),
            choice["text"],
            tuple(_candidates(choice)),
            len(ties(choice)),
        )
        for choice in page.run.choices
    ]


def _candidates(choice: dict[str, Any]) -> Iterator[Candidate]:
    candidates = choice.get("candidates") or []
    most = max((c.get("n_examples") or 0 for c in candidates), default=0)
    whole = [c for c in candidates if (c.get("n_examples") or 0) == most]
    original = next((c["loss"] for c in whole if c["index"] == ORIGINAL), None)
    for c in sorted(candidates, key=lambda c: (c["loss"] is None, c["loss"] or 0.0, c["index"])):
        known = c["loss"] is not None
        partial = (c.get("n_examples") or 0) < most
        yield Candidate(
            name=candidate_name(c["index"]),
            text=c["text"],
            loss=f"{c['loss']:.4f}" if known else NONE,
            change=f"{c['loss'] - original:+.4f}" if known and original is not None and not partial else NONE,
            n_examples=str(c.get("n_examples") or NONE),
            is_chosen=c["index"] == choice["index"],
            is_partial=partial,
        )
