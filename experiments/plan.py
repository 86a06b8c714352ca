"""What a set of jobs would compute: stages to do and done, what they share, and what they take."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sapo.conf.errors import UserError
from sapo.conf.schema import Config
from sapo.data.tasks import digest
from sapo.experiments import targets
from sapo.experiments.continual import run_sequence
from sapo.experiments.costs import Cost, priced, table_bytes, total_range
from sapo.experiments.engine.store import KINDS, Store, Stored
from sapo.experiments.jobs import Job
from sapo.experiments.methods import earlier_adapters
from sapo.experiments.model.identity import looked_at_once
from sapo.experiments.model.memory import device_memory, training_memory, ways_to_fit
from sapo.experiments.probe import measure as measure_probe
from sapo.experiments.probe import probes_of
from sapo.experiments.ready import plannable
from sapo.experiments.runs import Planned
from sapo.experiments.stages import Stage, Train

# `run.json`, matrices and figures: in the store of the mini Table 1 a run's folder has 305 to 325 kB.
_RUN_FILES = 310_000


@dataclass
class PlanEngine:
    """Answers stored stages, and notes the others instead of computing them."""

    store: Store
    done: dict[str, Stage] = field(default_factory=dict)
    to_do: dict[str, Stage] = field(default_factory=dict)
    asked: int = 0

    async def run(self, stage: Stage) -> Stored:
        """The finished stage, or a stand-in."""
        self.asked += 1
        identity = stage.identity()
        key = digest(identity)
        stored = self.store.find(stage.kind, key, identity, whole=False)
        if stored is not None:
            self.done[key] = stage
            return stored
        self.to_do[key] = stage
        return Planned(key)


def plan_jobs(
    jobs: Sequence[Job], probes: Sequence[tuple[Sequence[Job], bool]] = (), card_gb: float | None = None
) -> dict[str, Any]:
    """What some runs would compute, and what is measured for probes, as JSON values; shared stages once.

    A probe is given by its jobs, and whether it needs gradients. Tokens are estimated from characters;
    seconds, the least and the most, from rates that were measured on this device with the model. None for
    what is not known. Memory is set against a card of `card_gb`, else against this device's. Runs that
    cannot be planned are left out, and counted by their reason; UserError if none can.
    """
    possible, unplanned = plannable(jobs)
    kept = {job.key for job in possible}
    engine, run_bytes = PlanEngine(Store(Path(jobs[0].config.store.root))), 0
    with looked_at_once():
        for job in possible:  # one after another, so that one at a time is held
            run = asyncio.run(run_sequence(job.config, engine))
            # A run's folder repeats the tables of the tests that it asked for.
            run_bytes += _RUN_FILES + sum(table_bytes(each.task.test) for each in run.evaluations)
        for of_probe, gradients in probes:
            for probe in probes_of([job for job in of_probe if job.key in kept]):
                asyncio.run(measure_probe(probe, engine, gradients))
    models = dict.fromkeys(job.config.model.name for job in possible)
    costs, notes = priced(engine.to_do.values())
    done = list(engine.done.values())
    kinds = [_line(kind, done, costs, kind=kind) for kind in KINDS]
    places = {stage.position for stage in (*done, *engine.to_do.values()) if isinstance(stage, Train)}
    by_model = {name: [cost for cost in costs if cost.stage.config.model.name == name] for name in models}
    total = _sums(costs)
    return {
        "runs": len(possible),
        "unplanned": [{"runs": count, "reason": reason} for reason, count in unplanned.items()],
        # Only probes have gradients, and only where they are asked for.
        "kinds": [kind for kind in kinds if kind["kind"] != "gradient" or kind["done"] + kind["to_do"]],
        "trainings": [_line(f"train, task {n + 1}", done, costs, position=n) for n in sorted(places)],
        "asked": engine.asked,
        "shared": engine.asked - len(done) - len(costs),
        "seconds": total["seconds"],
        "gpu_hours": total["gpu_hours"],
        "notes": notes,
        "models": {name: {"stages": len(own), **_sums(own)} for name, own in by_model.items()},
        "disk_bytes": run_bytes + total["disk_bytes"],
        "memory": {
            name: _memory((job.config for job in possible if job.config.model.name == name), card_gb)
            for name in models
        },
    }


def plan_targets(jobs: Mapping[str, list[Job]]) -> dict[str, Any]:
    """What all targets together would compute, shared stages once; of several, also each alone.

    A target that cannot be planned is named with the reason; raises UserError with all if there is no other.
    """
    # Targets that show the same runs in other ways count once.
    known = {name: targets.TARGETS[name] for name in jobs}
    shows = {name: (target.experiment, target.gradients) for name, target in known.items()}

    def together(names: Sequence[str]) -> dict[str, Any]:
        distinct = list({shows[name]: name for name in names}.values())
        found = {name: targets.probe_jobs(name, jobs[name]) for name in distinct}
        probes = [(of_probe, known[name].gradients) for name, of_probe in found.items() if of_probe]
        every = {job.key: job for name in distinct for job in jobs[name]}
        return plan_jobs(list(every.values()), probes)

    if len(jobs) == 1:
        return together(list(jobs))
    shown = ("runs", "unplanned", "kinds", "trainings", "seconds", "gpu_hours")
    alone: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, runs in shows.items():
        if runs in alone:
            continue
        try:
            alone[runs] = {key: value for key, value in together([name]).items() if key in shown}
        except UserError as error:
            alone[runs] = {"error": str(error)}
    each = {name: alone[runs] for name, runs in shows.items()}
    possible = [name for name, found in each.items() if "error" not in found]
    if not possible:
        raise UserError("\n".join(dict.fromkeys(found["error"] for found in each.values())))
    return together(possible) | {"targets": each}


def _line(name: str, done: Sequence[Stage], costs: Sequence[Cost], **which: object) -> dict[str, Any]:
    """How many of the stages with these attributes are done and to do, and what the latter take."""

    def is_meant(stage: Stage) -> bool:
        return all(getattr(stage, attribute, None) == value for attribute, value in which.items())

    own = [cost for cost in costs if is_meant(cost.stage)]
    sums = _sums(own)
    return {
        "kind": name,
        "done": sum(map(is_meant, done)),
        "to_do": len(own),
        "tokens": sums["tokens"],
        "seconds": sums["seconds"],
    }


def _sums(costs: Sequence[Cost]) -> dict[str, Any]:
    """What stages take and leave together; None for what is not known of one of them."""
    hours = {name: [cost.hours[name] for cost in costs] for name in ("paper", "peak")}
    return {
        "tokens": sum(cost.tokens for cost in costs),
        "seconds": total_range(cost.seconds for cost in costs),
        "gpu_hours": {n: None if None in own else sum(filter(None, own), 0.0) for n, own in hours.items()},
        "disk_bytes": sum(cost.disk_bytes for cost in costs),
    }


def _memory(configs: Iterable[Config], card_gb: float | None) -> dict[str, Any]:
    """Bytes that the largest training takes at least, on a device of how many, and what would make it fit."""
    kinds = {repr((c.method, len(c.sequence.tasks), c.trainer, c.data, c.model)): c for c in configs}.values()
    needs = [(memory, c) for c in kinds if (memory := training_memory(c, earlier_adapters(c)))]
    room = card_gb * 1e9 if card_gb else device_memory(next(iter(kinds)))
    if not needs:
        return {"weights": None, "training": None, "device": room, "fits": None, "ways": []}
    memory, config = max(needs, key=lambda need: sum(need[0]))
    fits = sum(memory) <= room
    return {
        "weights": round(memory.weights),
        "training": round(sum(memory)),
        "device": room,
        "fits": fits,
        "ways": [] if fits else ways_to_fit(config, room, earlier_adapters(config)),
    }
