"""Score, forgetting and generalization matrices of a run, and the files that hold them."""

import json
from typing import Any

import numpy as np
import pandas as pd

from sapo.analysis import results
from sapo.analysis.figures import effect_heatmap, loss_figure, save
from sapo.analysis.metrics import continual_metrics, unseen_gain, write_matrix
from sapo.analysis.results import MEASURES, RunResult, score_matrix
from sapo.data.files import write_result

PAPER_MEASURE = "rougeL"


def forgetting(scores: pd.DataFrame) -> pd.DataFrame:
    """a[i][j] - a[j][j] for j < i: states 1..N x the N trained tasks, NaN elsewhere.

    For a score, negative means forgotten; for NLL, positive does.
    """
    n = len(scores) - 1
    trained = scores.iloc[1:, :n]
    return (trained - np.diag(trained)).where(np.tri(n, k=-1, dtype=np.bool_))


def generalization(scores: pd.DataFrame) -> pd.DataFrame:
    """a[i][j] - a[0][j] for tasks not trained yet (j > i) or never: states 1..N x all tasks, else NaN."""
    change = scores.iloc[1:] - scores.iloc[0]
    return change.where(~np.tri(*change.shape, dtype=np.bool_))


EFFECTS = {
    "forgetting": (forgetting, "Forgetting: change since the task was trained"),
    "generalization": (generalization, "Generalization: change since the untouched model"),
}


def summarize_run(run: RunResult, measure: str = PAPER_MEASURE) -> dict[str, Any]:
    """Writes matrices, effects, metrics, loss curve, and heat maps of DRAWN and `measure` to its folder.

    Returns `{"files": [path, …], "metrics": {measure: {definition: {metric: value or None}}},
    "metrics_common": the same with learned tasks tested under their original instruction, or None}`.
    """
    curve = loss_figure([run], [run.facts])
    files = save(curve, run.path / "loss") if curve else []
    gains = {}
    for name in MEASURES:
        scores = score_matrix(run, name)
        gains[name] = unseen_gain(scores)
        if scores.isna().all(axis=None):
            continue  # no task has such a score
        files.append(write_matrix(scores, run.path / f"matrix_{name}.csv"))
        for effect, (compute, title) in EFFECTS.items():
            changes = compute(scores)
            files.append(write_matrix(changes, run.path / f"{effect}_{name}.csv"))
            # One trained task forgets nothing: there is no figure to draw.
            if name in (*results.DRAWN, measure) and not changes.isna().all(axis=None):
                stem = run.path / (effect if name == PAPER_MEASURE else f"{effect}_{name}")
                files += save(effect_heatmap(changes, run, title, name), stem)
        if run.has_common:
            common = score_matrix(run, name, "common")
            files.append(write_matrix(common, run.path / f"matrix_{name}_common.csv"))
    reason = results.why_no_labels(run)
    metrics = {"metrics": metrics_of(run), "metrics_common": metrics_of(run, "common")}
    content = {
        "run": run.id,
        "demonstration": run.demonstration,
        "n_examples": results.n_examples(run),
        "better": {name: "lower" if name in results.LOWER_IS_BETTER else "higher" for name in MEASURES},
        **metrics,
        "not_defined": {results.LABELS: reason} if reason else {},
        "unseen_gain": gains,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    files.append(write_result(run.path / "metrics.json", text + "\n"))
    return {"files": files, **metrics}


def metrics_of(run: RunResult, column: str = "trained") -> dict[str, Any] | None:
    """`{measure: {definition: {metric: value or None}}}` of a column; None if the run does not have it."""
    if column == "common" and not run.has_common:
        return None
    return {measure: continual_metrics(score_matrix(run, measure, column)) for measure in MEASURES}
