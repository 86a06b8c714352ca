"""Running jobs: checked before they begin, on one engine, and each written as soon as it is finished."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sapo.conf.errors import UserError
from sapo.conf.schema import Config
from sapo.data.benchmarks import load_tasks
from sapo.data.hygiene import distinct_rows
from sapo.data.prompts import Prompt, PromptPool
from sapo.data.remembering import remembered
from sapo.data.tasks import Example
from sapo.experiments.continual import pool_for, run_sequence
from sapo.experiments.engine.local import LocalEngine, Watcher, ignore
from sapo.experiments.engine.store import Store, Stored
from sapo.experiments.jobs import Job
from sapo.experiments.methods import METHODS
from sapo.experiments.model.fetch import model_folder
from sapo.experiments.model.identity import device_of
from sapo.experiments.model.preflight import preflight
from sapo.experiments.runs import Planned, write_run
from sapo.experiments.stages import Stage


def require_ready(configs: Sequence[Config]) -> None:
    """UserError with everything that the runs need and that is not there or does not fit.

    Models, devices, benchmark data, prompt pools, prompts within the length limit: checked before the first
    stage, since a run late in a sweep would say so only hours later.
    """
    failures = _failures(configs, _RUN_CHECKS)
    if failures:
        raise UserError("\n".join(failures))


def plannable(jobs: Sequence[Job]) -> tuple[list[Job], dict[str, int]]:
    """The runs that can be planned, and how many cannot by the reason: tasks, pools, methods that do not fit.

    UserError with every reason if none can.
    """
    refused = _refusals([job.config for job in jobs], _PLAN_CHECKS)
    possible = [job for job, reasons in zip(jobs, refused, strict=True) if not reasons]
    counts = Counter(reason for reasons in refused for reason in reasons)
    if not possible:
        raise UserError("\n".join(counts))
    return possible, dict(counts)


def _failures(configs: Sequence[Config], checks: Sequence["Check"]) -> dict[str, None]:
    """What the checks refuse, each once."""
    return dict.fromkeys(reason for reasons in _refusals(configs, checks) for reason in reasons)


def _refusals(configs: Sequence[Config], checks: Sequence["Check"]) -> list[dict[str, None]]:
    """What the checks say against each run. What a check reads is the same in many runs, and checked once."""
    refused: list[dict[str, None]] = [{} for _ in configs]
    for check, parts in checks:
        known: dict[str, str | None] = {}
        for config, reasons in zip(configs, refused, strict=True):
            read = repr([getattr(config, part) for part in parts])
            if read not in known:
                known[read] = _refusal(check, config)
            reason = known[read]
            if reason is not None:
                reasons[reason] = None
    return refused


def _refusal(check: Callable[[Config], object], config: Config) -> str | None:
    try:
        check(config)
    except UserError as error:
        return str(error)
    return None


def _require_pools(config: Config) -> list[PromptPool]:
    """The pools of the trained tasks; UserError if tasks or pools cannot be loaded."""
    return [pool_for(task, config) for task in load_tasks(config)[0]]


def _preflight(config: Config) -> None:
    """UserError if the model, its template or adapter, the tasks or their pools do not fit together."""
    tasks, unseen = load_tasks(config)
    pools = _require_pools(config)
    shown = [(task, pool.candidates(True)) for task, pool in zip(tasks, pools, strict=True)]
    preflight(config, [*shown, *((task, [Prompt(task.instruction)]) for task in unseen)])


def _preflight_if_here(config: Config) -> None:
    """The same for a plan, which can be made without the model."""
    try:
        model_folder(config.model)
    except UserError:
        return
    _preflight(config)


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


# A check, and the parts of a config that it reads.
Check = tuple[Callable[[Config], object], tuple[str, ...]]
_PLAN_CHECKS: tuple[Check, ...] = (
    (_require_pools, ("sequence", "data", "paraphrases", "policy")),
    (_preflight_if_here, ("model", "sequence", "data", "paraphrases", "policy")),
    (require_possible, ("task", "sequence", "data", "method")),
)
_RUN_CHECKS: tuple[Check, ...] = (
    (device_of, ("engine",)),
    (_preflight, ("model", "sequence", "data", "paraphrases", "policy")),
    (require_possible, ("task", "sequence", "data", "method")),
)


class _Counter:
    """An engine that computes nothing and counts what it is asked for."""

    def __init__(self) -> None:
        self.asked = 0

    async def run(self, stage: Stage) -> Planned:
        """A stand-in for the stage."""
        del stage
        self.asked += 1
        return Planned(str(self.asked))


def expected_stages(config: Config) -> int:
    """How many stages a run asks for, at most: a task whose original instruction wins is tested once less."""
    counter = _Counter()
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
        return engine.complete([_outcome(job, engine, turn, keep_going) for turn, job in enumerate(jobs)])


class _Asker:
    """A job's own view of the engine, which counts what was computed for it."""

    def __init__(self, engine: LocalEngine, turn: int) -> None:
        self.engine = engine
        self.turn = turn
        self.computed = self.stored = 0

    async def run(self, stage: Stage) -> Stored:
        """The finished stage."""
        stored, is_new = await self.engine.ask(stage, self.turn)
        self.computed += is_new
        self.stored += not is_new
        return stored


async def _outcome(job: Job, engine: LocalEngine, turn: int, keep_going: bool) -> Outcome:
    asker = _Asker(engine, turn)
    result: Path | Exception
    try:
        result = write_run(await run_sequence(job.config, asker), engine.store)
    except Exception as error:
        if not keep_going:
            raise
        result = error
    return Outcome(job, result, asker.computed, asker.stored)
