"""`sapo analyze RUNS…`: matrices, figures, Table 1 and correlations of finished runs, or probes' figures."""

from pathlib import Path
from typing import Annotated

import typer

from sapo.cli.console import Json, emit, store_root


def command(
    runs: Annotated[
        list[str],
        typer.Argument(help="Folders or ids of runs or of probes, patterns, or folders of several"),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of what runs say together")] = Path(
        "results/analysis"
    ),
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
    from sapo.analysis.page import write_page
    from sapo.analysis.probes.report import FIGURES
    from sapo.analysis.report import analyze, as_json, probes
    from sapo.analysis.results import DRAWN, find_probes, find_runs

    if found := find_probes(runs, store_root()):
        measures = [*DRAWN, measure]
        report = probes("probes", list(FIGURES), found, output, measures=measures, with_page=with_page)
        document = {"probes": [{"id": path.name, "dir": str(path)} for path in found]} | report.document
    else:
        report = analyze(find_runs(runs, store_root()), output, measure, definition)
        if with_page:
            report.files.append(write_page(report, output))
        document = as_json(report)
    names: dict[Path, list[str]] = {}
    for path in report.files:
        names.setdefault(path.parent, []).append(path.name)
    written = (f"{folder}: {', '.join(sorted(found))}" for folder, found in names.items())
    emit(document, json, [*report.parts, *report.remarks, *written])
