"""Bootstrap intervals of AP, BWT and FWT, paired over what is compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sapo.analysis.metrics import METRICS, Weights, metric_weights, rounded
from sapo.analysis.results import RunResult, example_scores, require_comparable
from sapo.conf.errors import UserError

DRAWS = 2000
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % percentile interval, and what it rests on."""

    estimate: float
    low: float
    high: float
    n_examples: int
    n_seeds: int


def metric_intervals(
    runs: Sequence[RunResult],
    measure: str,
    definition: str,
    against: Sequence[RunResult] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    column: str = "trained",
) -> dict[str, Interval | None]:
    """AP, BWT and FWT averaged over `runs` (one per seed), or their difference `runs` minus `against`.

    A difference pairs the runs of equal seed and uses the seeds that both sides have. Learned tasks are
    tested as `column` says. A metric that is undefined for one of the runs is None. Raises UserError if the
    runs are not comparable.
    """
    pairs = _pairs(runs, against)
    scores = {run: example_scores(run, measure, column) for pair in pairs for run in pair}
    tasks = pairs[0][0].tasks
    result: dict[str, Interval | None] = {}
    for metric in METRICS:
        weights = metric_weights(definition, metric, len(tasks))
        parts = _parts(pairs, scores, weights)
        result[metric] = _interval(parts, draws, seed) if parts else None
    return result


def _pairs(runs: Sequence[RunResult], against: Sequence[RunResult] | None) -> list[tuple[RunResult, ...]]:
    """(run,) or (run, run it is compared with) for every seed."""
    require_comparable([*runs, *(against or ())])
    sides = [_by_seed(runs)] if against is None else [_by_seed(runs), _by_seed(against)]
    seeds = [seed for seed in sides[0] if all(seed in side for side in sides)]
    if not seeds:
        raise UserError(
            f"No seed is common to {[run.id for run in runs]} and {[run.id for run in against or ()]}."
        )
    pairs = [tuple(side[seed] for side in sides) for seed in seeds]
    if len({run.tasks for pair in pairs for run in pair}) > 1:
        raise UserError(
            "Metrics can only be averaged or compared over runs that train the same tasks in one order."
        )
    return pairs


def _by_seed(runs: Sequence[RunResult]) -> dict[int, RunResult]:
    seeds: dict[int, RunResult] = {}
    for run in runs:
        if run.seed in seeds:
            raise UserError(
                f"Runs {seeds[run.seed].id} and {run.id} have the same seed: leave one of them out."
            )
        seeds[run.seed] = run
    return seeds


def _parts(
    pairs: list[tuple[RunResult, ...]],
    scores: dict[RunResult, dict[tuple[int, str], Array]],
    weights: Weights | None,
) -> list[Array]:
    """Per task, each example's contribution to the metric (seeds x examples): the metric is the sum of means.

    A metric is linear in the matrix, hence states and both sides of a difference fold into one vector before
    anything is resampled: this is what pairs them. Empty if the metric is undefined.
    """
    if weights is None:
        return []
    parts = []
    for column in np.flatnonzero(weights.any(axis=0)):
        rows = []
        for pair in pairs:
            sides = [_contribution(scores[run], run.tasks[column], weights[:, column]) for run in pair]
            rows.append([side for side in sides if side is not None])
            if len(rows[-1]) < len(pair):
                return []
        parts.append(_stack(rows, pairs[0][0].tasks[column]))
    return parts


def _contribution(scores: dict[tuple[int, str], Array], task: str, weights: Array) -> Array | None:
    cells = [(weights[after], scores.get((int(after), task))) for after in np.flatnonzero(weights)]
    if any(values is None for _, values in cells):
        return None
    return sum(weight * values for weight, values in cells if values is not None)


def _stack(rows: list[list[Array]], task: str) -> Array:
    if len({len(side) for sides in rows for side in sides}) > 1:
        raise UserError(
            f"The runs were scored on different numbers of test examples of {task}: evaluate them alike."
        )
    return np.stack([sides[0] - sides[1] if len(sides) == 2 else sides[0] for sides in rows])


def _interval(parts: list[Array], draws: int, seed: int) -> Interval:
    values = bootstrap(parts, draws, seed)
    low, high = np.percentile(values, [2.5, 97.5])
    estimate = sum(part.mean() for part in parts)
    examples = sum(part.shape[1] for part in parts)
    return Interval(rounded(estimate), rounded(low), rounded(high), examples, parts[0].shape[0])


def bootstrap(parts: Sequence[Array], draws: int, seed: int) -> Array:
    """`draws` resampled sums over tasks of mean contributions (`parts`: seeds x examples for each task).

    Examples are resampled within their task, the same rows for all seeds, since all seeds are tested on the
    same rows; seeds are resampled as the outer level. Two or three seeds say little about seeds: the interval
    then mostly reflects the test examples.
    """
    n_seeds = parts[0].shape[0]
    *of_examples, of_seeds = _counts(tuple(part.shape[1] for part in parts), n_seeds, draws, seed)
    per_seed = sum(counts @ part.T / part.shape[1] for counts, part in zip(of_examples, parts, strict=True))
    return (per_seed * of_seeds).sum(axis=1) / n_seeds


@lru_cache(maxsize=4)
def _counts(sizes: tuple[int, ...], n_seeds: int, draws: int, seed: int) -> tuple[NDArray[np.uint16], ...]:
    """How often each example of each task, and last each seed, comes in every draw.

    Kept, since a table needs the same draws for many scores and policies.
    """
    rng = np.random.default_rng(seed)
    return tuple(resample_counts(n, draws, rng).astype(np.uint16) for n in (*sizes, n_seeds))


def resample_counts(n: int, draws: int, rng: np.random.Generator) -> Array:
    """How often each of `n` items comes when n are drawn with replacement: draws x n, each row sums to n."""
    items = rng.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(items.ravel(), minlength=draws * n).reshape(draws, n).astype(float)
