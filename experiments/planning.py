"""What a set of runs would compute: stages to do and done, what they share, and what they take."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sapo.experiments.continual import run_sequence
from sapo.experiments.costs import estimated_tokens, measured_rates, run_bytes, stage_bytes, stated_rate
from sapo.experiments.engine.store import KINDS, Store, Stored
from sapo.experiments.jobs import Job
from sapo.experiments.probe import measure_all, probes_of
from sapo.experiments.runs import Planned
from sapo.experiments.stages import Stage, Train


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

    A probe is given by its runs, and whether it needs gradients.

    Tokens are estimated from characters; seconds from the median rate of this store's finished stages of the
    same kind and model, None where there are none.
    """
    engine = PlanEngine(store)
    of_runs = sum(asyncio.run(_ask(jobs, engine)))
    for runs, gradients in probes:
        asyncio.run(measure_all(probes_of(runs), engine, gradients))
    rates = measured_rates(store, {job.config.model.name for job in jobs})
    kinds = {kind: KindPlan(kind) for kind in KINDS} | _tally(engine, rates, lambda stage: stage.kind)
    trainings = _tally(engine, rates, _place)
    models = {job.config.model.name: ModelPlan() for job in jobs}
    for stage in engine.to_do.values():
        name = stage.config.model.name
        rate = rates.get((stage.kind, name))
        models[name] = _with_costs(models[name], stage, estimated_tokens(stage), rate)
    disk = sum(model.disk_bytes for model in models.values())
    return Plan(
        # Only probes have gradients, and only where they are asked for.
        kinds=[kind for kind in kinds.values() if kind.kind != "gradient" or kind.done + kind.to_do],
        trainings=[trainings[name] for name in sorted(trainings, key=lambda name: (len(name), name))],
        models=models,
        asked=engine.asked,
        disk_bytes=disk + of_runs,
    )


def _place(stage: Stage) -> str | None:
    return f"train, task {stage.position + 1}" if isinstance(stage, Train) else None


def _tally(
    engine: PlanEngine, rates: Mapping[tuple[str, str], float], name_of: Callable[[Stage], str | None]
) -> dict[str, KindPlan]:
    """The stages by the name that they are given; those without one do not count."""
    found: dict[str, KindPlan] = {}
    for stage in engine.done.values():
        if name := name_of(stage):
            kind = found.setdefault(name, KindPlan(name))
            found[name] = replace(kind, done=kind.done + 1)
    for stage in engine.to_do.values():
        if name := name_of(stage):
            rate = rates.get((stage.kind, stage.config.model.name))
            found[name] = _with_stage(found.get(name, KindPlan(name)), estimated_tokens(stage), rate)
    return found


async def _ask(jobs: Sequence[Job], engine: PlanEngine) -> list[int]:
    """Goes through the runs, one after another so that one at a time is held; the bytes of their folders."""
    sizes = []
    for job in jobs:
        run = await run_sequence(job.config, engine)
        tests = {task.name: task.test for task in (*run.tasks, *run.unseen)}
        sizes.append(run_bytes([tests[evaluation.task] for evaluation in run.evaluations]))
    return sizes


def _with_stage(kind: KindPlan, tokens: int, rate: float | None) -> KindPlan:
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
