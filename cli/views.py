"""What `sapo train` and `sapo show run` print of a run."""

from collections.abc import Iterator

import pandas as pd
from rich.console import RenderableType
from rich.rule import Rule

from sapo.analysis.metrics import DEFINITIONS, METRICS, continual_metrics
from sapo.analysis.render import NONE, prompts_terminal
from sapo.analysis.results import (
    COLUMNS,
    LABELS,
    LOWER_IS_BETTER,
    RunResult,
    score_matrix,
    tests_apart,
    why_no_labels,
)
from sapo.analysis.tables import chosen_prompts, score_name
from sapo.cli.console import table
from sapo.data.tasks import short_name

ANSWERED = ("rougeL", "exact_match")  # what is measured of generated answers


def run_parts(run: RunResult, definition: str) -> Iterator[RenderableType]:
    """Scores after each task, metrics by every score and tested prompt, and the prompts.

    NLL comes first at small scales, where other scores are too coarse. What the run did not measure, and what
    a run of one task cannot have, is left out.
    """
    yield Rule(run.facts, align="left")
    measures: tuple[str, ...] = ("nll", *ANSWERED) if run.demonstration else (*ANSWERED, "nll")
    measures = tuple(measure for measure in measures if score_matrix(run, measure).notna().any(axis=None))
    has_answers = not set(ANSWERED).isdisjoint(measures)
    for measure in measures:
        scores, digits = score_matrix(run, measure), 3 if measure in LOWER_IS_BETTER else 2
        rows = [(after, *(_number(value, digits) for value in row)) for after, row in scores.iterrows()]
        columns = ("after", *map(short_name, scores.columns))
        yield table(columns, rows, f"{score_name(measure, 'trained')} after each task")
    reason = why_no_labels(run)
    tested = list(COLUMNS) if tests_apart(run) else ["trained"]
    for column in tested:
        for measure in (*measures, *([] if reason else [LABELS])):
            digits = 3 if measure in LOWER_IS_BETTER else 2
            values = continual_metrics(score_matrix(run, measure, column))[definition]
            names = METRICS if len(run.tasks) > 1 else ("AP",)
            shown = [f"{name} {_number(values[name], digits):>6}" for name in names]
            yield f"{score_name(measure, column):<27} {'   '.join(shown)}"
    notes = ["After 0: the untouched model"]
    notes += [f"definition `{definition}`: {DEFINITIONS[definition]}"] if len(run.tasks) > 1 else []
    yield "; ".join([*notes, "of NLL, lower is better."])
    if reason and has_answers:
        yield f"Label match is not defined: {reason}."
    if len(tested) > 1:
        yield "Common prompt: learned tasks are tested with their original instruction."
    elif not run.has_common:
        yield "Learned tasks were tested with the prompts they were trained with only."
    yield prompts_terminal(chosen_prompts([run]))


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None or pd.isna(value) else f"{value:.{digits}f}"
