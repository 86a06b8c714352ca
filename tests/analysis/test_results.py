"""Reading run folders, and finding them."""

import numpy as np
import pandas as pd
import pytest
from made_up import edit_run, seal, with_columns

from sapo.analysis.results import (
    example_scores,
    find,
    find_probes,
    find_runs,
    load_run,
    n_examples,
    rows_apart,
    score_matrix,
)
from sapo.conf.errors import UserError, WorkError


def test_scores_are_means_per_state_and_task_in_order(run_folder):
    two_tasks = {(0, "a"): [0.0, 10.0], (1, "a"): [50.0, 70.0], (2, "a"): [40.0, 60.0]}
    two_tasks |= {(1, "b"): [20.0, 30.0, 40.0], (2, "b"): [80.0, 90.0, 100.0]}
    arrays = {cell: np.array(values) for cell, values in two_tasks.items()}
    run = load_run(run_folder(tasks=["b", "a"], scores=arrays))
    matrix = score_matrix(run, "rougeL")
    assert list(matrix.columns) == ["b", "a"]
    assert list(matrix.index) == [0, 1, 2]
    np.testing.assert_array_equal(matrix, [[np.nan, 5], [30, 60], [90, 50]])
    np.testing.assert_array_equal(score_matrix(run, "exact_match")["a"], [0, 50, 50])
    assert n_examples(run) == {"b": 3, "a": 2}
    scores = example_scores(run, "rougeL")  # in the order of examples, though the table is shuffled
    assert {key: list(values) for key, values in scores.items()} == two_tasks
    with pytest.raises(UserError, match=r"Unknown measure 'rouge'.*rougeL"):
        score_matrix(run, "rouge")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run.json", None, "no run.json"),
        ("predictions.parquet", None, "no predictions.parquet"),
        ("predictions.parquet", b"PAR1", "predictions.parquet is damaged"),
    ],
)
def test_missing_and_damaged_files_are_named_with_the_mend(run_folder, file, content, message):
    path = run_folder()
    (path / file).unlink() if content is None else (path / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_run(seal(path))
    assert "Run `sapo train" in str(caught.value)
    if file == "predictions.parquet":
        options = "sequence=mini_three model=smollm2_135m method=lorainc policy=static seed=0"
        assert options in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda frame: frame.drop(columns="nll"), "without column nll"),
        (lambda frame: frame.assign(task="other"), "task other is not in run.json"),
        (lambda frame: frame.assign(after=7), r"outside 0\.\.3"),
        (lambda frame: frame.assign(column="original"), "`column` is none of trained, common"),
        (lambda frame: pd.concat([frame, frame.head(1)]), "scored twice"),
        (lambda frame: frame.assign(rougeL=np.nan), "rougeL is not a finite number"),
        (lambda frame: frame.assign(nll=np.inf), "nll is not a finite number"),
        (lambda frame: frame[(frame["after"] != 2) | (frame["example"] != 3)], "other test rows"),
        (lambda frame: frame[(frame["column"] == "trained") | (frame["example"] != 2)], "other test rows"),
        (lambda frame: frame.assign(label_match=frame["label_match"].where(frame["row"] != 1)), "in some"),
        (lambda frame: frame.head(0), "it has no rows"),
    ],
)
def test_damaged_predictions_are_refused(run_folder, damage, message):
    path = edit_run(with_columns(run_folder(n=4), loss=3.0), damage)
    with pytest.raises(WorkError, match=message):
        load_run(path)


@pytest.mark.parametrize(
    ("inputs", "how"), [("bac", "the same in another order"), ("aab", "2 in both"), ("aaa", "1 in both")]
)
def test_test_rows_are_told_apart_by_how_often_and_in_which_order_they_come(run_folder, inputs, how):
    def run(letters):
        path = run_folder(letters, tasks=["task195_a"], n=3, comparable={"data": {"task195_a": letters}})
        return load_run(
            edit_run(path, lambda frame: frame.assign(input=frame["example"].map(dict(enumerate(letters)))))
        )

    assert rows_apart([run("abc"), run(inputs)]) == f"NI195: 3 and 3 test rows, {how}"


def test_runs_and_probes_are_found_by_folder_id_pattern_and_parent(
    tmp_path, monkeypatch, run_folder, probe_folder
):
    monkeypatch.chdir(tmp_path)
    one, two = run_folder("runs/one"), run_folder("runs/two")
    run_folder("runs/.half.7")
    whole = (["runs/*"], ["*o*"], ["runs"], ["."])
    for names in (["one", "two"], ["runs/one", "runs/two"], *whole, [str(one), "two", "one"]):
        assert [path.resolve() for path in find_runs(names, tmp_path)] == [one, two], names
    probe = probe_folder("p", n_prompts=3, unseen=["task618_x"])
    for name in ("p", "probes/p", "probes", "probes/*", str(probe)):
        assert [path.resolve() for path in find_probes([name], tmp_path)] == [probe], name
    # A store of both means its runs, or both.
    assert find_probes([str(tmp_path), "p-0"], tmp_path) == []
    assert [path.name for path in find(["p", "o*"], tmp_path, both=True)] == ["p", "one"]
    assert [path.name for path in find([], tmp_path, both=True)] == ["p", "one", "p--1", "p-0", "p-1", "two"]
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("too", "Unknown run 'too'.*Did you mean two"),
        ("nothing*", "No run matches"),
        ("empty", "holds no finished run"),
        ("p", r"p is a probe, not a run: `sapo analyze .*p` draws it"),
    ):
        with pytest.raises(UserError, match=message):
            find_runs([name], tmp_path)
