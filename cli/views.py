"""What `sapo train` and `sapo show run` print of a run."""

from collections.abc import Iterator

import pandas as pd
from rich.console import RenderableType
from rich.rule import Rule

from sapo.analysis.metrics import DEFINITIONS, METRICS, continual_metrics
from sapo.analysis.render import NONE, prompts_terminal
from sapo.analysis.results import COLUMNS, LABELS, RunResult, score_matrix, tests_apart, why_no_labels
from sapo.analysis.tables import chosen_prompts, score_name
from sapo.cli.console import table
from sapo.data.tasks import short_name


def run_parts(run: RunResult, definition: str) -> Iterator[RenderableType]:
    """ROUGE-L and exact match after each task, metrics by every score and tested prompt, and the prompts."""
    yield Rule(run.facts, align="left")
    for measure in ("rougeL", "exact_match"):
        scores = score_matrix(run, measure)
        rows = [(after, *map(_number, row)) for after, row in scores.iterrows()]
        columns = ("after", *map(short_name, scores.columns))
        yield table(columns, rows, f"{score_name(measure, 'trained')} after each task")
    reason = why_no_labels(run)
    tested = list(COLUMNS) if tests_apart(run) else ["trained"]
    for column in tested:
        for measure in ("rougeL", "exact_match", *([] if reason else [LABELS])):
            values = continual_metrics(score_matrix(run, measure, column))[definition]
            shown = [f"{name} {_number(values[name]):>6}" for name in METRICS]
            yield f"{score_name(measure, column):<27} {'   '.join(shown)}"
    yield f"After 0: the untouched model; definition `{definition}`: {DEFINITIONS[definition]}."
    if reason:
        yield f"Label match is not defined: {reason}."
    if len(tested) > 1:
        yield "Common prompt: learned tasks are tested with their original instruction."
    elif not run.has_common:
        yield "Learned tasks were tested with the prompts they were trained with only."
    yield prompts_terminal(chosen_prompts([run]))


def _number(value: float | None) -> str:
    return NONE if value is None or pd.isna(value) else f"{value:.2f}"
