"""Which prompt will be good? Ten indicators before training, against scores after it. (Figures 3, 11-14.)"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import textstat

from sapo.analysis.intervals import (
    COEFFICIENTS,
    DRAWS,
    FEWEST_PROMPTS,
    Array,
    Interval,
    by_distinct_row,
    column_correlations,
    interval_of,
    is_constant,
    joined,
    mean_interval,
    nan_mean,
    resample_counts,
    resampled,
)
from sapo.analysis.probes.results import ProbeResult, sign_of
from sapo.data.prompts import ORIGINAL

INDICATORS = {
    "exact_match": "mean exact match (0-100) of greedy answers to the scored examples",
    "rougeL": "mean ROUGE-L (0-100) of greedy answers to the scored examples",
    "-loss": "minus the loss that SAPO ranks by: total target NLL over total target tokens (nats), where "
    "scorer.reduction does not say otherwise",
    "-loss_variance": "minus the sample variance over examples of their mean NLL per target token",
    "-entropy": "minus the mean entropy (nats) of the next-token distributions over all target positions",
    "-entropy_variance": "minus the sample variance over examples of their mean entropy per target token",
    "sum_log_prob": "mean over examples of the sum of the target's log-probabilities (nats)",
    "words": "words of the wording (textstat.lexicon_count)",
    "flesch_kincaid": "Flesch-Kincaid grade of the wording (textstat, English)",
    "syllables": "syllables of the wording (textstat, English)",
}


def indicators_of(probe: ProbeResult) -> pd.DataFrame:
    """Prompts x INDICATORS, all measured before the current task is trained; NaN = not defined.

    A variance needs two examples. With one token count for all prompts, which is so where all are scored on
    the same targets, sum_log_prob is a multiple of -loss (by tokens) and correlates as it does.
    """
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
    """How one indicator goes with the scores after training, over the prompts of one probe.

    `by_task` are the coefficients for each task that is not current; `mean` is over those defined.
    """

    probe: ProbeResult
    measure: str
    indicator: str
    coefficient: str
    by_task: dict[str, Interval]
    mean: Interval


def powers(probe: ProbeResult, measure: str) -> list[Power]:
    """Every indicator and coefficient of a probe. Scores where lower is better are flipped: up is good."""
    table = indicators_of(probe)
    scores = sign_of(measure) * probe.outcomes(measure)[list(probe.others)]
    return [
        _power(probe, measure, coefficient, table[indicator], scores, *cells)
        for coefficient in COEFFICIENTS
        for indicator, cells in _all_coefficients(table, scores, coefficient).items()
    ]


def _all_coefficients(
    table: pd.DataFrame, scores: pd.DataFrame, coefficient: str
) -> dict[str, tuple[Array, Array]]:
    """By indicator its coefficients with every task, and those over resampled prompts (draws x tasks)."""
    # A column with gaps is not correlated (the reason is given elsewhere); 0 makes it one without variance.
    rows = np.column_stack([table, scores]).astype(float)
    rows[:, np.isnan(rows).any(axis=0)] = 0.0
    stack = np.concatenate([rows[None], resampled(rows)])
    n = table.shape[1]
    found = column_correlations(stack[..., :n], stack[..., n:], coefficient)
    return {name: (found[0, place], found[1:, place]) for place, name in enumerate(table)}


def _power(
    probe: ProbeResult,
    measure: str,
    coefficient: str,
    indicator: pd.Series,
    scores: pd.DataFrame,
    values: Array,
    draws: Array,
) -> Power:
    n = len(scores)
    by_task, reasons = {}, {task: _why_undefined(indicator, scores[task]) for task in scores}
    for place, (task, reason) in enumerate(reasons.items()):
        known = interval_of(values[place], draws[:, place], n)
        by_task[task] = Interval(None, n=n, reason=reason) if reason else known
    usable = np.array([reason is None for reason in reasons.values()])
    mean = Interval(None, n=n, reason=joined(reasons.values()))
    if usable.any():
        mean = interval_of(float(nan_mean(values[usable])), nan_mean(draws[:, usable]), n)
    return Power(probe, measure, str(indicator.name), coefficient, by_task, mean)


def _why_undefined(indicator: pd.Series, scores: pd.Series) -> str | None:
    if len(scores) < FEWEST_PROMPTS:
        return f"{len(scores)} prompts: a correlation needs {FEWEST_PROMPTS} or more"
    for column, why in ((indicator, "not defined"), (scores, "not evaluated")):
        if column.isna().any():
            return f"{column.name} is {why} for every prompt"
        if is_constant(column.to_numpy(dtype=float)[:, None])[0]:
            return f"{column.name} is the same for all prompts"
    return None


@dataclass(frozen=True)
class Pooled:
    """One indicator over the pairs of a report: `points` holds each pair's mean, over its probes.

    `n_defined` of the `n_tasks` correlations, one a probe and task, are in these means.
    """

    measure: str
    indicator: str
    coefficient: str
    points: dict[str, float]
    mean: Interval
    n_defined: int
    n_tasks: int


def pooled(all_powers: Sequence[Power]) -> list[Pooled]:
    """The mean of each indicator over pairs (each averaged over its sequences and seeds), with its interval.

    The interval is over pairs; with one probe it is the one over prompts that the probe has.
    """
    groups: dict[tuple[str, str, str], list[Power]] = {}
    for power in all_powers:
        groups.setdefault((power.measure, power.indicator, power.coefficient), []).append(power)
    return [_pool(key, members) for key, members in groups.items()]


def _pool(key: tuple[str, str, str], members: list[Power]) -> Pooled:
    by_pair: dict[str, list[float]] = {}
    for power in members:
        if power.mean.value is not None:
            by_pair.setdefault(power.probe.pair, []).append(power.mean.value)
    points = {pair: float(np.mean(values)) for pair, values in by_pair.items()}
    if len(members) == 1:
        mean = members[0].mean
    elif points:
        mean = mean_interval(list(points.values()), "pairs")
    else:
        mean = Interval(None, reason=joined(power.mean.reason for power in members))
    cells = [cell for power in members for cell in power.by_task.values()]
    return Pooled(*key, points, mean, sum(cell.value is not None for cell in cells), len(cells))


@dataclass(frozen=True)
class Choice:
    """What choosing the lowest pre-update loss gives in one probe, over the tasks that are not current.

    Scores are means over those tasks, good up. `regret`: best prompt minus the chosen; `of_original` and
    `of_random` the same for the original prompt and for a prompt drawn at random. `above_median`: whether the
    chosen one is strictly above the median of all prompts; `tasks_above`: in how many tasks it is. By chance:
    the same of a prompt drawn at random from those that SAPO can choose. Tasks that were not evaluated for
    every prompt are `missing` from all of these.
    """

    probe: ProbeResult
    measure: str
    chosen: int
    best: int
    above_median: bool
    above_by_chance: float
    tasks_above: int
    tasks_above_by_chance: float
    n_tasks: int
    n_prompts: int
    regret: Interval
    of_original: float
    of_random: float
    missing: tuple[str, ...]


def lowest_loss_choice(probe: ProbeResult, measure: str, draws: int = DRAWS, seed: int = 0) -> Choice | str:
    """The prompt that SAPO would choose in a probe against all others, or why there is no choice.

    It is the one of the lowest loss, the first of equals, among those that the scorer allows.
    The interval of the regret resamples the test examples within their tasks, the same for all prompts, and
    takes the best prompt anew in each draw; it does not speak of other prompts or seeds.
    """
    scores = sign_of(measure) * probe.outcomes(measure)[list(probe.others)]
    whole = scores.dropna(axis="columns")
    means = whole.mean(axis=1)
    if not len(whole.columns):
        return "no other task was evaluated for every prompt"
    if is_constant(means.to_numpy(dtype=float)[:, None])[0]:
        return "all prompts score alike"
    chosen = int(probe.pre_update_losses()[probe.candidates].idxmin())
    is_above, tasks_above = means > means.median(), (whole > whole.median()).sum(axis=1)
    regret = Interval(
        float(means.max() - means[chosen]),
        *_regret_interval(probe, measure, list(whole.columns), chosen, draws, seed),
        n=sum(len(set(probe.test_rows(task))) for task in whole),
    )
    return Choice(
        probe=probe,
        measure=measure,
        chosen=chosen,
        best=int(means.idxmax()),
        above_median=bool(is_above[chosen]),
        above_by_chance=float(is_above[probe.candidates].mean()),
        tasks_above=int(tasks_above[chosen]),
        tasks_above_by_chance=float(tasks_above[probe.candidates].mean()),
        n_tasks=len(whole.columns),
        n_prompts=len(whole),
        regret=regret,
        of_original=float(means.max() - means[ORIGINAL]),
        of_random=float(means.max() - means[probe.candidates].mean()),
        missing=tuple(task for task in scores if task not in whole),
    )


def _regret_interval(
    probe: ProbeResult, measure: str, tasks: list[str], chosen: int, draws: int, seed: int
) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    means = np.zeros((draws, len(probe.runs)))
    for task in tasks:
        values = sign_of(measure) * probe.final_examples(measure, task)
        sums, sizes = by_distinct_row(values, probe.test_rows(task))
        counts = resample_counts(len(sizes), draws, rng)
        means += counts @ sums.T / ((counts @ sizes)[:, None] * len(tasks))
    place = sorted(probe.runs).index(chosen)
    low, high = np.percentile(means.max(axis=1) - means[:, place], [2.5, 97.5])
    return float(low), float(high)
