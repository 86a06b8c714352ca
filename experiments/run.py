"""Running jobs: checked before they begin, on one engine, and each written as soon as it is finished."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from sapo.conf.errors import UserError, WorkError, message_of
from sapo.experiments import targets
from sapo.experiments.continual import run_sequence, stages_asked
from sapo.experiments.engine.local import TURN, LocalEngine, Turn, Watcher, ignore
from sapo.experiments.engine.store import Store
from sapo.experiments.jobs import Job
from sapo.experiments.probe import probes_of, write_probes
from sapo.experiments.ready import require_ready
from sapo.experiments.runs import write_run


@contextmanager
def open_engine(
    jobs: Sequence[Job],
    watch: Watcher = ignore,
    tell: Callable[[str], object] = ignore,
    force: bool = False,
) -> Iterator[LocalEngine]:
    """The engine that all the jobs share, on their store; what it has started is gone when it is left.

    `watch` is told a stage and what becomes of it, `tell` gets lines for people; `force` computes stored
    stages again. UserError if the jobs are not for one engine, or it is not installed.
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
    """What became of a job: the run's folder, or the error that ended it; and of the stages it asked for."""

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
        """The run's folder; raises the error of a run that failed."""
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def run(jobs: Sequence[Job], engine: LocalEngine | None = None, *, keep_going: bool = True) -> list[Outcome]:
    """Runs jobs on one engine, writes the folder of each run as soon as it is finished, and says what came.

    As in `run([Job(config) for config in load(["policy=sapo", …])])`. Without `engine`, the one that the
    configs name. With `keep_going` an error ends only its own job, else it is raised. UserError, before
    anything is computed, if something that the jobs need is not there or does not fit.
    """
    if engine is None:
        with open_engine(jobs) as engine:
            return run(jobs, engine, keep_going=keep_going)
    require_ready([job.config for job in jobs])
    engine.expect(sum((stages_asked(partial(run_sequence, job.config)) for job in jobs), Counter()))
    with engine.store.at_work():
        works = (_outcome(job, engine, number, keep_going) for number, job in enumerate(jobs))
        return engine.complete([*works]) if engine.at_once else list(map(engine.wait, works))


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
    """What came of a table or figure: its runs, and the `folders` of runs or probes that it is drawn from.

    `failed` has name and message of every run that failed, and of every probe that could not be made.
    """

    target: str
    finished: list[Outcome]
    folders: list[Path]
    failed: list[tuple[str, str]]
    seconds: float


def reproduce(
    target: str, scale: str = "mini", overrides: Sequence[str] = (), engine: LocalEngine | None = None
) -> Reproduction:
    """Runs what a table or figure of the paper, a name in `TARGETS`, needs; `analysis.report.draw` shows it.

    `overrides` are settings as on the command line. UserError if something is not there or does not fit,
    WorkError if no run finished, or there is nothing to draw.
    """
    what, begun = targets.TARGETS[target], time.monotonic()
    jobs = targets.jobs_of(target, scale, overrides)
    if engine is None:
        with open_engine(jobs) as engine:
            return reproduce(target, scale, overrides, engine)
    of_probes = targets.probe_jobs(target, jobs)
    probes_of(of_probes)  # what cannot be a probe is refused before hours of runs
    outcomes = run(jobs, engine)
    require_some(outcomes)
    failed = [(str(outcome.job), outcome.message) for outcome in outcomes if outcome.error]
    finished = {outcome.job.key: outcome for outcome in outcomes if not outcome.error}
    folders = {key: outcome.folder for key, outcome in finished.items()}
    probes, unmeasured = write_probes(of_probes, folders, engine, what.gradients)
    failed += unmeasured
    in_probes = {folders.get(job.key) for job in of_probes}
    others = (folder for folder in folders.values() if folder not in in_probes)
    # Runs whose pools hold fewer paraphrases than asked for may turn out to be the same run, or probe.
    drawn = [*dict.fromkeys([*probes, *others])]
    if not drawn:
        raise WorkError("\n".join(f"{name}: {message}" for name, message in failed))
    return Reproduction(target, [*finished.values()], drawn, failed, time.monotonic() - begun)
