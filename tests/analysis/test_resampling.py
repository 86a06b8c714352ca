"""Bootstrap and permutation helpers against scipy, pandas, plain loops, and by property."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sapo.analysis.intervals import (
    Interval,
    bootstrap_interval,
    column_correlations,
    holm,
    jackknife_interval,
    joined,
    mean_interval,
    mean_off_diagonal,
    permutation_p,
    resampled,
    share_interval,
)

tables = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).normal(size=(8, 4)))


@pytest.mark.parametrize(("name", "of_scipy"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)])
def test_coefficients_are_those_of_scipy_also_with_ties(name, of_scipy):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (12, 2)).astype(float), rng.normal(size=(12, 3))
    found = column_correlations(x, y, name)
    for i in range(2):
        for j in range(3):
            assert found[i, j] == pytest.approx(of_scipy(x[:, i], y[:, j]).statistic)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_the_mean_off_the_diagonal_is_that_of_pandas_and_leaves_constant_columns_out(name):
    table = np.random.default_rng(1).normal(size=(9, 4))
    table[:, 2] = 0.1 + 0.2
    table[::2, 2] = 0.3  # the same up to rounding
    matrix = pd.DataFrame(table[:, [0, 1, 3]]).corr(name).to_numpy()
    assert mean_off_diagonal(table, name) == pytest.approx(matrix[np.triu_indices(3, 1)].mean())
    assert np.isnan(mean_off_diagonal(table[:, [0, 2]], name))


@given(tables, st.permutations(range(8)), st.floats(0.1, 50), st.floats(-100, 100))
@settings(max_examples=30)
def test_coefficients_do_not_change_with_order_or_scale(table, order, scale, shift):
    for name in ("pearson", "spearman"):
        expected = mean_off_diagonal(table, name)
        assert mean_off_diagonal(table[list(order)], name) == pytest.approx(expected)
        assert mean_off_diagonal(scale * table + shift, name) == pytest.approx(expected)


def test_an_interval_is_that_of_a_plain_loop_and_near_scipys():
    values = np.random.default_rng(2).gamma(2.0, size=30)
    estimate = bootstrap_interval(values[:, None], lambda rows: rows[..., 0].std(axis=1), seed=5)
    rng = np.random.default_rng(5)
    chosen = rng.integers(30, size=(2000, 30))
    loop = [values[rows].std() for rows in chosen]
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.percentile(loop, [2.5, 97.5])))
    assert estimate.value == pytest.approx(values.std())
    other = stats.bootstrap((values,), np.std, method="percentile", n_resamples=2000, rng=0)
    width = other.confidence_interval.high - other.confidence_interval.low
    assert estimate.low == pytest.approx(other.confidence_interval.low, abs=0.1 * width)
    assert estimate.high == pytest.approx(other.confidence_interval.high, abs=0.1 * width)


def test_a_jackknife_interval_by_plain_computation():
    values = np.random.default_rng(4).gamma(2.0, size=9)
    estimate = jackknife_interval(values[:, None], lambda rows: rows[..., 0].std(axis=1, ddof=1))
    logs = np.log([np.delete(values, row).std(ddof=1) for row in range(9)])
    error = np.sqrt(8 / 9 * ((logs - logs.mean()) ** 2).sum())
    reach = stats.t.ppf(0.975, 8) * error
    expected = np.exp(np.log(values.std(ddof=1)) + np.array([-reach, 0.0, reach]))
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx(tuple(expected))
    assert (estimate.n, estimate.reason) == (9, None)


def test_a_spread_that_hangs_on_one_row_has_no_interval():
    def spread(rows):
        return rows[..., 0].std(axis=1, ddof=1)

    lone = jackknife_interval(np.array([[7.0]] * 5 + [[8.0]]), spread)
    assert lone.value == pytest.approx(1 / np.sqrt(6))
    assert (lone.low, lone.reason) == (None, "without one of the prompts nothing varies")
    nothing = jackknife_interval(np.ones((6, 1)), spread)
    assert (nothing.value, nothing.low, nothing.reason) == (0.0, None, "nothing varies")
    few = jackknife_interval(np.arange(4.0)[:, None], spread, "pairs")
    assert (few.low, few.reason) == (None, "4 pairs: an interval needs 5 or more")
    assert jackknife_interval(np.ones((6, 1)), lambda rows: spread(rows) * np.nan).value is None


@given(st.lists(st.floats(-1e3, 1e3), min_size=5, max_size=25))
@settings(max_examples=50)
def test_the_interval_of_a_mean_holds_the_mean_and_lies_within_the_values(values):
    estimate = mean_interval(values, "prompts", draws=500)
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert estimate.low - slack <= estimate.value <= estimate.high + slack
    assert min(values) - slack <= estimate.low
    assert estimate.high <= max(values) + slack


def test_few_rows_and_undefined_draws_have_a_reason_in_place_of_an_interval():
    few = mean_interval([1.0, 2.0, 3.0, 6.0], "pairs")
    assert (few.value, few.low, few.high) == (3.0, None, None)
    assert few.reason == "4 pairs: an interval needs 5 or more"
    constant = bootstrap_interval(np.ones((6, 2)), lambda rows: mean_off_diagonal(rows, "pearson"))
    assert (constant.value, constant.reason) == (None, "not defined")
    nearly = np.zeros((40, 2))
    nearly[0] = 1.0
    rarely = bootstrap_interval(
        nearly[:, :1], lambda rows: np.where(rows[..., 0].sum(axis=1) == 1, 1.0, np.nan)
    )
    assert rarely.value == 1.0
    assert rarely.reason == "most resamples of the prompts have no variance"


def test_resamples_keep_rows_whole_and_seeds_repeat_them():
    rows = np.column_stack([np.arange(6.0), 10 * np.arange(6.0)])
    drawn = resampled(rows, draws=50, seed=1)
    assert drawn.shape == (50, 6, 2)
    np.testing.assert_array_equal(drawn[..., 1], 10 * drawn[..., 0])
    np.testing.assert_array_equal(drawn, resampled(rows, draws=50, seed=1))


@given(st.floats(-5, 5), st.lists(st.floats(-5, 5), min_size=1, max_size=20))
def test_a_permutation_p_is_above_0_and_at_most_1(observed, permuted):
    assert 0 < permutation_p(observed, np.array(permuted)) <= 1


def test_a_share_has_the_exact_binomial_interval():
    # Of 0 of 10 the upper end is where 10 misses still have a probability of 2.5 %: 1 - 0.025 ** (1 / 10)
    none = share_interval(0, 10)
    assert (none.value, none.low, none.high) == pytest.approx((0.0, 0.0, 1 - 0.025**0.1))
    some = share_interval(9, 15)
    assert stats.binom.sf(8, 15, some.low) == pytest.approx(0.025)
    assert stats.binom.cdf(9, 15, some.high) == pytest.approx(0.025)


def test_permutation_and_holm_by_hand():
    # 2 of 4 permutations reach 3: (1 + 2) / (1 + 4)
    assert permutation_p(3.0, np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.6)
    # Sorted 0.01, 0.02, 0.04: 3 * 0.01, 2 * 0.02, then never less than the one before
    assert holm([0.02, None, 0.01, 0.04]) == pytest.approx([0.04, None, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([None]) == [None]


def test_estimates_as_text():
    assert Interval(0.456, 0.2, 0.61, 9).text() == "0.46 [0.20, 0.61]"
    assert Interval(-0.001, -0.2, 0.3, 9).text(1, signed=True) == "+0.0 [-0.2, +0.3]"
    assert Interval(1.0, reason="4 pairs").text() == "1.00"
    assert Interval(None, reason="one prompt").text() == "one prompt"
    assert joined(["a", None, "a"]) == "a"
    assert joined(["a", "b", "c"]) == "a (and 2 more such)"
    assert joined([None]) == ""
