"""`sapo metrics MATRIX.csv`: AP, BWT and FWT of any score matrix."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    matrix: Annotated[
        Path, typer.Argument(help="CSV: after,<task>,…; one row a state 0..N; empty = not evaluated")
    ],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document")] = False,
) -> None:
    """AP, BWT and FWT of a score matrix in three definitions: paper, reference, gem."""
    from sapo.analysis.metrics import continual_metrics, read_matrix

    scores = read_matrix(matrix)
    if json:
        from json import dumps

        typer.echo(dumps(continual_metrics(scores), allow_nan=False))
        return
    from rich.console import Console

    from sapo.analysis.render import metrics_terminal

    Console().print(metrics_terminal(scores))
