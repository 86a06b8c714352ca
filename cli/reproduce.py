"""`sapo reproduce TARGET`: one table of the paper, run and rendered beside the paper's numbers."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapo.cli.console import Json, Overrides, emit

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from sapo.analysis.report import Report
    from sapo.cli.running import Outcome
    from sapo.conf.schema import Config


def _targets() -> list[str]:
    from sapo.experiments.targets import TARGETS

    return list(TARGETS)


def command(
    target: Annotated[str, typer.Argument(help="table1", autocompletion=_targets, show_default=False)],
    overrides: Overrides = None,
    scale: Annotated[
        str, typer.Option(help="mini: a demonstration on the small model; paper: the paper's setting")
    ] = "mini",
    json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what there is to do")] = False,
    force: Annotated[bool, typer.Option(help="Compute stages again that are stored")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Run the paper's scale without a GPU all the same")
    ] = False,
) -> None:
    """Run what a table of the paper needs, and render it beside the paper's numbers."""
    from pathlib import Path

    from sapo.cli import plan
    from sapo.conf.load import load
    from sapo.experiments.targets import overrides_of

    configs = load(overrides_of(target, scale, overrides or []))
    if dry_run:
        document = plan.describe(configs)
        emit(document, json, lambda console: plan.render(console, document))
        return
    if not yes:
        _require_gpu(scale, configs)
    from sapo.analysis.report import analyze
    from sapo.cli.running import report_failures, run_configs

    outcome = run_configs(configs, force, fail_fast=False)
    output = Path(configs[0].store.root) / "reports" / f"{target}-{scale}"
    report = analyze([run.folder for run in outcome.finished], output, "rougeL", configs[0].parity.definition)
    again = _command(target, scale, overrides or [])
    document = {"target": target, "scale": scale, **_document(report, outcome), "command": again}
    emit(document, json, lambda console: _render(console, report, outcome, output, again))
    report_failures(outcome)
    if outcome.failed:
        raise typer.Exit(1)


def _require_gpu(scale: str, configs: list["Config"]) -> None:
    """Refuses the paper's scale without a GPU, after showing on stderr what it would take."""
    from sapo.conf.errors import UserError
    from sapo.experiments.models import device_of
    from sapo.experiments.targets import require_gpu

    try:
        require_gpu(scale, device_of(configs[0]).type)
    except UserError:
        _show_plan(configs)
        raise


def _show_plan(configs: list["Config"]) -> None:
    from rich.console import Console

    from sapo.cli import plan
    from sapo.conf.errors import UserError

    console = Console(stderr=True, highlight=False)
    try:
        plan.render(console, plan.describe(configs))
    except UserError as error:  # the data is missing too: then there is no plan to show
        console.print(f"No plan: {error}", markup=False, soft_wrap=True)


def _document(report: "Report", outcome: "Outcome") -> dict[str, Any]:
    return {
        "files": [str(path) for path in report.files],
        "runs": [{"id": run.folder.name, "dir": str(run.folder)} for run in outcome.finished],
        "failed": [{"run": name, "error": message} for name, message in outcome.failed],
        "seconds": round(outcome.seconds, 3),
        "stages": {"computed": outcome.computed, "stored": outcome.stored},
    }


def _command(target: str, scale: str, overrides: list[str]) -> str:
    from shlex import join

    return join(["sapo", "reproduce", target, "--scale", scale, *overrides])


def _render(console: "Console", report: "Report", outcome: "Outcome", output: "Path", again: str) -> None:
    from sapo.analysis import render
    from sapo.cli.console import duration

    if report.table:
        console.print(render.terminal(report.table))
    else:
        console.print("One run only: a table needs more. Its matrix and metrics are in its folder.")
    console.print(render.prompts_terminal(report.prompts))
    lines = [
        *report.notes,
        f"Written to {output}; matrices and figures lie in the folders of the {len(outcome.finished)} runs.",
        f"Took {duration(outcome.seconds)}.",
        f"Stages: {outcome.computed} computed, {outcome.stored} from the store.",
        f"Again with: {again}",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
