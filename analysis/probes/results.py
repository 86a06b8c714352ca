"""Finished probes as they lie on disk: one pair of tasks, many prompts of the second, all else equal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from sapo.analysis.results import (
    LOWER_IS_BETTER,
    MEASURES,
    RunResult,
    column_rows,
    damaged,
    load_run,
    read_table,
    shared,
)
from sapo.conf.errors import UserError
from sapo.data.losses import prompt_losses
from sapo.data.prompts import ORIGINAL
from sapo.data.records import ProbeRecord, differences, mend, read_record, require_same
from sapo.data.tasks import short_name

ROLES = ("forgetting", "training", "generalization")
# The columns of a probe's tables, those of numbers first.
TABLES = {
    "losses": (("prompt", "example", "nll", "entropy", "n_tokens"), ()),
    "answers": (("prompt", "example"), ("rougeL", "exact_match")),
    "gradients": (("prompt", "rank", "layer", "cosine"), ("task", "role", "module", "projection")),
}


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """One probe: its runs by prompt index, and what was measured before its current task was trained.

    `finals`: scores after training, a row per prompt, task and test example. `losses`, `answers`: a row per
    prompt and scored training example, without the `n_cut` examples whose target is cut off under some
    prompt; `gradients` as stored, or None. `missing`: prompts whose runs failed. `reduction` and
    `include_original` are the scorer's.
    """

    path: Path
    id: str
    sequence: str
    model: str
    method: str
    seed: int
    trained: str
    current: str
    unseen: tuple[str, ...]
    demonstration: bool
    n_cut: int
    missing: tuple[int, ...]
    reduction: str
    include_original: bool
    prompts: dict[int, str] = field(repr=False)
    comparable: dict[str, Any] = field(repr=False)
    runs: dict[int, RunResult] = field(repr=False)
    finals: pd.DataFrame = field(repr=False)
    losses: pd.DataFrame = field(repr=False)
    answers: pd.DataFrame = field(repr=False)
    gradients: pd.DataFrame | None = field(repr=False)

    @property
    def others(self) -> tuple[str, ...]:
        """The tasks that are not current: the one trained before, then the unseen ones."""
        return (self.trained, *self.unseen)

    @property
    def pair(self) -> str:
        """The two trained tasks: sequences that differ in their unseen tasks only are one pair."""
        return f"{self.trained} > {self.current}"

    @property
    def candidates(self) -> list[int]:
        """The prompts that SAPO can choose from."""
        return [index for index in self.prompts if self.include_original or index != ORIGINAL]

    @property
    def facts(self) -> str:
        """Model, sequence, method and seed in one line, for titles."""
        parts = [self.model, self.sequence, self.method, f"seed {self.seed}"]
        return " · ".join([*parts, *["demonstration"] * self.demonstration])

    @property
    def remarks(self) -> Iterator[str]:
        """What was left out, or is missing."""
        if self.n_cut:
            n, task = self.losses["example"].nunique() + self.n_cut, short_name(self.current)
            yield (
                f"Probe {self.id}: {self.n_cut} of {n} scored examples of {task} are left out of losses and "
                "answers: their targets are cut off under some prompt."
            )
        if self.missing:
            lacking = ", ".join(map(str, self.missing))
            yield f"Probe {self.id} lacks prompt {lacking}, whose run failed: the same command tries again."

    def role(self, task: str) -> str:
        """What a prompt of the current task does to `task`: one of ROLES."""
        return {self.trained: ROLES[0], self.current: ROLES[1]}.get(task, ROLES[2])

    def outcomes(self, measure: str) -> pd.DataFrame:
        """Final scores: prompts (by index) x tasks (trained, current, unseen); NaN = not evaluated."""
        means = self.finals.groupby(["prompt", "task"])[measure].mean().unstack("task")
        tasks = [self.trained, self.current, *self.unseen]
        return means.reindex(index=pd.Index(self.runs, name="prompt"), columns=pd.Index(tasks, name=None))

    def good(self, measure: str) -> pd.DataFrame:
        """Final scores on the tasks that are not current, flipped where lower is better: up is good."""
        return sign_of(measure) * self.outcomes(measure)[list(self.others)]

    def pre_update_losses(self) -> pd.Series:
        """The loss of each prompt that SAPO ranks by (nats), by prompt index."""
        return prompt_losses(self.losses, self.reduction).set_index("prompt")["loss"]


def sign_of(measure: str) -> int:
    """-1 for measures where lower is better, which are flipped where good is to be up; else 1."""
    return -1 if measure in LOWER_IS_BETTER else 1


def prompt_name(index: int) -> str:
    """`original`, or `prompt 3`."""
    return "original" if index == ORIGINAL else f"prompt {index}"


def load_probe(folder: Path) -> ProbeResult:
    """The probe in `folder` (ROOT/probes/ID) with its runs (ROOT/runs/…).

    UserError says what is missing or cannot be compared, WorkError what is damaged, both with the mend.
    """
    record = read_record(ProbeRecord, folder)
    store = folder.resolve().parent.parent / "runs"
    runs = {index: load_run(store / name) for index, name in sorted(record.runs.items())}
    finals = _finals(folder, record, runs)
    prompts = dict(sorted(record.prompts.items()))
    tables: dict[str, Any] = {"gradients": None}
    for name, (numbers, texts) in TABLES.items():
        file = folder / f"{name}.parquet"
        if name == "gradients" and not file.is_file():
            continue
        frame = tables[name] = read_table(file, (*numbers, *texts), numbers)
        if name == "gradients":
            continue
        times = pd.crosstab(frame["prompt"], frame["example"])
        if list(times.index) != list(prompts) or not (times == 1).all(axis=None):
            raise damaged(file, f"prompts {list(prompts)} were not measured on the same examples, each once")
        if "n_tokens" in frame and (frame["n_tokens"] < 1).any():
            raise damaged(file, "a target without tokens")
    names = ("id", "sequence", "model", "seed", "demonstration", "n_cut", "unseen", "missing", "comparable")
    trained, current = record.tasks
    return ProbeResult(
        path=folder,
        method=runs[ORIGINAL].method,
        trained=trained,
        current=current,
        **{name: record.identity["scorer"][name] for name in ("reduction", "include_original")},
        **{name: getattr(record, name) for name in names},
        prompts=prompts,
        runs=runs,
        finals=finals,
        **tables,
    )


def _finals(folder: Path, record: ProbeRecord, runs: dict[int, RunResult]) -> pd.DataFrame:
    """The scores after training; UserError unless the runs are the probe's, comparable, and tested alike."""
    first, (trained, current) = runs[ORIGINAL].record, record.tasks
    of_probe = {name: getattr(record, name) for name in ("sequence", "model", "seed", "tasks", "unseen")}
    of_probe |= {"label": first.label, "comparable": first.comparable}
    for index, run in runs.items():
        prompts = {trained: first.prompts.get(trained), current: record.prompts[index]}
        facts = {name: getattr(run.record, name) for name in (*of_probe, "prompts")}
        if wrong := list(differences(of_probe | {"prompts": prompts}, facts)):
            raise UserError(f"Run {run.id} is not of the probe {folder}: {'; '.join(wrong)}. {mend(folder)}")
    rows = [column_rows(run, "trained").assign(prompt=index) for index, run in runs.items()]
    finals = (
        pd.concat(rows).query("after == 2").reindex(columns=["prompt", "task", "example", *MEASURES, "kl"])
    )
    tested = finals.groupby(["task", "prompt"])["example"].agg(tuple).groupby("task").nunique()
    if tested.max() > 1:
        tested_on = f"were tested on different rows of {tested.idxmax()}"
        raise UserError(f"The runs of the probe {folder} {tested_on}. {mend(folder)}")
    return finals.reset_index(drop=True)


def require_poolable(probes: Sequence[ProbeResult]) -> None:
    """UserError, with every difference, unless probes of one model and method can stand in one figure.

    They train and test different tasks: the data of tasks that two of them share must be the same.
    """
    for first, other in combinations(probes, 2):
        is_twin = (first.sequence, first.seed) == (other.sequence, other.seed)
        are_alike = (first.model, first.method) == (other.model, other.method)
        if first.id == other.id or (are_alike and is_twin):
            why = "have the same sequence, model, method and seed"
            why = f"are both probe {first.id}" if first.id == other.id else why
            raise UserError(f"{first.path} and {other.path} {why}: leave one of them out.")
        if are_alike:
            facts, others = first.comparable, other.comparable
            sides = shared(facts, others, ("data", "train")), shared(others, facts, ("data", "train"))
            way = "Draw them apart, or make one of them again with the settings of the other."
            require_same(f"Probes {first.id} and {other.id}", *sides, way)
