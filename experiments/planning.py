"""What a set of runs would compute: stages to do and done, tokens, time and memory."""

import asyncio
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from sapo.conf.schema import Config
from sapo.data.prompts import Prompt
from sapo.data.tasks import Example, Task
from sapo.experiments.continual import Planned, run_all
from sapo.experiments.engine.stages import Score, Stage, Train, stage_key
from sapo.experiments.engine.store import KINDS, Store, Stored
from sapo.experiments.models import dtype_of

# English text in subword tokens; the chat template adds a few dozen.
_CHARACTERS_A_TOKEN = 4.0
_TEMPLATE_TOKENS = 40
_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass
class PlanEngine:
    """Answers stored stages, and notes the others instead of computing them."""

    store: Store
    done: dict[str, Stage] = field(default_factory=dict)
    to_do: dict[str, Stage] = field(default_factory=dict)

    async def run(self, stage: Stage) -> Stored | Planned:
        """The finished stage, or a stand-in."""
        key = stage_key(stage)
        stored = self.store.find(stage.kind, key)
        if stored is not None:
            self.done[key] = stage
            return stored
        self.to_do[key] = stage
        return Planned(key)


@dataclass(frozen=True)
class KindPlan:
    """Stages of one kind: how many are done and to do, and what those to do take."""

    kind: str
    done: int
    to_do: int
    tokens: int
    seconds: float | None


def plan(configs: Sequence[Config], store: Store) -> list[KindPlan]:
    """The stages of the runs by kind, shared ones counted once.

    Tokens are estimated from characters; seconds from the median rate of this store's finished stages of the
    same kind and model, None where there are none.
    """
    engine = PlanEngine(store)
    asyncio.run(run_all(configs, engine))
    rates = measured_rates(store, {config.model.name for config in configs})
    return [_kind_plan(kind, engine, rates) for kind in KINDS]


def _kind_plan(kind: str, engine: PlanEngine, rates: dict[tuple[str, str], float]) -> KindPlan:
    to_do = [stage for stage in engine.to_do.values() if stage.kind == kind]
    seconds: float | None = 0.0
    for stage in to_do:
        rate = rates.get((kind, stage.config.model.name))
        seconds = None if seconds is None or rate is None else seconds + estimated_tokens(stage) / rate
    return KindPlan(
        kind,
        sum(stage.kind == kind for stage in engine.done.values()),
        len(to_do),
        sum(map(estimated_tokens, to_do)),
        seconds,
    )


def estimated_tokens(stage: Stage) -> int:
    """Tokens that a stage reads, from the characters of its texts."""
    if not isinstance(stage, Train):
        prompts = stage.prompts if isinstance(stage, Score) else (stage.prompt,)
        return sum(_tokens(stage.task, stage.rows, prompt) for prompt in prompts)
    # Of several prompts each example sees one at a time.
    lengths = (
        sum(_tokens(lesson.task, lesson.task.train, prompt) for prompt in lesson.prompts)
        / len(lesson.prompts)
        for lesson in stage.lessons
    )
    return round(sum(lengths)) * stage.config.trainer.epochs


def _tokens(task: Task, rows: Sequence[Example], prompt: Prompt) -> int:
    texts = sum(len(example.input) + len(example.target) for example in rows)
    frame = len(prompt.text) + len(task.suffix)
    return int((texts + frame * len(rows)) / _CHARACTERS_A_TOKEN + _TEMPLATE_TOKENS * len(rows))


def measured_rates(store: Store, models: set[str]) -> dict[tuple[str, str], float]:
    """Median tokens a second of finished stages by kind and model name."""
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    for kind, stored in store.stages():
        name = _model_name(stored)
        if name in models and stored.result["seconds"] > 0:
            rates[kind, name].append(stored.result["tokens"] / stored.result["seconds"])
    return {key: statistics.median(values) for key, values in rates.items()}


def weight_bytes(config: Config) -> int | None:
    """Memory of the model's weights: parameters x bytes of the precision; None if the size is not known."""
    return round(config.model.parameters * 1e9 * _BYTES[dtype_of(config)]) or None


def _model_name(stored: Stored) -> str:
    return str(stored.result.get("model", ""))
