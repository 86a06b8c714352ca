"""What the page says of runs: their labels, matrices, prompts with losses, and warnings."""

from pathlib import Path

import numpy as np

from sapo.analysis.page.sections import choices, matrix_grids, run_pages, ties, warnings
from sapo.analysis.results import load_run


def test_matrices_are_as_computed_and_coloured_by_what_is_better(run_folder):
    scores = {
        (after, task): np.array([values[after]])
        for task, values in {"a": [0, 80, 60], "b": [10, 35, 90]}.items()
        for after in (0, 1, 2)
    }
    run = load_run(run_folder(tasks=["a", "b"], scores=scores))
    found, forgetting, generalization = matrix_grids(run, "rougeL")
    assert [[cell.text for cell in row] for row in found.rows] == [
        ["untouched model", "0.0", "10.0"],
        ["after a", "80.0", "35.0"],
        ["after b", "60.0", "90.0"],
    ]
    assert [cell.shade for cell in found.rows[1][1:]] == [0.8, 0.35]
    (cell,) = [cell for row in forgetting.rows for cell in row[1:] if cell.text]
    assert (cell.text, cell.tone, cell.shade) == ("-20.0", "bad", 1.0)
    (cell,) = [cell for row in generalization.rows for cell in row[1:] if cell.text]
    assert (cell.text, cell.tone, cell.shade) == ("+25.0", "good", 1.0)
    forgetting = matrix_grids(run, "nll")[1]
    (cell,) = [cell for row in forgetting.rows for cell in row[1:] if cell.text]
    assert (cell.text, cell.tone) == ("+0.800", "bad")  # (80 - 60) / 25 nats more


def test_all_candidates_stand_with_their_losses_the_lowest_first(run_folder):
    (first, *_) = choices(run_pages([load_run(run_folder())])[0])
    rows = [(c.name, c.loss, c.change, c.is_chosen) for c in first.candidates]
    assert rows == [
        ("1", "1.4000", "-0.2000", True),
        ("0", "1.5000", "-0.1000", False),
        ("original", "1.6000", "+0.0000", False),
    ]


def test_a_candidate_that_a_race_dropped_is_not_compared(run_folder):
    candidates = [
        {"index": index, "text": "t", "loss": loss, "n_examples": n}
        for index, loss, n in ((-1, 2.0, 8), (0, 1.0, 2), (1, 1.5, 8))
    ]
    choice = {"task": "a", "index": 1, "text": "t", "candidates": candidates}
    page = run_pages([load_run(run_folder(tasks=["a"], choices=[choice]))])[0]
    found = {c.name: (c.change, c.is_partial) for c in choices(page)[0].candidates}
    assert found == {"0": ("–", True), "1": ("-0.5000", False), "original": ("+0.0000", False)}
    candidates[0]["n_examples"] = 4  # a loss that others were not read against
    page = run_pages([load_run(run_folder("dropped", tasks=["a"], choices=[choice]))])[0]
    assert {c.name: c.change for c in choices(page)[0].candidates} == dict.fromkeys(
        ("0", "1", "original"), "–"
    )


def test_runs_are_told_apart_by_settings_then_by_prompts_then_by_id(run_folder):
    def labels(*folders: Path) -> list[str]:
        return [page.label for page in run_pages([load_run(folder) for folder in folders])]

    static, adaptive = run_folder("static"), run_folder("sapo", policy="sapo", seed=1)
    assert labels(static, adaptive) == ["static · seed 0", "sapo · seed 1"]
    other = run_folder("other", model="tiny_llama")
    assert labels(static, other) == ["smollm2_135m · static · seed 0", "tiny_llama · static · seed 0"]
    probes = [
        run_folder(f"probe{index}", tasks=["a"], choices=[{"task": "a", "index": index, "text": "t"}])
        for index in (-1, 7)
    ]
    assert labels(*probes) == ["static · seed 0 · prompts original", "static · seed 0 · prompts 7"]
    again = run_folder("again")
    assert labels(static, again) == [
        f"static · seed 0 · prompts 1, 1, 1 · {name}" for name in ("static", "again")
    ]


def test_warnings_name_the_runs_that_they_are_about(run_folder):
    tied = [
        {"index": index, "text": "t", "loss": loss, "n_examples": 3}
        for index, loss in ((-1, 2), (4, 1), (7, 1))
    ]
    first = run_folder(
        "one",
        demonstration=False,
        shortened={"task195_sentiment": 3, "task363_sst2": 0},
        notes=["A note."],
        choices=[{"task": "task195_sentiment", "index": 4, "text": "t", "candidates": tied}],
    )
    second = run_folder("two", demonstration=False, seed=1, notes=["A note."], environment={"dirty": True})
    assert warnings(run_pages([load_run(first), load_run(second)])) == [
        "NI195: 3 inputs were too long and have been shortened. (static · seed 0)",
        "NI195: candidates 4, 7 tie: one loss, of which one was taken. (static · seed 0)",
        "A note.",
        "Run with uncommitted changes: the git commit does not say all of the code. (static · seed 1)",
    ]


def test_only_losses_of_as_many_examples_tie():
    def choice(*candidates):
        rows = [{"index": i, "loss": loss, "n_examples": n} for i, loss, n in candidates]
        return {"task": "a", "index": 0, "candidates": rows}

    assert ties(choice((0, 1.0, 4), (1, 1.0, 2), (2, 1.1, 4))) == [0]
    assert ties(choice((0, 1.0, 4), (1, 1.0, 4))) == [0, 1]
    assert ties({"task": "a", "index": 0, "candidates": None}) == []
