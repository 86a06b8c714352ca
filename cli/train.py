"""`sapo train OVERRIDES…`: sequences of tasks under SAPO or a baseline."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from sapo.cli import plan
from sapo.cli.console import DryRun, Force, Json, Overrides, computing, emit, notice, notice_rows, take

if TYPE_CHECKING:
    from sapo.experiments.run import Outcome


def command(
    overrides: Overrides = None,
    json: Json = False,
    force: Force = False,
    dry_run: DryRun = False,
    keep_going: Annotated[bool, typer.Option("--keep-going/--fail-fast", help="After a failed run")] = True,
) -> None:
    """Train sequences of tasks, choosing each task's prompt by a policy; evaluate every task after each.

    Rows of your own are a sequence of one task: data=FILE instruction=TEXT labels=[A,B], as in `sapo select`.
    """
    from sapo.conf.load import load
    from sapo.data.own import OF_TASK, own_sequence

    given, overrides = take(overrides, OF_TASK)
    if given:
        overrides = own_sequence(given, overrides, load(overrides)[0])
    if dry_run:
        plan.command(overrides, json)
        return

    configs = load(overrides)  # a wrong override is answered before PyTorch is imported
    notice_rows(configs)
    from sapo.experiments.jobs import Job
    from sapo.experiments.run import require_some, run

    begun, jobs = time.monotonic(), [Job(config) for config in configs]
    with computing(jobs, force) as (engine, progress), progress:
        outcomes = run(jobs, engine, keep_going=keep_going)
    require_some(outcomes)
    finished = [_summary(outcome) for outcome in outcomes if not outcome.error]
    failed = [{"run": str(out.job), "error": out.message} for out in outcomes if out.error]
    seconds = round(time.monotonic() - begun, 3)
    document = {"runs": [run for run, _ in finished], "failed": failed, "seconds": seconds}
    emit(document, json, [part for _, parts in finished for part in parts])
    for each in failed:
        notice(f"sapo: {each['run']} failed: {each['error']}")
    if failed:
        raise typer.Exit(1)


def _summary(run: "Outcome") -> tuple[dict[str, Any], list[RenderableType]]:
    """One run as JSON values, and as people see it; writes its matrices, figures and metrics beside it."""
    from sapo.analysis.matrices import summarize_run
    from sapo.analysis.results import load_run
    from sapo.analysis.tables import chosen_prompts
    from sapo.cli.views import run_parts

    result = load_run(run.folder)
    summary = summarize_run(result)
    document = {
        "id": result.id,
        "dir": str(run.folder),
        "sequence": result.sequence,
        "model": result.model,
        "method": run.job.config.method.name,
        "label": result.method,
        "policy": result.policy,
        "seed": result.seed,
        "demonstration": result.demonstration,
        "prompts": result.record.prompts,
        "choices": chosen_prompts([result]).drop(columns=["run", "text"]).to_dict("records"),
        "matrix": str(run.folder / "matrix_rougeL.csv"),
        "metrics": summary["metrics"],
        "metrics_common": summary["metrics_common"],
        "stages": {"computed": run.computed, "stored": run.stored},
    }
    return document, [
        *run_parts(result, run.job.config.parity.definition),
        *result.record.notes,
        f"Stages: {run.computed} computed, {run.stored} from the store.",
        f"Written to {run.folder}",
    ]
