"""Probes: one pair of tasks, every prompt of the second, all else equal (paper, Figures 1 to 4).

A probe's runs differ in the prompt of the last task only, and share everything before it. Beside them stands
what can be known before the last task is trained: losses, answers and gradients in the state before it.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file

from sapo.conf.errors import UserError, message_of
from sapo.data.benchmarks import load_tasks
from sapo.data.losses import prompt_losses
from sapo.data.pools import load_pool
from sapo.data.prompts import ORIGINAL, Prompt
from sapo.data.records import ProbeRecord, RunRecord, read_record
from sapo.data.tasks import Task, digest, examples_digest
from sapo.experiments import continual
from sapo.experiments.continual import Engine, scored_examples
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Stored, put_record
from sapo.experiments.jobs import Job
from sapo.experiments.model.gradients import FILE, cosines, layer_of, spread_ranks
from sapo.experiments.policies import by_loss
from sapo.experiments.runs import Planned, Run, id_of, stage_record, write_last
from sapo.experiments.stages import Evaluate, Gradient, Score, Stage

LEAST_PROMPTS = 3  # the original and two others: fewer have no correlation
_GRADIENTS = "gradients.parquet"
Found = dict[Any, Stored]


@dataclass(frozen=True)
class Probe:
    """A pair of tasks, and the runs' jobs by the second task's prompt, the original first.

    `missing` are prompts that were asked for and whose runs failed.
    """

    tasks: tuple[Task, Task]
    unseen: tuple[Task, ...]
    jobs: dict[Prompt, Job]
    missing: tuple[int, ...] = ()

    @property
    def original(self) -> Job:
        """The run with the original prompt, whose config is what all share."""
        return next(iter(self.jobs.values()))

    def __str__(self) -> str:
        return f"probe of {self.original}"


def probes_of(jobs: Sequence[Job]) -> list[Probe]:
    """The probes that some runs make up; UserError if one of them cannot be one.

    Computes nothing: called before the runs, it finds what would only be found after them.
    """
    groups: dict[str, dict[int, Job]] = defaultdict(dict)
    for job in jobs:
        policy = {**asdict(job.config.policy), "index": None}
        groups[digest({**asdict(job.config), "policy": policy})][job.config.policy.index] = job
    probes = []
    for group in groups.values():
        by_index = dict(sorted(group.items()))
        _require_possible(by_index)
        config = by_index[ORIGINAL].config
        (trained, current), unseen = load_tasks(config)
        pool = load_pool(current, config.paraphrases)
        by_prompt = {pool.at(index): job for index, job in by_index.items()}
        probes.append(Probe((trained, current), tuple(unseen), by_prompt))
    return probes


def _require_possible(jobs: Mapping[int, Job]) -> None:
    """UserError unless the runs are of a pair of tasks and a fixed prompt, and enough of them."""
    config = next(iter(jobs.values())).config
    sequence, policy, method, scorer = config.sequence, config.policy, config.method, config.scorer
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
    if method.name in continual.ORDERS:
        raise UserError(f"method={method.name} does not train one task after another, as a probe does.")
    if scorer.name != "full":
        raise UserError(f"scorer={scorer.name}: a probe needs the loss of every prompt; use scorer=full.")
    if ORIGINAL not in jobs or len(jobs) < LEAST_PROMPTS:
        raise UserError(
            f"A probe of {sequence.name} compares prompts: it needs the original, policy.index=-1, and at "
            f"least {LEAST_PROMPTS - 1} paraphrases; here are policy.index={','.join(map(str, jobs))}."
        )


def write_probes(
    jobs: Sequence[Job], folders: Mapping[str, Path], engine: LocalEngine, gradients: bool = False
) -> tuple[list[Path], list[tuple[str, str]]]:
    """Measures what can be known before the second task is trained, and writes `ROOT/probes/ID`.

    `jobs` are the runs of all probes, `folders` those of the finished ones by the key of the job. Prompts
    whose runs failed are left out, and a probe that lacks the original or has too few others. Returns the
    probes' folders, and name and message of each probe that is left out or could not be measured.
    """
    probes: list[Probe] = []
    failed: list[tuple[str, str]] = []
    for probe in probes_of(jobs):
        done = {prompt: job for prompt, job in probe.jobs.items() if job.key in folders}
        if probe.original.key not in folders or len(done) < LEAST_PROMPTS:
            failed.append((str(probe), "too many of its runs failed"))
        else:
            missing = tuple(prompt.index for prompt in probe.jobs if prompt not in done)
            probes.append(replace(probe, jobs=done, missing=missing))
    works = (partial(measure, probe, gradients=gradients) for probe in probes)
    engine.expect(sum(map(continual.stages_asked, works), Counter()))

    async def finish(probe: Probe) -> Path | Exception:
        try:
            return await _finish(probe, folders, engine, gradients)
        except Exception as error:  # one probe's failure, whatever it is, leaves the others to be written
            return error

    with engine.store.at_work():
        ends = engine.complete([finish(probe) for probe in probes])
    errors = [(probe, end) for probe, end in zip(probes, ends, strict=True) if isinstance(end, Exception)]
    failed += [(str(probe), message_of(error)) for probe, error in errors]
    return [end for end in ends if isinstance(end, Path)], failed


async def _finish(probe: Probe, folders: Mapping[str, Path], engine: LocalEngine, gradients: bool) -> Path:
    """Measures a probe and writes its folder."""
    run = read_record(RunRecord, folders[probe.original.key])
    config, current = probe.original.config, probe.tasks[1]
    pool = load_pool(current, config.paraphrases).candidates(include_original=True)
    identity = {
        **{k: v for k, v in run.identity.items() if k not in ("policy", "prompts", "drawn")},
        "unseen": [task.name for task in probe.unseen],
        "pool": [prompt.text for prompt in pool],
        "scored": examples_digest(scored_examples(current, config)),
    }
    name = id_of([run.sequence, run.model, run.method, f"s{run.seed}"], identity)
    target = engine.store.root / "probes" / name
    # Gradients that were asked for once stay with their probe: by now they only have to be read.
    losses, *others = await measure(probe, engine, gradients or (target / _GRADIENTS).is_file())
    shared = ("sequence", "model", "method", "seed", "tasks", "unseen", "demonstration", "comparable")
    with engine.store.lock(name), engine.store.scratch(name) as folder:
        counts = _write_tables(folder, probe, losses, *others)
        record = ProbeRecord(
            id=name,
            identity=identity,
            **{part: getattr(run, part) for part in shared},
            runs={prompt.index: folders[job.key].name for prompt, job in probe.jobs.items()},
            prompts={prompt.index: prompt.text for prompt in probe.jobs},
            missing=probe.missing,
            stages=tuple(map(stage_record, [losses, *(each for found in others for each in found.values())])),
            **counts,
        )
        write_last(folder, record)
        put_record(folder, target)
    return target


async def measure(probe: Probe, engine: Engine, gradients: bool) -> tuple[Stored, Found, Found, Found]:
    """What is measured before the second task is trained, on its scored examples, stage by stage.

    Losses under all prompts, answers by prompt, and if asked for gradients: of the second task by prompt and
    its rank by loss (1 = lowest), and of the others by name.
    """
    (trained, current), config, prompts = probe.tasks, probe.original.config, tuple(probe.jobs)
    before = Run(config, [trained], list(probe.unseen))
    await continual.one_after_another(before, engine)
    state, examples = before.states[-1].key, scored_examples(current, config)

    async def together(stages: Mapping[Any, Stage]) -> Found:
        return dict(zip(stages, await asyncio.gather(*map(engine.run, stages.values())), strict=True))

    def gradient(task: Task, prompt: Prompt) -> Stage:
        return Gradient(config, state, task, scored_examples(task, config), prompt)

    losses = await engine.run(Score(config, state, current, examples, prompts))
    asked = replace(current, test=examples)
    answers = await together({prompt: Evaluate(config, state, asked, prompt) for prompt in prompts})
    if not gradients:
        return losses, answers, {}, {}
    ranked = [prompt for prompt in prompts if prompt.index != ORIGINAL]
    if isinstance(losses, Planned):  # which prompt has which rank is not known yet
        ranked = [replace(prompt, text=f"{prompt.text} [by {losses.key}]") for prompt in ranked]
    else:
        table = prompt_losses(losses.examples(), config.scorer.reduction)
        ranked = by_loss(ranked, continual.by_prompt(table))
    under_ranks = [(ranked[rank - 1], rank) for rank in spread_ranks(len(ranked))]
    own = {key: gradient(current, key[0]) for key in under_ranks}
    others = {task.name: gradient(task, Prompt(task.instruction)) for task in (trained, *probe.unseen)}
    return losses, answers, *await asyncio.gather(together(own), together(others))


def _write_tables(
    folder: Path, probe: Probe, scored: Stored, answered: Found, gradients: Found, of_others: Found
) -> dict[str, Any]:
    """Writes what was measured; returns how many examples were scored, and how many were left out."""
    losses = scored.examples()
    # Where a target was cut off under some prompt (data.truncation=end), prompts cannot be compared.
    cut = set(losses.loc[losses["n_tokens"] == 0, "example"])
    tables = [found.examples().assign(prompt=prompt.index) for prompt, found in answered.items()]
    answers = pd.concat(tables)
    kept = {
        "losses": losses[["prompt", "example", "nll", "entropy", "n_tokens"]],
        "answers": answers[["prompt", "example", "rougeL", "exact_match", "prediction", "target"]],
    }
    for name, table in kept.items():
        whole = table[~table["example"].isin(cut)]
        if whole.empty:
            raise UserError(
                f"Every scored example of {probe.tasks[1].name} has its target cut off under some prompt: "
                "nothing is left to compare. Give data.max_input_tokens a larger value, or say "
                "data.truncation=input."
            )
        whole.reset_index(drop=True).to_parquet(folder / f"{name}.parquet")
    others = {task: load_file(found.folder / FILE) for task, found in of_others.items()}
    rows = [
        {
            "prompt": prompt.index,
            "rank": rank,
            "task": task,
            "role": "trained" if task == probe.tasks[0].name else "unseen",
            "module": module,
            "projection": module.rsplit(".", 1)[-1],
            "layer": layer_of(module),
            "cosine": cosine,
        }
        for (prompt, rank), found in gradients.items()
        for task, other in others.items()
        for module, cosine in cosines(load_file(found.folder / FILE), other).items()
    ]
    if rows:  # one for every prompt of the second task, other task, and module
        pd.DataFrame(rows).to_parquet(folder / _GRADIENTS)
    return {"n_scored": losses["example"].nunique() - len(cut), "n_cut": len(cut)}
