"""Bootstrap intervals against a plain loop."""

import numpy as np
import pytest

from sapo.analysis.metrics import METRICS, continual_metrics
from sapo.analysis.results import example_scores, load_run, score_matrix
from sapo.analysis.statistics import bootstrap, metric_intervals, resample_counts
from sapo.conf.errors import UserError

DRAWS = 40


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
    assert interval.n_examples == (60 if metric == "AP" else 40)


def test_the_estimate_is_the_mean_over_seeds_of_the_metric(runs):
    for definition in ("paper", "reference", "gem"):
        intervals = metric_intervals(runs["static"], "nll", definition, draws=DRAWS)
        for metric, interval in intervals.items():
            values = [
                continual_metrics(score_matrix(run, "nll"))[definition][metric] for run in runs["static"]
            ]
            assert interval.estimate == pytest.approx(np.mean(values))
            assert interval.low < interval.estimate < interval.high


def test_a_shift_of_all_scores_is_a_difference_without_width(run_folder):
    static, sapo = load_run(run_folder("a", seed=5)), load_run(run_folder("b", seed=5, shift=2.0))
    intervals = metric_intervals([sapo], "rougeL", "reference", [static], draws=DRAWS)
    for metric, expected in {"AP": 2.0, "BWT": 0.0, "FWT": 2.0}.items():
        interval = intervals[metric]
        assert (interval.low, interval.estimate, interval.high) == pytest.approx((expected,) * 3)


def test_pairing_narrows_a_difference(runs):
    alone = metric_intervals(runs["static"][:1], "rougeL", "reference")["AP"]
    against_itself = metric_intervals(runs["static"][:1], "rougeL", "reference", runs["static"][:1])["AP"]
    assert alone.high - alone.low > 0.5
    assert (against_itself.low, against_itself.high) == (0, 0)


def test_one_example_per_task_or_one_value_has_no_width():
    np.testing.assert_allclose(bootstrap([np.array([[3.0]]), np.array([[4.0]])], 10, 0), 7.0)
    np.testing.assert_allclose(bootstrap([np.full((3, 9), 2.5)], 10, 0), 2.5)


def test_the_spread_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(size=(1, 400))
    draws = bootstrap([values], 4000, 2)
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
    assert interval.estimate == pytest.approx(1.0)
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
    assert intervals["AP"].n_examples == 20
    assert intervals["BWT"] is intervals["FWT"] is None
