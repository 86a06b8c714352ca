"""Do prompts that are good for one other task tend to be good for the rest? (The paper's Figures 2, 7-10.)"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from sapo.analysis import intervals
from sapo.analysis.intervals import COEFFICIENTS, PERMUTATIONS, Interval
from sapo.analysis.probes.results import ProbeResult
from sapo.analysis.results import RunResult, score_matrix
from sapo.data.prompts import ORIGINAL
from sapo.data.tasks import digest

MAP_TEST = (
    f"prompts permuted within each task independently ({PERMUTATIONS} permutations), one-sided: the mean "
    "correlation is above what unrelated tasks give"
)


@dataclass(frozen=True)
class PromptEffects:
    """Final scores on the tasks that are not current: a row per prompt of the current (last trained) task."""

    run: RunResult
    measure: str
    scores: pd.DataFrame

    @cached_property
    def correlations(self) -> pd.DataFrame:
        """How effects on every two tasks go together, with `n_prompts`, or the `reason` why they do not."""
        rows = []
        for x_task, y_task in combinations(self.scores.columns, 2):
            x, y = self.scores[x_task], self.scores[y_task]
            reason = intervals.why_undefined(x, y)
            tests = () if reason else (stats.pearsonr(x, y), stats.spearmanr(x, y))
            pearson, spearman = [float(test.statistic) for test in tests] or (None, None)
            rows.append((x_task, y_task, pearson, spearman, len(x), reason))
        return pd.DataFrame(rows, columns=["x_task", "y_task", *COEFFICIENTS, "n_prompts", "reason"])

    @property
    def current(self) -> str:
        """The task whose prompt varies."""
        return self.run.tasks[-1]

    def matrix(self, coefficient: str) -> pd.DataFrame:
        """The symmetric matrix of a coefficient, for drawing: NaN where it is not defined."""
        table = self.scores.to_numpy(dtype=float)
        matrix = intervals.column_correlations(table, table, coefficient)
        matrix[...] = matrix if len(table) >= intervals.FEWEST_PROMPTS else np.nan
        return pd.DataFrame(matrix, index=self.scores.columns, columns=self.scores.columns)

    @property
    def no_variance(self) -> list[str]:
        """The tasks whose scores are the same for all prompts."""
        return list(self.scores.columns[intervals.is_constant(self.scores.to_numpy(dtype=float))])


@dataclass(frozen=True)
class MapSummary:
    """What a whole map says: the mean coefficient off the diagonal and its permutation test.

    `undefined` holds the reasons for which pairs of tasks do not count.
    """

    coefficient: str
    mean: Interval
    p: float | None
    n_pairs: int
    undefined: tuple[str, ...]


def prompt_variants(runs: Sequence[RunResult]) -> list[list[RunResult]]:
    """The sets among `runs` that differ only in the last trained task's prompt, two prompts or more each.

    Runs that ended up with the same prompt (a policy chose what another fixed) count once.
    """
    groups: dict[tuple, dict[str | None, RunResult]] = {}
    for run in runs:
        record, (*earlier, last) = run.record, run.tasks
        settings = (run.model, run.sequence, run.tasks, run.unseen, run.method, run.seed, record.parity)
        key = (*settings, *map(record.prompts.get, earlier), digest(record.comparable))
        groups.setdefault(key, {}).setdefault(record.prompts.get(last), run)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def prompt_effects(runs: Sequence[RunResult], measure: str) -> PromptEffects:
    """Final scores per prompt and their correlations between every two non-current tasks, of runs that differ
    in the last trained task's prompt alone.
    """
    current = runs[0].tasks[-1]
    finals = [score_matrix(run, measure).iloc[-1].drop(current) for run in runs]
    indexes = [choice.index for run in runs for choice in run.record.choices if choice.task == current]
    numbers = indexes if len(set(indexes)) == len(runs) else range(len(runs))
    scores = pd.DataFrame(dict(zip(numbers, finals, strict=True))).T.sort_index().rename_axis("prompt")
    return PromptEffects(runs[0], measure, scores)


def probe_effects(probe: ProbeResult, measure: str) -> PromptEffects:
    """The effects of a probe's prompts on its tasks that are not current."""
    scores = probe.outcomes(measure)[list(probe.others)]
    return PromptEffects(probe.runs[ORIGINAL], measure, scores)


def summarize_map(effects: PromptEffects, coefficient: str) -> MapSummary:
    """The mean coefficient over all pairs of tasks, its interval over prompts and its permutation p.

    A cell of a map rests on as many points as there are prompts and says little alone: one test a map, of
    the mean, and none of cells.
    """
    reasons = effects.correlations["reason"]
    undefined, n_pairs = tuple(reasons.dropna().unique()), int(reasons.isna().sum())
    if not n_pairs:
        reason = intervals.joined(undefined) or "a correlation needs two tasks that are not current"
        nothing = Interval(None, n=len(effects.scores), reason=reason)
        return MapSummary(coefficient, nothing, None, 0, undefined)
    table = effects.scores.dropna(axis="columns").to_numpy(dtype=float)
    table = table[
        :, ~intervals.is_constant(table)
    ]  # rounding noise would have ranks, and correlate when permuted
    mean = intervals.bootstrap_interval(table, partial(intervals.mean_off_diagonal, coefficient=coefficient))
    ranks = stats.rankdata(table, axis=0) if coefficient == "spearman" else table
    copies = np.broadcast_to(ranks, (PERMUTATIONS, *ranks.shape)).copy()
    permuted = intervals.mean_off_diagonal(np.random.default_rng(0).permuted(copies, axis=1), "pearson")
    p = intervals.permutation_p(float(intervals.mean_off_diagonal(table, coefficient)), permuted)
    return MapSummary(coefficient, mean, p, n_pairs, undefined)


def map_caption(summary: MapSummary, adjusted: float | None) -> str:
    """What a map says as a whole, for its title; `adjusted` is its p after Holm's correction."""
    if summary.mean.value is None:
        return "no pair of tasks is defined"
    return f"mean {summary.mean.text()}, p = {summary.p:.2g} (Holm {adjusted:.2g})"


def pair_interval(scores: pd.DataFrame, x_task: str, y_task: str, coefficient: str) -> Interval:
    """One coefficient between two tasks, with its interval over prompts."""
    if reason := intervals.why_undefined(scores[x_task], scores[y_task]):
        return Interval(None, n=len(scores), reason=reason)
    table = scores[[x_task, y_task]].to_numpy(dtype=float)
    return intervals.bootstrap_interval(table, partial(intervals.mean_off_diagonal, coefficient=coefficient))


def correlation_table(effects: Sequence[PromptEffects]) -> pd.DataFrame:
    """All correlations in long form; an undefined coefficient is empty and has its reason beside it."""
    tables = []
    for effect in effects:
        cells = ["x_task", "y_task", "n_prompts", "reason"]
        table = effect.correlations.melt(cells, list(COEFFICIENTS), "coefficient", "r")
        facts = {name: getattr(effect.run, name) for name in ("model", "sequence", "method", "seed")}
        facts |= {"current_task": effect.current, "measure": effect.measure}
        columns = [*facts, "x_task", "y_task", "coefficient", "r", "n_prompts", "reason"]
        tables.append(table.assign(**facts)[columns])
    return pd.concat(tables, ignore_index=True)
