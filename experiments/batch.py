"""Many runs on one engine: checked before they begin, and each written as soon as it is finished."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from sapo.conf.errors import UserError
from sapo.conf.schema import Config
from sapo.data.benchmarks import load_tasks
from sapo.experiments.continual import run_sequence
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.models import device_of, model_folder
from sapo.experiments.policies import needs_losses
from sapo.experiments.runs import write_run


def require_ready(configs: Sequence[Config]) -> None:
    """UserError with everything that the runs need and that is not there: models, devices, benchmark data.

    Checked before the first stage, since a run late in a sweep would say so only hours later.
    """
    failures: dict[str, None] = {}
    checks: tuple[Callable[[Config], object], ...] = (lambda c: model_folder(c.model), device_of, load_tasks)
    for config in configs:
        for check in checks:
            try:
                check(config)
            except UserError as error:
                failures[str(error)] = None
    if failures:
        raise UserError("\n".join(failures))


def expected_stages(config: Config) -> int:
    """How many stages a run asks for."""
    trained, unseen = len(config.sequence.tasks), len(config.sequence.unseen)
    scored = trained if needs_losses(config.policy) else 0
    return (trained + 1) * (trained + unseen) + trained + scored


def complete(configs: Sequence[Config], engine: LocalEngine, keep_going: bool) -> list[Path | Exception]:
    """The folder of each run, in order; with `keep_going`, its exception in the place of a run that failed.

    Without, the first exception is raised. One run after another: one device gains nothing from mixing them,
    and this way a run is whole, with its folder, before the next begins.
    """
    results: list[Path | Exception] = []
    for config in configs:
        try:
            results.append(write_run(asyncio.run(run_sequence(config, engine)), engine.store))
        except Exception as error:
            if not keep_going:
                raise
            results.append(error)
    return results
