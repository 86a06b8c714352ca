"""What types cannot say of a config: ranges and names, all problems at once."""

import math
from collections.abc import Iterator
from typing import Any

from sapo.conf.schema import Config

_NAMES = {
    "policy.name": ("static", "random", "sapo", "sapp", "fixed"),
    "method.name": ("lorainc", "sequential"),
    "paraphrases.name": ("bank", "file"),
    "scorer.name": ("full",),
    "scorer.subset": ("random", "first"),
    "scorer.reduction": ("token", "example"),
    "trainer.schedule": ("cosine", "linear", "constant", "warmup_log_constant"),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "engine.name": ("local",),
    "engine.device": ("auto", "cuda", "cpu", "mps"),
    "parity.definition": ("reference", "paper", "gem"),
    "sequence.benchmark": ("superni", "trace", "mini", "own"),
}

_AT_LEAST = {
    "method.rank": 1,
    "paraphrases.count": 1,
    "policy.index": -1,
    "scorer.examples": 1,
    "evaluator.max_new_tokens": 1,
    "evaluator.batch_tokens": 1,
    "trainer.epochs": 1,
    "trainer.global_batch": 1,
    "trainer.micro_batch_tokens": 1,
    "trainer.checkpoint_steps": 0,
    "trainer.weight_decay": 0,
    "trainer.warmup_ratio": 0,
    "data.train_examples": 1,
    "data.test_examples": 1,
    "data.max_input_tokens": 16,
    "sequence.train_examples": 1,
    "seed": 0,
}

_ABOVE_ZERO = ("method.alpha", "trainer.learning_rate", "trainer.max_grad_norm")
_BELOW_ONE = ("method.dropout", "trainer.warmup_ratio")


def problems(config: Config) -> Iterator[str]:
    """A line for each value of the config that cannot work."""
    for key, names in _NAMES.items():
        if _get(config, key) not in names:
            yield f"{key}={_get(config, key)}: must be one of {', '.join(names)}"
    for key, least in _AT_LEAST.items():
        value = _get(config, key)
        if value is not None and not value >= least:
            yield f"{key}={value}: must be at least {least}"
    for key in _ABOVE_ZERO:
        if not 0 < _get(config, key) < math.inf:
            yield f"{key}={_get(config, key)}: must be a number above 0"
    for key in _BELOW_ONE:
        if not 0 <= _get(config, key) < 1:
            yield f"{key}={_get(config, key)}: must be at least 0 and below 1"
    yield from _sequence_problems(config)
    if config.paraphrases.name == "file" and not config.paraphrases.file:
        yield "paraphrases=file: say which with paraphrases.file=POOL.yaml"


def _sequence_problems(config: Config) -> Iterator[str]:
    tasks = config.sequence.tasks
    if not tasks:
        yield f"sequence {config.sequence.name} has no tasks"
    repeated = sorted(
        {task for task in tasks if tasks.count(task) > 1} | (set(tasks) & set(config.sequence.unseen))
    )
    if repeated:
        yield f"sequence {config.sequence.name} names {', '.join(repeated)} twice"


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
