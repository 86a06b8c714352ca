"""What a stage takes, told before it is computed: tokens, seconds of a GPU, bytes on disk."""

import statistics
from collections import defaultdict
from collections.abc import Sequence

from sapo.conf.errors import UserError
from sapo.conf.schema import Config
from sapo.data.remembering import remembered
from sapo.data.tasks import Example
from sapo.experiments.engine.store import Store
from sapo.experiments.methods import METHODS
from sapo.experiments.model.identity import dtype_of
from sapo.experiments.stages import Evaluate, Gradient, Score, Stage, Train

# English text in subword tokens; the chat template adds a few dozen.
_CHARACTERS_A_TOKEN = 4.0
_TEMPLATE_TOKENS = 40
_BYTES = {"float32": 4, "bfloat16": 2}

# Paper, Table 10: hours of Qwen3-8B on NI-Seq-M1 with 8 H20 by method, and what 20 paraphrases add. A plan of
# that sequence estimates 18.5 million tokens of training and 9.5 million of scoring.
_PAPER_HOURS = {"lorainc": 2.0, "olora": 2.2, "inscl": 2.5, "ewc": 3.0}
_PAPER_TRAIN_TOKENS, _PAPER_SCORE_TOKENS, _PAPER_SCORE_HOURS = 18.5e6, 9.5e6, 0.25
_PAPER_GPUS, _PAPER_BILLIONS = 8, 8.2

# Layers x width of a decoder of B billion parameters, within a tenth for Llama 2 7B, 13B and Qwen3 8B, 14B.
_LAYERS_TIMES_WIDTH = 36_500
_ADAPTER_BYTES = 4  # adapters, Fisher information and anchors are kept in float32
_FILES = 12_000  # config, identity, environment, result and manifest of a stage, and a table's frame
_RUN_FILES = 140_000  # run.json, matrices and figures of a run


def estimated_tokens(stage: Stage) -> int:
    """Tokens that a stage reads, from the characters of its texts."""
    return round(
        sum(
            times * _tokens(rows, len(prompt.text) + len(task.suffix))
            for task, rows, prompt, times in stage.readings
        )
    )


def _tokens(rows: tuple[Example, ...], frame: int) -> int:
    """Tokens of rows whose prompt has `frame` characters beside the input."""
    return int((_characters(rows) + frame * len(rows)) / _CHARACTERS_A_TOKEN + _TEMPLATE_TOKENS * len(rows))


@remembered(1024)
def _characters(rows: tuple[Example, ...]) -> int:
    return sum(len(example.input) + len(example.target) for example in rows)


@remembered(1024)
def _answers(rows: tuple[Example, ...]) -> int:
    return sum(len(example.target.encode()) for example in rows)


def measured_rates(store: Store, models: set[str]) -> dict[tuple[str, str], float]:
    """Median tokens a second of finished stages by kind and model name; one that is damaged tells none."""
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    for kind, stored in store.stages():
        try:
            result = stored.result
            if result.model in models:
                rates[kind, result.model].append(result.tokens / result.seconds)
        except (UserError, ZeroDivisionError):
            continue
    return {key: statistics.median(values) for key, values in rates.items()}


def stated_rate(stage: Stage) -> float | None:
    """Tokens a second of one GPU by the paper's Table 10, in proportion to the model's parameters.

    Evaluation is counted as scoring: the table has no time of it. None if the model's size is not known.
    """
    billions = stage.config.model.parameters
    if billions <= 0:
        return None
    if isinstance(stage, Train):
        hours = _PAPER_HOURS.get(stage.config.method.name, _PAPER_HOURS["lorainc"])
        rate = _PAPER_TRAIN_TOKENS / (hours * 3600 * _PAPER_GPUS)
    else:
        rate = _PAPER_SCORE_TOKENS / (_PAPER_SCORE_HOURS * 3600 * _PAPER_GPUS)
    return rate * _PAPER_BILLIONS / billions


def stage_bytes(stage: Stage) -> int:
    """Bytes that a stage leaves: its table, or its adapter or gradient and what the method keeps."""
    if isinstance(stage, Score):
        return _FILES + 20 * len(stage.prompts) * len(stage.examples)
    if isinstance(stage, Evaluate):
        return _FILES + _table_bytes(stage.task.test)
    if isinstance(stage, Gradient):
        return _FILES + _adapter_bytes(stage.config)
    adapters = METHODS[stage.config.method.name].stored_adapters(stage.position)
    return _FILES + _adapter_bytes(stage.config) * adapters


def run_bytes(tests: Sequence[tuple[Example, ...]]) -> int:
    """Bytes of a run's folder, which repeats the tables of the tests that it asked for."""
    return _RUN_FILES + sum(map(_table_bytes, tests))


def _table_bytes(rows: tuple[Example, ...]) -> int:
    """Answers about as long as the targets, and five numbers a row."""
    return 2 * _answers(rows) + 40 * len(rows)


def _adapter_bytes(config: Config) -> int:
    """An adapter of the method's rank: a row and a column of each adapted matrix, taken as square."""
    weights = _LAYERS_TIMES_WIDTH * config.model.parameters ** (2 / 3)
    return round(2 * len(config.model.lora_targets) * weights * config.method.rank * _ADAPTER_BYTES)


def weight_bytes(config: Config) -> int | None:
    """Memory of the model's weights: parameters x bytes of the precision; None if the size is not known."""
    return round(config.model.parameters * 1e9 * _BYTES[dtype_of(config)]) or None
