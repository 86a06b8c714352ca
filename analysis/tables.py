"""Tables: AP, BWT and FWT of policies and pools against `static`, chosen prompts, and wall time.

The paper's Tables 1, 2, 3, 10 and 11 are such tables; its rows stand beside ours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from sapo.analysis.intervals import DRAWS, Interval, metric_intervals, resample_counts
from sapo.analysis.metrics import METRICS, check_definition, rounded
from sapo.analysis.published import BASE, PAPER, paper_csv, plain, published
from sapo.analysis.results import (
    DRAWN,
    FRAME,
    LABELS,
    LOWER_IS_BETTER,
    MEASURES,
    RunResult,
    check_measure,
    measure_name,
    row_remarks,
    rows_apart,
    settings_of,
    shown_measures,
    tests_apart,
    why_no_labels,
)
from sapo.conf.errors import UserError
from sapo.conf.names import DIGEST
from sapo.data.prompts import ORIGINAL
from sapo.data.records import ChoiceRecord
from sapo.data.tasks import short_name

DEMONSTRATION = (
    "Demonstration on a small model or small generated data: not a reproduction of the paper's numbers."
)
LOWER_NOTE = (
    "NLL (nats per target token): lower is better, so that a negative difference in AP, BWT or FWT is a gain."
)
COARSE = "at this size effects show in NLL that ROUGE-L is too coarse for."
NLL_LEADS = f"NLL leads: {COARSE}"
BOUNDS = ("multitask", "single", "zero_shot")  # have no states between the first and the last
PAPER_LABEL = "paper: "


@dataclass(frozen=True)
class ScoreTable:
    """AP, BWT and FWT of policies, with all that a reader needs to know about the numbers.

    `lines` has a row a line; lines of one model, sequence and method (`group`) stand together, score by
    score, the one asked for first (`is_first`). Columns: `group`, `source` (ours, paper), `model`,
    `sequence`, `method` (with its parity where that is not the paper's), `policy` (the variant's name),
    `base` (what it is compared with, or empty), `difference` (whether it is), `label` (of policy, base and
    source), `score`, `measure`, `tested_with` (the prompt of learned tasks), an Interval for each of METRICS,
    `n_examples` (distinct test rows), `n_seeds`, `pool_size` (paraphrases), and `elsewhere` (the paper's row
    is of another model or sequence). `settings` are those that tell variants apart: `policy`, or others.
    """

    lines: pd.DataFrame
    measure: str
    definition: str
    notes: tuple[str, ...]
    settings: tuple[str, ...] = ("policy",)

    @property
    def metrics(self) -> list[str]:
        """Those of METRICS that some run of ours can have: of one task there is AP alone."""
        ours = self.lines[self.lines["source"] == "ours"]
        return [name for name in METRICS if any(cell.value is not None for cell in ours[name])] or ["AP"]

    def long(self) -> pd.DataFrame:
        """A row a line and metric: `estimate`, `low` and `high` of `metric`, over `n` test rows."""
        names = [name for name in self.lines if name not in METRICS]
        long = self.lines.melt(names, list(METRICS), "metric", "interval", ignore_index=False)
        long = long.sort_index(kind="stable")
        parts = {"estimate": "value", "low": "low", "high": "high", "n": "n"}
        for name, part in parts.items():
            long[name] = [getattr(interval, part) for interval in long["interval"]]
        long["quantity"] = ("difference from " + long["base"]).where(long["difference"], "score")
        is_ours = long["source"] == "ours"
        return long.assign(definition=self.definition, demonstration=is_ours & (DEMONSTRATION in self.notes))


def score_table(
    runs: Sequence[RunResult],
    measure: str = "rougeL",
    definition: str = "reference",
    draws: int = DRAWS,
    paper: str = "table1",
) -> ScoreTable:
    """The runs by variant, and where they differ in policies alone beside the paper's table `paper`.

    Where test rows differ there are scores, and no differences. Raises UserError if runs that would stand
    together train different tasks.
    """
    check_measure(measure)
    check_definition(definition)
    groups, settings = _merged(grouped(runs))
    settings += varying(runs)
    policies = {run.policy for run in runs}
    is_of_policies = not settings and any(len(run.tasks) > 1 for run in runs)
    with_paper = measure in DRAWN and definition == "reference" and is_of_policies
    if len(policies) > 1 or not settings:
        settings.append("policy")
    notes = _notes(runs, settings, measure, definition, draws, paper * with_paper, is_of_policies)
    lines: list[dict[str, Any]] = []
    for (model, sequence, method, parity), variants in groups.items():
        members = [run for variant in variants for run in variant.runs]
        _require_same_tasks(members)
        title = [model, sequence, method, "" if parity in ("paper", "") else f"parity {parity}"]
        title += [] if "policy" in settings else policies
        group = {"group": " · ".join(filter(None, title))}
        theirs = published(paper, model, sequence, method) if with_paper else []
        for score in _scores(measure, members, notes):
            lines += [group | line for line in _lines(variants, *score, definition, draws, notes)]
            lines += [
                {
                    **group,
                    "source": "paper",
                    **{name: getattr(row, name) for name in ("model", "sequence", "method", "policy")},
                    "elsewhere": (plain(row.model), plain(row.sequence)) != (plain(model), plain(sequence)),
                    "difference": row.policy != BASE,
                    "base": "" if row.policy == BASE else BASE,
                    **{metric: Interval(row.cells.get(metric)) for metric in METRICS},
                    **dict(zip(("measure", "tested_with"), score, strict=True)),
                }
                for row in (theirs if score == ("rougeL", "trained") else ())
            ]
        if with_paper and not theirs:
            notes.append(f"The paper has no rows for {method}.")
    frame = pd.DataFrame(lines).astype(dict.fromkeys(("n_examples", "n_seeds", "pool_size"), "Int64"))
    frame["is_first"] = (frame["measure"] == measure) & (frame["tested_with"] == "trained")
    frame["score"] = [
        score_name(name, column) + (" (lower is better)" if name in LOWER_IS_BETTER else "")
        for name, column in zip(frame["measure"], frame["tested_with"], strict=True)
    ]
    frame["label"] = (
        frame["source"].map({"ours": "", "paper": PAPER_LABEL})
        + frame["policy"]
        + (" - " + frame["base"]).where(frame["difference"], "")
        + frame["elsewhere"].map({True: " *", False: ""})
    )
    return ScoreTable(frame, measure, definition, tuple(dict.fromkeys(notes)), tuple(settings))


@dataclass(frozen=True, eq=False)
class Variant:
    """The runs of one group that differ in nothing but the seed.

    `name` is made of what tells them from the others: policy, with its pool where several are compared
    (`sapo (terse)`, `sapo (K=10)`), and `values`, those of the other settings that differ.
    """

    name: str
    policy: str
    values: tuple[str, ...]
    runs: list[RunResult]


Group = tuple[str, str, str, str]  # model, sequence, method, parity; empty where its variants differ in it


def grouped(runs: Sequence[RunResult]) -> dict[Group, list[Variant]]:
    """The variants of each model, sequence, method and parity: `static` first, else in the runs' order."""
    settings = varying(runs)
    shows_policy = not settings or len({run.policy for run in runs}) > 1
    found: dict[Group, dict[tuple[str, tuple[str, ...]], list[RunResult]]] = {}
    for run in sorted(runs, key=lambda run: (run.policy != BASE, run.pool_size or 0)):
        facts = settings_of(run) if settings else {}
        values = tuple(facts.get(name, "-") for name in settings)
        key = (run.model, run.sequence, run.method, run.record.parity)
        found.setdefault(key, {}).setdefault((run.policy, values), []).append(run)
    groups: dict[Group, list[Variant]] = {}
    for key, variants in found.items():
        for (policy, values), members in variants.items():
            alike = [run for (other, _), those in variants.items() if other == policy for run in those]
            several_names, several_sizes = (
                len(set(each)) > 1 for each in (map(_pool_name, alike), (run.pool_size for run in alike))
            )
            apart: dict[str, list[RunResult]] = {}
            for run in members:
                size = f"K={run.pool_size}" if several_sizes and run.pool_size else ""
                which = ", ".join(filter(None, [_pool_name(run) if several_names else "", size]))
                name = f"{policy} ({which})" if which else policy
                shown = [name] if shows_policy or which else []
                apart.setdefault(", ".join([*shown, *values]), []).append(run)
            for name, those in apart.items():
                is_once = len({run.seed for run in those}) == len(those)
                # Of the same settings: other prompts, or rows.
                each = [(name, those)] if is_once else [(f"{name}, {r.id[-DIGEST:]}", [r]) for r in those]
                groups.setdefault(key, []).extend(Variant(n, policy, values, own) for n, own in each)
    return groups


def varying(runs: Sequence[RunResult]) -> list[str]:
    """The settings beside policy and pool that tell runs of a model and a method apart, but for seeds.

    What belongs to a policy, method or model differs as they do: it is named where they are the same.
    """
    limits = [f"data.{name}" for name in ("train_examples", "test_examples", *FRAME)]
    facts = pd.DataFrame([settings_of(run) for run in runs])
    if not all(run.test_rows for run in runs):  # older runs: the frame, which covers rows, stands for both
        facts["test rows"] = "-"
    columns = facts.columns.union([*limits, "test rows"], sort=False)
    facts = facts.fillna("-").reindex(columns=columns, fill_value="-")
    owners: dict[str, Any] = {n: [getattr(run, n) for run in runs] for n in ("model", "method", "policy")}
    trained, tested, *frame = (facts[name] for name in limits)
    sequences = pd.Series([run.sequence for run in runs])
    owners["training rows"] = sequences + [f" {run.seed} " for run in runs] + trained
    owners["test rows"] = sequences + " " + tested
    owners["test frame"] = [*map(str, zip(owners["test rows"], facts["test rows"], *frame, strict=True))]
    found = []
    for name in facts.drop(columns=["policy.name", "method.name"], errors="ignore"):
        owner = owners.get(name.partition(".")[0], [""] * len(runs))
        if facts[name].groupby(list(owner)).nunique().max() > 1:
            found.append(name)
    return found


def _pool_name(run: RunResult) -> str:
    return run.record.pool.name if run.record.pool else "pool not recorded"


def _merged(groups: dict[Group, list[Variant]]) -> tuple[dict[Group, list[Variant]], list[str]]:
    """Groups of one variant each, which have nothing to be compared with, put together a sequence.

    Also returns what their variants then differ in.
    """
    runs = [run for variants in groups.values() for variant in variants for run in variant.runs]
    trained = {(run.sequence, run.tasks) for run in runs}
    is_alone = all(len(variants) == 1 for variants in groups.values())
    if len(groups) < 2 or not is_alone or len(trained) > len({sequence for sequence, _ in trained}):
        return groups, []
    names = ("model", "sequence", "method", "parity")
    apart = [place for place in (0, 2, 3) if len({key[place] for key in groups}) > 1]
    found: dict[Group, list[Variant]] = {}
    for key, (variant,) in groups.items():
        own = [key[place] for place in apart]
        is_told = variant.values or len({other.policy for (other,) in groups.values()}) > 1
        name = ", ".join([*own, *([variant.name] if is_told else [])])
        common = tuple("" if place in apart else part for place, part in enumerate(key))
        found.setdefault(common, []).append(replace(variant, name=name))  # type: ignore[arg-type]
    return found, [names[place] for place in apart]


def _require_same_tasks(runs: Sequence[RunResult]) -> None:
    for other in runs[1:]:
        if other.tasks != runs[0].tasks:
            both = (f"{run.id} {', '.join(map(short_name, run.tasks))}" for run in (runs[0], other))
            raise UserError(
                f"Runs that train different tasks cannot stand in one table: {'; '.join(both)}. "
                "Analyze them apart."
            )


def base_of(variant: Variant, variants: Sequence[Variant]) -> Variant | None:
    """What a variant is compared with: `static` of the same settings, else the first; None for the first."""
    static = [each for each in variants if each.policy == BASE] or list(variants)
    if variant.policy != BASE:
        static = [each for each in static if each.values == variant.values] or static
    return next((base for base in (static[0], variants[0]) if variant not in (base, variants[0])), None)


def count_texts(counts: pd.Series) -> list[str]:
    """Counts as texts, a dash where there is none."""
    return ["-" if pd.isna(count) else str(int(count)) for count in counts]


def score_name(measure: str, column: str) -> str:
    """A score for people: `ROUGE-L`, or `exact match, common prompt`."""
    name = measure_name(measure)
    return name if column == "trained" else f"{name}, common prompt"


def _scores(measure: str, runs: Sequence[RunResult], notes: list[str]) -> Iterator[tuple[str, str]]:
    """The (measure, column)s to show, as far as all the runs have them; `notes` say why not.

    `measure` by the prompts of training comes first, and its lines are made before anything is noted.
    """
    yield measure, "trained"
    measures = [name for name in shown_measures(measure) if all(run.has(name) for run in runs)]
    if measure in DRAWN and "rougeL" in measures:
        reason = next(filter(None, map(why_no_labels, runs)), None)
        if reason:
            notes.append(f"Label match is not defined for {runs[0].sequence} ({reason}).")
        else:
            measures.append(LABELS)
            notes.append("Label match: 100 for an answer that names the right label and no other, else 0.")
    scores = [(name, "trained") for name in measures if name != measure]
    without = [run.id for run in runs if not run.has_common]
    if without:
        notes.append(f"No common-prompt rows with {', '.join(without)}: tested with training prompts only.")
    elif any(map(tests_apart, runs)):
        scores += [(name, "common") for name in measures]
        notes.append("Common prompt: learned tasks are tested with their original instruction.")
    yield from scores


def _lines(
    variants: Sequence[Variant],
    measure: str,
    column: str,
    definition: str,
    draws: int,
    notes: list[str],
) -> Iterator[dict[str, Any]]:
    """The first variant's scores, and each other's difference from its base."""
    for variant in variants:
        name, runs, base = variant.name, variant.runs, base_of(variant, variants)
        if base:
            seeds, base_seeds = ({run.seed for run in side.runs} for side in (variant, base))
            where = f"({runs[0].sequence}, {runs[0].method})"
            if not seeds & base_seeds:
                notes.append(f"{name} {where}: scores, since it has no seed in common with {base.name}.")
                base = None
            elif apart := rows_apart([base.runs[0], *runs], measure):
                notes.append(
                    f"{name} {where}: scores, no difference from {base.name} ({apart}): a paired interval "
                    "needs the same test rows in one order, and for label match the same labels."
                )
                base = None
            elif seeds != base_seeds:
                notes.append(f"{name} - {base.name} {where}: over the seeds that both have.")
        cells = metric_intervals(runs, measure, definition, base.runs if base else None, draws, column=column)
        known = [cell for cell in cells.values() if cell.value is not None]
        parity = runs[0].record.parity
        yield {
            "source": "ours",
            "model": runs[0].model,
            "sequence": runs[0].sequence,
            "method": runs[0].method if parity == "paper" else f"{runs[0].method}, parity {parity}",
            "elsewhere": False,
            "policy": name,
            "base": base.name if base else "",
            "difference": base is not None,
            **cells,
            "n_examples": known[0].n if known else None,
            "n_seeds": known[0].n_seeds if known else None,
            "measure": measure,
            "tested_with": column,
            "pool_size": runs[0].pool_size,
        }
        if runs[0].method in BOUNDS:
            notes.append(f"{runs[0].method} has no states between the tasks: it has AP only.")
        elif len(known) < len(METRICS) and len(runs[0].tasks) > 1:
            notes.append("A dash: not defined here (a state or task was not evaluated).")


def _notes(
    runs: Sequence[RunResult],
    settings: Sequence[str],
    measure: str,
    definition: str,
    draws: int,
    paper: str,
    is_like_paper: bool,
) -> list[str]:
    notes = []
    if any(run.demonstration for run in runs):
        notes += [DEMONSTRATION]
        notes += {"nll": [NLL_LEADS], "rougeL": [f"See NLL too: {COARSE}"]}.get(measure, [])
    seeds = len({run.seed for run in runs}) > 1
    notes.append(
        f"{MEASURES[measure]}, definition `{definition}`. Rows `A - B` are differences. "
        f"In brackets: 95 % intervals, {draws} paired bootstrap draws over the n test examples"
        + (" and seeds." if seeds else " (one seed: they do not include seeds).")
    )
    notes += row_remarks(runs)
    if "test frame" in settings:
        of_frames = pd.Series([run.id for run in runs]).groupby([settings_of(r)["test frame"] for r in runs])
        each = "; ".join(f"{frame} is that of {', '.join(ids)}" for frame, ids in of_frames)
        notes.append(f"Test frame: a digest of instruction, suffix, separator, labels and test rows. {each}.")
    if measure in DRAWN:
        notes.append(LOWER_NOTE)
    if len({run.pool_size for run in runs if run.pool_size}) > 1:
        notes.append("K: paraphrases in the pool that a policy chooses from.")
    if len({run.model for run in runs}) > 1:
        notes.append("NLL is a target token's, and tokens are a model's own: compare models by other scores.")
    if paper:
        notes.append(
            f"Paper rows: arXiv 2606.01967, {PAPER[paper].title} (point values without intervals), "
            "marked * where model or sequence differ from ours: for orientation only."
        )
    elif is_like_paper:
        notes.append("The paper's rows are left out: its tables hold ROUGE-L in the `reference` definition.")
    return notes


def chosen_prompts(runs: Sequence[RunResult]) -> pd.DataFrame:
    """The prompt each task was trained with: run, task, index, its pre-update loss and the original's, text.

    Losses are None for a policy that does not score, or where the original was no candidate or lost a race.
    """
    rows = []
    for run in runs:
        for choice in run.record.choices:
            losses = comparable_losses(choice)
            own, original = losses.get(choice.index), losses.get(ORIGINAL)
            rows.append((run.id, choice.task, choice.index, own, original, choice.text))
    return pd.DataFrame(rows, columns=["run", "task", "index", "loss", "original_loss", "text"], dtype=object)


def comparable_losses(choice: ChoiceRecord) -> dict[int, float]:
    """The losses of a choice's candidates by index, without those that a race read on fewer examples."""
    candidates = choice.candidates or ()
    most = max((candidate.n_examples for candidate in candidates), default=0)
    return {candidate.index: candidate.loss for candidate in candidates if candidate.n_examples == most}


# --- the size of the pool (Figure 15) ----------------------------------------------------------------------


def size_points(table: ScoreTable, measure: str) -> pd.DataFrame:
    """A row for each group, policy, pool size and metric of `measure`: difference from `base`, interval.

    Empty where no policy of the table reads a pool, or none has another to be compared with.
    """
    long = table.long()
    long = long[long["pool_size"].notna() & (long["measure"] == measure) & (long["tested_with"] == "trained")]
    long = long[long["estimate"].notna() & long["difference"]]
    # `sapo` of `sapo (K=10)`, and `sapo (terse)` of `sapo (terse, K=10)`: pools keep a line each.
    policies = [
        policy.replace(f" (K={size})", "").replace(f", K={size})", ")")
        for policy, size in zip(long["policy"], long["pool_size"], strict=True)
    ]
    points = long[
        ["group", "policy", "pool_size", "base", "metric", "estimate", "low", "high", "n", "n_seeds"]
    ]
    points = points.assign(policy=policies).rename(columns={"n": "n_examples"})
    return points.astype({"pool_size": int}).reset_index(drop=True)


# --- wall time (Table 10) ----------------------------------------------------------------------------------

HOUR = 3600.0
TIMING_COLUMNS = (
    *("source", "model", "sequence", "hardware", "method", "policy", "base_seconds", "extra_seconds"),
    *("overhead_percent", "low", "high", "test_seconds", "n_tasks", "n_seeds"),
)
TIMING_NOTE = (
    "Training: the trainings of `static`, which selects nothing. Selection: what scoring the candidates took "
    "in the policy's run of the same seed. Both in wall time as measured when a stage was computed, without "
    "loading the model; means over seeds. Overhead: selection over training; in brackets its 95 % interval, "
    "bootstrap over tasks within each seed."
)


def timings(runs: Sequence[RunResult], draws: int = DRAWS) -> tuple[pd.DataFrame, list[str], list[str]]:
    """A row for each method and policy that scores candidates, the paper's rows after ours; warnings; notes.

    Columns: `source` (ours, paper), `model`, `sequence`, `hardware`, `method`, `policy`, `base_seconds`,
    `extra_seconds`, `overhead_percent` with `low` and `high` (None for one task), `test_seconds`, `n_tasks`
    and `n_seeds` (None where the paper does not say).
    """
    rows: list[dict[str, Any]] = []
    warnings = [DEMONSTRATION] if any(run.demonstration for run in runs) else []
    for (model, sequence, method, _), variants in grouped(runs).items():
        for variant in variants:
            policy, base = variant.name, base_of(variant, variants)
            bases = {run.seed: run for run in base.runs} if base and base.policy == BASE else {}
            scored = [run for run in variant.runs if len(_seconds(run, "score"))]
            alone = [run.id for run in scored if run.seed not in bases]
            pairs = [(bases[run.seed], run) for run in scored if run.seed in bases]
            mixed = [run.id for base, run in pairs if len(_hardware(base, run)) > 1]
            for left, reason in (
                (alone, f"no {BASE} run has their seed"),
                (mixed, f"they or their {BASE} run were computed on several kinds of hardware"),
            ):
                warnings += [f"Left out, since {reason}: {', '.join(left)}."] if left else []
            pairs = [(base, run) for base, run in pairs if run.id not in mixed]
            if pairs:
                names = {"model": model, "sequence": sequence, "method": method, "policy": policy}
                rows.append({"source": "ours", **names, **_times(pairs, draws)})
        paper = paper_csv("table10")
        paper = paper[paper["method"].map(plain) == plain(method.partition(" (")[0])]
        seconds = {
            "base_seconds": paper["base_hours"] * HOUR,
            "extra_seconds": paper["sapo_extra_hours"] * HOUR,
        }
        rows += paper.assign(source="paper", policy="sapo", **seconds).to_dict("records")
    frame = pd.DataFrame(rows, columns=TIMING_COLUMNS).drop_duplicates(ignore_index=True)
    if "ours" not in set(frame["source"]):
        warnings.append("No run here has both a scoring policy's times and those of a `static` run.")
    hardware = "; ".join(sorted({device for run in runs for device in run.devices()}))
    where = f"Hardware: {hardware}. The paper's: 8x H20, marked *: another setting than ours."
    return frame, warnings, [TIMING_NOTE, where]


def _hardware(base: RunResult, run: RunResult) -> set[str]:
    """What the times of a pair were measured on: the base's trainings, the other's scorings and tests."""
    return base.devices("train") | run.devices("score", "evaluate")


def _seconds(run: RunResult, kind: str) -> pd.Series:
    """Seconds of the run's stages of a kind, by task."""
    stages = [(stage.task, stage.seconds) for stage in run.record.stages if stage.kind == kind]
    return pd.DataFrame(stages, columns=["task", "seconds"]).groupby("task")["seconds"].sum()


def _times(pairs: Sequence[tuple[RunResult, RunResult]], draws: int) -> dict[str, object]:
    """The times of (static run, scoring run) pairs of equal seed."""
    trained = pd.DataFrame([_seconds(static, "train") for static, _ in pairs])
    scored = pd.DataFrame([_seconds(run, "score") for _, run in pairs]).reindex(columns=trained.columns)
    base, extra = (seconds.fillna(0.0).to_numpy() for seconds in (trained, scored))
    n_tasks = base.shape[1]
    low = high = None
    if n_tasks > 1:  # tasks are resampled within seeds
        rng = np.random.default_rng(0)
        sums = np.zeros((2, draws))
        for seconds in zip(base, extra, strict=True):
            counts = resample_counts(n_tasks, draws, rng)
            sums += np.stack([counts @ side for side in seconds])
        low, high = map(rounded, np.percentile(100 * sums[1] / sums[0], [2.5, 97.5]))
    return {
        "hardware": "; ".join(sorted(_hardware(*pairs[0]))),
        "base_seconds": rounded(base.sum() / len(pairs)),
        "extra_seconds": rounded(extra.sum() / len(pairs)),
        "overhead_percent": rounded(100 * extra.sum() / base.sum()),
        "low": low,
        "high": high,
        "test_seconds": rounded(float(np.mean([_seconds(static, "evaluate").sum() for static, _ in pairs]))),
        "n_tasks": n_tasks,
        "n_seeds": len(pairs),
    }


def timing_text(frame: pd.DataFrame) -> pd.DataFrame:
    """The table of `timings` for people: a row a method and policy, times with their units."""

    def time(seconds: float) -> str:
        if pd.isna(seconds):
            return "-"
        return f"{seconds / HOUR:.2f} h" if seconds >= 0.1 * HOUR else f"{seconds:.1f} s"

    def overhead(row: Any) -> str:
        bounds = "" if pd.isna(row.low) else f" [{row.low:.1f}, {row.high:.1f}]"
        return f"{row.overhead_percent:.1f} %{bounds}"

    is_ours = frame["source"] == "ours"
    return pd.DataFrame(
        {
            "Method": (frame["method"] + ", " + frame["policy"]).where(
                is_ours, PAPER_LABEL + frame["method"] + " *"
            ),
            "Training": frame["base_seconds"].map(time),
            "Selection": frame["extra_seconds"].map(time),
            "Overhead": [overhead(row) for row in frame.itertuples()],
            "Testing": frame["test_seconds"].map(time),
            "Tasks": count_texts(frame["n_tasks"]),
            "Seeds": count_texts(frame["n_seeds"]),
        }
    )
