"""Tables for the terminal that several commands print."""

import pandas as pd
from rich import box
from rich.table import Table

from sapo.analysis.metrics import DEFINITIONS, METRICS, continual_metrics
from sapo.analysis.render import NONE
from sapo.data.tasks import short_name


def matrix_table(scores: pd.DataFrame) -> Table:
    """A score matrix: a row a state, a column a task; `-` where a task was not evaluated."""
    table = simple_table(
        "ROUGE-L after each task (0: untouched model)", "after", *map(short_name, scores.columns)
    )
    for after, row in scores.iterrows():
        table.add_row(str(after), *(NONE if pd.isna(value) else f"{value:.2f}" for value in row))
    return table


def metrics_line(scores: pd.DataFrame, definition: str) -> str:
    """`AP 51.20   BWT -3.10   FWT 4.00`, with what the definition says."""
    values = continual_metrics(scores)[definition]
    shown = [f"{name} {NONE if values[name] is None else format(values[name], '.2f')}" for name in METRICS]
    return f"{'   '.join(shown)}   (definition `{definition}`: {DEFINITIONS[definition]})"


def simple_table(title: str | None, first: str, *columns: str) -> Table:
    """An open table: a text column, then right-aligned ones."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column(first, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right")
    return table
