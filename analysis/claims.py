"""The paper's claims, decided: estimates with intervals, p values adjusted over all claims, verdicts.

What probes and runs say has been read into arrays (`evidence`); nothing here reads a file. Positive always
speaks for the paper: scores of measures where lower is better are turned round.

A probe's unit is the pair of tasks: its statistics are means over its sequences and seeds, and Student's t is
over pairs, which holds for other pairs, prompts and test examples alike. A comparison of runs has nested
units: sequences, seeds, test examples. From FEWEST_UNITS sequences on the t is over sequences. With fewer it
speaks of these alone: the variance over seeds and that over test examples add up, with the degrees of freedom
that the seeds have.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import stdtr, stdtrit  # Student's distribution and its quantiles, without checks

from sapo.analysis import intervals
from sapo.analysis.metrics import Array
from sapo.analysis.probes.results import sign_of
from sapo.analysis.results import NUMBERS

ALPHA = 0.05
FEWEST_UNITS = 3  # pairs of tasks, or sequences: with fewer the spread between them is not known
FEWEST_SEEDS = 2
PERMUTATIONS = 9999  # the least p is then small enough for some two hundred claims
MOST_UNITS = 1000  # what `more` looks through
COEFFICIENT = "spearman"  # one prompt far from the others does not make a correlation
NO_RUNS = "no runs"


@dataclass(frozen=True)
class ProbeData:
    """One probe as arrays: a row a prompt, of `scores` a column a task, that of the current task first.

    `original` and `candidates` are the rows of the original prompt and of those that SAPO can choose. `kl` is
    how far each trained model is from the untouched one on the current task's test rows.
    """

    pair: str
    kind: str
    label: str
    scores: Mapping[str, Array]
    losses: Array
    original: int
    candidates: Sequence[int]
    kl: Array | None = None


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error over `n_units`, or the `reason` why there is none."""

    value: float = np.nan
    error: float = np.nan
    df: float = 0.0
    unit: str = ""
    n: Mapping[str, int] = field(default_factory=dict)
    p: float | None = None
    reason: str | None = None

    @property
    def numbers(self) -> dict[str, Any]:
        """Value and 95 % interval, of Student's t."""
        half = float(stdtrit(self.df, 1 - ALPHA / 2)) * self.error
        return {"estimate": self.value, "low": self.value - half, "high": self.value + half}

    def more(self, alpha: float) -> str:
        """About how many more units would make p `alpha` at the present effect."""
        units = np.arange(self.n[self.unit] + 1, MOST_UNITS + 1)
        growth = units / self.n[self.unit]
        p = 2 * stdtr(self.df * growth, -abs(self.value) / self.error * np.sqrt(growth))
        enough = units[p <= alpha]
        if not len(enough):
            return f"more than {MOST_UNITS} {self.unit}"
        count = int(enough[0]) - self.n[self.unit]
        rows = " (and test rows alike)" if self.unit == "seeds" else ""
        return f"about {count} more {self.unit if count > 1 else self.unit[:-1]}{rows}"


@dataclass(frozen=True)
class Claim:
    """One of the paper's claims, or of its critics', in one measure and column.

    `p` is two-sided, `p_holm` adjusted over all claims; `paper` the place and number there. `reason` says why
    there is no estimate, `more` about what would decide at the present effect.
    """

    id: str
    claim: str
    statistic: str
    measure: str | None = None
    column: str | None = None
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    n: Mapping[str, int] = field(default_factory=dict)
    verdict: str = "undecided"
    p: float | None = None
    p_holm: float | None = None
    more: str | None = None
    reason: str | None = None
    paper: Mapping[str, Any] = field(default_factory=dict)


Basis = tuple[Claim, Estimate]  # a claim, undecided as yet, and what it rests on


# --- statistics of one probe -------------------------------------------------------------------------------

_GOES_WITH = f"mean {COEFFICIENT} correlation with the scores of the other tasks, over prompts"
_BETTER = "difference of the mean score over the other tasks"
PROBE_CLAIMS = {  # the claim and its statistic
    "a": (
        "Wordings spread more on other tasks than on the trained one",
        "ratio of coefficients of variation over prompts: other tasks (geometric mean) over the trained one",
    ),
    "b": (
        "A wording that is good for one other task is good for the rest",
        f"mean pairwise {COEFFICIENT} correlation between the tasks that are not trained on, over prompts",
    ),
    "c": ("A lower loss before training goes with better other tasks", f"-loss: {_GOES_WITH}"),
    "c-in-task": (
        "A lower loss before training goes with a better trained task, too",
        f"-loss: {COEFFICIENT} correlation with the score of the trained task, over prompts",
    ),
    "c-original": ("For other tasks the wording of the lowest loss is better than the original", _BETTER),
    "c-random": ("For other tasks the wording of the lowest loss is better than a random one", _BETTER),
    "e-kl": (
        "A rival: what moves the model less on the new task goes with better other tasks",
        f"-KL on the new task: {_GOES_WITH}",
    ),
}


def probe_values(data: ProbeData, measure: str) -> dict[str, float]:
    """What one probe says to each of PROBE_CLAIMS, and its `regret`; NaN where the scores do not define it.

    The ratio is a mean of logarithms: 0 where in-task variation is distributed as that of other tasks.
    """
    raw = data.scores[measure]
    if len(raw) < intervals.FEWEST_PROMPTS:
        return dict.fromkeys((*PROBE_CLAIMS, "regret"), np.nan)
    spreads, levels = raw.std(axis=0, ddof=1), np.abs(raw.mean(axis=0))
    varies = ~intervals.is_constant(raw) & (levels > 0)  # not so where a score is missing, either
    logs = np.log(np.divide(spreads, levels, out=np.full(len(levels), np.nan), where=varies))
    good = sign_of(measure) * raw
    others = good[:, 1:]
    before = np.column_stack([-data.losses, np.zeros(len(raw)) if data.kl is None else -data.kl])
    of_loss, of_kl = intervals.column_correlations(before, good, COEFFICIENT)
    means = intervals.nan_mean(np.where(np.isnan(others).any(axis=0), np.nan, others))
    rows = list(data.candidates)
    chosen = rows[int(np.argmin(data.losses[rows]))]
    values = {
        "a": intervals.nan_mean(logs[1:]) - logs[0],
        "b": intervals.mean_off_diagonal(others, COEFFICIENT),
        "c": intervals.nan_mean(of_loss[1:]),
        "c-in-task": of_loss[0],
        "c-original": means[chosen] - means[data.original],
        "c-random": means[chosen] - means[rows].mean(),
        "e-kl": intervals.nan_mean(of_kl[1:]),
        "regret": means.max() - means[chosen],
    }
    return {name: float(value) for name, value in values.items()}


@lru_cache(maxsize=32)
def _shuffles(n: int, k: int, number: int, permutations: int) -> NDArray[np.intp]:
    """Orders of n prompts, for each of k tasks by itself: k x permutations x n, the same in every measure."""
    orders = np.broadcast_to(np.arange(n), (k, permutations, n))
    return np.random.default_rng(number).permuted(orders, axis=2)


def permuted_together(scores: Array, number: int, permutations: int) -> Array:
    """The mean pairwise correlation of columns when the prompts of each task are permuted by themselves."""
    ranks = stats.rankdata(scores[:, ~intervals.is_constant(scores) & ~np.isnan(scores).any(axis=0)], axis=0)
    unit = ranks - ranks.mean(axis=0)
    unit /= np.sqrt((unit**2).sum(axis=0))
    n, k = unit.shape
    total = np.zeros((permutations, n))
    for column, orders in zip(unit.T, _shuffles(n, k, number, permutations), strict=True):
        total += column[orders]
    # The square of a sum of unit vectors holds every pair of them twice, and each with itself.
    return (np.einsum("ij,ij->i", total, total) - k) / (k * (k - 1))


# --- tests -------------------------------------------------------------------------------------------------


def over_units(values: Sequence[float], unit: str, n: Mapping[str, int], reason: str = "") -> Estimate:
    """The mean of `values`, one a unit, by Student's t; too few units make no number."""
    if len(values) < FEWEST_UNITS:
        count = f"{len(values)} {unit.removesuffix('s') if len(values) == 1 else unit}"
        return Estimate(unit=unit, n=n, reason=f"{count}: {FEWEST_UNITS} needed{reason}")
    error = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return _tested(Estimate(float(np.mean(values)), error, len(values) - 1, unit, n))


def _tested(estimate: Estimate) -> Estimate:
    """With its p value, or the reason why there is none."""
    if not estimate.error > 1e-12 * max(1.0, abs(estimate.value)):
        return Estimate(unit=estimate.unit, n=estimate.n, reason=f"nothing differs between {estimate.unit}")
    return replace(estimate, p=float(2 * stdtr(estimate.df, -abs(estimate.value) / estimate.error)))


def contrast_estimate(parts: Mapping[str, Sequence[tuple[Array, Array]]]) -> Estimate:
    """A difference of metrics with its error over sequences, or over the seeds and rows of few sequences.

    `parts` are the `contributions` of each sequence.
    """
    if not parts:
        return Estimate(reason="these runs were not scored so")
    by_seed = [sum(sums.sum(axis=1) / sizes.sum() for sums, sizes in each) for each in parts.values()]
    fewest = min(map(len, by_seed))
    n_rows = sum(len(sizes) for each in parts.values() for _, sizes in each)
    n = {"sequences": len(parts), "seeds": fewest, "examples": n_rows}
    if len(parts) >= FEWEST_UNITS:
        return over_units([float(seeds.mean()) for seeds in by_seed], "sequences", n)
    if fewest < FEWEST_SEEDS:
        return Estimate(unit="seeds", n=n, reason=f"{fewest} seed: {FEWEST_SEEDS} needed")
    variance = 0.0
    for seeds, each in zip(by_seed, parts.values(), strict=True):
        variance += seeds.var(ddof=1) / len(seeds)
        for sums, sizes in each:
            mean_sums = sums.mean(axis=0)
            left = mean_sums - sizes * mean_sums.sum() / sizes.sum()
            variance += (left**2).sum() * len(left) / max(len(left) - 1, 1) / sizes.sum() ** 2
    value = float(np.mean([seeds.mean() for seeds in by_seed]))
    df = sum(len(seeds) - 1 for seeds in by_seed)
    return _tested(Estimate(value, float(np.sqrt(variance)) / len(parts), df, "seeds", n))


# --- claims ------------------------------------------------------------------------------------------------


def decided(
    probes: Sequence[ProbeData],
    contrasts: Sequence[Basis],
    measures: Sequence[str] = NUMBERS,
    permutations: int = PERMUTATIONS,
) -> list[Claim]:
    """Every claim with its verdict: shown or refuted where p is small after Holm's adjustment over all."""
    found = [*_of_probes(probes, measures, permutations), *contrasts]
    adjusted = intervals.holm([basis.p for _, basis in found])
    alpha = ALPHA / max(1, sum(p is not None for p in adjusted))
    claims = []
    for (claim, basis), p_holm in zip(found, adjusted, strict=True):
        claim = replace(claim, n=basis.n, p=basis.p, p_holm=p_holm, reason=basis.reason)
        if p_holm is not None:
            numbers = basis.numbers
            if p_holm > ALPHA or numbers["low"] <= 0 <= numbers["high"]:
                claim = replace(claim, more=basis.more(alpha))
            else:
                claim = replace(claim, verdict="shown" if basis.value > 0 else "refuted")
            if claim.id == "a":  # a ratio comes back from its logarithm
                numbers = {name: float(np.exp(number)) for name, number in numbers.items()}
            elif "correlation" in claim.statistic:
                numbers = {name: min(1.0, max(-1.0, number)) for name, number in numbers.items()}
            claim = replace(claim, **numbers)
        claims.append(claim)
    return claims


def _of_probes(probes: Sequence[ProbeData], measures: Sequence[str], permutations: int) -> Iterator[Basis]:
    """The claims that rest on probes, each with its estimate over pairs."""
    found = {(place, m): probe_values(data, m) for place, data in enumerate(probes) for m in measures}
    n_pairs, fewest = len({data.pair for data in probes}), min((len(d.losses) for d in probes), default=0)
    for key, (sentence, statistic) in PROBE_CLAIMS.items():
        absent = None if probes else NO_RUNS
        if probes and key == "e-kl" and all(data.kl is None for data in probes):
            absent = "the evaluations of these probes store no KL: make the probes again"
        if absent:
            yield Claim(key, sentence, statistic), Estimate(reason=absent)
            continue
        for measure in measures:
            by_pair: dict[str, dict[int, float]] = {}  # the values of its probes, by their places
            for place, data in enumerate(probes):
                if np.isfinite(value := found[place, measure][key]):
                    by_pair.setdefault(data.pair, {})[place] = value
            values = [float(np.mean([*of_pair.values()])) for of_pair in by_pair.values()]
            counts = {"pairs": len(values), "probes": sum(map(len, by_pair.values())), "prompts": fewest}
            gap = f"; {n_pairs - len(values)} of {n_pairs} do not define it" if len(values) < n_pairs else ""
            basis = over_units(values, "pairs", counts, gap)
            if key == "b" and basis.p is not None:
                draws = np.zeros(permutations)
                for places in by_pair.values():
                    for place in places:
                        scores = probes[place].scores[measure][:, 1:]
                        draws += permuted_together(scores, place, permutations) / len(places) / len(by_pair)
                tails = (
                    intervals.permutation_p(basis.value, draws),
                    intervals.permutation_p(-basis.value, -draws),
                )
                basis = replace(basis, p=min(1.0, 2 * min(tails)))
            yield Claim(key, sentence, statistic, measure, "trained"), basis
