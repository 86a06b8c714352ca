"""What `train` and `reproduce` share: running configs with progress, and telling what failed."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sapo.cli.console import nothing_on_stdout, notice
from sapo.cli.progress import StageProgress
from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import Config
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.jobs import Job
from sapo.experiments.run import Outcome, open_engine, run


@dataclass(frozen=True)
class Outcomes:
    """Runs that finished, runs that failed (name and message), and the seconds that all took."""

    finished: list[Outcome]
    failed: list[tuple[str, str]]
    seconds: float

    @property
    def computed(self) -> int:
        """Stages that were computed."""
        return sum(run.computed for run in self.finished)

    @property
    def stored(self) -> int:
        """Stages that came from the store, shared ones counted for each run that asked."""
        return sum(run.stored for run in self.finished)


@dataclass(frozen=True)
class Watched:
    """The one engine of a command, and the progress of all that it computes."""

    engine: LocalEngine
    progress: StageProgress


@contextmanager
def watched_engine(jobs: Sequence[Job], force: bool) -> Iterator[Watched]:
    """The engine for all runs of a command: what is computed by force is so once, and workers start once."""
    progress = StageProgress()
    try:
        with open_engine(jobs, progress, progress.tell, force) as engine:
            yield Watched(engine, progress)
    except KeyboardInterrupt:
        notice("sapo: interrupted. Finished stages are kept: the same command goes on from here.")
        raise


def run_jobs(jobs: Sequence[Job], watched: Watched, fail_fast: bool) -> Outcomes:
    """Runs all on the engine and writes their folders; raises if none finished, with `fail_fast` at once."""
    begun = time.monotonic()
    with watched.progress, nothing_on_stdout():
        outcomes = run(jobs, watched.engine, keep_going=not fail_fast, expect=watched.progress.expect)
    errors = [(outcome.job.config, outcome.error) for outcome in outcomes if outcome.error]
    if len(errors) == len(outcomes):
        raise all_failed([error for _, error in errors])
    finished = [outcome for outcome in outcomes if not outcome.error]
    failed = [(label(config), message_of(error)) for config, error in errors]
    return Outcomes(finished, failed, time.monotonic() - begun)


def failures(outcome: Outcomes) -> list[str]:
    """A line for every run that failed."""
    return [f"{name} failed: {message}" for name, message in outcome.failed]


def report_failures(outcome: Outcomes) -> None:
    """The same on stderr."""
    for line in failures(outcome):
        notice(f"sapo: {line}")


def label(config: Config) -> str:
    """A run's name before it has an id."""
    groups = (config.sequence, config.model, config.method, config.policy)
    return " ".join([*(group.name for group in groups), f"seed {config.seed}"])


def all_failed(errors: Sequence[Exception]) -> Exception:
    """The one error, or one that holds the messages of all."""
    messages = list(dict.fromkeys(map(message_of, errors)))
    if len(messages) == 1:
        return errors[0]
    is_command_wrong = all(isinstance(error, UserError) and error.exit_code == 2 for error in errors)
    return (UserError if is_command_wrong else WorkError)("\n".join(messages))


def message_of(error: Exception) -> str:
    """What an error says; what is no UserError with its kind."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
