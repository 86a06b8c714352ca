"""Many runs on one engine: checked before they begin, and each written as soon as it is finished."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from sapo.conf.errors import UserError
from sapo.conf.schema import Config
from sapo.data.benchmarks import load_tasks
from sapo.data.hygiene import distinct
from sapo.experiments.continual import Planned, pool_for, run_sequence
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.stages import Stage, Train
from sapo.experiments.engine.store import Store
from sapo.experiments.methods import METHODS
from sapo.experiments.methods.tagging import require_tagger
from sapo.experiments.models import device_of, load_renderer, model_folder
from sapo.experiments.planning import PlanEngine
from sapo.experiments.runs import write_run


def require_ready(configs: Sequence[Config]) -> None:
    """UserError with everything that the runs need and that is not there or does not fit.

    Models, devices, benchmark data, prompt pools, prompts within the length limit: checked before the first
    stage, since a run late in a sweep would say so only hours later.
    """
    failures: dict[str, None] = {}
    checked = set()
    for config in configs:
        parts = (
            config.model,
            config.sequence,
            config.data,
            config.paraphrases,
            config.policy,
            config.method,
            config.engine,
        )
        if repr(parts) in checked:
            continue
        checked.add(repr(parts))
        for check in (_require_model, device_of, _require_prompts, require_possible):
            try:
                check(config)
            except UserError as error:
                failures[str(error)] = None
    for config in _with_tags(configs):
        try:
            require_tagger(config)
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
        rows = sum(len(distinct(task.train)) for task in load_tasks(config)[0][:-1])
        if method.buffer > rows:
            raise UserError(
                f"method.buffer={method.buffer}: the tasks before the last have only {rows} different rows. "
                "Set a smaller method.buffer."
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
