"""`sapo reproduce TARGET`: a table or figure of the paper, run and rendered beside the paper's numbers."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapo.cli.console import Json, Overrides, Terminal, emit, notice, notice_rows

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from sapo.analysis.report import Reproduced
    from sapo.cli.running import Outcomes, Watched
    from sapo.experiments.jobs import Job


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
    from sapo.experiments.targets import ALL, jobs_of, targets_of

    named = [override.removeprefix("scale=") for override in overrides or [] if override.startswith("scale=")]
    scale = named[-1] if named else scale  # `scale=paper` is `--scale paper`
    overrides = [override for override in overrides or [] if not override.startswith("scale=")]
    jobs = {name: jobs_of(name, scale, overrides) for name in targets_of(target, scale)}
    notice_rows([job.config for runs in jobs.values() for job in runs])
    if dry_run:
        document = _plan(jobs)
        emit(document, json, lambda console: _render_plan(console, document))
        return
    if not yes:
        _require_gpu(scale, jobs)
    orders = [Order(name, scale, overrides, runs) for name, runs in jobs.items()]
    from sapo.cli.running import watched_engine

    with watched_engine([job for runs in jobs.values() for job in runs], force) as watched:
        if target == ALL:
            _reproduce_all(orders, watched, json)
            return
        done = _reproduce(orders[0], watched)
    emit(done.document, json, done.render)
    _exit(done)


@dataclass(frozen=True)
class Order:
    """A target at a scale, and the runs that it takes."""

    target: str
    scale: str
    overrides: list[str]
    jobs: list["Job"]

    @property
    def output(self) -> "Path":
        """Where its report goes."""
        from pathlib import Path

        return Path(self.jobs[0].config.store.root) / "reports" / f"{self.target}-{self.scale}"

    @property
    def command(self) -> str:
        """The command that does it again."""
        from shlex import join

        return join(["sapo", "reproduce", self.target, "--scale", self.scale, *self.overrides])


@dataclass(frozen=True)
class Done:
    """An order, what its runs came to, and what it shows."""

    order: Order
    outcome: "Outcomes"
    shown: "Reproduced"

    @property
    def document(self) -> dict[str, Any]:
        """As JSON values; None for what is undefined."""
        outcome = self.outcome
        return {
            "target": self.order.target,
            "scale": self.order.scale,
            **self.shown.document,
            "runs": [{"id": run.folder.name, "dir": str(run.folder)} for run in outcome.finished],
            "failed": [{"run": name, "error": message} for name, message in outcome.failed],
            "seconds": round(outcome.seconds, 3),
            "stages": {"computed": outcome.computed, "stored": outcome.stored},
            "command": self.order.command,
        }

    def render(self, console: "Console") -> None:
        """For people."""
        from sapo.cli.console import duration

        outcome = self.outcome
        for part in self.shown.parts:
            console.print(part)
        lines = [
            *self.shown.notes,
            f"Written to {self.order.output}; matrices and figures lie in the folders of the "
            f"{len(outcome.finished)} runs.",
            f"Took {duration(outcome.seconds)}.",
            f"Stages: {outcome.computed} computed, {outcome.stored} from the store.",
            f"Again with: {self.order.command}",
        ]
        for line in lines:
            console.print(line, markup=False, soft_wrap=True)


def _reproduce(order: Order, watched: "Watched") -> Done:
    """Runs a target and draws it; raises if none of its runs finished, or of no probe all."""
    from sapo.analysis.report import DRAWINGS, probes
    from sapo.cli.running import failures, run_jobs
    from sapo.experiments.probe import probes_of
    from sapo.experiments.targets import TARGETS

    target = TARGETS[order.target]
    if target.is_probe:
        probes_of(order.jobs)  # what cannot be a probe is refused before hours of runs
    outcome = run_jobs(order.jobs, watched, fail_fast=False)
    if target.is_probe:
        folders, failed = _write_probes(order, outcome, watched, target.gradients)
        outcome = replace(outcome, failed=[*outcome.failed, *failed])
        shown = probes(order.target, [target.drawing], folders, order.output, failures(outcome))
        return Done(order, outcome, shown)
    # Runs whose pools hold fewer paraphrases than asked for may turn out to be the same run.
    folders = list(dict.fromkeys(run.folder for run in outcome.finished))
    draw, definition = DRAWINGS[target.drawing], order.jobs[0].config.parity.definition
    return Done(order, outcome, draw(order.target, folders, order.output, definition, failures(outcome)))


def _write_probes(
    order: Order, outcome: "Outcomes", watched: "Watched", gradients: bool
) -> tuple[list["Path"], list[tuple[str, str]]]:
    """Measures what probes need beside their runs, with progress, and writes their folders.

    Prompts whose runs failed are left out, and a probe that lacks the original or has too few others. Returns
    the folders, and name and message of each probe that is left out or not measured; raises if none remains.
    """
    import asyncio

    from sapo.cli.console import nothing_on_stdout
    from sapo.cli.running import all_failed, label, message_of, report_failures
    from sapo.conf.errors import WorkError
    from sapo.experiments.plan import PlanEngine
    from sapo.experiments.probe import finished_part, measure_all, probes_of, write_probes

    folders = {run.job.key: run.folder for run in outcome.finished}
    asked = [(probe, finished_part(probe, folders)) for probe in probes_of(order.jobs)]
    probes = [part for _, part in asked if part is not None]
    if not probes:
        report_failures(outcome)
        raise WorkError(f"None of {len(asked)} probes can be drawn: too many of their runs failed.")
    counter = PlanEngine(watched.engine.store)
    asyncio.run(measure_all(probes, counter, gradients))
    watched.progress.expect(counter.asked)
    with watched.progress, nothing_on_stdout():
        written = write_probes(probes, folders, watched.engine, gradients)
    if not written.folders:
        raise all_failed([error for _, error in written.failed])
    failed = [(probe, "too many of its runs failed") for probe, part in asked if part is None]
    failed += [(probe, message_of(error)) for probe, error in written.failed]
    return written.folders, [(f"probe of {label(probe.config)}", message) for probe, message in failed]


def _reproduce_all(orders: list[Order], watched: "Watched", json: bool) -> None:
    """Every target in turn, each shown when it is done; then which failed. Exits with 1 if any did."""
    done: list[Done] = []
    failed: dict[str, str] = {}
    console = Terminal()
    for order in orders:
        notice(f"sapo: {order.target}")
        try:
            done.append(_reproduce(order, watched))
        except Exception as error:
            # One target's failure, whatever it is, leaves the others to be done.
            failed[order.target] = f"{error}" or type(error).__name__
            notice(f"sapo: {order.target} failed: {failed[order.target]}")
            continue
        if not json:
            console.rule(order.target, align="left")
            done[-1].render(console)
    emit(
        _summary(orders[0].scale, done, failed), json, lambda console: _render_summary(console, done, failed)
    )
    _exit(*done, is_failed=bool(failed))


def _summary(scale: str, done: list[Done], failed: dict[str, str]) -> dict[str, Any]:
    return {
        "target": "all",
        "scale": scale,
        "targets": [one.document for one in done],
        "failed": [{"target": target, "error": message} for target, message in failed.items()],
        "seconds": round(sum(one.outcome.seconds for one in done), 3),
        "stages": {
            "computed": sum(one.outcome.computed for one in done),
            "stored": sum(one.outcome.stored for one in done),
        },
    }


def _render_summary(console: "Console", done: list[Done], failed: dict[str, str]) -> None:
    from sapo.cli.console import duration
    from sapo.cli.views import simple_table

    title = f"{len(done)} of {len(done) + len(failed)} targets"
    table = simple_table(title, "target", "runs", "computed", "stored", "took")
    for one in done:
        outcome = one.outcome
        missing = f" ({len(outcome.failed)} failed)" if outcome.failed else ""
        counts = (f"{len(outcome.finished)}{missing}", str(outcome.computed), str(outcome.stored))
        table.add_row(one.order.target, *counts, duration(outcome.seconds))
    console.print(table)
    for target, message in failed.items():
        console.print(f"{target} failed: {message}", markup=False, soft_wrap=True)


def _exit(*done: Done, is_failed: bool = False) -> None:
    """Names the runs that failed on stderr; exits with 1 if there are any, or if something else failed."""
    from sapo.cli.running import report_failures

    for one in done:
        report_failures(one.outcome)
    if is_failed or any(one.outcome.failed for one in done):
        raise typer.Exit(1)


_SHOWN_ALONE = ("runs", "unplanned", "kinds", "trainings", "seconds", "gpu_hours")


def _plan(jobs: dict[str, list["Job"]]) -> dict[str, Any]:
    """What all targets together would compute, shared stages once; of several, also each alone.

    A target that cannot be planned is named with the reason; raises it if there is no other.
    """
    from sapo.cli import plan
    from sapo.conf.errors import UserError
    from sapo.experiments.targets import TARGETS

    def describe(names: list[str]) -> dict[str, Any]:
        # Targets that show the same runs in other ways count once.
        work = {work_of(name): name for name in names}
        probes = [(jobs[name], gradients) for (_, gradients), name in work.items() if TARGETS[name].is_probe]
        distinct = {job.key: job for name in work.values() for job in jobs[name]}
        return plan.describe(list(distinct.values()), probes)

    def work_of(name: str) -> tuple[str, bool]:
        return TARGETS[name].experiment, TARGETS[name].gradients

    if len(jobs) == 1:
        return describe(list(jobs))
    described: dict[tuple[str, bool], dict[str, Any]] = {}
    for name in jobs:
        if work_of(name) in described:
            continue
        try:
            alone = describe([name])
            described[work_of(name)] = {key: alone[key] for key in _SHOWN_ALONE}
        except UserError as error:
            described[work_of(name)] = {"error": str(error)}
    each = {name: described[work_of(name)] for name in jobs}
    possible = [name for name, alone in each.items() if "error" not in alone]
    if not possible:
        raise UserError("\n".join(dict.fromkeys(alone["error"] for alone in each.values())))
    return describe(possible) | {"targets": each}


def _render_plan(console: "Console", document: dict[str, Any]) -> None:
    from sapo.cli import plan
    from sapo.cli.views import simple_table

    if "targets" in document:
        columns = ("target", "runs", "done", "to do", "time", "GPU hours")
        table = simple_table("Each target alone", *columns)
        for name, alone in document["targets"].items():
            if "error" in alone:
                console.print(f"No plan of {name}: {alone['error']}", markup=False, soft_wrap=True)
                continue
            counts = (sum(kind[count] for kind in alone["kinds"]) for count in ("done", "to_do"))
            costs = plan.time_text(alone["seconds"]), plan.hours_text(alone["gpu_hours"])
            table.add_row(name, str(alone["runs"]), *map(str, counts), *costs)
        console.print(table)
        console.print("All of them, shared stages counted once:")
    plan.render(console, document)


def _require_gpu(scale: str, jobs: dict[str, list["Job"]]) -> None:
    """Refuses the paper's scale without a GPU, after showing on stderr what it would take."""
    from sapo.conf.errors import UserError
    from sapo.experiments.model.identity import device_of
    from sapo.experiments.targets import require_gpu

    try:
        require_gpu(scale, device_of(next(iter(jobs.values()))[0].config).type)
    except UserError:
        _show_plan(jobs)
        raise


def _show_plan(jobs: dict[str, list["Job"]]) -> None:
    from sapo.conf.errors import UserError

    console = Terminal(stderr=True)
    try:
        _render_plan(console, _plan(jobs))
    except UserError as error:  # the data is missing too: then there is no plan to show
        console.print(f"No plan: {error}", markup=False, soft_wrap=True)
