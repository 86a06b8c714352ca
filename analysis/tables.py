"""Table 1: runs by model, sequence and method, policies against `static`, the paper's rows beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

from sapo.analysis.metrics import METRICS, check_definition
from sapo.analysis.results import (
    LABELS,
    MEASURES,
    RunResult,
    check_measure,
    require_comparable,
    tests_apart,
    why_no_labels,
)
from sapo.analysis.statistics import DRAWS, Interval, metric_intervals
from sapo.data.prompts import ORIGINAL

BASE = "static"
DEMONSTRATION = (
    "Demonstration on a small model or small generated data: not a reproduction of the paper's numbers."
)
BOUNDS = ("multitask", "single", "zero_shot")  # have no states between the first and the last
ELSEWHERE = ("Qwen3-8B", "NI-Seq-M1")  # the paper's rows shown where it does not have our sequence


@dataclass(frozen=True)
class Row:
    """One line of Table 1: a policy's metrics, or its difference from the base; `source`: ours or paper."""

    source: str
    model: str
    sequence: str
    method: str
    policy: str
    difference: bool
    cells: Mapping[str, Interval | float | None]
    n_examples: int | None = None
    n_seeds: int | None = None
    measure: str = "rougeL"
    column: str = "trained"

    @property
    def score(self) -> str:
        """`ROUGE-L`, or `exact match, common prompt`."""
        return score_name(self.measure, self.column)

    @property
    def label(self) -> str:
        """`static`, or `sapo - static` for a difference."""
        return f"{self.policy} - {BASE}" if self.difference else self.policy


@dataclass(frozen=True)
class Group:
    """The rows of one model, sequence and method, and the paper's rows that stand beside them.

    `more` are the rows of the scores that are shown beside the one asked for.
    """

    model: str
    sequence: str
    method: str
    rows: tuple[Row, ...]
    paper: tuple[Row, ...]
    more: tuple[Row, ...] = ()

    @property
    def all_rows(self) -> tuple[Row, ...]:
        """Our rows and the paper's of the score asked for, then those of the others."""
        return (*self.rows, *self.paper, *self.more)

    @property
    def same_setting(self) -> bool:
        """Whether the paper's rows are of the same model and sequence, and not only of the same method."""
        return all(
            (plain(row.model), plain(row.sequence)) == (plain(self.model), plain(self.sequence))
            for row in self.paper
        )

    @property
    def title(self) -> str:
        """Model, sequence and method."""
        return f"{self.model} · {self.sequence} · {self.method}"


@dataclass(frozen=True)
class Table1:
    """AP, BWT and FWT of policies, with all that a reader needs to know about the numbers."""

    groups: tuple[Group, ...]
    measure: str
    definition: str
    notes: tuple[str, ...]

    @property
    def decimals(self) -> int:
        """Digits worth showing."""
        return 3 if self.measure == "nll" else 2


def table1(
    runs: Sequence[RunResult], measure: str = "rougeL", definition: str = "reference", draws: int = DRAWS
) -> Table1:
    """Table 1 of `runs`. Raises UserError if runs of one model and sequence are not comparable."""
    check_measure(measure)
    check_definition(definition)
    with_paper = measure == "rougeL" and definition == "reference"
    groups, notes = [], _notes(runs, measure, definition, draws, with_paper)
    for (model, sequence, method, parity), members in grouped(runs).items():
        rows = _rows(members, (measure, "trained"), definition, draws, notes)
        beside = _beside(measure, [run for runs in members.values() for run in runs], notes)
        more = [row for score in beside for row in _rows(members, score, definition, draws, notes)]
        paper = paper_rows(model, sequence, method) if with_paper else ()
        if with_paper and not paper:
            notes.append(f"The paper has no rows for {method}.")
        label = method if parity == "paper" else f"{method}, parity {parity}"
        groups.append(Group(model, sequence, label, tuple(rows), paper, tuple(more)))
    for model, sequence in {(group.model, group.sequence): None for group in groups}:
        require_comparable([run for run in runs if (run.model, run.sequence) == (model, sequence)])
    return Table1(tuple(groups), measure, definition, tuple(dict.fromkeys(notes)))


def grouped(runs: Sequence[RunResult]) -> dict[tuple[str, str, str, str], dict[str, list[RunResult]]]:
    """(model, sequence, method, parity) -> policy -> runs, the base policy first."""
    groups: dict[tuple[str, str, str, str], dict[str, list[RunResult]]] = {}
    for run in sorted(runs, key=lambda run: run.policy != BASE):
        key = (run.model, run.sequence, run.method, str(run.parity))
        groups.setdefault(key, {}).setdefault(run.policy, []).append(run)
    return groups


def score_name(measure: str, column: str) -> str:
    """A score for people: `ROUGE-L`, or `exact match, common prompt`."""
    name = MEASURES[measure].split(" (")[0]
    return name if column == "trained" else f"{name}, common prompt"


def _beside(measure: str, runs: Sequence[RunResult], notes: list[str]) -> list[tuple[str, str]]:
    """The (measure, column)s shown beside `measure`, as far as all the runs have them; notes say why not."""
    measures = [measure]
    if measure == "rougeL":
        measures.append("exact_match")
        reason = next(filter(None, map(why_no_labels, runs)), None)
        if reason:
            notes.append(f"Label match is not defined for {runs[0].sequence} ({reason}).")
        else:
            measures.append(LABELS)
            notes.append("Label match: 100 for an answer that names the right label and no other, else 0.")
    beside = [(name, "trained") for name in measures[1:]]
    without = [run.id for run in runs if not run.has_common]
    if without:
        notes.append(f"No common-prompt rows with {', '.join(without)}: tested with training prompts only.")
    elif any(map(tests_apart, runs)):
        beside += [(name, "common") for name in measures]
        notes.append("Common prompt: learned tasks are tested with their original instruction.")
    return beside


def _rows(
    policies: dict[str, list[RunResult]],
    score: tuple[str, str],
    definition: str,
    draws: int,
    notes: list[str],
) -> list[Row]:
    """The base row and a difference row for each other policy; without a base, every policy's own row."""
    measure, column = score
    rows = []
    for policy, runs in policies.items():
        against = _base_of(policy, policies, notes)
        cells = metric_intervals(runs, measure, definition, against, draws, column=column)
        known = [cell for cell in cells.values() if cell]
        row = Row(
            source="ours",
            model=runs[0].model,
            sequence=runs[0].sequence,
            method=runs[0].method,
            policy=policy,
            difference=against is not None,
            cells=cells,
            n_examples=known[0].n_examples if known else None,
            n_seeds=known[0].n_seeds if known else None,
            measure=measure,
            column=column,
        )
        rows.append(row)
        if runs[0].method in BOUNDS:
            notes.append(f"{runs[0].method} has no states between the tasks: it has AP only.")
        elif len(known) < len(METRICS):
            notes.append("A dash: not defined here (one trained task, or a state or task not evaluated).")
    return rows


def _base_of(policy: str, policies: dict[str, list[RunResult]], notes: list[str]) -> list[RunResult] | None:
    """The base runs that a policy's runs are compared with, if any; a note where seeds do not match."""
    base = policies.get(BASE)
    if not base or policy == BASE:
        return None
    seeds, base_seeds = ({run.seed for run in runs} for runs in (policies[policy], base))
    where = f"({base[0].sequence}, {base[0].method})"
    if not seeds & base_seeds:
        notes.append(f"{policy} {where}: scores, since it has no seed in common with {BASE}.")
        return None
    if seeds != base_seeds:
        notes.append(f"{policy} - {BASE} {where}: over the seeds that both have.")
    return base


def _notes(
    runs: Sequence[RunResult], measure: str, definition: str, draws: int, with_paper: bool
) -> list[str]:
    notes = [DEMONSTRATION] if any(run.demonstration for run in runs) else []
    notes.append(
        f"{MEASURES[measure]}, definition `{definition}`. `policy - {BASE}` rows are differences. "
        f"In brackets: 95 % intervals, {draws} paired bootstrap draws over the n test examples"
        + (
            " and seeds."
            if len({run.seed for run in runs}) > 1
            else " (one seed: they do not include seeds)."
        )
    )
    if measure == "nll":
        notes.append("NLL: lower is better, so that a negative difference is a gain.")
    if with_paper:
        notes.append(
            "Paper rows: arXiv 2606.01967, Tables 1 and 11 (point values without intervals), "
            "marked * where model or sequence differ from ours: for orientation only."
        )
    else:
        notes.append("The paper's rows are left out: its tables hold ROUGE-L in the `reference` definition.")
    return notes


def paper_rows(model: str, sequence: str, method: str) -> tuple[Row, ...]:
    """The paper's base and SAPO rows of a method, for this sequence and model if there, else the nearest."""
    table = _paper_table()
    name = method.partition(" (")[0]  # `inscl` of `inscl (lexical)`
    table = table[table["method"].map(plain) == plain(name)]
    same_sequence = table[table["sequence"].map(plain) == plain(sequence)]
    same_model = same_sequence[same_sequence["model"].map(plain) == plain(model)]
    if not same_model.empty:
        table = same_model
    elif not same_sequence.empty:
        table = same_sequence[same_sequence["model"] == ELSEWHERE[0]]
    else:
        table = table[(table["model"] == ELSEWHERE[0]) & (table["sequence"] == ELSEWHERE[1])]
    if table.empty:
        return ()
    first = table.iloc[0]
    names = ("paper", first["model"], first["sequence"], first["method"])
    base = {row.metric: float(row.base) for row in table.itertuples()}
    delta = {row.metric: float(row.sapo_delta) for row in table.itertuples()}
    return (Row(*names, BASE, False, base), Row(*names, "sapo", True, delta))


@cache
def _paper_table() -> pd.DataFrame:
    folder = files("sapo.analysis.paper")
    tables = []
    for name in ("table1.csv", "table11.csv"):
        with (folder / name).open(encoding="utf-8") as file:
            tables.append(pd.read_csv(file))
    return pd.concat(tables, ignore_index=True)


def plain(name: str) -> str:
    """A name without case and punctuation: `NI-Seq-G1` is `ni_seq_g1`, `O-LoRA` is `olora`."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def chosen_prompts(runs: Sequence[RunResult]) -> pd.DataFrame:
    """The prompt each task was trained with: run, task, index, its pre-update loss and the original's, text.

    Losses are None for a policy that does not score, or where the original was no candidate or lost a race.
    """
    rows = [_choice(run, choice) for run in runs for choice in run.choices]
    return pd.DataFrame(rows, columns=["run", "task", "index", "loss", "original_loss", "text"], dtype=object)


def _choice(run: RunResult, choice: dict[str, Any]) -> dict[str, Any]:
    candidates = choice.get("candidates") or []
    # What a race has dropped was read on fewer examples: its loss is not comparable.
    most = max((candidate.get("n_examples", 0) for candidate in candidates), default=0)
    losses = {c["index"]: c["loss"] for c in candidates if c.get("n_examples", 0) == most}
    return {
        "run": run.id,
        "task": choice["task"],
        "index": choice["index"],
        "loss": losses.get(choice["index"]),
        "original_loss": losses.get(ORIGINAL),
        "text": choice["text"],
    }
