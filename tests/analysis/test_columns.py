"""The common-prompt column, label match, and the bounds that have no states between the tasks."""

import json

import numpy as np
import pandas as pd
import pytest
from made_up import edit_run, with_columns

from sapo.analysis import render
from sapo.analysis.matrices import summarize_run
from sapo.analysis.metrics import METRICS, read_matrix
from sapo.analysis.report import analyze
from sapo.analysis.results import column_rows, example_scores, load_run, score_matrix
from sapo.analysis.tables import score_table
from sapo.conf.errors import UserError

TASKS = ("a", "b", "c")


def test_learned_tasks_take_their_common_rows_and_the_others_count_for_both(run_folder):
    path = with_columns(run_folder(tasks=TASKS, unseen=["x"]), loss=3.0)
    run = load_run(path)
    trained, common = (score_matrix(run, "rougeL", column) for column in ("trained", "common"))
    learned = np.array([[column < after for column in range(4)] for after in range(4)])
    learned[:, 3] = False  # x is never learned
    np.testing.assert_allclose(trained - common, np.where(learned, 3.0, 0.0))
    assert len(column_rows(run, "common")) == len(column_rows(run, "trained")) == 4 * 4 * 20
    np.testing.assert_array_equal(score_matrix(run, "exact_match", "common").to_numpy()[learned], 0.0)
    assert (score_matrix(run, "exact_match").to_numpy()[learned] > 50).all()
    assert [len(v) for v in example_scores(run, "rougeL", "common").values()] == [20] * 16
    summary = summarize_run(run)
    of_trained, of_common = (summary[name]["rougeL"]["reference"] for name in ("metrics", "metrics_common"))
    assert of_common["AP"] == pytest.approx(of_trained["AP"] - 3)
    assert (of_common["BWT"], of_common["FWT"]) == pytest.approx((of_trained["BWT"], of_trained["FWT"]))
    np.testing.assert_allclose(read_matrix(path / "matrix_rougeL_common.csv"), common)
    assert read_matrix(path / "matrix_nll_common.csv").shape == (4, 4)


def test_a_run_without_the_column_has_none_unless_all_its_prompts_are_original(run_folder):
    static, old = run_folder("static"), run_folder("old", policy="sapo")

    def change(frame):
        frame.loc[(frame["after"] == 3) & (frame["task"] == frame["task"].iloc[0]), "prompt_index"] = 4

    edit_run(old, change)
    pd.testing.assert_frame_equal(
        score_matrix(load_run(static), "nll", "common"), score_matrix(load_run(static), "nll")
    )
    with pytest.raises(UserError, match="training prompts only"):
        score_matrix(load_run(old), "rougeL", "common")
    summary = summarize_run(load_run(old))
    assert summary["metrics_common"] is None
    assert not list(old.glob("*_common.csv"))
    table = score_table([load_run(static), load_run(old)], draws=20)
    assert set(table.lines["tested_with"]) == {"trained"}
    assert any(note.startswith("No common-prompt rows with old:") for note in table.notes)


def test_table_1_shows_every_score_by_both_columns_in_all_renderings(run_folder):
    """SAPO is 5 points better than static with its own prompts, of which 3 are the test prompt's."""
    static = edit_run(run_folder("static", tasks=TASKS), lambda f: f.assign(label_match=f["exact_match"]))
    sapo = with_columns(run_folder("sapo", tasks=TASKS, policy="sapo", shift=5.0), loss=3.0)
    table = score_table([load_run(static), load_run(sapo)], draws=50)
    lines = table.lines
    scores = ["ROUGE-L", "NLL", "exact match", "label match"]
    scores += [f"{name}, common prompt" for name in scores]
    scores = [f"{name} (lower is better)" if "NLL" in name else name for name in scores]
    assert list(dict.fromkeys(lines["score"])) == scores
    gains = lines[(lines["source"] == "ours") & lines["difference"]].set_index("score")
    assert gains.at["ROUGE-L", "AP"].value == pytest.approx(5.0)
    assert gains.at["ROUGE-L, common prompt", "AP"].value == pytest.approx(2.0)
    assert gains.at["ROUGE-L", "FWT"].value == pytest.approx(gains.at["ROUGE-L, common prompt", "FWT"].value)
    for text in (render.score_markdown(table), render.latex(render.score_texts(table))):
        for name in ("ROUGE-L, common prompt", "exact match", "label match"):
            assert name in text
    long = render.score_csv(table)
    assert set(long["tested_with"]) == {"trained", "common"}
    assert "nan" not in render.csv(long).lower()


def test_label_match_of_mixed_sequences_is_empty_and_says_why(run_folder):
    paths = [with_columns(run_folder(name, tasks=TASKS, policy=name), 1.0) for name in ("static", "sapo")]
    for path in paths:
        edit_run(path, lambda f: f.assign(label_match=f["label_match"].where(f["task"] != "b")))
    summary = summarize_run(load_run(paths[0]))
    assert set(summary["metrics"]["label_match"]["reference"].values()) == {None}
    content = json.loads((paths[0] / "metrics.json").read_text())
    assert content["not_defined"] == {"label_match": "no label set: b"}
    matrix = read_matrix(paths[0] / "matrix_label_match.csv")
    assert matrix["b"].isna().all()
    assert matrix[["a", "c"]].notna().all(axis=None)
    table = score_table([load_run(path) for path in paths], draws=20)
    assert "label_match" not in set(table.lines["measure"])
    assert "Label match is not defined for mini_three (no label set: b)." in table.notes
    asked = score_table([load_run(path) for path in paths], "label_match", draws=20)
    assert {cell.value for metric in METRICS for cell in asked.lines[metric]} == {None}


@pytest.mark.parametrize("method", ["multitask", "single", "zero_shot"])
def test_bounds_have_ap_only(run_folder, tmp_path, method):
    for policy, gain in (("static", 0.0), ("sapo", 1.0)):
        scores = {(after, task): np.full(9, 40.0 + gain * after) for after in (0, 3) for task in TASKS}
        if method == "single":
            scores[3, "c"] = np.random.default_rng(0).uniform(0, 100, 9)
        run_folder(policy, scores, tasks=TASKS, method=method, policy=policy)
    report = analyze([tmp_path / "static", tmp_path / "sapo"], tmp_path / "out", "rougeL", "reference")
    metrics = report.metrics[0]["metrics"]["rougeL"]
    assert all((values["BWT"], values["FWT"]) == (None, None) for values in metrics.values())
    assert metrics["gem"]["AP"] is not None
    if method != "single":
        assert metrics["gem"]["AP"] == 40.0
    ours = report.table.lines.query("is_first and source == 'ours'")
    assert {cell.value for metric in ("BWT", "FWT") for cell in ours[metric]} == {None}
    assert f"{method} has no states between the tasks: it has AP only." in report.table.notes
    for file in report.files:
        if file.suffix in (".csv", ".md", ".json", ".tex"):
            assert "nan" not in file.read_text(encoding="utf-8").lower(), file
