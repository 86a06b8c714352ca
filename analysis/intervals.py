"""95 % intervals and permutation tests, all seeded, and what they rest on.

An interval of AP, BWT or FWT is over test rows and seeds; one of a probe is over its prompts. Both are
percentile intervals of the bootstrap (Efron & Tibshirani 1993, ch. 13), except those of spreads, for which
these are far too narrow: they are of the jackknife on the logarithm (Miller 1974, Biometrika 61:1). p values
are (1 + permutations at least as extreme) / (1 + permutations), which is never 0 (Phipson & Smyth 2010). An
interval over prompts speaks of other prompts for the same tasks, model and seed, and of nothing else.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from sapo.analysis.metrics import METRICS, Weights, metric_weights, rounded
from sapo.analysis.results import RunResult, example_scores, row_numbers, rows_apart
from sapo.conf.errors import UserError

DRAWS = 2000
PERMUTATIONS = 4999
FEWEST_FOR_INTERVAL = 5  # rows; fewer have too few distinct resamples
FEWEST_PROMPTS = 3  # of a correlation or a spread
# A range this small, against the largest value or 1, is rounding: equal means differ in their last bits.
FLAT = 1e-9
SAME = "the same for all prompts"
COEFFICIENTS = ("pearson", "spearman")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval over `n` rows (and `n_seeds`); `reason` says why it has none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reason: str | None = None
    n_seeds: int | None = None

    def texts(self, decimals: int = 2, signed: bool = False) -> tuple[str, str]:
        """`0.45` and `[0.20, 0.61]`; a dash where there is no value, an empty text where no interval."""

        def number(value: float) -> str:
            return f"{round(value, decimals) + 0.0:{'+' if signed else ''}.{decimals}f}"

        if self.value is None:
            return "-", ""
        if self.low is None or self.high is None:
            return number(self.value), ""
        return number(self.value), f"[{number(self.low)}, {number(self.high)}]"

    def text(self, decimals: int = 2, signed: bool = False) -> str:
        """`0.45 [0.20, 0.61]`, the value alone where it has no interval, or the reason why there is none."""
        if self.value is None:
            return self.reason or "not defined"
        return " ".join(filter(None, self.texts(decimals, signed)))


def joined(reasons: Iterable[str | None]) -> str:
    """Reasons as one: the first, and how many more there are."""
    different = list(dict.fromkeys(filter(None, reasons)))
    more = f" (and {len(different) - 1} more such)" if len(different) > 1 else ""
    return f"{different[0]}{more}" if different else ""


# --- AP, BWT, FWT ------------------------------------------------------------------------------------------


def metric_intervals(
    runs: Sequence[RunResult],
    measure: str,
    definition: str,
    against: Sequence[RunResult] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    column: str = "trained",
) -> dict[str, Interval]:
    """AP, BWT and FWT averaged over `runs`, or their difference from the runs `against`, by metric.

    A metric is linear in the matrix, hence states and both sides of a difference fold into one contribution
    an example before anything is resampled: this is what pairs them. `runs` hold one run a seed; seeds that
    only one side has are left out. `column` is the prompt that learned tasks are tested with, a key of
    COLUMNS. A metric that is not defined for one of the runs has no value. `n` counts distinct test rows:
    rows that repeat another are no further evidence. Raises UserError if the runs were not tested on the same
    rows (for `label_match`: with the same labels) or do not train the same tasks, share no seed, or have two
    runs of one seed.
    """
    sides: list[dict[int, RunResult]] = []
    for side in (runs,) if against is None else (runs, against):
        sides.append({})
        for run in side:
            other = sides[-1].setdefault(run.seed, run)
            if other is not run:
                raise UserError(f"Runs {other.id} and {run.id} have the same seed: leave one of them out.")
    common = [seed for seed in sides[0] if all(seed in side for side in sides)]
    if not common:
        names = [[run.id for run in side] for side in (runs, against or ())]
        raise UserError(f"No seed is common to {names[0]} and {names[1]}.")
    pairs = [[(side[seed], sign) for side, sign in zip(sides, (1, -1), strict=False)] for seed in common]
    if len({run.tasks for pair in pairs for run, _ in pair}) > 1:
        raise UserError(
            "Metrics can only be averaged or compared over runs that train the same tasks in one order."
        )
    if apart := rows_apart([run for pair in pairs for run, _ in pair], measure):
        raise UserError(f"Metrics can only be averaged or compared over the same test rows ({apart}).")
    scores = {run: example_scores(run, measure, column) for pair in pairs for run, _ in pair}
    found = {}
    for metric in METRICS:
        weights = metric_weights(definition, metric, len(pairs[0][0][0].tasks))
        parts = None if weights is None else contributions(pairs, scores.__getitem__, weights)
        if not parts:
            found[metric] = Interval(None)
            continue
        low, high = map(rounded, np.percentile(bootstrap(parts, draws, seed), [2.5, 97.5]))
        value = rounded(sum(sums.sum() / (len(sums) * sizes.sum()) for sums, sizes in parts))
        n = sum(len(sizes) for _, sizes in parts)
        found[metric] = Interval(value, low, high, n, n_seeds=len(pairs))
    return found


def contributions(
    seeds: Sequence[Sequence[tuple[RunResult, int]]],
    scores: Callable[[RunResult], Mapping[tuple[int, str], Array]],
    weights: Weights,
) -> list[tuple[Array, Array]]:
    """Per task that a metric reads, what each distinct row adds to it: (seeds x rows, examples of each row).

    Args:
        seeds: For each seed the runs, with the signs that they have in a sum of metrics.
        scores: Of a run those of every test example, by state and task.
        weights: The metric's weights of states and tasks.

    Returns:
        The contributions; empty if a cell that the metric needs was not evaluated.
    """
    parts, first = [], seeds[0][0][0]
    for column in np.flatnonzero(weights.any(axis=0)):
        task = first.tasks[column]
        cells = [(int(after), weights[after, column]) for after in np.flatnonzero(weights[:, column])]
        tables = [[(scores(run), sign) for run, sign in sides] for sides in seeds]
        if not all((after, task) in table for sides in tables for table, _ in sides for after, _ in cells):
            return []
        values = [
            [sign * sum(weight * table[after, task] for after, weight in cells) for table, sign in sides]
            for sides in tables
        ]
        if len({len(side) for sides in values for side in sides}) > 1:
            raise UserError(
                f"The runs were scored on different numbers of test examples of {task}: evaluate them alike."
            )
        parts.append(by_distinct_row(np.stack([sum(sides) for sides in values]), row_numbers(first, task)))
    return parts


def by_distinct_row(values: Array, rows: NDArray[np.int64]) -> tuple[Array, Array]:
    """`values` (... x examples) summed over the examples of each distinct row, and how many each row has.

    `rows` holds, for each example, the number of the row that it is or repeats.
    """
    distinct, place = np.unique(rows, return_inverse=True)
    if len(distinct) == len(rows):
        return values, np.ones(len(rows))
    sums = np.zeros((*values.shape[:-1], len(distinct)))
    np.add.at(sums, (..., place), values)  # type: ignore[arg-type]  # an ellipsis is an index
    return sums, np.bincount(place).astype(float)


def bootstrap(parts: Sequence[tuple[Array, Array]], draws: int, seed: int) -> Array:
    """`draws` resampled sums over tasks of mean contributions.

    `parts` holds for each task the sums of its distinct rows (seeds x rows) and the examples of each row.
    Rows are resampled within their task, each with all the examples that repeat it, the same for all seeds,
    since all seeds are tested on the same rows; seeds are resampled as the outer level. Two or three seeds
    say little about seeds: the interval then mostly reflects the test rows.
    """
    n_seeds = len(parts[0][0])
    *of_rows, of_seeds = _counts(tuple(len(sizes) for _, sizes in parts), n_seeds, draws, seed)
    per_seed = sum(
        counts @ sums.T / (counts @ sizes)[:, None]
        for counts, (sums, sizes) in zip(of_rows, parts, strict=True)
    )
    return (per_seed * of_seeds).sum(axis=1) / n_seeds


@lru_cache(maxsize=4)  # a table needs the same draws for many scores and policies
def _counts(sizes: tuple[int, ...], n_seeds: int, draws: int, seed: int) -> tuple[NDArray[np.uint16], ...]:
    """How often each row of each task, and last each seed, comes in every draw."""
    rng = np.random.default_rng(seed)
    return tuple(resample_counts(n, draws, rng).astype(np.uint16) for n in (*sizes, n_seeds))


def resample_counts(n: int, draws: int, rng: np.random.Generator) -> Array:
    """How often each of `n` items comes when n are drawn with replacement: draws x n, each row sums to n."""
    items = rng.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(items.ravel(), minlength=draws * n).reshape(draws, n).astype(float)


# --- over a handful of rows: prompts, pairs, modules -------------------------------------------------------


def bootstrap_interval(
    rows: Array, statistic: Callable[[Array], Array], draws: int = DRAWS, seed: int = 0, unit: str = "prompts"
) -> Interval:
    """`statistic` of `rows` (n x k) with its interval over resampled rows.

    `statistic` maps a stack (draws x n x k) to one value a draw, NaN where it is undefined there.
    """
    values = statistic(resampled(rows, draws, seed))
    return interval_of(float(statistic(rows[None])[0]), values, len(rows), unit)


def resampled(rows: Array, draws: int = DRAWS, seed: int = 0) -> Array:
    """`rows` (n x k) resampled with replacement, whole rows: draws x n x k."""
    return rows[np.random.default_rng(seed).integers(len(rows), size=(draws, len(rows)))]


def interval_of(value: float, values: Array, n: int, unit: str = "prompts") -> Interval:
    """A statistic of n rows and its values over resamples (NaN where undefined) as an interval.

    Draws where it is undefined do not count; if that is every second one, there is no interval.
    """
    if without := _without_interval(value, n, unit):
        return without
    known = values[np.isfinite(values)]
    if 2 * len(known) < len(values):
        return Interval(value, n=n, reason=f"most resamples of the {unit} have no variance")
    low, high = np.percentile(known, [2.5, 97.5])
    return Interval(value, float(low), float(high), n)


def _without_interval(value: float, n: int, unit: str) -> Interval | None:
    """What a statistic that is undefined, or of too few rows, is in place of an interval."""
    if not np.isfinite(value):
        return Interval(None, n=n, reason="not defined")
    if n < FEWEST_FOR_INTERVAL:
        rows = f"{n} {unit if n > 1 else unit.removesuffix('s')}"
        return Interval(value, n=n, reason=f"{rows}: an interval needs {FEWEST_FOR_INTERVAL} or more")
    return None


def jackknife_interval(rows: Array, statistic: Callable[[Array], Array], unit: str = "prompts") -> Interval:
    """A `statistic` of spread (0 or more) of `rows` (n x k) with its interval by the jackknife.

    Student's t on the logarithm, with n - 1 degrees of freedom. Of normal scores such an interval of a
    standard deviation holds the true value 94 % of the time with 8 rows; the bootstrap's percentiles do so
    77 % of the time.
    """
    n, value = len(rows), float(statistic(rows[None])[0])
    if without := _without_interval(value, n, unit):
        return without
    left = statistic(np.stack([np.delete(rows, row, axis=0) for row in range(n)]))
    if not (np.isfinite(left).all() and np.append(left, value).min() > 0):
        reason = f"without one of the {unit} nothing varies" if value > 0 else "nothing varies"
        return Interval(value, n=n, reason=reason)
    error = np.sqrt((n - 1) * np.log(left).var())
    factor = float(np.exp(stats.t.ppf(0.975, n - 1) * error))
    return Interval(value, value / factor, value * factor, n)


def lone_row(
    rows: Array, statistic: Callable[[Array], Array], found: Interval
) -> tuple[int, Interval] | None:
    """The row that alone makes a jackknife interval, and what the interval is without it; or None.

    Without such a row the interval ends at less than a third (of normal rows one in 25 does so, if they are
    eight), or nothing varies any more.
    """
    if not found.value or found.n < FEWEST_FOR_INTERVAL:
        return None
    rests = [np.delete(rows, row, axis=0) for row in range(len(rows))]
    row = int(np.argmin(np.nan_to_num(statistic(np.stack(rests)))))
    without = jackknife_interval(rests[row], statistic)
    is_alone = not without.value or (found.high and without.high and 3 * without.high < found.high)
    return (row, without) if is_alone else None


def mean_interval(values: Sequence[float], unit: str, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The mean of `values` with its interval over them."""
    rows = np.asarray(values, dtype=float)[:, None]
    return bootstrap_interval(rows, lambda stack: stack[..., 0].mean(axis=1), draws, seed, unit)


# --- tests -------------------------------------------------------------------------------------------------


def permutation_p(observed: float, permuted: Array) -> float:
    """Share of permutations (and of the observed arrangement) whose statistic is at least `observed`."""
    slack = 1e-9 * max(1.0, abs(observed))
    return float((1 + np.sum(permuted >= observed - slack)) / (1 + len(permuted)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment over the tests that have a p value (Holm 1979), in the given order."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[place] = highest
    return adjusted


# --- coefficients of many resamples at once ----------------------------------------------------------------


def column_correlations(x: Array, y: Array, coefficient: str) -> Array:
    """Coefficients between every column of `x` (... x n x k) and of `y` (... x n x m): ... x k x m.

    NaN where a column has no variance.
    """

    def unit_columns(table: Array) -> Array:
        constant = is_constant(table)[..., None, :]
        if coefficient == "spearman":
            table = stats.rankdata(table, axis=-2)
        centred = table - table.mean(axis=-2, keepdims=True)
        length = np.sqrt((centred**2).sum(axis=-2, keepdims=True))
        return np.where(constant, np.nan, centred / np.where(constant, 1.0, length))

    return np.clip(np.swapaxes(unit_columns(x), -1, -2) @ unit_columns(y), -1.0, 1.0)


def is_constant(table: Array) -> NDArray[np.bool_]:
    """Whether each column (... x n x k -> ... x k) is the same in all rows, up to rounding."""
    return np.ptp(table, axis=-2) <= FLAT * np.maximum(1.0, np.abs(table).max(axis=-2))


def mean_off_diagonal(table: Array, coefficient: str) -> Array:
    """Mean coefficient over all pairs of columns that both vary (... x n x k -> ...); NaN without."""
    matrix = column_correlations(table, table, coefficient)
    return nan_mean(matrix[..., *np.triu_indices(table.shape[-1], 1)])


def nan_mean(values: Array) -> Array:
    """Mean over the last axis of what is not NaN; NaN where nothing is left."""
    return np.ma.filled(np.ma.masked_invalid(values).mean(axis=-1), np.nan)


def why_undefined(*columns: pd.Series) -> str | None:
    """Why columns of prompts have no correlation, or None if they have one."""
    if len(columns[0]) < FEWEST_PROMPTS:
        return f"{len(columns[0])} prompts: a correlation needs {FEWEST_PROMPTS} or more"
    for column in columns:
        if column.isna().any():
            return f"{column.name} is not known for every prompt"
        if is_constant(column.to_numpy(dtype=float)[:, None])[0]:
            return f"{column.name} is {SAME}"
    return None
