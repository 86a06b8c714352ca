"""What `train` and `reproduce` share: running configs with progress, and telling what failed."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sapo.cli.console import nothing_on_stdout, notice
from sapo.cli.progress import StageProgress
from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import Config
from sapo.experiments.batch import complete, expected_stages, open_engine, require_engine, require_ready
from sapo.experiments.engine.concurrent import ConcurrentEngine
from sapo.experiments.engine.local import LocalEngine


@dataclass(frozen=True)
class Finished:
    """A run that is written, and how many of its stages were computed now or came from the store."""

    config: Config
    folder: Path
    computed: int
    stored: int


@dataclass(frozen=True)
class Outcome:
    """Runs that finished, runs that failed (name and message), and the seconds that all took."""

    finished: list[Finished]
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

    engine: LocalEngine | ConcurrentEngine
    progress: StageProgress


@contextmanager
def watched_engine(configs: Sequence[Config], force: bool) -> Iterator[Watched]:
    """The engine for all runs of a command: what is computed by force is so once, and workers start once."""
    require_engine(configs)
    progress = StageProgress()
    try:
        with open_engine(configs[0], progress, progress.tell, force) as engine:
            yield Watched(engine, progress)
    except KeyboardInterrupt:
        notice("sapo: interrupted. Finished stages are kept: the same command goes on from here.")
        raise


def run_configs(configs: Sequence[Config], watched: Watched, fail_fast: bool) -> Outcome:
    """Runs all on the engine and writes their folders; raises if none finished, with `fail_fast` at once."""
    begun, progress = time.monotonic(), watched.progress
    require_ready(configs)
    progress.expect(sum(map(expected_stages, configs)))
    with progress, nothing_on_stdout():
        results = complete(configs, watched.engine, keep_going=not fail_fast)
    finished = [
        Finished(config, result, progress.computed[id(config)], progress.stored[id(config)])
        for config, result in zip(configs, results, strict=True)
        if isinstance(result, Path)
    ]
    errors = [
        (config, result)
        for config, result in zip(configs, results, strict=True)
        if not isinstance(result, Path)
    ]
    if errors and not finished:
        raise all_failed([error for _, error in errors])
    return Outcome(
        finished, [(label(config), message_of(error)) for config, error in errors], time.monotonic() - begun
    )


def failures(outcome: Outcome) -> list[str]:
    """A line for every run that failed."""
    return [f"{name} failed: {message}" for name, message in outcome.failed]


def report_failures(outcome: Outcome) -> None:
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
