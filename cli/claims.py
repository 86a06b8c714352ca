"""`sapo claims [RUNS|PROBES…]`: what the paper claims, shown, refuted or undecided by finished runs."""

from typing import Annotated

import typer

from sapo.cli.console import Definition, Json, Output, emit, report_folder, store_root


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUNS|PROBES]…",
            help="Folders or ids of runs and probes, patterns, or stores; without any: all of the store",
        ),
    ] = None,
    output: Output = None,
    definition: Definition = "reference",
    json: Json = False,
) -> None:
    """Each of the paper's claims: shown, refuted or undecided, with intervals, from any finished runs.

    Runs of one claim must be of one model, method, definition, data and size: name those of one kind.
    """
    from sapo.analysis.report import claims
    from sapo.analysis.results import find

    folders = find(names or [], store_root(), both=True)
    output = output or report_folder("claims", folders)
    report = claims("claims", folders, output, definition)
    document = report.document
    emit(document.pop("tables") | document, json, [*report.shown, f"Written to {output}."])
