"""What of a config cannot work, all at once: values outside their limits, and what does not go together."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import Field, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from sapo.conf.errors import UserError
from sapo.conf.layout import layout_of, separators_of
from sapo.conf.names import DIGEST, LONGEST_RUN, run_name, shown, why_no_name
from sapo.conf.schema import Config, fits, limits_of, settings

_SETTINGS = settings()


def problems(config: Config) -> Iterator[str]:
    """A line for each value of the config that cannot work, alone or beside another."""
    for key, setting in _SETTINGS.items():
        value = reduce(getattr, key.split("."), config)
        for item in value if isinstance(value, list) else [value]:
            if item is None or is_dataclass(item) or not (reason := _why_not(setting, item)):
                continue
            typed = str(item)
            if not re.fullmatch(r"[\w.,:=/+@%-]{1,60}", typed):
                typed = shown(typed)  # in quotes, as it could not be read otherwise
            yield f"{key}: {reason}" if "is_secret" in setting.metadata else f"{key}={typed}: {reason}"
    checks: list[tuple[Callable[[Any], Any], str | None]] = [(separators_of, config.data.separator)]
    if config.data.layout is not None:  # the default one is right, and looking at it takes a while
        checks.insert(0, (layout_of, config.data.layout))
    for check, text in checks:
        try:
            check(text)
        except UserError as error:
            yield str(error)
    yield from _of_engine_and_method(config)
    yield from _of_tasks_and_prompts(config)


def _of_engine_and_method(config: Config) -> Iterator[str]:
    """What each can be alone, but not beside another value."""
    engine, method, batch = config.engine, config.method, config.trainer.global_batch
    gpus = engine.gpus or 0.0
    if 1 < gpus < math.inf and gpus % 1:
        yield f"engine.gpus={gpus:g}: must be a part of one GPU, or a whole number of them"
    if engine.name != "ray" and (engine.address or engine.workers or engine.gpus) is not None:
        yield f"engine.address, engine.workers and engine.gpus are for engine=ray, not engine={engine.name}"
    if engine.devices > 1 and engine.gpus is not None:
        yield f"engine.gpus={engine.gpus:g} with engine.devices={engine.devices}: each has a whole device"
    if batch < engine.devices:
        why = f"each needs a row of every global batch, and trainer.global_batch={batch}"
        yield f"engine.devices={engine.devices}: {why}"
    if method.name == "inscl" and method.unit != "instance" and method.tags is not None:
        yield f"method.tags={method.tags}: only method.unit=instance reads tags"
    if method.name == "inscl" and method.unit == "instance" and method.tags is None:
        yield (
            "method.unit=instance needs tags of all training rows: write them with `sapo paraphrase --tags "
            "FILE sequence=NAME paraphrases=openai|local …`, and say method.tags=FILE. "
            "method.unit=lexical or quota needs none"
        )


def _of_tasks_and_prompts(config: Config) -> Iterator[str]:
    """The same."""
    policy, paraphrases, sequence, scorer = config.policy, config.paraphrases, config.sequence, config.scorer
    if policy.last_only and policy.name != "fixed":
        yield f"policy.last_only=true with policy={policy.name}: only policy=fixed gives a prompt"
    size = len(f"{run_name(config)}-".encode(errors="replace")) + DIGEST
    if size > LONGEST_RUN:
        made = f"the run's id is made of them and would have {size} bytes; it may have {LONGEST_RUN}"
        yield f"sequence.name and model.name: {made}"
    if paraphrases.source == "file" and not paraphrases.file:
        yield "paraphrases=file: say which with paraphrases.file=POOL.yaml"
    if len(paraphrases.prices) not in (0, 2):
        yield f"paraphrases.prices={paraphrases.prices}: must be [IN, OUT], two numbers"
    if not sequence.tasks and not config.task:
        yield f"sequence {sequence.name} has no tasks: sequence.tasks=[NAME,…] names them"
    counts = Counter([*sequence.tasks, *sequence.unseen])
    if repeated := sorted(task for task, count in counts.items() if count > 1):
        yield f"sequence {sequence.name} names {', '.join(repeated)} twice"
    if scorer.name == "race" and policy.name == "sapp":
        yield "policy=sapp with scorer=race: a race finds the lowest loss; use scorer=full"
    if scorer.name == "race" and scorer.reduction == "batch":
        yield "scorer.reduction=batch with scorer=race: rows are read in another order; use scorer=full"


def _why_not(setting: Field[Any], value: Any) -> str | None:
    """Why a value cannot be that of a setting, or None if it can."""
    if setting.metadata.get("is_name") and (reason := why_no_name(value)):
        return reason
    if setting.metadata.get("is_path"):
        try:
            Path(value).expanduser()
        except RuntimeError:
            return "there is no such user, whose home ~ would stand for"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    return None if fits(setting, value) else f"must {limits_of(setting)}"
