"""Probes: one pair of tasks, every prompt of the second, all else equal (paper, Figures 1 to 4).

A probe's runs differ in the prompt of the last task only, and share everything before it. Beside them stands
what can be known before the last task is trained: losses, answers and gradients in the state before it.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from sapo.conf.errors import UserError, message_of
from sapo.conf.names import DIGEST, plain
from sapo.conf.schema import Config
from sapo.data.benchmarks import load_tasks
from sapo.data.files import write_json
from sapo.data.losses import prompt_losses
from sapo.data.pools import load_pool
from sapo.data.prompts import ORIGINAL, Prompt
from sapo.data.records import MANIFEST, ProbeRecord, RunRecord, manifest_of, read_record, write_record
from sapo.data.subset import subset
from sapo.data.tasks import Example, Task, digest, examples_digest
from sapo.experiments.continual import ORDERS, CountingEngine, Engine, one_after_another
from sapo.experiments.engine.local import LocalEngine, ignore
from sapo.experiments.engine.store import Stored
from sapo.experiments.jobs import Job
from sapo.experiments.model.gradients import cosines, layer_of, load_gradients, spread_ranks
from sapo.experiments.runs import Planned, Run, stage_record
from sapo.experiments.stages import Evaluate, Gradient, Score

LEAST_PROMPTS = 3  # the original and two others: fewer have no correlation
_LOSSES = ["prompt", "example", "nll", "entropy", "n_tokens"]
_ANSWERS = ["prompt", "example", "rougeL", "exact_match", "prediction", "target"]
_GRADIENTS = "gradients.parquet"
_SHARED = ("sequence", "model", "method", "seed", "tasks", "unseen", "demonstration", "comparable")


@dataclass(frozen=True)
class Probe:
    """A pair of tasks, and the runs' jobs by the index of the second task's prompt.

    `missing` are prompts that were asked for and whose runs failed.
    """

    tasks: tuple[Task, Task]
    unseen: tuple[Task, ...]
    prompts: tuple[Prompt, ...]
    jobs: dict[int, Job]
    missing: tuple[int, ...] = ()

    @property
    def config(self) -> Config:
        """What the runs share: the config of the one with the original."""
        return self.jobs[ORIGINAL].config

    def __str__(self) -> str:
        return str(self.jobs[ORIGINAL])

    def scored(self, task: Task) -> tuple[Example, ...]:
        """The training examples of a task that are measured before the second is trained."""
        scorer = self.config.scorer
        return subset(task, scorer.examples, scorer.subset, self.config.seed)


@dataclass(frozen=True)
class ProbeGradient:
    """The gradient of a task under one prompt; `rank` is the prompt's place by loss, 1 = lowest."""

    task: Task
    stored: Stored | Planned
    prompt: int = ORIGINAL
    rank: int = 0


@dataclass(frozen=True)
class Measured:
    """What was measured before the second task of a probe is trained, stage by stage."""

    losses: Stored | Planned
    answers: dict[int, Stored | Planned]
    current: tuple[ProbeGradient, ...] = ()
    others: tuple[ProbeGradient, ...] = ()


def probes_of(jobs: Sequence[Job]) -> list[Probe]:
    """The probes that some runs make up; UserError if one of them cannot be one.

    Computes nothing: called before the runs, it finds what would only be found after them.
    """
    groups: dict[str, dict[int, Job]] = {}
    for job in jobs:
        policy = {**asdict(job.config.policy), "index": None}
        shared = digest({**asdict(job.config), "policy": policy})
        groups.setdefault(shared, {})[job.config.policy.index] = job
    return [_probe(dict(sorted(group.items()))) for group in groups.values()]


def _probe(jobs: dict[int, Job]) -> Probe:
    config = next(iter(jobs.values())).config
    _require_possible(config)
    name = config.sequence.name
    if ORIGINAL not in jobs or len(jobs) < LEAST_PROMPTS:
        raise UserError(
            f"A probe of {name} compares prompts: it needs the original, policy.index=-1, and at least "
            f"{LEAST_PROMPTS - 1} paraphrases; here are policy.index={','.join(map(str, jobs))}."
        )
    (trained, current), unseen = load_tasks(config)
    pool = load_pool(current, config.paraphrases)
    prompts = tuple(pool.at(index) for index in jobs)
    return Probe((trained, current), tuple(unseen), prompts, jobs)


def _require_possible(config: Config) -> None:
    sequence, policy = config.sequence, config.policy
    if len(sequence.tasks) != 2:
        raise UserError(
            f"A probe is a pair of tasks; sequence {sequence.name} has {len(sequence.tasks)}: take one of "
            "ni_probe_g1 … ni_probe_m5 or mini_probe, or say sequence.tasks=[FIRST,SECOND]."
        )
    if policy.name != "fixed" or not policy.last_only:
        raise UserError(
            f"policy={policy.name}: a probe trains the second task with each prompt in turn, and the first "
            "with its original one: policy=fixed policy.last_only=true 'policy.index=range(-1,20)', as "
            "experiment=probe_mini and probe_paper do."
        )
    if config.method.name in ORDERS:
        raise UserError(
            f"method={config.method.name} does not train one task after another, as a probe does."
        )
    if config.scorer.name != "full":
        raise UserError(
            f"scorer={config.scorer.name}: a probe needs the loss of every prompt; use scorer=full."
        )


def finished_part(probe: Probe, finished: Collection[str]) -> Probe | None:
    """The probe of the prompts whose runs finished, the others `missing`; None if they make up none.

    `finished` holds the keys of the jobs that finished.
    """
    jobs = {index: job for index, job in probe.jobs.items() if job.key in finished}
    if ORIGINAL not in jobs or len(jobs) < LEAST_PROMPTS:
        return None
    prompts = tuple(prompt for prompt in probe.prompts if prompt.index in jobs)
    missing = tuple(index for index in probe.jobs if index not in jobs)
    return replace(probe, prompts=prompts, jobs=jobs, missing=missing)


def write_probes(
    jobs: Sequence[Job],
    folders: Mapping[str, Path],
    engine: LocalEngine,
    gradients: bool = False,
    expect: Callable[[int], object] = ignore,
) -> tuple[list[Path], list[tuple[str, str]]]:
    """Measures what can be known before the second task is trained, and writes `ROOT/probes/ID`.

    Prompts whose runs failed are left out, and a probe that lacks the original or has too few others.

    Args:
        jobs: The runs of all probes.
        folders: The folder of each finished run by the key of its job.
        engine: Where it is measured.
        gradients: Whether gradients are measured too.
        expect: Told how many stages are asked for.

    Returns:
        The probes' folders; name and message of each probe that is left out or could not be measured.
    """
    asked = [(probe, finished_part(probe, folders)) for probe in probes_of(jobs)]
    failed = [(f"probe of {probe}", "too many of its runs failed") for probe, part in asked if part is None]
    probes, written, store = [part for _, part in asked if part is not None], [], engine.store
    counter = CountingEngine()
    asyncio.run(measure_all(probes, counter, gradients))
    expect(counter.asked)
    originals = [read_record(RunRecord, folders[probe.jobs[ORIGINAL].key]) for probe in probes]
    targets = [store.probe_folder(_probe_id(*both)[0]) for both in zip(probes, originals, strict=True)]

    async def everything() -> list[Measured | BaseException]:
        # Gradients that were asked for once stay with their probe: by now they only have to be read.
        measuring = (
            _measure(probe, engine, gradients or (target / _GRADIENTS).is_file())
            for probe, target in zip(probes, targets, strict=True)
        )
        return await asyncio.gather(*measuring, return_exceptions=True)

    (measured,) = engine.complete([everything()])
    for probe, found, original, target in zip(probes, measured, originals, targets, strict=True):
        try:
            if isinstance(found, BaseException):
                raise found
            runs = {index: folders[job.key].name for index, job in probe.jobs.items()}
            with store.lock(target.name), store.replacing(target, target.name) as folder:
                _write(folder, probe, found, original, runs)
                write_json(folder / MANIFEST, manifest_of(folder))
            written.append(target)
        except Exception as error:
            # One probe's failure, whatever it is, leaves the others to be written.
            failed.append((f"probe of {probe}", message_of(error)))
    return written, failed


async def measure_all(probes: Sequence[Probe], engine: Engine, gradients: bool = False) -> None:
    """Asks the engine for all that `write_probes` measures; a planning engine thereby counts it."""
    await asyncio.gather(*(_measure(probe, engine, gradients) for probe in probes))


async def _measure(probe: Probe, engine: Engine, gradients: bool) -> Measured:
    """Losses and answers of the second task's scored examples under each prompt; gradients if asked for."""
    trained, current = probe.tasks
    before = Run(probe.config, [trained], list(probe.unseen))
    await one_after_another(before, engine)
    state, examples = before.states[-1].key, probe.scored(current)
    losses = await engine.run(Score(probe.config, state, current, examples, probe.prompts))
    asked = replace(current, test=examples)
    answers = await asyncio.gather(
        *(engine.run(Evaluate(probe.config, state, asked, prompt)) for prompt in probe.prompts)
    )
    measured = Measured(losses, {p.index: found for p, found in zip(probe.prompts, answers, strict=True)})
    if not gradients:
        return measured

    async def gradient(task: Task, prompt: Prompt, rank: int = 0) -> ProbeGradient:
        stage = Gradient(probe.config, state, task, probe.scored(task), prompt)
        return ProbeGradient(task, await engine.run(stage), prompt.index, rank)

    ranked = _by_loss(probe, losses)
    ranks = spread_ranks(len(ranked))
    return replace(
        measured,
        current=tuple(await asyncio.gather(*(gradient(current, ranked[rank - 1], rank) for rank in ranks))),
        others=tuple(
            await asyncio.gather(*(gradient(t, Prompt(t.instruction)) for t in (trained, *probe.unseen)))
        ),
    )


def _by_loss(probe: Probe, losses: Stored | Planned) -> list[Prompt]:
    """The paraphrases from the lowest loss to the highest; stand-ins where the losses are not known yet."""
    paraphrases = [prompt for prompt in probe.prompts if prompt.index != ORIGINAL]
    if isinstance(losses, Planned):
        return [replace(prompt, text=f"{prompt.text} [by {losses.key}]") for prompt in paraphrases]
    table = prompt_losses(losses.examples(), probe.config.scorer.reduction)
    by_index = dict(zip(table["prompt"].tolist(), table["loss"].tolist(), strict=True))
    return sorted(paraphrases, key=lambda prompt: (by_index[prompt.index], prompt.index))


def _probe_id(probe: Probe, original: RunRecord) -> tuple[str, dict[str, Any]]:
    """The id of a probe, and the identity that its digest is of; `original` is its run with the original."""
    config, current = probe.config, probe.tasks[1]
    shared = {k: v for k, v in original.identity.items() if k not in ("policy", "prompts", "drawn")}
    identity = {
        **shared,
        "unseen": [task.name for task in probe.unseen],
        "pool": [p.text for p in load_pool(current, config.paraphrases).candidates(include_original=True)],
        "scored": examples_digest(probe.scored(current)),
    }
    names = (config.sequence.name, config.model.name, config.method.name, f"s{config.seed}")
    return plain("-".join((*names, digest(identity)[:DIGEST]))), identity


def _write(folder: Path, probe: Probe, measured: Measured, original: RunRecord, runs: dict[int, str]) -> None:
    """Writes `probe.json`, the tables and gradients; `runs` has the ids of the runs by prompt."""
    losses = _stored(measured.losses).examples()
    # Where a target was cut off under some prompt (data.truncation=end), prompts cannot be compared.
    cut = set(losses.loc[losses["n_tokens"] == 0, "example"])
    losses = losses[~losses["example"].isin(cut)]
    if losses.empty:
        raise UserError(
            f"Every scored example of {probe.tasks[1].name} has its target cut off under some prompt: "
            "nothing is left to compare. Give data.max_input_tokens a larger value, or say "
            "data.truncation=input."
        )
    tables = [_stored(found).examples().assign(prompt=index) for index, found in measured.answers.items()]
    answers = pd.concat(tables, ignore_index=True)
    answers = answers[~answers["example"].isin(cut)]
    losses[_LOSSES].reset_index(drop=True).to_parquet(folder / "losses.parquet")
    answers[_ANSWERS].reset_index(drop=True).to_parquet(folder / "answers.parquet")
    if measured.current:
        pd.DataFrame(_cosine_rows(probe, measured)).to_parquet(folder / _GRADIENTS)
    name, identity = _probe_id(probe, original)
    gradients = [gradient.stored for gradient in (*measured.current, *measured.others)]
    record = ProbeRecord(
        id=name,
        **{part: getattr(original, part) for part in _SHARED},
        prompts={prompt.index: prompt.text for prompt in probe.prompts},
        runs=runs,
        missing=probe.missing,
        identity=identity,
        stages=tuple(
            stage_record(_stored(s)) for s in (measured.losses, *measured.answers.values(), *gradients)
        ),
        n_scored=int(losses["example"].nunique()),
        n_cut=len(cut),
    )
    write_record(folder / ProbeRecord.FILE, record)


def _cosine_rows(probe: Probe, measured: Measured) -> Iterable[dict[str, Any]]:
    """A row for every prompt of the second task, other task, and module."""
    trained = probe.tasks[0].name
    others = [(found.task.name, load_gradients(_stored(found.stored).folder)) for found in measured.others]
    for found in measured.current:
        own = load_gradients(_stored(found.stored).folder)
        for task, other in others:
            for module, cosine in cosines(own, other).items():
                yield {
                    "prompt": found.prompt,
                    "rank": found.rank,
                    "task": task,
                    "role": "trained" if task == trained else "unseen",
                    "module": module,
                    "projection": module.rsplit(".", 1)[-1],
                    "layer": layer_of(module),
                    "cosine": cosine,
                }


def _stored(found: Stored | Planned) -> Stored:
    if not isinstance(found, Stored):
        raise ValueError("a planned probe has nothing to write")
    return found
