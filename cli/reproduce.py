"""`sapo reproduce TARGET`: a table or figure of the paper, run and rendered beside the paper's numbers."""

from functools import partial
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sapo.cli.console import (
    Json,
    Overrides,
    Terminal,
    computing,
    duration,
    emit,
    nothing_on_stdout,
    notice,
    notice_rows,
    say,
    table,
)
from sapo.cli.plan import render_plan
from sapo.conf.errors import UserError

if TYPE_CHECKING:
    from sapo.analysis.report import Report
    from sapo.experiments.jobs import Job
    from sapo.experiments.run import Reproduction


def _targets() -> list[str]:
    from sapo.experiments.targets import ALL, TARGETS

    return [*TARGETS, ALL]


def command(
    target: Annotated[
        str,
        typer.Argument(
            help="table1, table2, table3, table10, table11, figure1 to figure15, or all",
            autocompletion=_targets,
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    scale: Annotated[
        str,
        typer.Option(
            help="mini: a demonstration on the small model; small: figures 1 to 14 of the paper's tasks on "
            "that model, for a GPU; paper: the paper's setting"
        ),
    ] = "mini",
    json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what there is to do")] = False,
    force: Annotated[bool, typer.Option(help="Compute stages again that are stored")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Run the paper's scale without a GPU all the same")
    ] = False,
) -> None:
    """Run what a table or figure of the paper needs, and render it beside the paper's numbers."""
    from sapo.experiments.targets import jobs_of, require_gpu, targets_of

    overrides = overrides or []
    named = [override.removeprefix("scale=") for override in overrides if override.startswith("scale=")]
    scale = named[-1] if named else scale  # `scale=paper` is `--scale paper`
    overrides = [override for override in overrides if not override.startswith("scale=")]
    jobs = {name: jobs_of(name, scale, overrides) for name in targets_of(target, scale)}
    every = [job for of_target in jobs.values() for job in of_target]
    notice_rows([job.config for job in every])
    from sapo.experiments.plan import plan_targets

    if dry_run:
        document = plan_targets(jobs)
        emit(document, json, lambda console: render_plan(console, document))
        return
    if not yes:
        try:
            require_gpu(scale, every[0].config)
        except UserError:
            try:
                render_plan(Terminal(stderr=True), plan_targets(jobs))
            except UserError as error:  # the data is missing too: then there is no plan to show
                notice(f"No plan: {error}")
            raise
    done, lost = _run(jobs, scale, overrides, force, json)
    failed = [run for document in done for run in document["failed"]]
    for run in failed:
        notice(f"sapo: {run['run']} failed: {run['error']}")
    if failed or lost:
        raise typer.Exit(1)


def _run(
    jobs: dict[str, list["Job"]], scale: str, overrides: list[str], force: bool, json: bool
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Every target in turn, each shown when it is done: their documents, and which failed with why.

    Of one target alone the error is raised.
    """
    from sapo.experiments.run import reproduce

    done: list[dict[str, Any]] = []
    lost: list[dict[str, str]] = []
    with computing([job for of_target in jobs.values() for job in of_target], force) as (engine, progress):
        for name in jobs:
            try:
                with progress, nothing_on_stdout():
                    found = reproduce(name, scale, overrides, engine, expect=progress.expect)
                shown, document = _shown(found, scale, overrides)
            except Exception as error:
                if len(jobs) == 1:
                    raise
                lost.append({"target": name, "error": f"{error}" or type(error).__name__})
                notice(f"sapo: {name} failed: {lost[-1]['error']}")
                continue
            done.append(document)
            if len(jobs) == 1 or not json:
                emit(document, json, partial(_render, document=document, shown=shown))
    if len(jobs) > 1:
        summary = _summary(scale, done, lost)
        emit(summary, json, lambda console: _render_summary(console, summary))
    return done, lost


def _shown(found: "Reproduction", scale: str, overrides: list[str]) -> tuple["Report", dict[str, Any]]:
    """Draws a target into its folder of the store; what it shows, and that as JSON values."""
    from sapo.analysis.report import draw
    from sapo.experiments.targets import TARGETS

    config = found.jobs[0].config
    output = Path(config.store.root) / "reports" / f"{found.target}-{scale}"
    warnings = [f"{name} failed: {message}" for name, message in found.failed]
    drawing = TARGETS[found.target].drawing
    shown = draw(drawing, found.target, found.folders, output, config.parity.definition, warnings)
    return shown, {
        "target": found.target,
        "scale": scale,
        **shown.document,
        "runs": [{"id": run.folder.name, "dir": str(run.folder)} for run in found.finished],
        "failed": [{"run": name, "error": message} for name, message in found.failed],
        "seconds": round(found.seconds, 3),
        "stages": _stages([{"computed": run.computed, "stored": run.stored} for run in found.finished]),
        "command": join(["sapo", "reproduce", found.target, "--scale", scale, *overrides]),
        "output": str(output),
    }


def _stages(counts: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(count[name] for count in counts) for name in ("computed", "stored")}


def _render(console: Console, document: dict[str, Any], shown: "Report") -> None:
    console.rule(document["target"], align="left")
    for part in shown.parts:
        console.print(part)
    say(
        console,
        *shown.remarks,
        f"Written to {document['output']}; matrices and figures lie in the folders of the "
        f"{len(document['runs'])} runs.",
        f"Took {duration(document['seconds'])}.",
        f"Stages: {document['stages']['computed']} computed, {document['stages']['stored']} from the store.",
        f"Again with: {document['command']}",
    )


def _summary(scale: str, done: list[dict[str, Any]], lost: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "target": "all",
        "scale": scale,
        "targets": done,
        "failed": lost,
        "seconds": round(sum(document["seconds"] for document in done), 3),
        "stages": _stages([document["stages"] for document in done]),
    }


def _render_summary(console: Console, summary: dict[str, Any]) -> None:
    def cells(document: dict[str, Any]) -> tuple[object, ...]:
        missing = f" ({len(document['failed'])} failed)" if document["failed"] else ""
        runs = f"{len(document['runs'])}{missing}"
        return document["target"], runs, *document["stages"].values(), duration(document["seconds"])

    done, lost = summary["targets"], summary["failed"]
    columns = ("target", "runs", "computed", "stored", "took")
    console.print(table(columns, map(cells, done), f"{len(done)} of {len(done) + len(lost)} targets"))
    say(console, *(f"{each['target']} failed: {each['error']}" for each in lost))
