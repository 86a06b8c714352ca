"""What a probe says, in numbers: spreads of scores over prompts, indicators before training, gradients."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import comb

import numpy as np
import pandas as pd
import textstat

from sapo.analysis import intervals
from sapo.analysis.intervals import Array, Interval, interval_of, jackknife_interval, mean_interval, nan_mean
from sapo.analysis.probes.results import ProbeResult, sign_of
from sapo.analysis.results import row_numbers
from sapo.data.losses import prompt_losses
from sapo.data.prompts import ORIGINAL

# --- how much a prompt moves its own task, and the others (Figures 1, 5, 6) --------------------------------

SPREAD_TEST = (
    "Brown-Forsythe deviations |score - median| / mean of each task, the current task permuted within each "
    f"prompt ({intervals.PERMUTATIONS} permutations, two-sided; over prompts, for these tasks); where the "
    "other tasks differ in spread it errs to the safe side (simulated with 12 prompts: at p = 0.05 it is "
    "wrong in less than 2 % of cases)"
)


@dataclass(frozen=True)
class Spread:
    """Effects of the prompts of one probe in one measure.

    `changes`: relative change (%) against the original prompt, prompts x tasks, NaN for the tasks named in
    `no_change`. `variation`: coefficient of variation (%) of each task. `in_task`, `cross_task` (mean over
    the other tasks) and `ratio` (cross-task over in-task) are of the same coefficients.
    """

    probe: ProbeResult
    measure: str
    changes: pd.DataFrame
    no_change: dict[str, str]
    variation: dict[str, Interval]
    in_task: Interval
    cross_task: Interval
    ratio: Interval
    p: float | None
    why_no_p: str | None


def spread(probe: ProbeResult, measure: str) -> Spread:
    """The spread of a probe's final scores over its prompts, in-task against cross-task."""
    scores = probe.outcomes(measure)
    changes, no_change = relative_changes(scores)
    variation = {}
    for task, column in scores.items():
        reason = _missing(column)
        if len(column) < intervals.FEWEST_PROMPTS:
            reason = reason or f"{len(column)} prompts: a spread needs {intervals.FEWEST_PROMPTS} or more"
        if not reason and column.mean() == 0:
            reason = "0 under every prompt"
        rows = column.to_numpy(dtype=float)[:, None]
        missing = Interval(None, n=len(rows), reason=reason)
        variation[task] = missing if reason else jackknife_interval(rows, mean_variation)
    in_task = variation[probe.current]
    usable = [task for task in probe.others if variation[task].value is not None]
    reason = (in_task if usable else variation[probe.trained]).reason or "no other task has a spread"
    p: float | None = None
    why_no_p: str | None = reason
    cross = ratio = Interval(None, n=len(scores), reason=reason)
    if usable and in_task.value is not None:
        table = scores[[probe.current, *usable]].to_numpy(dtype=float)
        cross, ratio = jackknife_interval(table[:, 1:], mean_variation), jackknife_interval(table, ratio_of)
        if ratio.value is None:
            ratio = replace(ratio, reason="no in-task spread to divide by")
        p = spread_test(table)
        why_no_p = None if p is not None else "the scores do not vary"
    return Spread(probe, measure, changes, no_change, variation, in_task, cross, ratio, p, why_no_p)


def relative_changes(scores: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """100 * (score - original) / original, prompts x tasks; NaN, with a reason a task, where undefined."""
    original = scores.loc[ORIGINAL]
    reasons = {task: "0 under the original prompt" for task in scores if original[task] == 0}
    reasons |= {task: reason for task in scores if (reason := _missing(scores[task]))}
    changes = 100 * (scores - original) / original.abs().replace(0, np.nan)
    changes[list(reasons)] = np.nan
    return changes, reasons


def _missing(column: pd.Series) -> str | None:
    missing = [str(index) for index in column.index[column.isna()]]
    return f"not evaluated for prompt {', '.join(missing)}" if missing else None


def variation_of(rows: Array) -> Array:
    """Coefficient of variation (%) of the columns (... x n x k -> ... x k), NaN where the mean is 0."""
    mean = np.abs(rows.mean(axis=-2))
    deviation = np.where(
        intervals.is_constant(rows), 0.0, rows.std(axis=-2, ddof=1)
    )  # without the noise of rounding
    return 100 * deviation / np.where(mean > 0, mean, np.nan)


def mean_variation(rows: Array) -> Array:
    """Mean coefficient of variation (%) over the columns (... x n x k -> ...)."""
    return variation_of(rows).mean(axis=-1)


def ratio_of(rows: Array) -> Array:
    """Mean variation of the columns but the first over that of the first (... x n x k -> ...)."""
    in_task = variation_of(rows)[..., 0]
    return mean_variation(rows[..., 1:]) / np.where(in_task > 0, in_task, np.nan)


def spread_test(table: Array, permutations: int = intervals.PERMUTATIONS) -> float | None:
    """p that the first column (in-task) spreads as the others do; rows are prompts, paired over columns.

    Deviations from the column's median (Brown & Forsythe 1974, J. Am. Stat. Assoc. 69:364) over the column's
    mean are compared by their mean difference, in-task minus the mean of the others. If the relative
    deviations of a prompt are exchangeable over tasks, any of its columns could be the in-task one: the
    column is drawn anew for each prompt (a permutation test in randomized blocks, Good 2005, ch. 6). With
    one other column this is the sign-flip test of paired differences. None where nothing varies.
    """
    deviations = np.abs(table - np.median(table, axis=0)) / np.abs(table.mean(axis=0))
    n, k = deviations.shape
    if np.ptp(deviations) <= 1e-12:
        return None
    chosen = np.random.default_rng(0).integers(k, size=(permutations, n))
    in_task = deviations[np.arange(n), chosen]
    cross = (deviations.sum(axis=1) - in_task) / (k - 1)
    observed = abs(deviations[:, 0].mean() - deviations[:, 1:].mean())
    return intervals.permutation_p(observed, np.abs((in_task - cross).mean(axis=1)))


def change_rows(result: Spread) -> pd.DataFrame:
    """The points of the figure: a row per task and prompt, with the score and why a change is missing."""
    probe = result.probe
    scores = probe.outcomes(result.measure).reset_index().melt("prompt", var_name="task")
    return pd.DataFrame(
        {
            "task": scores["task"],
            "role": scores["task"].map(probe.role),
            "prompt": scores["prompt"],
            "measure": result.measure,
            "score": scores["value"],
            "relative_change_percent": result.changes.melt()["value"],
            "pre_update_loss": scores["prompt"].map(probe.pre_update_losses()),
            "reason": scores["task"].map(result.no_change),
        }
    )


# --- which prompt will be good? (Figures 3, 11-14) ---------------------------------------------------------

INDICATORS = {
    "exact_match": "mean exact match (0-100) of greedy answers to the scored examples",
    "rougeL": "mean ROUGE-L (0-100) of greedy answers to the scored examples",
    "-loss": "minus the loss that SAPO ranks by: total target NLL over total target tokens (nats), where "
    "scorer.reduction does not say otherwise",
    "-loss_variance": "minus the sample variance over examples of their mean NLL per target token",
    "-entropy": "minus the mean entropy (nats) of the next-token distributions over all target positions",
    "-entropy_variance": "minus the sample variance over examples of their mean entropy per target token",
    "sum_log_prob": "mean over examples of the sum of the target's log-probabilities (nats)",
    "words": "words of the prompt (textstat.lexicon_count)",
    "flesch_kincaid": "Flesch-Kincaid grade of the prompt (textstat, English)",
    "syllables": "syllables of the prompt (textstat, English)",
}


def indicators_of(probe: ProbeResult) -> pd.DataFrame:
    """Prompts x INDICATORS, all measured before the current task is trained; NaN = not defined."""
    losses = probe.losses.assign(
        loss=probe.losses["nll"] / probe.losses["n_tokens"],
        mean_entropy=probe.losses["entropy"] / probe.losses["n_tokens"],
    ).groupby("prompt")
    sums = losses[["entropy", "n_tokens"]].sum()
    answers = probe.answers.groupby("prompt")[["exact_match", "rougeL"]].mean()
    texts = pd.Series(probe.prompts)
    columns = {
        "exact_match": answers["exact_match"],
        "rougeL": answers["rougeL"],
        "-loss": -probe.pre_update_losses(),
        "-loss_variance": -losses["loss"].var(),
        "-entropy": -sums["entropy"] / sums["n_tokens"],
        "-entropy_variance": -losses["mean_entropy"].var(),
        "sum_log_prob": -losses["nll"].mean(),
        "words": texts.map(textstat.lexicon_count),
        "flesch_kincaid": texts.map(textstat.flesch_kincaid_grade),
        "syllables": texts.map(textstat.syllable_count),
    }
    return pd.DataFrame(columns).astype(float).sort_index().rename_axis("prompt")


@dataclass(frozen=True)
class Power:
    """How one indicator goes with the scores after training, over the prompts of one probe or over pairs.

    `cells` are the coefficients for each task that is not current or, over the pairs of a report, the means
    of each pair's probes; `mean` is over those defined.
    """

    pair: str
    measure: str
    indicator: str
    coefficient: str
    cells: dict[str, Interval]
    mean: Interval

    @property
    def points(self) -> dict[str, float]:
        """The coefficients that are defined, by task or pair."""
        return {name: cell.value for name, cell in self.cells.items() if cell.value is not None}


def powers(probe: ProbeResult, measure: str) -> list[Power]:
    """Every indicator of a probe, but those that no prompt has, and every coefficient.

    Scores where lower is better are flipped: up is good.
    """
    table, scores = indicators_of(probe).dropna(axis="columns", how="all"), probe.good(measure)
    # A column with gaps is not correlated (the reason is given below); 0 makes it one without variance.
    rows = np.column_stack([table, scores]).astype(float)
    rows[:, np.isnan(rows).any(axis=0)] = 0.0
    stack, n, k = np.concatenate([rows[None], intervals.resampled(rows)]), len(rows), table.shape[1]
    found = []
    for coefficient in intervals.COEFFICIENTS:
        correlations = intervals.column_correlations(stack[..., :k], stack[..., k:], coefficient)
        for place, indicator in enumerate(table):
            values, draws = correlations[0, place], correlations[1:, place]
            reasons = [intervals.why_undefined(table[indicator], scores[task]) for task in scores]
            cells = {
                task: Interval(None, n=n, reason=reason)
                if reason
                else interval_of(values[number], draws[:, number], n)
                for number, (task, reason) in enumerate(zip(scores, reasons, strict=True))
            }
            usable = np.array([reason is None for reason in reasons])
            mean = Interval(None, n=n, reason=intervals.joined(reasons))
            if usable.any():
                mean = interval_of(float(nan_mean(values[usable])), nan_mean(draws[:, usable]), n)
            found.append(Power(probe.pair, measure, indicator, coefficient, cells, mean))
    return found


def pooled(all_powers: Sequence[Power]) -> list[Power]:
    """The mean of each indicator over pairs (each averaged over its sequences and seeds), with its interval.

    The interval is over pairs; with one probe it is the one over prompts that the probe has.
    """
    groups: dict[tuple[str, str, str], list[Power]] = {}
    for power in all_powers:
        groups.setdefault((power.measure, power.indicator, power.coefficient), []).append(power)
    found = []
    for key, members in groups.items():
        by_pair: dict[str, list[float]] = {}
        for power in members:
            if power.mean.value is not None:
                by_pair.setdefault(power.pair, []).append(power.mean.value)
        means = {pair: float(np.mean(values)) for pair, values in by_pair.items()}
        mean = members[0].mean
        if len(members) > 1:
            none = Interval(None, reason=intervals.joined(power.mean.reason for power in members))
            mean = mean_interval(means.values(), "pairs") if means else none
        found.append(Power("", *key, {pair: Interval(value) for pair, value in means.items()}, mean))
    return found


@dataclass(frozen=True)
class Choice:
    """What choosing the lowest pre-update loss gives in one probe, over the tasks that are not current.

    Scores are means over those tasks, good up. `regret`: best prompt minus the chosen; `of_original` and
    `of_random` the same for the original prompt and for a prompt drawn at random. Tasks that were not
    evaluated for every prompt are `missing` from all of these.
    """

    probe: ProbeResult
    chosen: int
    best: int
    regret: Interval
    of_original: float
    of_random: float
    missing: tuple[str, ...]


def lowest_loss_choice(probe: ProbeResult, measure: str) -> Choice | str:
    """The prompt that SAPO would choose in a probe against all others, or why there is no choice.

    It is the one of the lowest loss, the first of equals, among those that the scorer allows. The interval of
    the regret resamples the test examples within their tasks, the same for all prompts, and takes the best
    prompt anew in each draw; it does not speak of other prompts or seeds.
    """
    scores = probe.good(measure)
    whole = scores.dropna(axis="columns")
    means = whole.mean(axis=1)
    if not len(whole.columns):
        return "no other task was evaluated for every prompt"
    if intervals.is_constant(means.to_numpy(dtype=float)[:, None])[0]:
        return "all prompts score alike"
    chosen = int(probe.pre_update_losses()[probe.candidates].idxmin())
    rng, drawn, n_rows = np.random.default_rng(0), np.zeros((intervals.DRAWS, len(means))), 0
    for task in whole:
        finals = probe.finals[probe.finals["task"] == task].pivot(
            index="prompt", columns="example", values=measure
        )
        values = sign_of(measure) * finals.to_numpy(dtype=float)
        sums, sizes = intervals.by_distinct_row(values, row_numbers(probe.runs[ORIGINAL], task))
        counts = intervals.resample_counts(len(sizes), intervals.DRAWS, rng)
        drawn += counts @ sums.T / ((counts @ sizes)[:, None] * len(whole.columns))
        n_rows += len(sizes)
    regrets = drawn.max(axis=1) - drawn[:, sorted(probe.runs).index(chosen)]
    best = means.max()
    return Choice(
        probe,
        chosen,
        best=int(means.idxmax()),
        regret=interval_of(float(best - means[chosen]), regrets, n_rows, "test rows"),
        of_original=float(best - means[ORIGINAL]),
        of_random=float(best - means[probe.candidates].mean()),
        missing=tuple(task for task in scores if task not in whole),
    )


POOL_SIZES, SCORED_ROWS, SUBSETS = (2, 5, 10), (4, 8, 16, 32), 100  # as in Figure 15, but within one probe


def smaller_choices(probe: ProbeResult, measure: str) -> pd.DataFrame:
    """What the lowest loss gains when fewer `prompts` or fewer `rows` are scored, a row for each number.

    `gain` is the mean score over the other tasks, good up, of the prompt of the lowest loss minus that of a
    random one; `best` the same for the best prompt. It is exact over all pools of a size, and the mean over
    SUBSETS drawn subsets of the rows.
    """
    means = probe.good(measure).dropna(axis="columns").mean(axis=1)
    means = means[probe.candidates] - means[probe.candidates].mean()
    by_loss = means[probe.pre_update_losses()[means.index].sort_values(kind="stable").index].to_numpy()
    n, examples = len(means), probe.losses["example"].unique()
    found = []
    for size in (*(size for size in POOL_SIZES if size < n), n):
        # How often the prompt of each rank is the lowest of a pool of this size.
        chances = np.array([comb(n - 1 - rank, size - 1) for rank in range(n)]) / comb(n, size)
        found.append((size, len(examples), float(chances @ by_loss)))
    rng, of_candidates = np.random.default_rng(0), probe.losses[probe.losses["prompt"].isin(means.index)]
    for rows in (rows for rows in SCORED_ROWS if rows < len(examples)):
        chosen = []
        for _ in range(SUBSETS):
            scored = of_candidates["example"].isin(rng.choice(examples, rows, replace=False))
            losses = prompt_losses(of_candidates[scored], probe.reduction).set_index("prompt")["loss"]
            chosen.append(losses.idxmin())
        found.append((n, rows, float(means[chosen].mean())))
    return pd.DataFrame(found, columns=["prompts", "rows", "gain"]).assign(best=float(means.max()))


# --- does a low loss mean a gradient that points the way of other tasks? (Figure 4) ------------------------

GRADIENT_ROLES = {"trained": "T1, trained before", "unseen": "T3, unseen"}


def alignments(gradients: pd.DataFrame) -> dict[tuple[str, int], Interval]:
    """Mean cosine between the current task's gradient under a prompt and those of other tasks.

    By role of GRADIENT_ROLES and the prompt's rank by loss, 1 = lowest; intervals are over (task, module).
    """
    return {
        (role, int(rank)): mean_interval(cosines, "modules")
        for role in GRADIENT_ROLES
        for rank, cosines in gradients[gradients["role"] == role].groupby("rank")["cosine"]
    }


def rank_difference(gradients: pd.DataFrame, role: str) -> Interval:
    """Mean cosine of the lowest loss minus that of the highest loss, paired over (task, module)."""
    of_role = gradients[gradients["role"] == role]
    if of_role["rank"].nunique() < 2:
        return Interval(None, reason="a difference needs two ranked prompts")
    wide = of_role.pivot_table(index=["task", "module"], columns="rank", values="cosine")
    return mean_interval((wide[wide.columns.min()] - wide[wide.columns.max()]).dropna(), "modules")
