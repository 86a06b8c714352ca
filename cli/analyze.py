"""`sapo analyze RUNS…`: matrices, figures, Table 1 and correlations of finished runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    with_page: Annotated[
        bool, typer.Option("--report", help="Also one HTML page of all that: OUTPUT/report.html")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document")] = False,
) -> None:
    """Forgetting and generalization, AP/BWT/FWT with intervals, and how prompts affect other tasks."""
    import os

    from sapo.analysis.report import analyze, as_json
    from sapo.analysis.results import find_runs

    folders = find_runs(runs, Path(os.environ.get("SAPO_STORE", "runs")))
    output = output or Path("results/analysis")
    report = analyze(folders, output, measure, definition)
    if with_page:
        from sapo.analysis.page.html import write_report

        report.files.append(write_report(report, output))
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
    for line in _written(report.files):
        console.print(line, markup=False, highlight=False, soft_wrap=True, style="dim")


def _written(files: "Sequence[Path]") -> list[str]:
    """A line a folder with the names of its files; run folders that hold the same files share one."""
    names: dict[Path, list[str]] = {}
    for path in files:
        names.setdefault(path.parent, []).append(path.name)
    alike: dict[tuple[Path, str], list[Path]] = {}
    for folder, found in names.items():
        alike.setdefault((folder.parent, ", ".join(sorted(found))), []).append(folder)
    return [
        f"{folders[0] if len(folders) == 1 else f'{parent}, each of {len(folders)} runs'}: {found}"
        for (parent, found), folders in alike.items()
    ]
