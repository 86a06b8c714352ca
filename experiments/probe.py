"""Probes: one pair of tasks, every prompt of the second, all else equal (paper, Figures 1 to 4).

A probe's runs differ in the prompt of the last task only, and share everything before it. Beside them stands
what can be known before the last task is trained: losses, answers and gradients in the state before it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file

from sapo.conf.errors import UserError, message_of
from sapo.conf.schema import Config
from sapo.data.benchmarks import load_tasks
from sapo.data.losses import prompt_losses
from sapo.data.pools import load_pool
from sapo.data.prompts import ORIGINAL, Prompt
from sapo.data.records import ProbeRecord, RunRecord, read_record
from sapo.data.tasks import Task, digest, examples_digest
from sapo.experiments import continual
from sapo.experiments.continual import Engine, scored_examples
from sapo.experiments.engine.local import LocalEngine, ignore
from sapo.experiments.engine.store import Stored
from sapo.experiments.jobs import Job
from sapo.experiments.model.gradients import FILE, cosines, layer_of, spread_ranks
from sapo.experiments.policies import by_loss
from sapo.experiments.runs import Planned, Run, computed, id_of, stage_record, write_last
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


@dataclass(frozen=True)
class Measured:
    """What was measured before the second task of a probe is trained, stage by stage.

    `gradients` are of a task under a prompt of this index: of the second task under several, each with the
    prompt's rank by loss (1 = lowest), which is 0 for other tasks.
    """

    losses: Stored | Planned
    answers: dict[int, Stored | Planned]
    gradients: tuple[tuple[Task, int, int, Stored | Planned], ...] = ()


def probes_of(jobs: Sequence[Job]) -> list[Probe]:
    """The probes that some runs make up; UserError if one of them cannot be one.

    Computes nothing: called before the runs, it finds what would only be found after them.
    """
    groups: dict[str, dict[int, Job]] = {}
    for job in jobs:
        policy = {**asdict(job.config.policy), "index": None}
        shared = digest({**asdict(job.config), "policy": policy})
        groups.setdefault(shared, {})[job.config.policy.index] = job
    probes = []
    for group in groups.values():
        by_index = dict(sorted(group.items()))
        _require_possible(by_index)
        config = by_index[ORIGINAL].config
        (trained, current), unseen = load_tasks(config)
        pool = load_pool(current, config.paraphrases)
        probes.append(Probe((trained, current), tuple(unseen), tuple(map(pool.at, by_index)), by_index))
    return probes


def _require_possible(jobs: Mapping[int, Job]) -> None:
    """UserError unless the runs are of a pair of tasks and a fixed prompt, and enough of them."""
    config = next(iter(jobs.values())).config
    sequence, policy, method, scorer = config.sequence, config.policy, config.method, config.scorer
    for is_wrong, why in (
        (
            len(sequence.tasks) != 2,
            f"A probe is a pair of tasks; sequence {sequence.name} has {len(sequence.tasks)}: take one of "
            "ni_probe_g1 … ni_probe_m5 or mini_probe, or say sequence.tasks=[FIRST,SECOND].",
        ),
        (
            policy.name != "fixed" or not policy.last_only,
            f"policy={policy.name}: a probe trains the second task with each prompt in turn, and the first "
            "with its original one: policy=fixed policy.last_only=true 'policy.index=range(-1,20)', as "
            "experiment=probe_mini and probe_paper do.",
        ),
        (
            method.name in continual.ORDERS,
            f"method={method.name} does not train one task after another, as a probe does.",
        ),
        (
            scorer.name != "full",
            f"scorer={scorer.name}: a probe needs the loss of every prompt; use scorer=full.",
        ),
        (
            ORIGINAL not in jobs or len(jobs) < LEAST_PROMPTS,
            f"A probe of {sequence.name} compares prompts: it needs the original, policy.index=-1, and at "
            f"least {LEAST_PROMPTS - 1} paraphrases; here are policy.index={','.join(map(str, jobs))}.",
        ),
    ):
        if is_wrong:
            raise UserError(why)


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
    expect: Callable[[Counter[str]], object] = ignore,
) -> tuple[list[Path], list[tuple[str, str]]]:
    """Measures what can be known before the second task is trained, and writes `ROOT/probes/ID`.

    `jobs` are the runs of all probes, `folders` those of the finished ones by the key of the job. Prompts
    whose runs failed are left out, and a probe that lacks the original or has too few others. Returns the
    probes' folders, and name and message of each probe that is left out or could not be measured.
    """
    asked = [(probe, finished_part(probe, folders)) for probe in probes_of(jobs)]
    failed = [(f"probe of {probe}", "too many of its runs failed") for probe, part in asked if part is None]
    probes = [part for _, part in asked if part is not None]
    expect(continual.stages_asked(lambda counting: measure_all(probes, counting, gradients)))

    async def finish(probe: Probe) -> Path | Exception:
        original = read_record(RunRecord, folders[probe.jobs[ORIGINAL].key])
        config, current = probe.config, probe.tasks[1]
        shared = {k: v for k, v in original.identity.items() if k not in ("policy", "prompts", "drawn")}
        pool = load_pool(current, config.paraphrases).candidates(include_original=True)
        identity = {
            **shared,
            "unseen": [task.name for task in probe.unseen],
            "pool": [prompt.text for prompt in pool],
            "scored": examples_digest(scored_examples(current, config)),
        }
        groups = (config.sequence, config.model, config.method)
        name = id_of([*(group.name for group in groups), f"s{config.seed}"], identity)
        target = engine.store.probe_folder(name)
        try:
            # Gradients that were asked for once stay with their probe: by now they only have to be read.
            found = await _measure(probe, engine, gradients or (target / _GRADIENTS).is_file())
            facts = {part: getattr(original, part) for part in _SHARED}
            facts |= {"runs": {index: folders[job.key].name for index, job in probe.jobs.items()}}
            with engine.store.lock(name), engine.store.replacing(target, name) as folder:
                _write(folder, probe, found, {"id": name, "identity": identity, **facts})
        except Exception as error:  # one probe's failure, whatever it is, leaves the others to be written
            return error
        return target

    with engine.store.at_work():
        ends = engine.complete([finish(probe) for probe in probes])
    errors = [(probe, end) for probe, end in zip(probes, ends, strict=True) if isinstance(end, Exception)]
    failed += [(f"probe of {probe}", message_of(error)) for probe, error in errors]
    return [end for end in ends if isinstance(end, Path)], failed


async def measure_all(probes: Sequence[Probe], engine: Engine, gradients: bool = False) -> None:
    """Asks the engine for all that `write_probes` measures; a planning engine thereby counts it."""
    await asyncio.gather(*(_measure(probe, engine, gradients) for probe in probes))


async def _measure(probe: Probe, engine: Engine, gradients: bool) -> Measured:
    """Losses and answers of the second task's scored examples under each prompt; gradients if asked for."""
    (trained, current), config = probe.tasks, probe.config
    before = Run(config, [trained], list(probe.unseen))
    await continual.one_after_another(before, engine)
    state, examples = before.states[-1].key, scored_examples(current, config)
    losses = await engine.run(Score(config, state, current, examples, probe.prompts))
    asked = replace(current, test=examples)
    answers = await asyncio.gather(
        *(engine.run(Evaluate(config, state, asked, prompt)) for prompt in probe.prompts)
    )
    measured = Measured(losses, {p.index: found for p, found in zip(probe.prompts, answers, strict=True)})
    if not gradients:
        return measured

    async def gradient(task: Task, prompt: Prompt, rank: int = 0) -> tuple[Task, int, int, Stored | Planned]:
        stage = Gradient(config, state, task, scored_examples(task, config), prompt)
        return task, prompt.index, rank, await engine.run(stage)

    paraphrases = [prompt for prompt in probe.prompts if prompt.index != ORIGINAL]
    if isinstance(losses, Planned):  # which prompt has which rank is not known yet
        ranked = [replace(prompt, text=f"{prompt.text} [by {losses.key}]") for prompt in paraphrases]
    else:
        table = prompt_losses(losses.examples(), config.scorer.reduction)
        ranked = by_loss(paraphrases, continual.by_prompt(table))
    under_ranks = (gradient(current, ranked[rank - 1], rank) for rank in spread_ranks(len(ranked)))
    others = (gradient(task, Prompt(task.instruction)) for task in (trained, *probe.unseen))
    return replace(measured, gradients=tuple(await asyncio.gather(*under_ranks, *others)))


def _write(folder: Path, probe: Probe, measured: Measured, facts: Mapping[str, Any]) -> None:
    """Writes the tables and gradients, and `probe.json` with what is known of the probe already."""
    losses = computed(measured.losses).examples()
    # Where a target was cut off under some prompt (data.truncation=end), prompts cannot be compared.
    cut = set(losses.loc[losses["n_tokens"] == 0, "example"])
    losses = losses[~losses["example"].isin(cut)]
    if losses.empty:
        raise UserError(
            f"Every scored example of {probe.tasks[1].name} has its target cut off under some prompt: "
            "nothing is left to compare. Give data.max_input_tokens a larger value, or say "
            "data.truncation=input."
        )
    tables = [computed(found).examples().assign(prompt=index) for index, found in measured.answers.items()]
    answers = pd.concat(tables, ignore_index=True)
    answers = answers[~answers["example"].isin(cut)]
    losses[_LOSSES].reset_index(drop=True).to_parquet(folder / "losses.parquet")
    answers[_ANSWERS].reset_index(drop=True).to_parquet(folder / "answers.parquet")
    read = [
        (task, prompt, rank, load_file(computed(stored).folder / FILE))
        for task, prompt, rank, stored in measured.gradients
    ]
    others = [(task, gradients) for task, _, rank, gradients in read if not rank]
    rows = [
        {
            "prompt": prompt,
            "rank": rank,
            "task": task.name,
            "role": "trained" if task.name == probe.tasks[0].name else "unseen",
            "module": module,
            "projection": module.rsplit(".", 1)[-1],
            "layer": layer_of(module),
            "cosine": cosine,
        }
        for _, prompt, rank, own in read
        if rank
        for task, other in others
        for module, cosine in cosines(own, other).items()
    ]
    if rows:  # one for every prompt of the second task, other task, and module
        pd.DataFrame(rows).to_parquet(folder / _GRADIENTS)
    stages = (measured.losses, *measured.answers.values(), *(stored for *_, stored in measured.gradients))
    record = ProbeRecord(
        **facts,
        prompts={prompt.index: prompt.text for prompt in probe.prompts},
        missing=probe.missing,
        stages=tuple(stage_record(computed(stage)) for stage in stages),
        n_scored=int(losses["example"].nunique()),
        n_cut=len(cut),
    )
    write_last(folder, record)
