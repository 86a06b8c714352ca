"""Many runs on one engine: checked before they begin, and each written as soon as it is finished."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from sapo.conf.errors import UserError
from sapo.conf.schema import Config
from sapo.data.benchmarks import load_tasks
from sapo.data.hygiene import distinct_rows
from sapo.data.prompts import Prompt, PromptPool
from sapo.data.remembering import remembered
from sapo.data.tasks import Example
from sapo.experiments.continual import Planned, pool_for, run_sequence
from sapo.experiments.engine.concurrent import ConcurrentEngine
from sapo.experiments.engine.local import LocalEngine, Watcher
from sapo.experiments.engine.stages import Stage, Train
from sapo.experiments.engine.store import Store
from sapo.experiments.methods import METHODS
from sapo.experiments.methods.tagging import require_tagger
from sapo.experiments.model.identity import device_of
from sapo.experiments.model.preflight import preflight
from sapo.experiments.planning import PlanEngine
from sapo.experiments.runs import write_run


def require_ready(configs: Sequence[Config]) -> None:
    """UserError with everything that the runs need and that is not there or does not fit.

    Models, devices, benchmark data, prompt pools, prompts within the length limit: checked before the first
    stage, since a run late in a sweep would say so only hours later.
    """
    failures = _failures(configs, _RUN_CHECKS)
    failures |= {} if failures else _failures(_with_tags(configs), [(require_tagger, ("method",))])
    if failures:
        raise UserError("\n".join(failures))


def plannable(configs: Sequence[Config]) -> tuple[list[Config], dict[str, int]]:
    """The runs that can be planned, and how many cannot by the reason: tasks, pools, methods that do not fit.

    UserError with every reason if none can.
    """
    refused = _refusals(configs, _PLAN_CHECKS)
    possible = [config for config, reasons in zip(configs, refused, strict=True) if not reasons]
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


def require_possible(config: Config) -> None:
    """UserError if a `task` is named, which no run reads, or the method cannot do its work on the tasks."""
    if config.task:
        raise UserError(
            f"task={config.task}: a run trains a sequence. For this task alone: "
            f"sequence.tasks=[{config.task}], in a sequence of its benchmark."
        )
    method, tasks = config.method, config.sequence.tasks
    if method.name not in METHODS:
        return
    kind = METHODS[method.name]
    if kind.keeps and len(tasks) == 1:
        raise UserError(
            f"method={method.name} protects earlier tasks, and sequence {config.sequence.name} has only one: "
            "method=sequential trains the same."
        )
    if "buffer" in kind.reads:
        rows = sum(_n_distinct(task.train) for task in load_tasks(config)[0][:-1])
        if method.buffer > rows:
            raise UserError(
                f"method.buffer={method.buffer}: the tasks before the last have only {rows} different rows. "
                "Set a smaller method.buffer."
            )


@remembered(64)
def _n_distinct(rows: tuple[Example, ...]) -> int:
    return len(set(distinct_rows(rows)))


# A check, and the parts of a config that it reads.
Check = tuple[Callable[[Config], object], tuple[str, ...]]
_PLAN_CHECKS: tuple[Check, ...] = (
    (_require_pools, ("sequence", "data", "paraphrases", "policy")),
    (require_possible, ("task", "sequence", "data", "method")),
)
_RUN_CHECKS: tuple[Check, ...] = (
    (device_of, ("engine",)),
    (_preflight, ("model", "sequence", "data", "paraphrases", "policy")),
    (require_possible, ("task", "sequence", "data", "method")),
)


def _with_tags(configs: Sequence[Config]) -> list[Config]:
    """One of the runs for each model that is still to write tags for InsCL."""
    asking = (config for config in configs if config.method.name == "inscl" and config.method.tagger)
    left = {
        (config.method.tagger, repr(config.paraphrases)): config
        for config in asking
        if _has_trainings_left(config)
    }
    return list(left.values())


def _has_trainings_left(config: Config) -> bool:
    """Whether anything is to be trained: a run that is done needs nobody who writes tags."""
    engine = PlanEngine(Store(Path(config.store.root)))
    asyncio.run(run_sequence(config, engine))
    return any(isinstance(stage, Train) for stage in engine.to_do.values())


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


def require_engine(configs: Sequence[Config]) -> None:
    """UserError if the runs are not for one engine, or what it needs is not installed."""
    engines = [config.engine for config in configs]
    if any(engine != engines[0] for engine in engines) and any(engine.name == "ray" for engine in engines):
        raise UserError("engine: the runs of one command share one engine; give engine=… one value.")
    if engines[0].name == "ray" and find_spec("ray") is None:
        raise UserError("engine=ray needs Ray, which is not installed: pip install 'sapo-prompts[ray]'")


@contextmanager
def open_engine(
    config: Config, watch: Watcher, tell: Callable[[str], None], force: bool = False
) -> Iterator[LocalEngine | ConcurrentEngine]:
    """The config's engine on its store; what the engine has started is gone when it is left.

    `watch` and `force` are LocalEngine's; `tell` gets lines for people: a worker died, a stage is slow.
    """
    store = Store(Path(config.store.root))
    if config.engine.name == "ray":
        from sapo.experiments.engine.ray import ray_engine  # an optional part

        with ray_engine(config.engine, store, tell, watch, force) as engine:
            yield engine
    else:
        yield LocalEngine(store, watch, force)


def complete(
    configs: Sequence[Config], engine: LocalEngine | ConcurrentEngine, keep_going: bool
) -> list[Path | Exception]:
    """The folder of each run, in order; with `keep_going`, its exception in the place of a run that failed.

    Without, the first exception is raised. On one device runs go one after another: it gains nothing from
    mixing them, and this way a run is whole, with its folder, before the next begins. On many all go at once.
    """
    with engine.store.at_work():
        if isinstance(engine, ConcurrentEngine):
            return asyncio.run(_together(configs, engine, keep_going))
        return [asyncio.run(_outcome(config, engine, keep_going)) for config in configs]


async def _together(
    configs: Sequence[Config], engine: ConcurrentEngine, keep_going: bool
) -> list[Path | Exception]:
    return list(await asyncio.gather(*(_outcome(config, engine, keep_going) for config in configs)))


async def _outcome(
    config: Config, engine: LocalEngine | ConcurrentEngine, keep_going: bool
) -> Path | Exception:
    try:
        return write_run(await run_sequence(config, engine), engine.store)
    except Exception as error:
        if not keep_going:
            raise
        return error
