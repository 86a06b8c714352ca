"""Correlation of prompt effects across tasks, against pandas."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sapo.analysis.correlations import (
    PromptEffects,
    correlation_table,
    pair_interval,
    probe_effects,
    prompt_effects,
    prompt_variants,
    summarize_map,
)
from sapo.analysis.results import load_run

TRAINED, UNSEEN = ("T1", "T2"), ("X", "Y")


def probe(run_folder, seed=0):
    """One run a prompt, with the final scores of FINALS on the tasks that are not current."""
    runs = []
    for index in range(-1, 3):
        scores = {(after, task): np.full(4, 30.0) for after in range(3) for task in (*TRAINED, *UNSEEN)}
        scores |= {(2, task): np.full(4, values[index + 1]) for task, values in FINALS.items()}
        prompts = {"T1": "first", "T2": f"wording {index}"}
        choices = [{"task": task, "index": index, "text": text} for task, text in prompts.items()]
        facts = {"tasks": TRAINED, "unseen": UNSEEN, "prompts": prompts, "choices": choices, "seed": seed}
        runs.append(load_run(run_folder(f"probe{index}{seed}", scores, **facts)))
    return runs


FINALS = {"T1": [50.0, 60.0, 55.0, 70.0], "X": [1.0, 3.0, 2.0, 9.0], "Y": [8.0, 5.0, 7.0, 6.0]}


def test_effects_are_final_scores_and_correlations_those_of_pandas(run_folder):
    runs = probe(run_folder)
    scores = pd.DataFrame(FINALS, index=[-1, 0, 1, 2])
    for measure, expected in (("rougeL", scores), ("nll", 5.0 - scores / 25.0)):
        effects = prompt_effects(runs, measure)
        assert effects.current == "T2"
        pd.testing.assert_frame_equal(effects.scores, expected, check_names=False)
        for coefficient in ("pearson", "spearman"):
            correlations = expected.corr(coefficient)
            pd.testing.assert_frame_equal(effects.matrix(coefficient), correlations)
            cells = effects.correlations.set_index(["x_task", "y_task"])[coefficient].to_dict()
            assert list(cells) == [("T1", "X"), ("T1", "Y"), ("X", "Y")]
            assert list(cells.values()) == pytest.approx([correlations.loc[pair] for pair in cells])
            table = correlation_table([effects]).query(f"coefficient == '{coefficient}'")
            assert table["r"].tolist() == list(cells.values())


def test_variants_are_runs_that_differ_only_in_the_last_prompt(run_folder):
    runs = probe(run_folder)
    other_seed = probe(run_folder, seed=1)
    alone = load_run(run_folder("alone"))
    twin = load_run(run_folder("twin", tasks=TRAINED, unseen=UNSEEN, prompts=runs[0].record.prompts))
    facts = {"tasks": TRAINED, "unseen": UNSEEN, "prompts": runs[0].record.prompts | {TRAINED[-1]: "new"}}
    longer = load_run(run_folder("longer", comparable={"trainer": {"epochs": 2}}, **facts))
    groups = prompt_variants([*runs, *other_seed, alone, twin, longer])
    assert [[run.id for run in group] for group in groups] == [
        [run.id for run in runs],
        [run.id for run in other_seed],
    ]


def effects_of(scores: pd.DataFrame) -> PromptEffects:
    return PromptEffects(None, "rougeL", scores)


def test_a_map_of_a_planted_probe_is_above_chance(whole):
    effects = probe_effects(whole, "nll")
    assert len(effects.scores.columns) == 9
    for coefficient in ("pearson", "spearman"):
        summary = summarize_map(effects, coefficient)
        matrix = effects.scores.corr(coefficient).to_numpy()
        assert summary.mean.value == pytest.approx(matrix[np.triu_indices(9, 1)].mean())
        assert summary.mean.low < summary.mean.value < summary.mean.high
        assert summary.mean.low > 0
        assert (summary.n_pairs, summary.undefined) == (36, ())
        assert summary.p < 0.001


def test_with_two_tasks_the_test_is_scipys_of_one_correlation():
    scores = pd.DataFrame(np.random.default_rng(5).normal(size=(9, 2)), columns=["a", "b"])
    scores["b"] += 0.5 * scores["a"]
    method = stats.PermutationMethod(n_resamples=20000, rng=1)
    of_scipy = stats.pearsonr(scores["a"], scores["b"], alternative="greater", method=method).pvalue
    assert summarize_map(effects_of(scores), "pearson").p == pytest.approx(of_scipy, abs=0.02)


def test_a_map_leaves_undefined_tasks_out_and_says_so():
    scores = pd.DataFrame(np.random.default_rng(1).normal(size=(7, 4)), columns=list("abcd"))
    scores["c"] = 1.0
    scores.loc[3, "d"] = np.nan
    defined = effects_of(scores).correlations.dropna(subset="pearson")
    assert defined[["x_task", "y_task"]].to_numpy().tolist() == [["a", "b"]]
    summary = summarize_map(effects_of(scores), "spearman")
    assert summary.mean.value == pytest.approx(scores["a"].corr(scores["b"], method="spearman"))
    assert summary.n_pairs == 1
    assert summary.undefined == ("c is the same for all prompts", "d is not known for every prompt")
    none = summarize_map(effects_of(scores[["c", "d"]]), "pearson")
    assert (none.mean.value, none.p, none.n_pairs) == (None, None, 0)
    alone = summarize_map(effects_of(scores[["a"]]), "pearson")
    assert alone.mean.reason == "a correlation needs two tasks that are not current"
    few = summarize_map(effects_of(scores.iloc[:2]), "pearson")
    assert few.mean.reason == "2 prompts: a correlation needs 3 or more"


def test_one_pair_has_an_interval_or_a_reason():
    scores = pd.DataFrame(np.random.default_rng(1).normal(size=(12, 2)), columns=["a", "b"])
    found = pair_interval(scores, "a", "b", "spearman")
    assert found.value == pytest.approx(scores["a"].corr(scores["b"], method="spearman"))
    assert found.low < found.value < found.high
    constant = pair_interval(scores.assign(b=2.0), "a", "b", "pearson")
    assert (constant.value, constant.reason) == (None, "b is the same for all prompts")


def test_rounding_noise_takes_no_part_in_the_test_of_a_map():
    rng = np.random.default_rng(2)
    scores = pd.DataFrame(rng.normal(size=(6, 2)), columns=["a", "b"])
    noisy = scores.assign(c=50 + 1e-12 * rng.normal(size=6), d=50 + 1e-12 * rng.normal(size=6))
    for coefficient in ("pearson", "spearman"):
        alone, beside = (summarize_map(effects_of(table), coefficient) for table in (scores, noisy))
        assert (beside.mean, beside.p, beside.n_pairs) == (alone.mean, alone.p, 1)
