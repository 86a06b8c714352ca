"""`sapo analyze RUNS…`: matrices, figures, Table 1 and correlations of finished runs, or probes' figures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sapo.cli.console import Json, emit, store_root

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from sapo.analysis.report import Report


def command(
    runs: Annotated[
        list[str],
        typer.Argument(help="Folders or ids of runs or of probes, patterns, or folders of several"),
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
    json: Json = False,
) -> None:
    """Forgetting and generalization, AP/BWT/FWT with intervals, and how prompts affect other tasks.

    Of probes: the figures that they are for, by ROUGE-L, NLL, and the measure asked for.
    """
    from sapo.analysis.report import analyze, as_json
    from sapo.analysis.results import find_probes, find_runs

    root = store_root()
    output = output or Path("results/analysis")
    probes = find_probes(runs, root)
    if probes:
        _analyze_probes(probes, output, measure, with_page, json)
        return
    report = analyze(find_runs(runs, root), output, measure, definition)
    if with_page:
        from sapo.analysis.page import write_page

        report.files.append(write_page(report, output))
    emit(as_json(report), json, lambda console: _render(console, report))


def _analyze_probes(
    folders: "Sequence[Path]", output: Path, measure: str, with_page: bool, json: bool
) -> None:
    """Draws all figures of probes into `output`."""
    from sapo.analysis.probes.report import FIGURES
    from sapo.analysis.report import probes
    from sapo.analysis.results import DRAWN

    shown = probes("probes", list(FIGURES), folders, output, measures=[*DRAWN, measure], with_page=with_page)
    document = {"probes": [{"id": path.name, "dir": str(path)} for path in folders]} | shown.document

    def render(console: "Console") -> None:
        for part in shown.parts:
            console.print(part)
        _print_lines(console, shown.notes, shown.files)

    emit(document, json, render)


def _render(console: "Console", report: "Report") -> None:
    from sapo.analysis import render
    from sapo.analysis.results import MEASURES, score_matrix, shown_measures

    if report.table:
        console.print(render.score_terminal(report.table))
    else:
        for run in report.runs:
            console.print(f"{run.id}: {run.facts}", markup=False)
            for name in shown_measures(report.measure):
                console.print(f"By {MEASURES[name]}:")
                console.print(render.metrics_terminal(score_matrix(run, name)))
    console.print(render.prompts_terminal(report.prompts))
    _print_lines(console, [*report.warnings, *report.notes], report.files)


def _print_lines(console: "Console", notes: "Sequence[str]", files: "Sequence[Path]") -> None:
    for note in notes:
        console.print(note, markup=False)
    for line in _written(files):
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
