"""Forgetting and generalization, and what summarizing a run leaves behind."""

import json
import math

import numpy as np
import pandas as pd

from sapo.analysis.matrices import forgetting, generalization, summarize_run
from sapo.analysis.metrics import continual_metrics, read_matrix
from sapo.analysis.results import MEASURES, load_run, score_matrix

NAN = math.nan
SCORES = pd.DataFrame(
    [[10, 20, 30, 5], [50, 21, 28, 6], [48, 60, 35, 2], [44, 61, 70, 9]],
    columns=["a", "b", "c", "unseen"],
    index=pd.RangeIndex(4, name="after"),
    dtype=float,
)


def test_forgetting_and_generalization_by_hand():
    changes = forgetting(SCORES)
    np.testing.assert_array_equal(changes, [[NAN, NAN, NAN], [-2, NAN, NAN], [-6, 1, NAN]])
    assert list(changes.index) == [1, 2, 3]
    gains = [[NAN, 1, -2, 1], [NAN, NAN, 5, -3], [NAN, NAN, NAN, 4]]
    np.testing.assert_array_equal(generalization(SCORES), gains)


def test_summary_writes_the_files_of_the_contract(run_folder):
    path = run_folder(unseen=["x"])
    run = load_run(path)
    summary = summarize_run(run, "exact_match")
    kinds, measures = ("matrix", "forgetting", "generalization"), ("rougeL", "exact_match", "nll")
    expected = {f"{kind}_{measure}.csv" for kind in kinds for measure in measures}
    expected |= {f"matrix_{measure}_common.csv" for measure in measures}
    figures = [f"{kind}{measure}" for kind in kinds[1:] for measure in ("", "_nll", "_exact_match")]
    expected |= {f"{figure}.{suffix}" for figure in figures for suffix in ("png", "pdf")}
    names = {file.name for file in summary["files"]}
    assert names == expected | {"metrics.json"}
    stored = {"run.json", "predictions.parquet", "manifest.json"}
    assert {file.name for file in path.iterdir()} == names | stored
    content = json.loads((path / "metrics.json").read_text())
    assert content["metrics"] == summary["metrics"]
    assert set(content["metrics"]) == set(MEASURES)
    for measure in measures:
        matrix = read_matrix(path / f"matrix_{measure}.csv")
        pd.testing.assert_frame_equal(matrix, score_matrix(run, measure), check_index_type=False)
        assert content["metrics"][measure] == continual_metrics(matrix)
    assert content["better"] == dict.fromkeys(MEASURES, "higher") | {"nll": "lower"}
    assert content["n_examples"] == dict.fromkeys((*run.tasks, "x"), 20)
    assert content["demonstration"] is True


def test_one_task_has_null_transfer_and_no_figure(run_folder):
    path = run_folder(tasks=["a"])
    summary = summarize_run(load_run(path))
    assert summary["metrics"]["rougeL"]["reference"]["BWT"] is None
    assert not [file for file in summary["files"] if file.suffix == ".png"]
    assert "NaN" not in (path / "metrics.json").read_text()
