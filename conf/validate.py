"""What types cannot say of a config: ranges and names, all problems at once."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sapo.conf.names import DIGEST, LONGEST_RUN, run_name, shown, why_no_name
from sapo.conf.schema import Config, EngineConfig, MethodConfig, ParaphrasesConfig

_NAMES = {
    "policy.name": ("static", "random", "sapo", "sapp", "paft", "fixed"),
    "method.name": (
        "lorainc",
        "olora",
        "ewc",
        "inscl",
        "replay",
        "sequential",
        "multitask",
        "single",
        "zero_shot",
    ),
    "method.fisher": ("half", "last", "online", "separate"),
    "method.fisher_labels": ("data", "model"),
    "method.fisher_loss": ("mean", "sum"),
    "method.buffer_choice": ("balanced", "reservoir"),
    "method.unit": ("instance", "lexical", "instruction", "quota"),
    "method.access": ("full", "buffer"),
    "paraphrases.source": ("bank", "file", "openai", "local"),
    "scorer.name": ("full", "race"),
    "scorer.subset": ("random", "first"),
    "scorer.reduction": ("token", "example", "batch"),
    "scorer.state": ("exact", "shrunk"),
    "trainer.schedule": ("cosine", "linear", "constant", "warmup_log_constant"),
    "trainer.seeding": ("task", "run"),
    "data.truncation": ("input", "end"),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "engine.name": ("local", "ray"),
    "engine.device": ("auto", "cuda", "cpu", "mps"),
    "parity.definition": ("reference", "paper", "gem"),
    "sequence.benchmark": ("superni", "trace", "mini", "own"),
}

_AT_LEAST = {
    "method.rank": 1,
    "method.weight": 0,
    "method.penalty_factor": 0,
    "method.fisher_examples": 1,
    "method.buffer": 1,
    "policy.redraw": 1,
    "paraphrases.count": 1,
    "paraphrases.rounds": 0,
    "paraphrases.temperature": 0,
    "paraphrases.max_tokens": 1,
    "paraphrases.concurrency": 1,
    "paraphrases.retries": 0,
    "paraphrases.backoff": 0,
    "policy.index": -1,
    "scorer.examples": 1,
    "evaluator.max_new_tokens": 1,
    "evaluator.batch_tokens": 1,
    "trainer.epochs": 1,
    "trainer.global_batch": 1,
    "trainer.micro_batch_tokens": 1,
    "trainer.checkpoint_steps": 0,
    "trainer.weight_decay": 0,
    "data.train_examples": 1,
    "data.test_examples": 1,
    "data.max_input_tokens": 16,
    "model.parameters": 0,
    "engine.workers": 1,
    "engine.gpus": 0,
    "engine.retries": 0,
    "seed": 0,
}

_NAMES_OF_FILES = ("sequence.name", "model.name", "model.chat_template", "paraphrases.name", "task")
_PATHS = ("store.root", "data.root", "paraphrases.file", "paraphrases.folder")
_WORD = r"[A-Za-z0-9_][\w.-]*"
_SOURCES = {"hub": f"{_WORD}(?:/{_WORD})?", "wheel": f"{_WORD}=={_WORD}", "tiny": _WORD}
_SOURCE_FORMS = "hub:OWNER/NAME, wheel:DISTRIBUTION==VERSION, tiny:ARCHITECTURE or path:FOLDER"

_ABOVE_ZERO = (
    "method.alpha",
    "method.fisher_decay",
    "trainer.learning_rate",
    "trainer.max_grad_norm",
    "engine.cpus",
)
_BELOW_ONE = ("method.dropout", "trainer.warmup_ratio")


def problems(config: Config) -> Iterator[str]:
    """A line for each value of the config that cannot work."""
    for key, names in _NAMES.items():
        if _get(config, key) not in names:
            yield f"{key}={_get(config, key)}: must be one of {', '.join(names)}"
    for key, least in _AT_LEAST.items():
        value = _get(config, key)
        if value is not None and not least <= value < math.inf:
            yield f"{key}={value}: must be at least {least}" + ("" if value < math.inf else ", and finite")
    for key in _ABOVE_ZERO:
        if not 0 < _get(config, key) < math.inf:
            yield f"{key}={_get(config, key)}: must be a number above 0"
    for key in _BELOW_ONE:
        if not 0 <= _get(config, key) < 1:
            yield f"{key}={_get(config, key)}: must be at least 0 and below 1"
    if config.policy.last_only and config.policy.name != "fixed":
        yield f"policy.last_only=true with policy={config.policy.name}: only policy=fixed gives a prompt"
    yield from _name_problems(config)
    yield from _engine_problems(config.engine)
    yield from _sequence_problems(config)
    yield from _race_problems(config)
    yield from _method_problems(config.method)
    yield from _paraphrases_problems(config.paraphrases)


def _paraphrases_problems(config: ParaphrasesConfig) -> Iterator[str]:
    """Values that may be a secret put in the wrong place are not repeated."""
    if config.source == "file" and not config.file:
        yield "paraphrases=file: say which with paraphrases.file=POOL.yaml"
    if config.base_url is not None and not re.fullmatch(
        r"https?://[^\s/?#@]+(?:/[^\s?#@]*)?", config.base_url
    ):
        yield "paraphrases.base_url: must be http(s)://HOST[:PORT][/PATH], with no user, password or query"
    if config.key_variable is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", config.key_variable):
        yield (
            "paraphrases.key_variable: must be the name of an environment variable, in capitals; "
            "the key itself belongs in that variable"
        )
    if not 0 < config.timeout < math.inf:
        yield f"paraphrases.timeout={config.timeout}: must be a number above 0"
    if len(config.prices) not in (0, 2) or not all(0 <= price < math.inf for price in config.prices):
        yield f"paraphrases.prices={config.prices}: must be [IN, OUT], two numbers of at least 0"


def _engine_problems(engine: EngineConfig) -> Iterator[str]:
    gpus = engine.gpus or 0.0
    if 1 < gpus < math.inf and gpus % 1:
        yield f"engine.gpus={gpus:g}: must be a part of one GPU, or a whole number of them"
    if engine.address is not None and not re.fullmatch(r"auto|[^\s/:]+:\d{1,5}", engine.address):
        yield (
            f"engine.address={engine.address}: must be auto or HOST:PORT, where `ray start` has started a "
            "cluster that this machine is part of"
        )
    given = engine.address or engine.workers or engine.gpus
    if engine.name != "ray" and given is not None:
        yield f"engine.address, engine.workers and engine.gpus are for engine=ray, not engine={engine.name}"


def _method_problems(method: MethodConfig) -> Iterator[str]:
    if method.fisher_decay > 1:
        yield f"method.fisher_decay={method.fisher_decay}: must be at most 1"
    if method.name != "inscl":
        return
    if method.unit != "instance" and method.tagger is not None:
        yield f"method.tagger={method.tagger}: only method.unit=instance asks for tags"
    elif method.unit == "instance" and not re.fullmatch(r"(local|openai):\S+", method.tagger or ""):
        wrong = f"method.tagger={method.tagger}: " if method.tagger else ""
        yield (
            f"{wrong}method.unit=instance needs a model that writes tags: "
            "method.tagger=local:MODEL (of `sapo ls models`) or method.tagger=openai:MODEL "
            "(at paraphrases.base_url). method.unit=lexical or quota needs none"
        )


def _race_problems(config: Config) -> Iterator[str]:
    if not 0 < config.scorer.confidence < 1:
        yield f"scorer.confidence={config.scorer.confidence}: must be above 0 and below 1"
    if config.scorer.name != "race":
        return
    if config.policy.name == "sapp":
        yield "policy=sapp with scorer=race: a race finds the lowest loss; use scorer=full"
    if config.scorer.reduction == "batch":
        yield "scorer.reduction=batch with scorer=race: rows are read in another order; use scorer=full"


def _sequence_problems(config: Config) -> Iterator[str]:
    if not config.sequence.tasks and not config.task:
        yield f"sequence {config.sequence.name} has no tasks: sequence.tasks=[NAME,…] names them"
    counts = Counter([*config.sequence.tasks, *config.sequence.unseen])
    if repeated := sorted(task for task, count in counts.items() if count > 1):
        yield f"sequence {config.sequence.name} names {', '.join(repeated)} twice"


def _name_problems(config: Config) -> Iterator[str]:
    """Names that become parts of paths: none may lead out of its folder."""
    names = [(key, _get(config, key)) for key in _NAMES_OF_FILES]
    names += [("sequence.tasks", task) for task in config.sequence.tasks]
    names += [("sequence.unseen", task) for task in config.sequence.unseen]
    for key, name in names:
        if name is not None and (reason := why_no_name(name)):
            yield f"{key}={shown(name)}: {reason}"
    size = len(f"{run_name(config)}-".encode(errors="replace")) + DIGEST
    if size > LONGEST_RUN:
        yield (
            f"sequence.name and model.name: the run's id is made of them and would have {size} bytes; "
            f"it may have {LONGEST_RUN}"
        )
    for key in _PATHS:
        if value := _get(config, key):
            try:
                Path(value).expanduser()
            except RuntimeError:
                yield f"{key}={shown(value)}: there is no such user, whose home ~ would stand for"
    kind, _, name = config.model.source.partition(":")
    if kind != "path" and (kind not in _SOURCES or not re.fullmatch(_SOURCES[kind], name)):
        yield f"model.source={shown(config.model.source)}: must be {_SOURCE_FORMS}"


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
