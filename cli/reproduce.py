"""`sapo reproduce TARGET`: a table or figure of the paper, run and rendered beside the paper's numbers."""

from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.rule import Rule

from sapo.cli.console import (
    Json,
    Overrides,
    Terminal,
    computing,
    duration,
    emit,
    notice,
    notice_rows,
)
from sapo.cli.plan import plan_parts
from sapo.conf.errors import UserError

if TYPE_CHECKING:
    from sapo.experiments.jobs import Job
    from sapo.experiments.run import Reproduction

EXAMPLES = (
    "sapo reproduce table1 --scale mini",
    "sapo reproduce figure1 --scale small --dry-run",
)


def _targets() -> list[str]:
    from sapo.experiments.targets import ALL, TARGETS

    return [*TARGETS, ALL]


def command(
    target: Annotated[
        str,
        typer.Argument(
            help="table1, table2, table3, table10, table11, figure1 to 15, all of these, or claims",
            autocompletion=_targets,
        ),
    ],
    overrides: Overrides = None,
    scale: Annotated[
        str,
        typer.Option(
            help="mini: a demonstration on the small model; small: claims, Table 1, figures 1 to 14 of the "
            "paper's tasks on that model; paper: the paper's setting"
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
    from sapo.experiments.targets import TARGETS, jobs_of, require_gpu, targets_of

    for override in overrides or []:
        if override.startswith("scale="):  # `scale=paper` is `--scale paper`
            scale = override.removeprefix("scale=")
    overrides = [override for override in overrides or [] if not override.startswith("scale=")]
    experiments = {TARGETS[name].experiment: name for name in targets_of(target, scale)}
    composed = {what: jobs_of(name, scale, overrides) for what, name in experiments.items()}
    jobs = {name: composed[TARGETS[name].experiment] for name in targets_of(target, scale)}
    every = [job for of_target in jobs.values() for job in of_target]
    notice_rows([job.config for job in every])
    from sapo.experiments.plan import plan_targets

    if dry_run:
        document = plan_targets(jobs)
        emit(document, json, plan_parts(document))
        return
    if not yes:
        try:
            require_gpu(scale, every[0].config)
        except UserError:
            try:
                Terminal(stderr=True).show(plan_parts(plan_targets(jobs)))
            except UserError as error:  # the data is missing too: then there is no plan to show
                notice(f"No plan: {error}")
            raise
    with computing(every, force) as (engine, progress):
        done, lost = _run(jobs, scale, overrides, engine, progress, json)
    failed = [run for document in done for run in document["failed"]]
    for run in failed:
        notice(f"sapo: {run['run']} failed: {run['error']}")
    if failed or lost:
        raise typer.Exit(1)


def _run(
    jobs: dict[str, list["Job"]], scale: str, overrides: list[str], engine: Any, progress: Any, json: bool
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Every target in turn, each shown when it is done: their documents, and which failed with why.

    Of one target alone the error is raised.
    """
    from sapo.experiments.run import reproduce

    done: list[dict[str, Any]] = []
    lost: list[dict[str, str]] = []
    for name in jobs:
        try:
            with progress:
                found = reproduce(name, scale, overrides, engine, expect=progress.expect)
            document, parts = _drawn(found, scale, overrides)
        except Exception as error:
            if len(jobs) == 1:
                raise
            lost.append({"target": name, "error": f"{error}" or type(error).__name__})
            notice(f"sapo: {name} failed: {lost[-1]['error']}")
            continue
        done.append(document)
        if len(jobs) == 1 or not json:
            emit(document, json, parts)
    if len(jobs) > 1:
        lines = [
            f"{len(done)} of {len(jobs)} targets",
            *(f"{e['target']} failed: {e['error']}" for e in lost),
        ]
        emit({"target": "all", "scale": scale, "targets": done, "failed": lost}, json, lines)
    return done, lost


def _drawn(
    found: "Reproduction", scale: str, overrides: list[str]
) -> tuple[dict[str, Any], list[RenderableType]]:
    """Draws a target into its folder of the store: what it says as JSON values, and what people are shown."""
    from sapo.analysis.report import draw
    from sapo.experiments.targets import TARGETS

    config = found.jobs[0].config
    output = Path(config.store.root) / "reports" / f"{found.target}-{scale}"
    warnings = [f"{name} failed: {message}" for name, message in found.failed]
    drawing = TARGETS[found.target].drawing
    shown = draw(drawing, found.target, found.folders, output, config.parity.definition, warnings)
    stages = {n: sum(getattr(run, n) for run in found.finished) for n in ("computed", "stored")}
    again = join(["sapo", "reproduce", found.target, "--scale", scale, *overrides])
    document = {
        "target": found.target,
        "scale": scale,
        **shown.document,
        "runs": [{"id": run.folder.name, "dir": str(run.folder)} for run in found.finished],
        "failed": [{"run": name, "error": message} for name, message in found.failed],
        "seconds": round(found.seconds, 3),
        "stages": stages,
        "command": again,
        "output": str(output),
    }
    n_runs = len(found.finished)
    return document, [
        Rule(found.target, align="left"),
        *shown.shown,
        f"Written to {output}; matrices and figures lie in the folders of the {n_runs} runs.",
        f"Took {duration(found.seconds)}.",
        f"Stages: {stages['computed']} computed, {stages['stored']} from the store.",
        f"Again with: {again}",
    ]
