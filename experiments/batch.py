"""Many runs on one engine: checked before they begin, and each written as soon as it is finished."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from sapo.conf.errors import UserError
from sapo.conf.schema import Config
from sapo.data.benchmarks import load_tasks
from sapo.experiments.continual import pool_for, run_sequence
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.models import device_of, load_renderer, model_folder
from sapo.experiments.policies import needs_losses
from sapo.experiments.runs import write_run


def require_ready(configs: Sequence[Config]) -> None:
    """UserError with everything that the runs need and that is not there or does not fit.

    Models, devices, benchmark data, prompt pools, prompts within the length limit: checked before the first
    stage, since a run late in a sweep would say so only hours later.
    """
    failures: dict[str, None] = {}
    checked = set()
    for config in configs:
        parts = (config.model, config.sequence, config.data, config.paraphrases, config.policy, config.engine)
        if repr(parts) in checked:
            continue
        checked.add(repr(parts))
        for check in (_require_model, device_of, _require_prompts):
            try:
                check(config)
            except UserError as error:
                failures[str(error)] = None
    if failures:
        raise UserError("\n".join(failures))


def _require_model(config: Config) -> None:
    model_folder(config.model)


def _require_prompts(config: Config) -> None:
    """UserError if tasks or pools cannot be loaded, or a prompt is too long even without an input."""
    tasks, unseen = load_tasks(config)
    pools = [pool_for(task, config) for task in tasks]
    renderer = load_renderer(config)
    for task, pool in zip(tasks, pools, strict=True):
        for prompt in pool.candidates(include_original=True):
            renderer.require_fits(task, prompt.text)
    for task in unseen:
        renderer.require_fits(task, task.instruction)


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
