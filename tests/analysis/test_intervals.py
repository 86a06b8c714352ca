"""Intervals and tests against plain loops, scipy and pandas, and by property."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_up import edit_run, write_run
from scipy import stats

from sapo.analysis.intervals import (
    Interval,
    bootstrap,
    bootstrap_interval,
    by_distinct_row,
    column_correlations,
    holm,
    jackknife_interval,
    joined,
    lone_row,
    mean_interval,
    mean_off_diagonal,
    metric_intervals,
    permutation_p,
    resample_counts,
)
from sapo.analysis.metrics import METRICS, continual_metrics
from sapo.analysis.results import example_scores, load_run, score_matrix
from sapo.conf.errors import UserError

DRAWS = 12


def plain_loop(pairs, definition, metric, draws, seed):
    """The same resampling, metric by metric, from resampled matrices of the tasks it reads."""
    tasks = pairs[0][0].tasks
    rng = np.random.default_rng(seed)
    last_read = slice(None) if metric == "AP" else (slice(0, -1) if metric == "BWT" else slice(1, None))
    counts = {task: resample_counts(20, draws, rng) for task in tasks[last_read]}
    seeds = resample_counts(len(pairs), draws, rng)
    values = []
    for draw in range(draws):
        total = 0.0
        for place, pair in enumerate(pairs):
            metrics = []
            for run in pair:
                scores = example_scores(run, "rougeL")
                matrix = np.zeros((len(tasks) + 1, len(tasks)))
                for (after, task), row in scores.items():
                    chosen = np.repeat(row, counts[task][draw].astype(int)) if task in counts else row
                    matrix[after, tasks.index(task)] = chosen.mean()
                metrics.append(continual_metrics(matrix)[definition][metric])
            total += seeds[draw, place] * (metrics[0] - (metrics[1] if len(metrics) > 1 else 0))
        values.append(total / len(pairs))
    return np.percentile(values, [2.5, 97.5])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two policies, two seeds each; the scores of the policies were drawn from different streams."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for policy, shift, stream in (("static", 0.0, 0), ("sapo", 2.0, 1)):
        paths = [write_run(folder, f"{policy}{n}", seed=10 * n + stream, shift=shift) for n in (0, 1)]
        found[policy] = [replace(load_run(path), seed=10 * n) for n, path in enumerate(paths)]
    return found


@pytest.mark.parametrize(
    ("definition", "difference"), [("paper", True), ("reference", False), ("reference", True), ("gem", True)]
)
def test_equals_a_plain_loop_over_resampled_matrices(runs, definition, difference):
    sapo, static = runs["sapo"], runs["static"]
    against = static if difference else None
    intervals = metric_intervals(sapo, "rougeL", definition, against, draws=DRAWS, seed=3)
    pairs = list(zip(sapo, static, strict=True)) if difference else [(run,) for run in sapo]
    for metric, interval in intervals.items():
        low, high = plain_loop(pairs, definition, metric, DRAWS, seed=3)
        assert (interval.low, interval.high) == pytest.approx((low, high))
        assert interval.n_seeds == 2
        assert interval.n == (60 if metric == "AP" else 40)


def test_the_estimate_is_the_mean_over_seeds_of_the_metric(runs):
    for definition in ("paper", "reference", "gem"):
        intervals = metric_intervals(runs["static"], "nll", definition, draws=DRAWS)
        for metric, interval in intervals.items():
            values = [
                continual_metrics(score_matrix(run, "nll"))[definition][metric] for run in runs["static"]
            ]
            assert interval.value == pytest.approx(np.mean(values))
            assert interval.low < interval.value < interval.high


def test_a_shift_of_all_scores_is_a_difference_without_width(run_folder):
    static, sapo = load_run(run_folder("a", seed=5)), load_run(run_folder("b", seed=5, shift=2.0))
    intervals = metric_intervals([sapo], "rougeL", "reference", [static], draws=DRAWS)
    for metric, expected in {"AP": 2.0, "BWT": 0.0, "FWT": 2.0}.items():
        interval = intervals[metric]
        assert (interval.low, interval.value, interval.high) == pytest.approx((expected,) * 3)


def test_only_common_seeds_are_paired(run_folder):
    static = [load_run(run_folder(f"s{seed}", seed=seed)) for seed in (0, 1, 2)]
    sapo = [load_run(run_folder(f"p{seed}", seed=seed, shift=1.0)) for seed in (1, 2, 3)]
    interval = metric_intervals(sapo, "rougeL", "reference", static, draws=DRAWS)["AP"]
    assert interval.n_seeds == 2
    assert interval.value == pytest.approx(1.0)
    with pytest.raises(UserError, match="No seed is common"):
        metric_intervals(sapo[2:], "rougeL", "reference", static)


def test_runs_that_cannot_be_averaged_are_refused(run_folder):
    one, two = load_run(run_folder("one")), load_run(run_folder("two"))
    with pytest.raises(UserError, match="one and two have the same seed"):
        metric_intervals([one, two], "rougeL", "reference")
    short = load_run(run_folder("short", n=7))  # its record says that the rows are the same
    with pytest.raises(UserError, match="different numbers of test examples"):
        metric_intervals([one], "rougeL", "reference", [short])
    other = load_run(run_folder("other", n=7, comparable={"model": "other"}))
    with pytest.raises(UserError, match=r"the same test rows \(NI\d+: 20 and 7 test rows, 7 in both\)"):
        metric_intervals([one], "rougeL", "reference", [other])


def test_undefined_metrics_have_no_interval(run_folder):
    alone = load_run(run_folder("alone", tasks=["a"]))
    intervals = metric_intervals([alone], "rougeL", "reference", draws=DRAWS)
    assert [intervals[metric].n for metric in METRICS] == [20, 0, 0]
    assert intervals["BWT"].value is intervals["FWT"].value is None


def repeated(path, times: int):
    """The run with every test example there `times` times, as `row` says."""

    def change(frame):
        frame["row"] = frame["example"]
        n = frame["example"].max() + 1
        return pd.concat([frame.assign(example=frame["example"] + n * place) for place in range(times)])

    return load_run(edit_run(path, change))


def test_rows_many_times_give_the_interval_of_the_distinct_ones(run_folder):
    static, sapo = (load_run(run_folder(name, shift=shift)) for name, shift in (("a", 0.0), ("b", 1.0)))
    often = [repeated(run_folder(f"{name}5", shift=shift), 5) for name, shift in (("a", 0.0), ("b", 1.0))]
    once = metric_intervals([sapo], "nll", "reference", [static])
    for metric, other in metric_intervals([often[1]], "nll", "reference", [often[0]]).items():
        expected = (once[metric].low, once[metric].value, once[metric].high)
        assert (other.low, other.value, other.high) == pytest.approx(expected)
        assert other.n == once[metric].n == (60 if metric == "AP" else 40)


def test_a_row_that_is_there_more_often_weighs_more_in_the_score_and_is_one_observation():
    sums, sizes = by_distinct_row(np.array([[1.0, 5.0, 1.0, 1.0]]), np.array([0, 1, 0, 0]))
    assert (sums.tolist(), sizes.tolist()) == ([[3.0, 5.0]], [3.0, 1.0])
    # Of two rows drawn twice: both, in two of four draws (mean 2), or one of them twice.
    draws = bootstrap([(sums, sizes)], 4000, 0)
    assert sorted(set(draws)) == [1.0, 2.0, 5.0]
    assert [np.mean(draws == value) for value in (1.0, 2.0, 5.0)] == pytest.approx(
        [0.25, 0.5, 0.25], abs=0.03
    )


# --- a handful of rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "of_scipy"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)])
def test_coefficients_are_those_of_scipy_also_with_ties(name, of_scipy):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (12, 2)).astype(float), rng.normal(size=(12, 3))
    found = column_correlations(x, y, name)
    for i in range(2):
        for j in range(3):
            assert found[i, j] == pytest.approx(of_scipy(x[:, i], y[:, j]).statistic)


def test_the_mean_off_the_diagonal_is_that_of_pandas_and_leaves_constant_columns_out():
    table = np.random.default_rng(1).normal(size=(9, 4))
    table[:, 2] = 0.1 + 0.2
    table[::2, 2] = 0.3  # the same up to rounding
    for name in ("pearson", "spearman"):
        matrix = pd.DataFrame(table[:, [0, 1, 3]]).corr(name).to_numpy()
        assert mean_off_diagonal(table, name) == pytest.approx(matrix[np.triu_indices(3, 1)].mean())
        assert np.isnan(mean_off_diagonal(table[:, [0, 2]], name))


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

    rows = np.array([[7.0]] * 5 + [[8.0]])
    lone = jackknife_interval(rows, spread)
    assert lone.value == pytest.approx(1 / np.sqrt(6))
    assert (lone.low, lone.reason) == (None, "without one of the prompts nothing varies")
    assert lone_row(rows, spread, lone)[0] == 5
    # Of values that are evenly spread no row alone makes the interval; one far away does.
    even = np.arange(9.0)[:, None]
    assert lone_row(even, spread, jackknife_interval(even, spread)) is None
    even[2] = 500.0
    row, without = lone_row(even, spread, jackknife_interval(even, spread))
    assert (row, without) == (2, jackknife_interval(np.delete(even, 2, axis=0), spread))
    nothing = jackknife_interval(np.ones((6, 1)), spread)
    assert (nothing.value, nothing.low, nothing.reason) == (0.0, None, "nothing varies")
    few = jackknife_interval(np.arange(4.0)[:, None], spread, "pairs")
    assert (few.low, few.reason) == (None, "4 pairs: an interval needs 5 or more")
    assert jackknife_interval(np.ones((6, 1)), lambda rows: spread(rows) * np.nan).value is None


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
