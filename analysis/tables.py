"""Tables of AP, BWT and FWT: by model, sequence and method, policies and pools against `static`.

The paper's Tables 1, 2, 3 and 11 are such tables; its rows stand beside ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sapo.analysis.intervals import DRAWS, Interval, metric_intervals
from sapo.analysis.metrics import METRICS, check_definition
from sapo.analysis.published import BASE, PAPER, Published, plain, published
from sapo.analysis.results import (
    DRAWN,
    LABELS,
    LOWER_IS_BETTER,
    MEASURES,
    RunResult,
    check_measure,
    require_comparable,
    shown_measures,
    tests_apart,
    why_no_labels,
)
from sapo.data.prompts import ORIGINAL

DEMONSTRATION = (
    "Demonstration on a small model or small generated data: not a reproduction of the paper's numbers."
)
LOWER_NOTE = (
    "NLL (nats per target token): lower is better, so that a negative difference in AP, BWT or FWT is a gain."
)
COARSE = "at this size effects show in NLL that ROUGE-L is too coarse for."
NLL_LEADS = f"NLL leads: {COARSE}"
BOUNDS = ("multitask", "single", "zero_shot")  # have no states between the first and the last


@dataclass(frozen=True)
class Row:
    """One line of a table: a policy's metrics, or its difference from the base; `source`: ours or paper.

    `policy` names the pool too where several are compared: `sapo (terse)`; `pool_size` is its paraphrases.
    """

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
    pool_size: int | None = None

    @property
    def score(self) -> str:
        """`ROUGE-L`, `exact match, common prompt`, or `NLL (lower is better)`."""
        lower = " (lower is better)" if self.measure in LOWER_IS_BETTER else ""
        return score_name(self.measure, self.column) + lower

    @property
    def decimals(self) -> int:
        """Digits worth showing."""
        return 3 if self.measure == "nll" else 2

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
    def blocks(self) -> list[tuple[Row, ...]]:
        """The rows score by score, the one asked for first; the paper's follow ours of their score."""
        by_score: dict[str, list[Row]] = {}
        for row in (*self.rows, *self.more, *self.paper):
            by_score.setdefault(row.score, []).append(row)
        return [tuple(rows) for rows in by_score.values()]

    @property
    def all_rows(self) -> tuple[Row, ...]:
        """The rows of all blocks, in their order."""
        return tuple(row for block in self.blocks for row in block)

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
class ScoreTable:
    """AP, BWT and FWT of policies, with all that a reader needs to know about the numbers."""

    groups: tuple[Group, ...]
    measure: str
    definition: str
    notes: tuple[str, ...]


def score_table(
    runs: Sequence[RunResult],
    measure: str = "rougeL",
    definition: str = "reference",
    draws: int = DRAWS,
    paper: str = "table1",
) -> ScoreTable:
    """The runs beside the rows of the paper's table `paper`; of `runs` one a variant (`grouped`) and seed.

    Raises UserError if runs of one model and sequence are not comparable.
    """
    check_measure(measure)
    check_definition(definition)
    with_paper = measure in DRAWN and definition == "reference"
    groups, notes = [], _notes(runs, measure, definition, draws, paper if with_paper else None)
    for (model, sequence, method, parity), members in grouped(runs).items():
        rows = _rows(members, (measure, "trained"), definition, draws, notes)
        beside = _beside(measure, [run for runs in members.values() for run in runs], notes)
        more = [row for score in beside for row in _rows(members, score, definition, draws, notes)]
        theirs = tuple(map(_paper_row, published(paper, model, sequence, method))) if with_paper else ()
        if with_paper and not theirs:
            notes.append(f"The paper has no rows for {method}.")
        label = method if parity == "paper" else f"{method}, parity {parity}"
        groups.append(Group(model, sequence, label, tuple(rows), theirs, tuple(more)))
    for model, sequence in {(group.model, group.sequence): None for group in groups}:
        require_comparable([run for run in runs if (run.model, run.sequence) == (model, sequence)])
    return ScoreTable(tuple(groups), measure, definition, tuple(dict.fromkeys(notes)))


def grouped(runs: Sequence[RunResult]) -> dict[tuple[str, str, str, str], dict[str, list[RunResult]]]:
    """(model, sequence, method, parity) -> variant -> runs, the base first.

    A variant is a policy or, where the runs of a policy choose from different pools, policy and pool:
    `sapo (terse)`, `sapo (K=10)`.
    """
    by_policy: dict[tuple[str, str, str, str], dict[str, list[RunResult]]] = {}
    for run in sorted(runs, key=lambda run: (run.policy != BASE, run.pool_size or 0)):
        key = (run.model, run.sequence, run.method, str(run.parity))
        by_policy.setdefault(key, {}).setdefault(run.policy, []).append(run)
    return {
        key: {variant: found for alike in policies.values() for variant, found in _by_pool(alike).items()}
        for key, policies in by_policy.items()
    }


def _by_pool(runs: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """Variant -> runs, of the runs of one policy."""
    names, sizes = ({getattr(run, name) for run in runs} for name in ("pool", "pool_size"))
    variants: dict[str, list[RunResult]] = {}
    for run in runs:
        pool = [run.pool or "pool not recorded"] if len(names) > 1 else []
        size = [f"K={run.pool_size}"] if len(sizes) > 1 and run.pool_size else []
        which = ", ".join([*pool, *size])
        variants.setdefault(f"{run.policy} ({which})" if which else run.policy, []).append(run)
    return variants


def score_name(measure: str, column: str) -> str:
    """A score for people: `ROUGE-L`, or `exact match, common prompt`."""
    name = MEASURES[measure].split(" (")[0]
    return name if column == "trained" else f"{name}, common prompt"


def _beside(measure: str, runs: Sequence[RunResult], notes: list[str]) -> list[tuple[str, str]]:
    """The (measure, column)s shown beside `measure`, as far as all the runs have them; notes say why not."""
    measures = shown_measures(measure)
    if measure in DRAWN:
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
        found = metric_intervals(runs, measure, definition, against, draws, column=column)
        known = [cell for cell in found.values() if cell.value is not None]
        row = Row(
            source="ours",
            model=runs[0].model,
            sequence=runs[0].sequence,
            method=runs[0].method,
            policy=policy,
            difference=against is not None,
            cells={name: None if cell.value is None else cell for name, cell in found.items()},
            n_examples=known[0].n if known else None,
            n_seeds=known[0].n_seeds if known else None,
            measure=measure,
            column=column,
            pool_size=runs[0].pool_size,
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
    runs: Sequence[RunResult], measure: str, definition: str, draws: int, paper: str | None
) -> list[str]:
    notes = []
    if any(run.demonstration for run in runs):
        notes += [DEMONSTRATION]
        notes += {"nll": [NLL_LEADS], "rougeL": [f"See NLL too: {COARSE}"]}.get(measure, [])
    notes.append(
        f"{MEASURES[measure]}, definition `{definition}`. `policy - {BASE}` rows are differences. "
        f"In brackets: 95 % intervals, {draws} paired bootstrap draws over the n test examples"
        + (
            " and seeds."
            if len({run.seed for run in runs}) > 1
            else " (one seed: they do not include seeds)."
        )
    )
    if measure in DRAWN:
        notes.append(LOWER_NOTE)
    if len({run.pool_size for run in runs if run.pool_size}) > 1:
        notes.append("K: paraphrases in the pool that a policy chooses from.")
    if paper:
        notes.append(
            f"Paper rows: arXiv 2606.01967, {PAPER[paper].title} (point values without intervals), "
            "marked * where model or sequence differ from ours: for orientation only."
        )
    else:
        notes.append("The paper's rows are left out: its tables hold ROUGE-L in the `reference` definition.")
    return notes


def _paper_row(values: Published) -> Row:
    names = ("paper", values.model, values.sequence, values.method, values.policy)
    return Row(*names, values.policy != BASE, values.cells)


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
