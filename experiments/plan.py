"""What a set of jobs would compute: stages to do and done, what they share, and what they take."""

import asyncio
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sapo.conf.errors import UserError
from sapo.conf.schema import Config
from sapo.data.remembering import remembered
from sapo.data.tasks import Example
from sapo.experiments.continual import run_sequence
from sapo.experiments.engine.store import KINDS, Store, Stored
from sapo.experiments.jobs import Job
from sapo.experiments.methods import METHODS
from sapo.experiments.model.identity import dtype_of
from sapo.experiments.probe import measure_all, probes_of
from sapo.experiments.runs import Planned
from sapo.experiments.stages import Evaluate, Gradient, Score, Stage, Train

# Rules of thumb: English text in subword tokens; the chat template adds a few dozen.
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
# In the store of the mini Table 1 a scoring's folder has 15 kB, an evaluation's 10 kB, a training's 5 kB
# beside its adapter; a run's folder has 305 to 325 kB, nearly all of it figures.
_FILES = 12_000  # config, identity, environment, result and manifest of a stage, and a table's frame
_RUN_FILES = 310_000  # run.json, matrices and figures of a run


@dataclass
class PlanEngine:
    """Answers stored stages, and notes the others instead of computing them."""

    store: Store
    done: dict[str, Stage] = field(default_factory=dict)
    to_do: dict[str, Stage] = field(default_factory=dict)
    asked: int = 0

    async def run(self, stage: Stage) -> Stored | Planned:
        """The finished stage, or a stand-in."""
        self.asked += 1
        key = stage.key
        stored = self.store.find(stage.kind, key, stage.identity(), whole=False)
        if stored is not None:
            self.done[key] = stage
            return stored
        self.to_do[key] = stage
        return Planned(key)


@dataclass(frozen=True)
class KindPlan:
    """Stages of one kind: how many are done and to do, and what those to do take."""

    kind: str
    done: int = 0
    to_do: int = 0
    tokens: int = 0
    seconds: float | None = 0.0


@dataclass(frozen=True)
class ModelPlan:
    """What the stages to do of one model take.

    `gpu_hours` are hours of one device: at this store's rates (`measured`), at the paper's (`stated`), or at
    both where some kind was never measured here; None where neither is known.
    """

    stages: int = 0
    tokens: int = 0
    gpu_hours: float | None = 0.0
    rates: tuple[str, ...] = ()
    disk_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """Stages by kind, what is to do by model, how many stages the runs ask for in all, and bytes on disk.

    `trainings` are those of kind `train` by the place of their task in its sequence: `train, task 1`.
    """

    kinds: list[KindPlan]
    trainings: list[KindPlan]
    models: dict[str, ModelPlan]
    asked: int
    disk_bytes: int


def plan(jobs: Sequence[Job], store: Store, probes: Sequence[tuple[Sequence[Job], bool]] = ()) -> Plan:
    """The stages of the runs and of what is measured for `probes`, shared ones counted once.

    A probe is given by its jobs, and whether it needs gradients.

    Tokens are estimated from characters; seconds from the median rate of this store's finished stages of the
    same kind and model, None where there are none.
    """
    engine, disk = PlanEngine(store), 0
    for job in jobs:  # one after another, so that one at a time is held
        run = asyncio.run(run_sequence(job.config, engine))
        tests = {task.name: task.test for task in (*run.tasks, *run.unseen)}
        # A run's folder repeats the tables of the tests that it asked for.
        disk += _RUN_FILES + sum(_table_bytes(tests[evaluation.task]) for evaluation in run.evaluations)
    for of_probe, gradients in probes:
        asyncio.run(measure_all(probes_of(of_probe), engine, gradients))
    models = {job.config.model.name: ModelPlan() for job in jobs}
    rates = measured_rates(store, set(models))
    kinds = {kind: KindPlan(kind) for kind in KINDS}
    trainings: dict[str, KindPlan] = {}
    for is_done, stages in ((True, engine.done), (False, engine.to_do)):
        for stage in stages.values():
            tokens, name = estimated_tokens(stage), stage.config.model.name
            rate = rates.get((stage.kind, name))
            kinds[stage.kind] = _with_stage(kinds[stage.kind], is_done, tokens, rate)
            if isinstance(stage, Train):
                place = f"train, task {stage.position + 1}"
                one = trainings.get(place, KindPlan(place))
                trainings[place] = _with_stage(one, is_done, tokens, rate)
            if not is_done:
                models[name] = _with_costs(models[name], stage, tokens, rate)
    return Plan(
        # Only probes have gradients, and only where they are asked for.
        kinds=[kind for kind in kinds.values() if kind.kind != "gradient" or kind.done + kind.to_do],
        trainings=[trainings[name] for name in sorted(trainings, key=lambda name: (len(name), name))],
        models=models,
        asked=engine.asked,
        disk_bytes=disk + sum(model.disk_bytes for model in models.values()),
    )


def _with_stage(kind: KindPlan, is_done: bool, tokens: int, rate: float | None) -> KindPlan:
    if is_done:
        return replace(kind, done=kind.done + 1)
    seconds = None if kind.seconds is None or rate is None else kind.seconds + tokens / rate
    return replace(kind, to_do=kind.to_do + 1, tokens=kind.tokens + tokens, seconds=seconds)


def _with_costs(model: ModelPlan, stage: Stage, tokens: int, measured: float | None) -> ModelPlan:
    rate = measured or stated_rate(stage)
    origin = "measured" if measured else "stated"
    hours = None if model.gpu_hours is None or rate is None else model.gpu_hours + tokens / rate / 3600
    return ModelPlan(
        stages=model.stages + 1,
        tokens=model.tokens + tokens,
        gpu_hours=hours,
        rates=model.rates if origin in model.rates or rate is None else (*model.rates, origin),
        disk_bytes=model.disk_bytes + stage_bytes(stage),
    )


def estimated_tokens(stage: Stage) -> int:
    """Tokens that a stage reads, from the characters of its texts."""
    tokens = 0.0
    for task, rows, prompt, times in stage.readings:
        characters = _characters(rows) + (len(prompt.text) + len(task.suffix)) * len(rows)
        tokens += times * int(characters / _CHARACTERS_A_TOKEN + _TEMPLATE_TOKENS * len(rows))
    return round(tokens)


@remembered(1024)
def _characters(rows: tuple[Example, ...]) -> int:
    return sum(len(example.input) + len(example.target) for example in rows)


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
    assert isinstance(stage, Train)  # noqa: S101 (the one kind that is left)
    adapters = METHODS[stage.config.method.name].stored_adapters(stage.position)
    return _FILES + _adapter_bytes(stage.config) * adapters


@remembered(1024)
def _table_bytes(rows: tuple[Example, ...]) -> int:
    """Answers about as long as the targets, and five numbers a row."""
    return 2 * sum(len(example.target.encode()) for example in rows) + 40 * len(rows)


def _adapter_bytes(config: Config) -> int:
    """An adapter of the method's rank: a row and a column of each adapted matrix, taken as square."""
    weights = _LAYERS_TIMES_WIDTH * config.model.parameters ** (2 / 3)
    return round(2 * len(config.model.lora_targets) * weights * config.method.rank * _ADAPTER_BYTES)


def weight_bytes(config: Config) -> int | None:
    """Memory of the model's weights: parameters x bytes of the precision; None if the size is not known."""
    return round(config.model.parameters * 1e9 * _BYTES[dtype_of(config)]) or None
