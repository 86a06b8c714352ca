"""Tables for the terminal that several commands print."""

from collections.abc import Iterator

import pandas as pd
from rich import box
from rich.console import RenderableType
from rich.table import Table

from sapo.analysis.metrics import DEFINITIONS, METRICS, continual_metrics
from sapo.analysis.render import NONE
from sapo.analysis.results import (
    COLUMNS,
    LABELS,
    RunResult,
    score_matrix,
    tests_apart,
    why_no_labels,
)
from sapo.analysis.tables import score_name
from sapo.data.tasks import short_name


def run_scores(run: RunResult, definition: str) -> list[RenderableType]:
    """A run's ROUGE-L and exact match after each task, then its metrics by every score and tested prompt."""
    shown = [matrix_table(run, measure) for measure in ("rougeL", "exact_match")]
    return [*shown, *metrics_lines(run, definition)]


def matrix_table(run: RunResult, measure: str) -> Table:
    """A score matrix: a row a state, a column a task; `-` where a task was not evaluated."""
    scores = score_matrix(run, measure)
    title = f"{score_name(measure, 'trained')} after each task"
    table = simple_table(title, "after", *map(short_name, scores.columns))
    for after, row in scores.iterrows():
        table.add_row(str(after), *(NONE if pd.isna(value) else f"{value:.2f}" for value in row))
    return table


def metrics_lines(run: RunResult, definition: str) -> Iterator[str]:
    """`ROUGE-L  AP 51.20   BWT -3.10   FWT 4.00` a score, what the definition says, and what is missing."""
    reason = why_no_labels(run)
    measures = ["rougeL", "exact_match", *([] if reason else [LABELS])]
    columns = list(COLUMNS) if tests_apart(run) else ["trained"]
    for column in columns:
        for measure in measures:
            values = continual_metrics(score_matrix(run, measure, column))[definition]
            shown = [f"{name} {_number(values[name]):>6}" for name in METRICS]
            yield f"{score_name(measure, column):<27} {'   '.join(shown)}"
    yield f"After 0: the untouched model; definition `{definition}`: {DEFINITIONS[definition]}."
    if reason:
        yield f"Label match is not defined: {reason}."
    if len(columns) > 1:
        yield "Common prompt: learned tasks are tested with their original instruction."
    elif not run.has_common:
        yield "Learned tasks were tested with the prompts they were trained with only."


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def simple_table(title: str | None, first: str, *columns: str) -> Table:
    """An open table: a text column, then right-aligned ones."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", collapse_padding=True)
    table.add_column(first, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right")
    return table
