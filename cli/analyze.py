"""`sapo analyze RUNS…`: matrices, figures, Table 1 and correlations of finished runs, or probes' figures."""

from typing import Annotated

import typer

from sapo.cli.console import Definition, Json, Output, emit, report_folder, store_root


def command(
    runs: Annotated[list[str], typer.Argument(help="Runs or probes: folders, ids, patterns, or stores")],
    output: Output = None,
    measure: Annotated[
        str | None,
        typer.Option(help="rougeL, exact_match, label_match or nll; by default rougeL, of small scales nll"),
    ] = None,
    definition: Definition = "reference",
    with_page: Annotated[bool, typer.Option("--report", help="Also all that as one HTML page")] = False,
    json: Json = False,
) -> None:
    """Compare runs, whatever setting they differ in: AP/BWT/FWT and paired intervals; each run's matrices.

    The static prompt's run, else the first named, is what the others are compared with. Of probes: the
    figures that they are for, by ROUGE-L, NLL, and the measure asked for.
    """
    from sapo.analysis.page import html
    from sapo.analysis.probes.report import FIGURES, probe_report
    from sapo.analysis.report import analyze, as_json
    from sapo.analysis.results import DRAWN, find_probes, find_runs

    found = find_probes(runs, store_root())
    folders = found or find_runs(runs, store_root())
    output = output or report_folder("probes" if found else "analysis", folders)
    if found:
        report = probe_report(found, list(FIGURES), output, [*DRAWN, *([measure] if measure else [])])
    else:
        report = analyze(folders, output, measure, definition)
    if with_page:
        report.write("report.html", html(report))
    ids = [{"id": path.name, "dir": str(path)} for path in found]
    names = ", ".join(sorted(path.name for path in report.files if path.parent == output))
    written = f"Written to {output}: {names}; matrices and figures lie in the folders of the runs."
    document = {"probes": ids} | report.document if found else as_json(report)
    emit(document, json, [*report.shown, written])
