"""What `sapo train` and `sapo show run` print of a run."""

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
from rich.console import RenderableType
from rich.rule import Rule

from sapo.analysis.metrics import DEFINITIONS, METRICS, continual_metrics
from sapo.analysis.render import NONE, prompts_terminal
from sapo.analysis.results import COLUMNS, LABELS, RunResult, score_matrix, tests_apart, why_no_labels
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
    in_order: tuple[str, ...] = ("nll", *ANSWERED) if run.demonstration else (*ANSWERED, "nll")
    matrices = {measure: score_matrix(run, measure) for measure in in_order}
    measures = [measure for measure, scores in matrices.items() if scores.notna().any(axis=None)]
    for measure in measures:
        rows = [(after, *_numbers(row, measure)) for after, row in matrices[measure].iterrows()]
        columns = ("after", *map(short_name, matrices[measure].columns))
        yield table(columns, rows, f"{score_name(measure, 'trained')} after each task")
    reason, tested = why_no_labels(run), list(COLUMNS) if tests_apart(run) else ["trained"]
    names = METRICS if len(run.tasks) > 1 else ("AP",)
    for column in tested:
        for measure in (*measures, *([] if reason else [LABELS])):
            values = continual_metrics(score_matrix(run, measure, column))[definition]
            texts = _numbers([values[name] for name in names], measure)
            shown = [f"{name} {text:>6}" for name, text in zip(names, texts, strict=True)]
            yield f"{score_name(measure, column):<27} {'   '.join(shown)}"
    notes = ["After 0: the untouched model"]
    notes += [f"definition `{definition}`: {DEFINITIONS[definition]}"] if len(run.tasks) > 1 else []
    yield "; ".join([*notes, "of NLL, lower is better."])
    if reason and not set(ANSWERED).isdisjoint(measures):
        yield f"Label match is not defined: {reason}."
    if len(tested) > 1:
        yield "Common prompt: learned tasks are tested with their original instruction."
    elif not run.has_common:
        yield "Learned tasks were tested with the prompts they were trained with only."
    yield prompts_terminal(chosen_prompts([run]))


def _numbers(values: Iterable[Any], measure: str) -> list[str]:
    digits = 3 if measure == "nll" else 2
    return [NONE if value is None or pd.isna(value) else f"{value:.{digits}f}" for value in values]
