"""Tables: AP, BWT and FWT of policies and pools against `static`, chosen prompts, and wall time.

The paper's Tables 1, 2, 3, 10 and 11 are such tables; its rows stand beside ours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np
import pandas as pd

from sapo.analysis import results
from sapo.analysis.intervals import DRAWS, Interval, metric_intervals, resample_counts
from sapo.analysis.metrics import METRICS, check_definition, rounded
from sapo.analysis.published import BASE, PAPER, method_name, paper_csv, plain, published
from sapo.analysis.results import DRAWN, RunResult
from sapo.conf.errors import UserError
from sapo.conf.names import DIGEST
from sapo.data.prompts import ORIGINAL
from sapo.data.records import ChoiceRecord
from sapo.data.tasks import short_name

DEMONSTRATION = (
    "Demonstration on a small model or small generated data: not a reproduction of the paper's numbers."
)
COARSE = "at this size effects show in NLL that ROUGE-L is too coarse for."
NLL_LEADS = f"NLL leads: {COARSE}"
PAPER_LABEL = "paper: "
COUNTS = ("n_examples", "n_seeds", "pool_size")


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
        quantity = ("difference from " + self.lines["base"]).where(self.lines["difference"], "score")
        is_demo = (self.lines["source"] == "ours") & (DEMONSTRATION in self.notes)
        lines = self.lines.assign(quantity=quantity, definition=self.definition, demonstration=is_demo)
        rows = [
            {**vars(line[metric]), **line, "metric": metric}
            for line in lines.to_dict("records")
            for metric in METRICS
        ]
        return pd.DataFrame(rows).rename(columns={"value": "estimate"}).astype(dict.fromkeys(COUNTS, "Int64"))


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
    results.check_measure(measure)
    check_definition(definition)
    groups, settings = _merged(grouped(runs))
    differing = varying(runs)
    settings += list(differing)
    policies = {run.policy for run in runs}
    is_of_policies = not settings and any(len(run.tasks) > 1 for run in runs)
    with_paper = measure in DRAWN and definition == "reference" and is_of_policies
    if len(policies) > 1 or not settings:
        settings.append("policy")
    notes = [*_notes(runs, measure, definition, draws, differing)]
    if with_paper:
        notes.append(
            f"Paper rows: arXiv 2606.01967, {PAPER[paper][0]} (point values without intervals), "
            "marked * where model or sequence differ from ours: for orientation only."
        )
    elif is_of_policies:
        notes.append("The paper's rows are left out: its tables hold ROUGE-L in the `reference` definition.")
    lines: list[dict[str, Any]] = []
    for (model, sequence, method, parity), variants in groups.items():
        members = [run for variant in variants for run in variant.runs]
        title = [model, sequence, method, "" if parity in ("paper", "") else f"parity {parity}"]
        title += [] if "policy" in settings else policies
        theirs = published(paper, model, sequence, method) if with_paper else pd.DataFrame()
        for name, column in _scores(measure, members, notes):
            score = score_name(name, column) + " (lower is better)" * (name in results.LOWER_IS_BETTER)
            about: dict[str, Any] = {"group": " · ".join(filter(None, title)), "score": score}
            about |= {
                "measure": name,
                "tested_with": column,
                "is_first": (name, column) == (measure, "trained"),
            }
            lines += [about | line for line in _lines(variants, name, column, definition, draws, notes)]
            for row in theirs.to_dict("records") if (name, column) == ("rougeL", "trained") else ():
                cells = {metric: Interval(row[metric]) for metric in METRICS}
                base = "" if row["policy"] == BASE else BASE
                lines.append(about | row | cells | {"source": "paper", "base": base})
        if with_paper and theirs.empty:
            notes.append(f"The paper has no rows for {method}.")
    frame = pd.DataFrame(lines).astype(dict.fromkeys(COUNTS, "Int64"))
    frame["difference"] = frame["base"] != ""
    start = frame["source"].map({"ours": "", "paper": PAPER_LABEL})
    end = frame["elsewhere"].map({True: " *", False: ""})
    against = (" - " + frame["base"]).where(frame["difference"], "")
    frame["label"] = start + frame["policy"] + against + end
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
    """The variants of each model, sequence, method and parity: `static` first, else in the runs' order.

    Raises UserError if runs of one group train different tasks.
    """
    differing = varying(runs)
    values = dict(zip(runs, map(tuple, differing.to_numpy()), strict=True))
    keys = {run: (run.model, run.sequence, run.method, run.record.parity) for run in runs}
    shows_policy = differing.empty or len({run.policy for run in runs}) > 1
    found: dict[Group, dict[tuple[str, tuple[str, ...]], dict[str, list[RunResult]]]] = {}
    for run in sorted(runs, key=lambda run: (run.policy != BASE, run.pool_size or 0)):
        both = (next(other for other in runs if keys[other] == keys[run]), run)
        if both[0].tasks != run.tasks:
            trained = "; ".join(f"{each.id} {', '.join(map(short_name, each.tasks))}" for each in both)
            why = f"Runs that train different tasks cannot stand in one table: {trained}"
            raise UserError(f"{why}. Analyze them apart.")
        alike = [other for other in runs if (keys[other], other.policy) == (keys[run], run.policy)]
        are_several = [len(set(facts)) > 1 for facts in zip(*map(_pool_of, alike), strict=True)]
        which = ", ".join(filter(None, compress(_pool_of(run), are_several)))
        shown = [f"{run.policy} ({which})" if which else run.policy] if shows_policy or which else []
        pools = found.setdefault(keys[run], {}).setdefault((run.policy, values[run]), {})
        pools.setdefault(", ".join([*shown, *values[run]]), []).append(run)
    groups: dict[Group, list[Variant]] = {key: [] for key in found}
    for key, settings in found.items():
        for (policy, own), pools in settings.items():  # the sizes of a policy's pool stay together
            for label, members in pools.items():
                is_once = len({run.seed for run in members}) == len(members)
                # Of the same settings: other prompts, or rows.
                apart = [(f"{label}, {run.id[-DIGEST:]}", [run]) for run in members]
                each = [(label, members)] if is_once else apart
                groups[key] += [Variant(name, policy, own, same) for name, same in each]
    return groups


def _pool_of(run: RunResult) -> tuple[str, str]:
    """The name and size of the pool that a run read, for people."""
    name = run.record.pool.name if run.record.pool else "pool not recorded"
    return name, f"K={run.pool_size}" if run.pool_size else ""


def varying(runs: Sequence[RunResult]) -> pd.DataFrame:
    """The settings beside policy and pool that tell runs of a model and a method apart, but for seeds.

    A row a run, a column a setting, a dash where a run has none. What belongs to a policy, method or model
    differs as they do: it is named where they are the same.
    """
    limits = [f"data.{name}" for name in ("train_examples", "test_examples", *results.FRAME)]
    facts = pd.DataFrame([results.settings_of(run) for run in runs])
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
    is_apart = [
        facts[name].groupby(list(owners.get(name.partition(".")[0], [""] * len(runs)))).nunique().max() > 1
        for name in facts
    ]
    return facts.loc[:, is_apart].drop(columns=["policy.name", "method.name"], errors="ignore")


def _merged(groups: dict[Group, list[Variant]]) -> tuple[dict[Group, list[Variant]], list[str]]:
    """Groups of one variant each, which have nothing to be compared with, put together a sequence.

    Also returns what their variants then differ in.
    """
    runs = [run for variants in groups.values() for variant in variants for run in variant.runs]
    trained = {(run.sequence, run.tasks) for run in runs}
    is_alone = all(len(variants) == 1 for variants in groups.values())
    if len(groups) < 2 or not is_alone or len(trained) > len({sequence for sequence, _ in trained}):
        return groups, []
    apart = [place for place in (0, 2, 3) if len({key[place] for key in groups}) > 1]
    several_policies = len({variant.policy for (variant,) in groups.values()}) > 1
    found: dict[Group, list[Variant]] = {}
    for key, (variant,) in groups.items():
        own = [key[place] for place in apart]
        own += [variant.name] if variant.values or several_policies else []
        common = tuple("" if place in apart else part for place, part in enumerate(key))
        found.setdefault(common, []).append(replace(variant, name=", ".join(own)))  # type: ignore[arg-type]
    return found, [("model", "sequence", "method", "parity")[place] for place in apart]


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
    return results.measure_name(measure) + ("" if column == "trained" else ", common prompt")


def _scores(measure: str, runs: Sequence[RunResult], notes: list[str]) -> Iterator[tuple[str, str]]:
    """The (measure, column)s to show, as far as all the runs have them; `notes` say why not.

    `measure` by the prompts of training comes first, and its lines are made before anything is noted.
    """
    yield measure, "trained"
    measures = [name for name in results.shown_measures(measure) if all(run.has(name) for run in runs)]
    if measure in DRAWN and "rougeL" in measures:
        if reason := next(filter(None, map(results.why_no_labels, runs)), None):
            notes.append(f"Label match is not defined for {runs[0].sequence} ({reason}).")
        else:
            measures.append(results.LABELS)
            notes.append("Label match: 100 for an answer that names the right label and no other, else 0.")
    yield from ((name, "trained") for name in measures if name != measure)
    if without := [run.id for run in runs if not run.has_common]:
        notes.append(f"No common-prompt rows with {', '.join(without)}: tested with training prompts only.")
    elif any(map(results.tests_apart, runs)):
        notes.append("Common prompt: learned tasks are tested with their original instruction.")
        yield from ((name, "common") for name in measures)


def _lines(
    variants: Sequence[Variant], measure: str, column: str, definition: str, draws: int, notes: list[str]
) -> Iterator[dict[str, Any]]:
    """The first variant's scores, and each other's difference from its base."""
    for variant in variants:
        name, runs, base = variant.name, variant.runs, base_of(variant, variants)
        first, parity = runs[0], runs[0].record.parity
        if base:
            seeds, base_seeds = ({run.seed for run in side.runs} for side in (variant, base))
            where = f"({first.sequence}, {first.method})"
            if not seeds & base_seeds:
                notes.append(f"{name} {where}: scores, since it has no seed in common with {base.name}.")
                base = None
            elif apart := results.rows_apart([base.runs[0], *runs], measure):
                notes.append(
                    f"{name} {where}: scores, no difference from {base.name} ({apart}): a paired interval "
                    "needs the same test rows in one order, and for label match the same labels."
                )
                base = None
            elif seeds != base_seeds:
                notes.append(f"{name} - {base.name} {where}: over the seeds that both have.")
        cells = metric_intervals(runs, measure, definition, base.runs if base else None, draws, column=column)
        known = [cell for cell in cells.values() if cell.value is not None]
        yield {
            **{fact: getattr(first, fact) for fact in ("model", "sequence", "pool_size")},
            "method": first.method if parity == "paper" else f"{first.method}, parity {parity}",
            "source": "ours",
            "elsewhere": False,
            "policy": name,
            "base": base.name if base else "",
            **cells,
            "n_examples": known[0].n if known else None,
            "n_seeds": known[0].n_seeds if known else None,
        }
        if first.method in ("multitask", "single", "zero_shot"):
            notes.append(f"{first.method} has no states between the tasks: it has AP only.")
        elif len(known) < len(METRICS) and len(first.tasks) > 1:
            notes.append("A dash: not defined here (a state or task was not evaluated).")


def _notes(
    runs: Sequence[RunResult], measure: str, definition: str, draws: int, differing: pd.DataFrame
) -> Iterator[str]:
    """What holds for all rows of ours."""
    if any(run.demonstration for run in runs):
        yield DEMONSTRATION
        yield from {"nll": [NLL_LEADS], "rougeL": [f"See NLL too: {COARSE}"]}.get(measure, [])
    seeds = len({run.seed for run in runs}) > 1
    yield (
        f"{results.MEASURES[measure]}, definition `{definition}`. Rows `A - B` are differences. "
        f"In brackets: 95 % intervals, {draws} paired bootstrap draws over the n test examples"
        + (" and seeds." if seeds else " (one seed: they do not include seeds).")
    )
    yield from results.row_remarks(runs)
    if "test frame" in differing:
        of_frames = pd.Series([run.id for run in runs]).groupby(differing["test frame"])
        each = "; ".join(f"{frame} is that of {', '.join(ids)}" for frame, ids in of_frames)
        yield f"Test frame: a digest of instruction, suffix, separator, labels and test rows. {each}."
    if measure in DRAWN:
        yield (
            "NLL (nats per target token): lower is better, so that a negative difference in AP, BWT or FWT "
            "is a gain."
        )
    if len({run.pool_size for run in runs if run.pool_size}) > 1:
        yield "K: paraphrases in the pool that a policy chooses from."
    if len({run.model for run in runs}) > 1:
        yield "NLL is a target token's, and tokens are a model's own: compare models by other scores."


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
    points = long[
        ["group", "policy", "pool_size", "base", "metric", "estimate", "low", "high", "n", "n_seeds"]
    ]
    policies = long["policy"].str.replace(r", K=\d+(?=\))| \(K=\d+\)", "", regex=True)
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

    Columns: TIMING_COLUMNS. `source` is ours or paper, `low` and `high` are None for one task, `n_tasks` and
    `n_seeds` where the paper does not say.
    """
    rows: list[dict[str, Any]] = []
    left: dict[str, list[str]] = {}
    for (model, sequence, method, _), variants in grouped(runs).items():
        for variant in variants:
            base, pairs = base_of(variant, variants), []
            bases = {run.seed: run for run in base.runs} if base and base.policy == BASE else {}
            for run in (run for run in variant.runs if len(_seconds(run, "score"))):
                if run.seed not in bases:
                    left.setdefault(f"no {BASE} run has their seed", []).append(run.id)
                elif len(_hardware(bases[run.seed], run)) > 1:
                    why = f"they or their {BASE} run were computed on several kinds of hardware"
                    left.setdefault(why, []).append(run.id)
                else:
                    pairs.append((bases[run.seed], run))
            if pairs:
                names = {"model": model, "sequence": sequence, "method": method, "policy": variant.name}
                rows.append({"source": "ours", **names, **_times(pairs, draws)})
        paper = paper_csv("table10")
        paper = paper[paper["method"].map(plain) == plain(method_name(method))]
        hours = {"base_seconds": paper["base_hours"], "extra_seconds": paper["sapo_extra_hours"]}
        seconds = {name: of_paper * HOUR for name, of_paper in hours.items()}
        rows += paper.assign(source="paper", policy="sapo", **seconds).to_dict("records")
    frame = pd.DataFrame(rows, columns=TIMING_COLUMNS).drop_duplicates(ignore_index=True)
    warnings = [DEMONSTRATION] if any(run.demonstration for run in runs) else []
    warnings += [f"Left out, since {why}: {', '.join(ids)}." for why, ids in left.items()]
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
    low = high = None
    if (n_tasks := base.shape[1]) > 1:  # tasks are resampled within seeds
        rng, sums = np.random.default_rng(0), np.zeros((2, draws))
        for seconds in zip(base, extra, strict=True):
            sums += np.stack(seconds) @ resample_counts(n_tasks, draws, rng).T
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

    of_paper = PAPER_LABEL + frame["method"] + " *"
    overheads = [
        f"{row.overhead_percent:.1f} %" + ("" if pd.isna(row.low) else f" [{row.low:.1f}, {row.high:.1f}]")
        for row in frame.itertuples()
    ]
    return pd.DataFrame(
        {
            "Method": (frame["method"] + ", " + frame["policy"]).where(frame["source"] == "ours", of_paper),
            "Training": frame["base_seconds"].map(time),
            "Selection": frame["extra_seconds"].map(time),
            "Overhead": overheads,
            "Testing": frame["test_seconds"].map(time),
            "Tasks": count_texts(frame["n_tasks"]),
            "Seeds": count_texts(frame["n_seeds"]),
        }
    )
