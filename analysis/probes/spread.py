"""How much the wording of one task's prompt moves it, and the other tasks. (The paper's Figures 1, 5, 6.)"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from sapo.analysis.intervals import (
    FEWEST_PROMPTS,
    PERMUTATIONS,
    Array,
    Interval,
    jackknife_interval,
    permutation_p,
)
from sapo.analysis.probes.results import ProbeResult
from sapo.conf.errors import UserError
from sapo.data.prompts import ORIGINAL

SPREAD_TEST = (
    "Brown-Forsythe deviations |score - median| / mean of each task, the current task permuted within each "
    f"prompt ({PERMUTATIONS} permutations, two-sided; over prompts, for these tasks); where the other tasks "
    "differ in spread it errs to the safe side (simulated with 12 prompts: at p = 0.05 it is wrong in less "
    "than 2 % of cases)"
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
    if scores.isna().all(axis=None):
        raise UserError(f"Probe {probe.id} has no {measure}: choose another measure.")
    changes, no_change = relative_changes(scores)
    variation = {task: _variation(scores, task) for task in scores.columns}
    usable = [task for task in probe.others if variation[task].value is not None]
    in_task = variation[probe.current]
    if not usable or in_task.value is None:
        reason = in_task.reason if usable else variation[probe.trained].reason
        none = Interval(None, n=len(scores), reason=reason or "no other task has a spread")
        return Spread(probe, measure, changes, no_change, variation, in_task, none, none, None, none.reason)
    table = scores[[probe.current, *usable]].to_numpy(dtype=float)
    cross = jackknife_interval(table[:, 1:], lambda rows: variation_of(rows).mean(axis=-1))
    ratio = jackknife_interval(table, _ratio)
    if ratio.value is None:
        ratio = replace(ratio, reason="no in-task spread to divide by")
    p = spread_test(table)
    why = None if p is not None else "the scores do not vary"
    return Spread(probe, measure, changes, no_change, variation, in_task, cross, ratio, p, why)


def relative_changes(scores: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """100 * (score - original) / original, prompts x tasks; NaN, with a reason a task, where undefined."""
    original = scores.loc[ORIGINAL]
    reasons = {task: "0 under the original prompt" for task in scores if original[task] == 0}
    reasons |= {task: reason for task in scores if (reason := _missing(scores[task]))}
    changes = 100 * (scores - original) / original.abs().replace(0, np.nan)
    changes[list(reasons)] = np.nan
    return changes, reasons


def variation_of(rows: Array) -> Array:
    """Coefficient of variation (%) of the columns (... x n x k -> ... x k), NaN where the mean is 0."""
    mean = np.abs(rows.mean(axis=-2))
    return 100 * rows.std(axis=-2, ddof=1) / np.where(mean > 0, mean, np.nan)


def spread_test(table: Array, permutations: int = PERMUTATIONS, seed: int = 0) -> float | None:
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
    chosen = np.random.default_rng(seed).integers(k, size=(permutations, n))
    in_task = deviations[np.arange(n), chosen]
    cross = (deviations.sum(axis=1) - in_task) / (k - 1)
    observed = abs(deviations[:, 0].mean() - deviations[:, 1:].mean())
    return permutation_p(observed, np.abs((in_task - cross).mean(axis=1)))


def _ratio(rows: Array) -> Array:
    variation = variation_of(rows)
    in_task = variation[..., 0]
    return variation[..., 1:].mean(axis=-1) / np.where(in_task > 0, in_task, np.nan)


def _variation(scores: pd.DataFrame, task: str) -> Interval:
    column = scores[task]
    reason = _missing(column)
    if not reason and len(column) < FEWEST_PROMPTS:
        reason = f"{len(column)} prompts: a spread needs {FEWEST_PROMPTS} or more"
    if not reason and column.mean() == 0:
        reason = "0 under every prompt"
    if reason:
        return Interval(None, n=len(column), reason=reason)
    table = column.to_numpy(dtype=float)[:, None]
    return jackknife_interval(table, lambda rows: variation_of(rows)[..., 0])


def _missing(column: pd.Series) -> str | None:
    missing = [str(index) for index in column.index[column.isna()]]
    return f"not evaluated for prompt {', '.join(missing)}" if missing else None


def change_rows(result: Spread) -> pd.DataFrame:
    """The points of the figure: a row per task and prompt, with the score and why a change is missing."""
    probe, losses = result.probe, result.probe.pre_update_losses()
    scores = probe.outcomes(result.measure)
    rows = [
        {
            "task": task,
            "role": probe.role(task),
            "prompt": index,
            "measure": result.measure,
            "score": scores.at[index, task],
            "relative_change_percent": result.changes.at[index, task],
            "pre_update_loss": losses[index],
            "reason": result.no_change.get(task),
        }
        for task in scores
        for index in scores.index
    ]
    return pd.DataFrame(rows)
