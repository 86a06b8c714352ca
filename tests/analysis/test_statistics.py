"""Bootstrap intervals against a plain loop."""

import numpy as np
import pandas as pd
import pytest

from sapo.analysis.intervals import bootstrap, by_distinct_row, metric_intervals, resample_counts
from sapo.analysis.metrics import METRICS, continual_metrics
from sapo.analysis.results import example_scores, load_run, score_matrix
from sapo.conf.errors import UserError

DRAWS = 40
ONE = np.ones(1)


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


@pytest.fixture
def runs(run_folder):
    """Two policies, two seeds each."""
    return {
        policy: [
            load_run(
                run_folder(f"{policy}{seed}", policy=policy, seed=10 * seed + (policy == "sapo"), shift=shift)
            )
            for seed in (0, 1)
        ]
        for policy, shift in (("static", 0.0), ("sapo", 2.0))
    }


def same_seeds(runs):
    """Seeds 0 and 10 for both policies, though their scores were drawn from different streams."""
    from dataclasses import replace

    return [replace(run, seed=run.seed - run.seed % 10) for run in runs]


@pytest.mark.parametrize("definition", ["paper", "reference", "gem"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("difference", [False, True])
def test_equals_a_plain_loop_over_resampled_matrices(runs, definition, metric, difference):
    sapo, static = same_seeds(runs["sapo"]), runs["static"]
    against = static if difference else None
    interval = metric_intervals(sapo, "rougeL", definition, against, draws=DRAWS, seed=3)[metric]
    pairs = list(zip(sapo, static, strict=True)) if difference else [(run,) for run in sapo]
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


def test_pairing_narrows_a_difference(runs):
    alone = metric_intervals(runs["static"][:1], "rougeL", "reference")["AP"]
    against_itself = metric_intervals(runs["static"][:1], "rougeL", "reference", runs["static"][:1])["AP"]
    assert alone.high - alone.low > 0.5
    assert (against_itself.low, against_itself.high) == (0, 0)


def test_one_example_per_task_or_one_value_has_no_width():
    np.testing.assert_allclose(bootstrap([(np.array([[3.0]]), ONE), (np.array([[4.0]]), ONE)], 10, 0), 7.0)
    np.testing.assert_allclose(bootstrap([(np.full((3, 9), 2.5), np.ones(9))], 10, 0), 2.5)


def test_the_spread_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(size=(1, 400))
    draws = bootstrap([(values, np.ones(400))], 4000, 2)
    assert draws.std() == pytest.approx(values.std() / 20, rel=0.05)


def test_counts_are_draws_with_replacement():
    counts = resample_counts(7, 5000, np.random.default_rng(0))
    assert counts.shape == (5000, 7)
    assert (counts.sum(axis=1) == 7).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1.0, atol=0.06)
    np.testing.assert_allclose(counts.var(axis=0), 6 / 7, atol=0.08)


def test_same_seed_same_interval(runs):
    first, second = (metric_intervals(runs["sapo"], "rougeL", "gem", draws=DRAWS, seed=9) for _ in range(2))
    assert first == second


def test_only_common_seeds_are_paired(run_folder):
    static = [load_run(run_folder(f"s{seed}", seed=seed)) for seed in (0, 1, 2)]
    sapo = [load_run(run_folder(f"p{seed}", seed=seed, shift=1.0)) for seed in (1, 2, 3)]
    interval = metric_intervals(sapo, "rougeL", "reference", static, draws=DRAWS)["AP"]
    assert interval.n_seeds == 2
    assert interval.value == pytest.approx(1.0)
    with pytest.raises(UserError, match="No seed is common"):
        metric_intervals(sapo[2:], "rougeL", "reference", static)


def test_two_runs_of_one_seed_and_other_test_rows_are_refused(run_folder):
    one, two = load_run(run_folder("one")), load_run(run_folder("two"))
    with pytest.raises(UserError, match="one and two have the same seed"):
        metric_intervals([one, two], "rougeL", "reference")
    short = load_run(run_folder("short", n=7))
    with pytest.raises(UserError, match="different numbers of test examples"):
        metric_intervals([one], "rougeL", "reference", [short])
    other = load_run(run_folder("other", comparable={"model": "other"}))
    with pytest.raises(UserError, match="cannot be compared"):
        metric_intervals([one], "rougeL", "reference", [other])


def test_undefined_metrics_have_no_interval(run_folder):
    alone = load_run(run_folder("alone", tasks=["a"]))
    intervals = metric_intervals([alone], "rougeL", "reference", draws=DRAWS)
    assert intervals["AP"].n == 20
    assert intervals["BWT"].value is intervals["FWT"].value is None


def repeated(path, times: int):
    """The run with every test example there `times` times, as `row` says."""
    frame = pd.read_parquet(path / "predictions.parquet")
    n = frame["example"].max() + 1
    copies = [
        frame.assign(example=frame["example"] + n * place, row=frame["example"]) for place in range(times)
    ]
    pd.concat(copies).to_parquet(path / "predictions.parquet")
    return load_run(path)


def test_rows_twenty_times_give_the_interval_of_the_distinct_ones(run_folder):
    static, sapo = (load_run(run_folder(name, shift=shift)) for name, shift in (("a", 0.0), ("b", 1.0)))
    often = [repeated(run_folder(f"{name}20", shift=shift), 20) for name, shift in (("a", 0.0), ("b", 1.0))]
    for runs, against in (([sapo], None), ([sapo], [static])):
        copies = [often[1]], None if against is None else [often[0]]
        for measure in ("rougeL", "nll"):
            once = metric_intervals(runs, measure, "reference", against)
            found = metric_intervals(copies[0], measure, "reference", copies[1])
            for metric, interval in once.items():
                other = found[metric]
                expected = (interval.low, interval.value, interval.high)
                assert (other.low, other.value, other.high) == pytest.approx(expected)
                assert other.n == interval.n == (60 if metric == "AP" else 40)


def test_a_row_that_is_there_more_often_weighs_more_in_the_score_and_is_one_observation():
    sums, sizes = by_distinct_row(np.array([[1.0, 5.0, 1.0, 1.0]]), np.array([0, 1, 0, 0]))
    assert (sums.tolist(), sizes.tolist()) == ([[3.0, 5.0]], [3.0, 1.0])
    # Of two rows drawn twice: both, in two of four draws (mean 2), or one of them twice.
    draws = bootstrap([(sums, sizes)], 4000, 0)
    assert sorted(set(draws)) == [1.0, 2.0, 5.0]
    assert [np.mean(draws == value) for value in (1.0, 2.0, 5.0)] == pytest.approx(
        [0.25, 0.5, 0.25], abs=0.03
    )
