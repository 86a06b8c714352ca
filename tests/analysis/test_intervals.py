"""Intervals and tests against plain loops, scipy and pandas, and by property."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_up import edit_run, write_run
from scipy import stats

from sapo.analysis import intervals
from sapo.analysis.intervals import Interval, jackknife_interval, metric_intervals
from sapo.analysis.metrics import continual_metrics
from sapo.analysis.results import example_scores, load_run, score_matrix

DRAWS = 12


def plain_loop(pairs, definition, metric, draws):
    """The same resampling, metric by metric, from resampled matrices of the tasks it reads."""
    tasks = pairs[0][0].tasks
    rng = np.random.default_rng(0)
    last_read = slice(None) if metric == "AP" else (slice(0, -1) if metric == "BWT" else slice(1, None))
    counts = {task: intervals.resample_counts(20, draws, rng) for task in tasks[last_read]}
    seeds = intervals.resample_counts(len(pairs), draws, rng)
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
            total += seeds[draw, place] * (metrics[0] - sum(metrics[1:]))
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
    found = metric_intervals(sapo, "rougeL", definition, against, draws=DRAWS)
    pairs = list(zip(sapo, static, strict=True)) if difference else [(run,) for run in sapo]
    for metric, interval in found.items():
        low, high = plain_loop(pairs, definition, metric, DRAWS)
        assert (interval.low, interval.high) == pytest.approx((low, high))
        whole = [[continual_metrics(score_matrix(run, "rougeL")) for run in pair] for pair in pairs]
        values = [own[definition][metric] - sum(o[definition][metric] for o in rest) for own, *rest in whole]
        assert interval.value == pytest.approx(np.mean(values))
        assert interval.n_seeds == 2
        assert interval.n == (60 if metric == "AP" else 40)


def test_only_common_seeds_are_paired_and_a_shift_of_all_scores_has_no_width(run_folder):
    static = [load_run(run_folder(f"s{seed}", seed=seed)) for seed in (0, 1, 2)]
    sapo = [load_run(run_folder(f"p{seed}", seed=seed, shift=2.0)) for seed in (1, 2, 3)]
    found = metric_intervals(sapo, "rougeL", "reference", static, draws=DRAWS)
    for metric, expected in {"AP": 2.0, "BWT": 0.0, "FWT": 2.0}.items():
        interval = found[metric]
        assert interval.n_seeds == 2
        assert (interval.low, interval.value, interval.high) == pytest.approx((expected,) * 3)


def test_rows_many_times_give_the_interval_of_the_distinct_ones(run_folder):
    def repeated(name, shift):
        """A run with every test example there five times, as `row` says."""

        def change(frame):
            rows = frame.assign(row=frame["example"])
            return pd.concat([rows.assign(example=rows["row"] + 20 * n) for n in range(5)])

        path = edit_run(run_folder(f"{name}5", shift=shift), change)
        return load_run(run_folder(name, shift=shift)), load_run(path)

    (static, static5), (sapo, sapo5) = repeated("a", 0.0), repeated("b", 1.0)
    once = metric_intervals([sapo], "nll", "reference", [static])
    for metric, other in metric_intervals([sapo5], "nll", "reference", [static5]).items():
        expected = (once[metric].low, once[metric].value, once[metric].high)
        assert (other.low, other.value, other.high) == pytest.approx(expected)
        assert other.n == once[metric].n == (60 if metric == "AP" else 40)


def test_a_row_that_is_there_more_often_weighs_more_in_the_score_and_is_one_observation():
    sums, sizes = intervals.by_distinct_row(np.array([[1.0, 5.0, 1.0, 1.0]]), np.array([0, 1, 0, 0]))
    assert (sums.tolist(), sizes.tolist()) == ([[3.0, 5.0]], [3.0, 1.0])
    # Of two rows drawn twice: both, in two of four draws (mean 2), or one of them twice.
    draws = intervals.bootstrap([(sums, sizes)], 4000)
    assert sorted(set(draws)) == [1.0, 2.0, 5.0]
    assert [np.mean(draws == value) for value in (1.0, 2.0, 5.0)] == pytest.approx(
        [0.25, 0.5, 0.25], abs=0.03
    )


# --- a handful of rows -------------------------------------------------------------------------------------


def test_correlations_of_columns_are_those_of_pandas_with_ties_and_without_constant_columns():
    table = np.random.default_rng(1).integers(0, 5, (9, 4)).astype(float)
    table[:, 2] = 0.1 + 0.2
    table[::2, 2] = 0.3  # the same up to rounding
    for name in ("pearson", "spearman"):
        matrix = pd.DataFrame(table[:, [0, 1, 3]]).corr(name).to_numpy()
        assert intervals.column_correlations(table[:, :2], table[:, 3:], name) == pytest.approx(
            matrix[:2, 2:]
        )
        assert intervals.mean_off_diagonal(table, name) == pytest.approx(matrix[np.triu_indices(3, 1)].mean())
        assert np.isnan(intervals.mean_off_diagonal(table[:, [0, 2]], name))


def test_an_interval_is_that_of_a_plain_loop():
    values = np.random.default_rng(2).gamma(2.0, size=30)
    estimate = intervals.bootstrap_interval(values[:, None], lambda rows: rows[..., 0].std(axis=1))
    rng = np.random.default_rng(0)
    loop = [values[rows].std() for rows in rng.integers(30, size=(2000, 30))]
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.percentile(loop, [2.5, 97.5])))
    assert estimate.value == pytest.approx(values.std())


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
    assert intervals.lone_row(rows, spread, lone)[0] == 5
    # Of values that are evenly spread no row alone makes the interval; one far away does.
    even = np.arange(9.0)[:, None]
    assert intervals.lone_row(even, spread, jackknife_interval(even, spread)) is None
    even[2] = 500.0
    row, without = intervals.lone_row(even, spread, jackknife_interval(even, spread))
    assert (row, without) == (2, jackknife_interval(np.delete(even, 2, axis=0), spread))
    nothing = jackknife_interval(np.ones((6, 1)), spread)
    assert (nothing.value, nothing.low, nothing.reason) == (0.0, None, "nothing varies")
    few = jackknife_interval(np.arange(4.0)[:, None], spread)
    assert (few.low, few.reason) == (None, "4 prompts: an interval needs 5 or more")
    assert jackknife_interval(np.ones((6, 1)), lambda rows: spread(rows) * np.nan).value is None


def test_few_rows_and_undefined_draws_have_a_reason_in_place_of_an_interval():
    few = intervals.mean_interval([1.0, 2.0, 3.0, 6.0], "pairs")
    assert (few.value, few.low, few.high) == (3.0, None, None)
    assert few.reason == "4 pairs: an interval needs 5 or more"
    constant = intervals.bootstrap_interval(
        np.ones((6, 2)), lambda rows: intervals.mean_off_diagonal(rows, "pearson")
    )
    assert (constant.value, constant.reason) == (None, "not defined")
    nearly = np.zeros((40, 2))
    nearly[0] = 1.0
    rarely = intervals.bootstrap_interval(
        nearly[:, :1], lambda rows: np.where(rows[..., 0].sum(axis=1) == 1, 1.0, np.nan)
    )
    assert rarely.value == 1.0
    assert rarely.reason == "most resamples of the prompts have no variance"


def test_permutation_and_holm_by_hand():
    # 2 of 4 permutations reach 3: (1 + 2) / (1 + 4)
    assert intervals.permutation_p(3.0, np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.6)
    # Sorted 0.01, 0.02, 0.04: 3 * 0.01, 2 * 0.02, then never less than the one before
    assert intervals.holm([0.02, None, 0.01, 0.04]) == pytest.approx([0.04, None, 0.03, 0.04])
    assert intervals.holm([0.9, 0.8]) == [1.0, 1.0]
    assert intervals.holm([None]) == [None]


def test_estimates_as_text():
    assert Interval(0.456, 0.2, 0.61, 9).text() == "0.46 [0.20, 0.61]"
    assert Interval(-0.001, -0.2, 0.3, 9).text(1, signed=True) == "+0.0 [-0.2, +0.3]"
    assert Interval(1.0, reason="4 pairs").text() == "1.00"
    assert Interval(None, reason="one prompt").text() == "one prompt"
    assert intervals.joined(["a", None, "a"]) == "a"
    assert intervals.joined(["a", "b", "c"]) == "a (and 2 more such)"
    assert intervals.joined([None]) == ""
