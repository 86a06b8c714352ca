"""Running jobs: checked before they begin, on one engine, and each written as soon as it is finished."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sapo.conf.errors import UserError, WorkError, message_of
from sapo.conf.schema import Config
from sapo.data.benchmarks import load_tasks
from sapo.data.hygiene import distinct_rows
from sapo.data.prompts import Prompt
from sapo.data.remembering import remembered
from sapo.data.tasks import Example
from sapo.experiments import targets
from sapo.experiments.continual import CountingEngine, pool_for, run_sequence
from sapo.experiments.engine.local import TURN, LocalEngine, Turn, Watcher, ignore
from sapo.experiments.engine.store import Store
from sapo.experiments.jobs import Job
from sapo.experiments.methods import METHODS
from sapo.experiments.model.fetch import model_folder
from sapo.experiments.model.identity import device_of
from sapo.experiments.model.preflight import preflight
from sapo.experiments.model.training import require_trackers
from sapo.experiments.plan import plan, weight_bytes
from sapo.experiments.probe import probes_of, write_probes
from sapo.experiments.runs import write_run


def require_ready(configs: Sequence[Config]) -> None:
    """UserError with everything that the runs need and that is not there or does not fit.

    Models, devices, benchmark data, prompt pools, prompts within the length limit: checked before the first
    stage, since a run late in a sweep would say so only hours later.
    """
    failures = dict.fromkeys(reason for reasons in _refusals(configs, is_plan=False) for reason in reasons)
    if failures:
        raise UserError("\n".join(failures))


def plannable(jobs: Sequence[Job]) -> tuple[list[Job], dict[str, int]]:
    """The runs that can be planned, and how many cannot by the reason: tasks, pools, methods that do not fit.

    UserError with every reason if none can.
    """
    refused = _refusals([job.config for job in jobs], is_plan=True)
    possible = [job for job, reasons in zip(jobs, refused, strict=True) if not reasons]
    counts = Counter(reason for reasons in refused for reason in reasons)
    if not possible:
        raise UserError("\n".join(counts))
    return possible, dict(counts)


def _refusals(configs: Sequence[Config], is_plan: bool) -> list[list[str]]:
    """What speaks against each run. What a check reads is the same in many runs, and checked once."""
    checks: list[tuple[Callable[[Config], object], tuple[str, ...]]] = [
        (
            partial(_require_tasks, without_model=is_plan),
            ("model", "sequence", "data", "paraphrases", "policy"),
        ),
        (require_possible, ("task", "sequence", "data", "method")),
    ]
    if not is_plan:
        checks = [
            (device_of, ("engine",)),
            (lambda config: model_folder(config.model), ("model",)),
            (lambda config: require_trackers(config.trainer), ("trainer",)),
            *checks,
        ]
    known: dict[str, list[str]] = {}
    refused: list[list[str]] = [[] for _ in configs]
    for number, (check, parts) in enumerate(checks):
        for config, reasons in zip(configs, refused, strict=True):
            read = repr([number, *(getattr(config, part) for part in parts)])
            if read not in known:
                try:
                    check(config)
                    known[read] = []
                except UserError as error:
                    known[read] = [str(error)]
            reasons += known[read]
    return [list(dict.fromkeys(reasons)) for reasons in refused]


def _require_tasks(config: Config, without_model: bool) -> None:
    """UserError if the tasks or their pools cannot be loaded, or do not fit the model and its template.

    `without_model`: a plan can also be made where the model is not.
    """
    tasks, unseen = load_tasks(config)
    shown = [(task, pool_for(task, config).candidates(True)) for task in tasks]
    if without_model:
        try:
            model_folder(config.model)
        except UserError:
            return
    preflight(config, [*shown, *((task, [Prompt(task.instruction)]) for task in unseen)])


def require_possible(config: Config) -> None:
    """UserError if a `task` is named, which no run reads, or the method cannot do its work on the tasks."""
    if config.task:
        raise UserError(
            f"task={config.task}: a run trains a sequence. For this task alone: "
            f"sequence.tasks=[{config.task}], in a sequence of its benchmark."
        )
    method, tasks = config.method, config.sequence.tasks
    kind = METHODS[method.name]
    if kind.keeps and len(tasks) == 1:
        raise UserError(
            f"method={method.name} protects earlier tasks, and sequence {config.sequence.name} has only one: "
            "method=sequential trains the same."
        )
    if kind.replays:
        rows = sum(_n_distinct(task.train) for task in load_tasks(config)[0][:-1])
        if method.buffer > rows:
            raise UserError(
                f"method.buffer={method.buffer}: the tasks before the last have only {rows} different rows. "
                "Set a smaller method.buffer."
            )
    kind.require_ready(config)


@remembered(64)
def _n_distinct(rows: tuple[Example, ...]) -> int:
    return len(set(distinct_rows(rows)))


def expected_stages(config: Config) -> int:
    """How many stages a run asks for, at most: a task whose original instruction wins is tested once less."""
    counter = CountingEngine()
    asyncio.run(run_sequence(config, counter))
    return counter.asked


@contextmanager
def open_engine(
    jobs: Sequence[Job],
    watch: Watcher = ignore,
    tell: Callable[[str], object] = ignore,
    force: bool = False,
) -> Iterator[LocalEngine]:
    """The engine that all the jobs share, on their store; what it has started is gone when it is left.

    Args:
        jobs: What is to be run. UserError if they are not for one engine, or it is not installed.
        watch: Told a stage and what becomes of it: see `Watcher`.
        tell: Gets lines for people: a worker died, and its stage is run again.
        force: Compute stored stages again.
    """
    engines = [job.config.engine for job in jobs]
    if any(engine != engines[0] for engine in engines) and any(engine.name == "ray" for engine in engines):
        raise UserError("engine: the runs of one command share one engine; give engine=… one value.")
    store = Store(Path(jobs[0].config.store.root))
    if engines[0].name != "ray":
        yield LocalEngine(store, watch, force)
        return
    if find_spec("ray") is None:
        raise UserError("engine=ray needs Ray, which is not installed: pip install 'sapo-prompts[ray]'")
    from sapo.experiments.engine.ray import Cluster, RayEngine  # an optional part

    with RayEngine(Cluster(engines[0]), store, tell, watch, force) as engine:
        yield engine


@dataclass(frozen=True)
class Outcome:
    """What became of a job: the run's folder, or the error that ended it.

    `computed` and `stored` count the stages that were computed for it, and that the store had already.
    """

    job: Job
    result: Path | Exception
    computed: int = 0
    stored: int = 0

    @property
    def error(self) -> Exception | None:
        """Why there is no run."""
        return self.result if isinstance(self.result, Exception) else None

    @property
    def message(self) -> str:
        """What the error says."""
        return message_of(self.error) if self.error else ""

    @property
    def folder(self) -> Path:
        """The run's folder; raises the error of a job that failed."""
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def run(
    jobs: Sequence[Job],
    engine: LocalEngine | None = None,
    *,
    keep_going: bool = True,
    expect: Callable[[int], object] = ignore,
) -> list[Outcome]:
    """Runs jobs on one engine, and writes the folder of each run as soon as it is finished.

    Args:
        jobs: What to run, as in `run([Job(config) for config in load(["policy=sapo", …])])`.
        engine: Where the stages are computed; if not given, the engine of the jobs' configs.
        keep_going: Whether an error ends only its own job, or is raised.
        expect: Told how many stages the jobs ask for, at most, before the first is computed.

    Returns:
        What became of each job, in order.

    Raises:
        UserError: If something that the jobs need is not there or does not fit. Nothing was computed then.
    """
    if engine is None:
        with open_engine(jobs) as engine:
            return run(jobs, engine, keep_going=keep_going, expect=expect)
    require_ready([job.config for job in jobs])
    expect(sum(expected_stages(job.config) for job in jobs))
    with engine.store.at_work():
        if engine.at_once:
            return engine.complete([_outcome(job, engine, n, keep_going) for n, job in enumerate(jobs)])
        outcomes = []
        for number, job in enumerate(jobs):
            outcomes.append(engine.wait(_outcome(job, engine, number, keep_going)))
        return outcomes


async def _outcome(job: Job, engine: LocalEngine, number: int, keep_going: bool) -> Outcome:
    TURN.set(turn := Turn(number))
    result: Path | Exception
    try:
        result = write_run(await run_sequence(job.config, engine), engine.store)
    except Exception as error:
        if not keep_going:
            raise
        result = error
    return Outcome(job, result, turn.computed, turn.stored)


def require_some(outcomes: Sequence[Outcome]) -> None:
    """Raises what ended the jobs if none was finished: the one error, or one with the messages of all."""
    errors = {outcome.message: outcome.error for outcome in outcomes if outcome.error}
    if not all(outcome.error for outcome in outcomes):
        return
    if len(errors) == 1:
        raise next(iter(errors.values()))
    is_command_wrong = all(isinstance(error, UserError) and error.exit_code == 2 for error in errors.values())
    raise (UserError if is_command_wrong else WorkError)("\n".join(errors))


@dataclass(frozen=True)
class Reproduction:
    """What came of a table or figure: `folders` are the runs, or the probes, that it is drawn from.

    `failed` has name and message of every run that failed, and of every probe that could not be made.
    """

    target: str
    jobs: list[Job]
    outcomes: list[Outcome]
    folders: list[Path]
    failed: list[tuple[str, str]]
    seconds: float

    @property
    def finished(self) -> list[Outcome]:
        """The runs that are there."""
        return [outcome for outcome in self.outcomes if not outcome.error]


def reproduce(
    target: str,
    scale: str = "mini",
    overrides: Sequence[str] = (),
    engine: LocalEngine | None = None,
    *,
    expect: Callable[[int], object] = ignore,
) -> Reproduction:
    """Runs what a table or figure of the paper needs; `analysis.report.draw` shows it.

    Args:
        target: A name in `TARGETS`.
        scale: `mini`, `small` or `paper`.
        overrides: Settings as on the command line.
        engine: Where the stages are computed; if not given, the engine of the jobs' configs.
        expect: Told how many stages are asked for, before runs and before what probes measure beside them.

    Raises:
        UserError: If something is not there or does not fit.
        WorkError: If no run finished, or there is nothing to draw.
    """
    what, begun = targets.TARGETS[target], time.monotonic()
    jobs = targets.jobs_of(target, scale, overrides)
    if engine is None:
        with open_engine(jobs) as engine:
            return reproduce(target, scale, overrides, engine, expect=expect)
    if what.is_probe:
        probes_of(jobs)  # what cannot be a probe is refused before hours of runs
    outcomes = run(jobs, engine, expect=expect)
    require_some(outcomes)
    failed = [(str(outcome.job), outcome.message) for outcome in outcomes if outcome.error]
    finished = {outcome.job.key: outcome.folder for outcome in outcomes if not outcome.error}
    # Runs whose pools hold fewer paraphrases than asked for may turn out to be the same run.
    folders = list(dict.fromkeys(finished.values()))
    if what.is_probe:
        folders, unmeasured = write_probes(jobs, finished, engine, what.gradients, expect)
        if not folders:
            raise WorkError("\n".join(f"{name}: {message}" for name, message in [*failed, *unmeasured]))
        failed += unmeasured
    return Reproduction(target, jobs, outcomes, folders, failed, time.monotonic() - begun)


# --- plans -------------------------------------------------------------------------------------------------


def plan_jobs(jobs: Sequence[Job], probes: Sequence[tuple[Sequence[Job], bool]] = ()) -> dict[str, Any]:
    """The plan of some runs, and of `probes` as `planning.plan` takes them, as JSON values.

    None for what is not known. Runs that cannot be planned are left out, and counted by their reason; raises
    UserError if none can.
    """
    possible, unplanned = plannable(jobs)
    kept = {job.key for job in possible}
    of_probes = [([job for job in runs if job.key in kept], gradients) for runs, gradients in probes]
    planned = plan(possible, Store(Path(jobs[0].config.store.root)), of_probes)
    distinct = sum(kind.done + kind.to_do for kind in planned.kinds)
    return {
        "runs": len(possible),
        "unplanned": [{"runs": count, "reason": reason} for reason, count in unplanned.items()],
        "kinds": [asdict(kind) for kind in planned.kinds],
        "trainings": [asdict(kind) for kind in planned.trainings],
        "asked": planned.asked,
        "shared": planned.asked - distinct,
        "seconds": _total([kind.seconds for kind in planned.kinds]),
        "gpu_hours": _total([model.gpu_hours for model in planned.models.values()]),
        "models": {name: asdict(model) for name, model in planned.models.items()},
        "disk_bytes": planned.disk_bytes,
        "weight_bytes": {job.config.model.name: weight_bytes(job.config) for job in possible},
    }


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def plan_targets(jobs: Mapping[str, list[Job]]) -> dict[str, Any]:
    """What all targets together would compute, shared stages once; of several, also each alone.

    A target that cannot be planned is named with the reason; raises UserError with all if there is no other.
    """

    def work_of(name: str) -> tuple[str, bool]:
        # Targets that show the same runs in other ways count once.
        return targets.TARGETS[name].experiment, targets.TARGETS[name].gradients

    def together(names: Sequence[str]) -> dict[str, Any]:
        distinct = list({work_of(name): name for name in names}.values())
        probes = [
            (jobs[name], targets.TARGETS[name].gradients)
            for name in distinct
            if targets.TARGETS[name].is_probe
        ]
        every = {job.key: job for name in distinct for job in jobs[name]}
        return plan_jobs(list(every.values()), probes)

    if len(jobs) == 1:
        return together(list(jobs))
    shown = ("runs", "unplanned", "kinds", "trainings", "seconds", "gpu_hours")
    alone: dict[tuple[str, bool], dict[str, Any]] = {}
    for name in jobs:
        if work_of(name) not in alone:
            try:
                alone[work_of(name)] = {key: value for key, value in together([name]).items() if key in shown}
            except UserError as error:
                alone[work_of(name)] = {"error": str(error)}
    each = {name: alone[work_of(name)] for name in jobs}
    possible = [name for name, found in each.items() if "error" not in found]
    if not possible:
        raise UserError("\n".join(dict.fromkeys(found["error"] for found in each.values())))
    return together(possible) | {"targets": each}
