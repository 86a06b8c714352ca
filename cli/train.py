"""`sapo train OVERRIDES…`: sequences of tasks under SAPO or a baseline."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapo.cli.console import Json, Overrides, emit, notice_rows

if TYPE_CHECKING:
    from rich.console import Console

    from sapo.cli.running import Outcomes
    from sapo.experiments.run import Outcome


def command(
    overrides: Overrides = None,
    json: Json = False,
    force: Annotated[bool, typer.Option(help="Compute stages again that are stored")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what there is to do")] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going/--fail-fast", help="After a failed run, go on with the others")
    ] = True,
) -> None:
    """Train sequences of tasks, choosing each task's prompt by a policy; evaluate every task after each."""
    if dry_run:
        from sapo.cli import plan

        plan.command(overrides, json)
        return
    from sapo.conf.load import load

    configs = load(overrides or [])  # a wrong override is answered before PyTorch is imported
    notice_rows(configs)
    from sapo.cli.running import report_failures, run_jobs, watched_engine
    from sapo.experiments.jobs import Job

    jobs = [Job(config) for config in configs]
    with watched_engine(jobs, force) as watched:
        outcome = run_jobs(jobs, watched, not keep_going)
    summaries = [_summary(run) for run in outcome.finished]
    emit(_document(summaries, outcome), json, lambda console: _render(console, outcome))
    report_failures(outcome)
    if outcome.failed:
        raise typer.Exit(1)


def _summary(run: "Outcome") -> dict[str, Any]:
    """One run as JSON values; writes its matrices, figures and metrics beside it."""
    from sapo.analysis.matrices import summarize_run
    from sapo.analysis.results import load_run
    from sapo.analysis.tables import chosen_prompts

    summary = summarize_run(run.folder)
    result = load_run(run.folder)
    return {
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


def _document(summaries: list[dict[str, Any]], outcome: "Outcomes") -> dict[str, Any]:
    failed = [{"run": name, "error": message} for name, message in outcome.failed]
    return {"runs": summaries, "failed": failed, "seconds": round(outcome.seconds, 3)}


def _render(console: "Console", outcome: "Outcomes") -> None:
    from sapo.analysis.render import prompts_terminal
    from sapo.analysis.results import load_run
    from sapo.analysis.tables import chosen_prompts
    from sapo.cli.views import run_scores

    for run in outcome.finished:
        result = load_run(run.folder)
        console.rule(result.facts, align="left")
        for part in run_scores(result, run.job.config.parity.definition):
            console.print(part)
        console.print(prompts_terminal(chosen_prompts([result])))
        console.print(f"Stages: {run.computed} computed, {run.stored} from the store.")
        console.print(f"Written to {run.folder}", markup=False, soft_wrap=True)
