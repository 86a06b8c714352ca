"""`sapo analyze RUNS…`: matrices, figures, Table 1 and correlations of finished runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sapo.analysis.report import Report


def command(
    runs: Annotated[
        list[str], typer.Argument(help="Run folders or ids, patterns, or folders of several runs")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of what runs say together [default: results/analysis]"),
    ] = None,
    measure: Annotated[str, typer.Option(help="rougeL, exact_match, label_match or nll")] = "rougeL",
    definition: Annotated[
        str, typer.Option(help="Definition of BWT and FWT: reference, paper or gem")
    ] = "reference",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document")] = False,
) -> None:
    """Forgetting and generalization, AP/BWT/FWT with intervals, and how prompts affect other tasks."""
    import os

    from sapo.analysis.report import analyze, as_json
    from sapo.analysis.results import find_runs

    folders = find_runs(runs, Path(os.environ.get("SAPO_STORE", "runs")))
    report = analyze(folders, output or Path("results/analysis"), measure, definition)
    if json:
        from json import dumps

        typer.echo(dumps(as_json(report), ensure_ascii=False, allow_nan=False))
        return
    _print(report, measure)


def _print(report: "Report", measure: str) -> None:
    from rich.console import Console

    from sapo.analysis import render
    from sapo.analysis.results import MEASURES, score_matrix

    console = Console()
    if report.table:
        console.print(render.terminal(report.table))
    else:
        for run in report.runs:
            console.print(f"{run.id}: {run.facts}", markup=False)
            for name in ("rougeL", "exact_match") if measure == "rougeL" else (measure,):
                console.print(f"By {MEASURES[name]}:")
                console.print(render.metrics_terminal(score_matrix(run, name)))
    console.print(render.prompts_terminal(report.prompts))
    for note in report.notes:
        console.print(note, markup=False)
    for folder in dict.fromkeys(path.parent for path in report.files):
        names = sorted(path.name for path in report.files if path.parent == folder)
        console.print(f"{folder}: {', '.join(names)}", markup=False, highlight=False, style="dim")
