"""`sapo metrics MATRIX.csv`: AP, BWT and FWT of any score matrix."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sapo.cli.console import Json, emit

if TYPE_CHECKING:
    from rich.console import Console


def command(
    matrix: Annotated[
        Path, typer.Argument(help="CSV: after,<task>,…; one row a state 0..N; empty = not evaluated")
    ],
    json: Json = False,
) -> None:
    """AP, BWT and FWT of a score matrix in three definitions: paper, reference, gem."""
    from sapo.analysis.metrics import continual_metrics, read_matrix

    scores = read_matrix(matrix)

    def render(console: "Console") -> None:
        from sapo.analysis.render import metrics_terminal

        console.print(metrics_terminal(scores))

    emit(continual_metrics(scores), json, render)
