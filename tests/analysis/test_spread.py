"""Spread over prompts: relative changes by hand, the test against scipy's exact one, and by property."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sapo.analysis.intervals import jackknife_interval
from sapo.analysis.probes.results import load_probe
from sapo.analysis.probes.spread import (
    _ratio,
    change_rows,
    relative_changes,
    spread,
    spread_test,
    variation_of,
)


@pytest.fixture(scope="module")
def probe(stored_probe):
    return load_probe(stored_probe)


def test_relative_changes_by_hand():
    scores = pd.DataFrame(
        {"a": [50.0, 60.0, 40.0], "zero": [0.0, 5.0, 1.0], "gap": [1.0, np.nan, 2.0]}, index=[-1, 0, 1]
    )
    changes, reasons = relative_changes(scores)
    assert changes["a"].tolist() == [0.0, 20.0, -20.0]
    assert changes[["zero", "gap"]].isna().all(axis=None)
    assert reasons == {"zero": "0 under the original prompt", "gap": "not evaluated for prompt 0"}


def test_variation_by_hand():
    # 40, 50, 60: standard deviation 10, mean 50
    assert variation_of(np.array([[40.0], [50.0], [60.0]])) == pytest.approx([20.0])
    assert np.isnan(variation_of(np.zeros((3, 1)))).all()


@pytest.mark.parametrize("n_prompts", [8, 21])
@pytest.mark.parametrize(
    ("statistic", "true"),
    [
        (lambda rows: variation_of(rows)[..., 0], 2.0),
        (lambda rows: variation_of(rows)[..., 1:].mean(axis=-1), 4.0),
        (_ratio, 2.0),
    ],
    ids=["variation", "cross-task", "ratio"],
)
def test_95_percent_intervals_hold_the_true_value_at_least_90_percent_of_the_time(n_prompts, statistic, true):
    # In-task spread 2 %, that of three other tasks 2, 4 and 6 %; a share of each is common to all tasks.
    rng = np.random.default_rng(n_prompts)
    spreads = np.array([1.0, 1.0, 2.0, 3.0])
    held = 0
    for _ in range(300):
        common, own = rng.normal(size=(n_prompts, 1)), rng.normal(size=(n_prompts, 4))
        found = jackknife_interval(50 + spreads * (0.6 * common + 0.8 * own), statistic)
        held += found.low <= true <= found.high
    assert 0.90 <= held / 300 <= 0.99


def test_with_one_other_task_the_test_is_the_sign_flip_of_paired_deviations():
    rng = np.random.default_rng(0)
    table = np.column_stack([50 + rng.normal(size=10), 50 + 2.2 * rng.normal(size=10)])
    deviations = np.abs(table - np.median(table, axis=0)) / table.mean(axis=0)
    exact = stats.permutation_test(
        (deviations[:, 0], deviations[:, 1]),
        lambda a, b: np.mean(a) - np.mean(b),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    assert 0.02 < exact.pvalue < 0.9
    assert spread_test(table, permutations=20000) == pytest.approx(exact.pvalue, abs=0.02)


@given(st.integers(0, 999), st.permutations(range(9)), st.floats(0.1, 10))
@settings(max_examples=20)
def test_p_is_a_share_and_does_not_change_with_units(seed, order, scale):
    table = 50 + np.random.default_rng(seed).normal(size=(9, 4))
    p = spread_test(table, permutations=400)
    assert 0 < p <= 1
    assert spread_test(scale * table, permutations=400) == pytest.approx(p, abs=0.01)
    assert spread_test(table[list(order)], permutations=400) == pytest.approx(p, abs=0.2)


def test_equal_spreads_are_rarely_called_different():
    rng = np.random.default_rng(3)
    p_values = [spread_test(50 + rng.normal(size=(12, 5)), permutations=300) for _ in range(100)]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.12
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.12)


def test_a_planted_spread_is_found(probe):
    for measure in ("rougeL", "nll"):
        result = spread(probe, measure)
        scores = probe.outcomes(measure)
        expected = 100 * scores.std() / scores.mean()
        assert result.in_task.value == pytest.approx(expected[probe.current])
        assert result.cross_task.value == pytest.approx(expected[list(probe.others)].mean())
        assert result.ratio.value == pytest.approx(result.cross_task.value / result.in_task.value)
        assert result.ratio.low < result.ratio.value < result.ratio.high
        assert result.ratio.low > 2
        assert result.p < 0.01
        assert spread(probe, measure).ratio == result.ratio


def test_the_points_keep_every_prompt_and_task_with_roles_and_losses(probe):
    rows = change_rows(spread(probe, "rougeL"))
    assert len(rows) == 21 * 10
    assert rows.groupby("role").size().to_dict() == {"forgetting": 21, "training": 21, "generalization": 168}
    original = rows[rows["prompt"] == -1]
    assert (original["relative_change_percent"] == 0).all()
    assert rows.groupby("prompt")["pre_update_loss"].nunique().eq(1).all()


def test_scores_that_are_0_or_alike_have_reasons(probe_folder):
    probe = load_probe(probe_folder("small", n_prompts=6, unseen=("task618_x",), gradients=False))
    frame = probe.finals
    frame.loc[frame["task"] == "task618_x", "rougeL"] = 0.0
    some = spread(probe, "rougeL")
    assert some.variation["task618_x"].reason == "0 under every prompt"
    assert some.no_change == {"task618_x": "0 under the original prompt"}
    assert some.p is not None
    frame.loc[frame["task"] == probe.current, "rougeL"] = 7.0
    alike = spread(probe, "rougeL")
    assert (alike.in_task.value, alike.ratio.value) == (0.0, None)
    assert alike.ratio.reason == "no in-task spread to divide by"
    frame["rougeL"] = 0.0
    nothing = spread(probe, "rougeL")
    assert (nothing.p, nothing.why_no_p) == (None, "0 under every prompt")
