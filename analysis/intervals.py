"""95 % intervals and permutation tests, all seeded, and what they rest on.

An interval of AP, BWT or FWT is over test rows and seeds; one of a probe is over its prompts. Both are
percentile intervals of the bootstrap (Efron & Tibshirani 1993, ch. 13), except those of spreads, for which
these are far too narrow: they are of the jackknife on the logarithm (Miller 1974, Biometrika 61:1). p values
are (1 + permutations at least as extreme) / (1 + permutations), which is never 0 (Phipson & Smyth 2010). An
interval over prompts speaks of other prompts for the same tasks, model and seed, and of nothing else.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from sapo.analysis.metrics import METRICS, Array, metric_weights, rounded
from sapo.analysis.results import RunResult, example_scores, row_numbers

DRAWS = 2000
PERMUTATIONS = 4999
FEWEST_FOR_INTERVAL = 5  # rows; fewer have too few distinct resamples
FEWEST_PROMPTS = 3  # of a correlation or a spread
# A range this small, against the largest value or 1, is rounding: equal means differ in their last bits.
FLAT = 1e-9
SAME = "the same for all prompts"
COEFFICIENTS = ("pearson", "spearman")


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval over `n` rows (and `n_seeds`); `reason` says why it has none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reason: str | None = None
    n_seeds: int | None = None

    def text(self, decimals: int = 2, signed: bool = False) -> str:
        """`0.45 [0.20, 0.61]`, the value alone where it has no interval, or the reason why there is none."""
        known = [number for number in (self.value, self.low, self.high) if number is not None]
        if not known:
            return self.reason or "not defined"
        form = f"{'+' if signed else ''}.{decimals}f"
        value, *ends = (f"{round(number, decimals) + 0.0:{form}}" for number in known)
        return f"{value} [{', '.join(ends)}]" if ends else value


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
    column: str = "trained",
) -> dict[str, Interval]:
    """AP, BWT and FWT averaged over `runs`, or their difference from the runs `against`, by metric.

    `runs` hold one run a seed, of the same tasks and test rows; seeds that only one side has are left out.
    `column` is the prompt that learned tasks are tested with, a key of COLUMNS. A metric that is not defined
    for one of the runs has no value. `n` counts distinct test rows: rows that repeat another are no further
    evidence.
    """
    base = {run.seed: run for run in against or ()}
    pairs = [[(run, 1), (base[run.seed], -1)] for run in runs if run.seed in base]
    if against is None:
        pairs = [[(run, 1)] for run in runs]
    found = dict.fromkeys(METRICS, Interval(None))
    for metric in METRICS:
        if parts := contributions(pairs, definition, metric, measure, column):
            low, high = map(rounded, np.percentile(bootstrap(parts, draws), [2.5, 97.5]))
            value = rounded(sum(sums.sum() / (len(sums) * sizes.sum()) for sums, sizes in parts))
            n = sum(len(sizes) for _, sizes in parts)
            found[metric] = Interval(value, low, high, n, n_seeds=len(pairs))
    return found


def contributions(
    seeds: Sequence[Sequence[tuple[RunResult, int]]], definition: str, metric: str, measure: str, column: str
) -> list[tuple[Array, Array]]:
    """Per task that a metric reads, what each distinct row adds to it: (seeds x rows, examples of each row).

    `seeds` has for each seed the runs, with the signs that they have in a sum of metrics. A metric is linear
    in the matrix, hence states and runs fold into one contribution an example before anything is resampled:
    this is what pairs them. Empty if the metric is not defined, or a cell that it needs was not evaluated.
    """
    parts, first = [], seeds[0][0][0]
    weights = metric_weights(definition, metric, len(first.tasks))
    if weights is None:
        return []
    for task, of_task in zip(first.tasks, weights.T, strict=True):
        cells = [((after, task), weight) for after, weight in enumerate(of_task) if weight]
        if not cells:
            continue
        try:
            values = [
                sum(
                    sign * sum(weight * example_scores(run, measure, column)[cell] for cell, weight in cells)
                    for run, sign in sides
                )
                for sides in seeds
            ]
        except KeyError:
            return []
        parts.append(by_distinct_row(np.stack(values), row_numbers(first, task)))
    return parts


def by_distinct_row(values: Array, rows: NDArray[np.int64]) -> tuple[Array, Array]:
    """`values` (... x examples) summed over the examples of each distinct row, and how many each row has.

    `rows` holds, for each example, the number of the row that it is or repeats.
    """
    distinct, place = np.unique(rows, return_inverse=True)
    sums = np.zeros((*values.shape[:-1], len(distinct)))
    np.add.at(sums, (..., place), values)  # type: ignore[arg-type]  # an ellipsis is an index
    return sums, np.bincount(place).astype(float)


def bootstrap(parts: Sequence[tuple[Array, Array]], draws: int = DRAWS) -> Array:
    """`draws` resampled sums over tasks of mean contributions, as `contributions` returns them.

    Rows are resampled within their task, each with all the examples that repeat it, the same for all seeds,
    since all seeds are tested on the same rows; seeds are resampled as the outer level. Two or three seeds
    say little about seeds: the interval then mostly reflects the test rows.
    """
    n_seeds = len(parts[0][0])
    *of_rows, of_seeds = _counts(tuple(len(sizes) for _, sizes in parts), n_seeds, draws)
    per_seed = sum(
        counts @ sums.T / (counts @ sizes)[:, None]
        for counts, (sums, sizes) in zip(of_rows, parts, strict=True)
    )
    return (per_seed * of_seeds).sum(axis=1) / n_seeds


@lru_cache(maxsize=4)  # a table needs the same draws for many scores and policies
def _counts(sizes: tuple[int, ...], n_seeds: int, draws: int) -> tuple[NDArray[np.uint16], ...]:
    """How often each row of each task, and last each seed, comes in every draw."""
    rng = np.random.default_rng(0)
    return tuple(resample_counts(n, draws, rng).astype(np.uint16) for n in (*sizes, n_seeds))


def resample_counts(n: int, draws: int, rng: np.random.Generator) -> Array:
    """How often each of `n` items comes when n are drawn with replacement: draws x n, each row sums to n."""
    items = rng.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(items.ravel(), minlength=draws * n).reshape(draws, n).astype(float)


# --- over a handful of rows: prompts, pairs, modules -------------------------------------------------------


def bootstrap_interval(rows: Array, statistic: Callable[[Array], Array], unit: str = "prompts") -> Interval:
    """A statistic of `rows` (n x k; of a stack of them one value each) with its interval over resamples."""
    return interval_of(float(statistic(rows[None])[0]), statistic(resampled(rows)), len(rows), unit)


def resampled(rows: Array) -> Array:
    """`rows` (n x k) resampled with replacement, whole rows: DRAWS x n x k."""
    return rows[np.random.default_rng(0).integers(len(rows), size=(DRAWS, len(rows)))]


def interval_of(value: float, values: Array, n: int, unit: str = "prompts") -> Interval:
    """A statistic of n rows and its values over resamples as an interval: none if every second is NaN."""
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


def jackknife_interval(rows: Array, statistic: Callable[[Array], Array]) -> Interval:
    """A `statistic` of spread (0 or more) of `rows` (n x k) with its interval by the jackknife.

    Student's t on the logarithm, with n - 1 degrees of freedom. Of normal scores such an interval of a
    standard deviation holds the true value 94 % of the time with 8 rows; the bootstrap's percentiles do so
    77 % of the time.
    """
    n, value = len(rows), float(statistic(rows[None])[0])
    if without := _without_interval(value, n, "prompts"):
        return without
    left = statistic(np.stack([np.delete(rows, row, axis=0) for row in range(n)]))
    if not (np.isfinite(left).all() and np.append(left, value).min() > 0):
        reason = "without one of the prompts nothing varies" if value > 0 else "nothing varies"
        return Interval(value, n=n, reason=reason)
    error = np.sqrt((n - 1) * np.log(left).var())
    factor = float(np.exp(stats.t.ppf(0.975, n - 1) * error))
    return Interval(value, value / factor, value * factor, n)


def lone_row(
    rows: Array, statistic: Callable[[Array], Array], found: Interval
) -> tuple[int, Interval] | None:
    """The row that alone makes a jackknife interval, and what the interval is without it; or None.

    Without it nothing varies, or the interval ends at less than a third (of eight normal rows one in 25).
    """
    if not found.value or found.n < FEWEST_FOR_INTERVAL:
        return None
    rests = [np.delete(rows, row, axis=0) for row in range(len(rows))]
    row = int(np.argmin(np.nan_to_num(statistic(np.stack(rests)))))
    without = jackknife_interval(rests[row], statistic)
    is_alone = not without.value or (found.high and without.high and 3 * without.high < found.high)
    return (row, without) if is_alone else None


def mean_interval(values: Iterable[float], unit: str) -> Interval:
    """The mean of `values` with its interval over them."""
    rows = np.array([*values], dtype=float)[:, None]
    return bootstrap_interval(rows, lambda stack: stack[..., 0].mean(axis=1), unit)


# --- tests -------------------------------------------------------------------------------------------------


def permutation_p(observed: float, permuted: Array) -> float:
    """Share of permutations (and of the observed arrangement) whose statistic is at least `observed`."""
    slack = 1e-9 * max(1.0, abs(observed))
    return float((1 + np.sum(permuted >= observed - slack)) / (1 + len(permuted)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment over the tests that have a p value (Holm 1979), in the given order."""
    known = pd.Series(p_values, dtype=float).dropna().sort_values(kind="stable")
    adjusted = (known * np.arange(len(known), 0, -1)).clip(upper=1.0).cummax().to_dict()
    return [adjusted.get(place) for place in range(len(p_values))]


# --- coefficients of many resamples at once ----------------------------------------------------------------


def column_correlations(x: Array, y: Array, coefficient: str) -> Array:
    """Coefficients of all columns of `x` (... x n x k) with those of `y` (... x n x m): ... x k x m."""

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
