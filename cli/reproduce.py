"""`sapo reproduce TARGET`: a table or figure of the paper, run and rendered beside the paper's numbers."""

from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.rule import Rule

from sapo.cli.console import (
    DryRun,
    Force,
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
    from sapo.experiments.run import Reproduction


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
    dry_run: DryRun = False,
    force: Force = False,
    yes: Annotated[bool, typer.Option("--yes", help="The paper's scale without a GPU too")] = False,
) -> None:
    """Run what a table or figure of the paper needs, and render it beside the paper's numbers."""
    from sapo.experiments.targets import TARGETS, jobs_of, require_gpu, targets_of

    for override in overrides or []:
        if override.startswith("scale="):  # `scale=paper` is `--scale paper`
            scale = override.removeprefix("scale=")
    settings = [override for override in overrides or [] if not override.startswith("scale=")]
    names = targets_of(target, scale)
    experiments = {TARGETS[name].experiment: name for name in names}
    composed = {what: jobs_of(name, scale, settings) for what, name in experiments.items()}
    jobs = {name: composed[TARGETS[name].experiment] for name in names}
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
        _run(names, scale, settings, engine, progress, json)


def _run(names: list[str], scale: str, settings: list[str], engine: Any, progress: Any, json: bool) -> None:
    """Every target in turn, each shown when it is done; of one alone the error is raised."""
    from sapo.experiments.run import reproduce

    done: list[dict[str, Any]] = []
    lost: list[dict[str, str]] = []
    for name in names:
        try:
            with progress:
                found = reproduce(name, scale, settings, engine)
            document, parts = _drawn(found, scale, settings)
        except Exception as error:
            if len(names) == 1:
                raise
            lost.append({"target": name, "error": f"{error}" or type(error).__name__})
            notice(f"sapo: {name} failed: {lost[-1]['error']}")
            continue
        done.append(document)
        if len(names) == 1 or not json:
            emit(document, json, parts)
    if len(names) > 1:
        lines = [f"{each['target']} failed: {each['error']}" for each in lost]
        document = {"target": "all", "scale": scale, "targets": done, "failed": lost}
        emit(document, json, [f"{len(done)} of {len(names)} targets", *lines])
    failed = [run for document in done for run in document["failed"]]
    for run in failed:
        notice(f"sapo: {run['run']} failed: {run['error']}")
    if failed or lost:
        raise typer.Exit(1)


def _drawn(
    found: "Reproduction", scale: str, settings: list[str]
) -> tuple[dict[str, Any], list[RenderableType]]:
    """Draws a target into its folder of the store: what it says as JSON values, and what people are shown."""
    from sapo.analysis.report import draw
    from sapo.experiments.targets import TARGETS

    name, finished = found.target, found.finished
    config = finished[0].job.config
    output = Path(config.store.root) / "reports" / f"{name}-{scale}"
    warnings = [f"{run} failed: {message}" for run, message in found.failed]
    shown = draw(TARGETS[name].drawing, name, found.folders, output, config.parity.definition, warnings)
    computed, stored = sum(run.computed for run in finished), sum(run.stored for run in finished)
    again = join(["sapo", "reproduce", name, "--scale", scale, *settings])
    document = {
        "target": name,
        "scale": scale,
        **shown.document,
        "runs": [{"id": run.folder.name, "dir": str(run.folder)} for run in finished],
        "failed": [{"run": run, "error": message} for run, message in found.failed],
        "seconds": round(found.seconds, 3),
        "stages": {"computed": computed, "stored": stored},
        "command": again,
        "output": str(output),
    }
    return document, [
        Rule(name, align="left"),
        *shown.shown,
        f"Written to {output}; matrices and figures lie in the folders of the {len(finished)} runs.",
        f"Took {duration(found.seconds)}.",
        f"Stages: {computed} computed, {stored} from the store.",
        f"Again with: {again}",
    ]
