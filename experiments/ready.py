"""What jobs need before their first stage: models, devices, data and pools that are there and fit."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from sapo.conf.errors import UserError
from sapo.conf.schema import Config
from sapo.data.benchmarks import load_tasks
from sapo.data.hygiene import distinct_rows
from sapo.data.prompts import Prompt
from sapo.data.tasks import Task
from sapo.experiments.continual import pool_for
from sapo.experiments.jobs import Job
from sapo.experiments.methods import METHODS, earlier_adapters
from sapo.experiments.model import fetch, identity, load, memory, preflight, training

_log = logging.getLogger(__name__)


def require_ready(configs: Sequence[Config]) -> None:
    """UserError with everything that the runs need and that is not there or does not fit."""
    failures = dict.fromkeys(reason for reasons in _refusals(configs, is_plan=False) for reason in reasons)
    if failures:
        raise UserError("\n".join(failures))


def plannable(jobs: Sequence[Job]) -> tuple[list[Job], dict[str, int]]:
    """The runs that can be planned, and how many cannot by the reason: tasks, pools, methods that do not fit.

    A plan can also be made where the model is not. UserError with every reason if none can.
    """
    refused = _refusals([job.config for job in jobs], is_plan=True)
    possible = [job for job, reasons in zip(jobs, refused, strict=True) if not reasons]
    counts = Counter(reason for reasons in refused for reason in reasons)
    if not possible:
        raise UserError("\n".join(counts))
    return possible, dict(counts)


def _refusals(configs: Sequence[Config], is_plan: bool) -> list[list[str]]:
    """What speaks against each run. What a check reads is the same in many runs, and checked once."""
    known: dict[str, list[str]] = {}

    def refusal(check: Callable[..., object], *arguments: object, read: Sequence[object]) -> list[str]:
        key = repr((check.__name__, read))
        if key not in known:
            try:
                check(*arguments)
                known[key] = []
            except UserError as error:
                known[key] = [str(error)]
        return known[key]

    refused = []
    for config in configs:
        engine, model, data = config.engine, config.model, (config.sequence, config.data)
        has_no_model = refusal(fetch.model_folder, model, read=[model])
        reasons = []
        if not is_plan:
            if engine.name == "ray":  # whose workers may be elsewhere
                reasons += refusal(identity.device_of, config, read=[engine])
            else:
                reasons += refusal(identity.require_devices, config, read=[engine])
                reasons += refusal(load.require_loadable, config, read=[engine, model])
                taken = (model, config.method, config.trainer, config.data, config.sequence.tasks)
                reasons += refusal(_require_memory, config, read=taken)
            reasons += has_no_model
            reasons += refusal(training.require_trackers, config.trainer, read=[config.trainer])
        reasons += (no_tasks := refusal(_shown, config, read=[*data, config.paraphrases, config.policy]))
        if not no_tasks and not has_no_model:
            shown = _shown(config)
            texts = [(task.name, prompts) for task, prompts in shown]
            read = (model, config.data, config.evaluator, config.sequence.benchmark, texts)
            reasons += refusal(preflight.preflight, config, shown, read=read)
        reasons += refusal(_require_possible, config, read=[config.task, *data, config.method])
        refused.append(list(dict.fromkeys(reasons)))
    return refused


def _shown(config: Config) -> list[tuple[Task, Sequence[Prompt]]]:
    """The tasks with the prompts that they may be shown under; UserError if one cannot be loaded."""
    tasks, unseen = load_tasks(config)
    trained = [(task, pool_for(task, config).candidates(True)) for task in tasks]
    return [*trained, *((task, [Prompt(task.instruction)]) for task in unseen)]


def _require_memory(config: Config) -> None:
    """UserError if not even the weights fit on the device; a line where the longest rows may not."""
    if note := memory.require_memory(config, earlier_adapters(config)):
        _log.warning("%s", note)


def _require_possible(config: Config) -> None:
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
        rows = sum(len(set(distinct_rows(task.train))) for task in load_tasks(config)[0][:-1])
        if method.buffer > rows:
            raise UserError(
                f"method.buffer={method.buffer}: the tasks before the last have only {rows} different rows. "
                "Set a smaller method.buffer."
            )
    kind.require_ready(config)
