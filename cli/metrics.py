"""`sapo metrics MATRIX.csv`: AP, BWT and FWT of any score matrix."""

from pathlib import Path
from typing import Annotated

import typer

from sapo.cli.console import Json, emit


def command(
    matrix: Annotated[Path, typer.Argument(help="CSV: after,<task>,…; a row a state; empty: not evaluated")],
    json: Json = False,
) -> None:
    """AP, BWT and FWT of a score matrix in three definitions: paper, reference, gem."""
    from sapo.analysis.metrics import continual_metrics, read_matrix
    from sapo.analysis.render import metrics_terminal

    scores = read_matrix(matrix)
    emit(continual_metrics(scores), json, [metrics_terminal(scores)])
