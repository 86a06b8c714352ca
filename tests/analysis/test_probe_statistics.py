"""What a probe says in numbers: by hand, against pandas and scipy, and by property."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from made_up import write_probe

from sapo.analysis.intervals import jackknife_interval
from sapo.analysis.probes import statistics
from sapo.analysis.probes.results import load_probe


@pytest.fixture(scope="module")
def stored_small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return load_probe(write_probe(folder, n_prompts=6, unseen=("task618_x",), n=4, gradients=False))


@pytest.fixture
def small(stored_small):
    """A probe of six prompts and three tasks whose tables a test may change."""
    names = ("finals", "losses", "answers")
    return replace(stored_small, **{name: getattr(stored_small, name).copy() for name in names})


def test_indicators_by_hand(small):
    keys = {"prompt": [-1, -1, 0, 0], "example": [0, 1, 0, 1]}
    sums = {"nll": [2.0, 3.0, 1.0, 6.0], "entropy": [1.0, 3.0, 2.0, 2.0], "n_tokens": [1, 3, 1, 3]}
    answers = {"rougeL": [50.0, 70.0, 0.0, 10.0], "exact_match": [0.0, 100.0, 0.0, 0.0]}
    tables = {"losses": pd.DataFrame(keys | sums), "answers": pd.DataFrame(keys | answers)}
    prompts = {-1: "The cat sat.", 0: "Read it now. Say yes or no."}
    found = statistics.indicators_of(replace(small, prompts=prompts, **tables))
    assert list(found) == list(statistics.INDICATORS)
    # Per-token losses 2 and 1 (mean 1.5, sample variance 0.5), entropies 1 and 1; of a Flesch-Kincaid grade
    # 0.39 * 3 words a sentence + 11.8 * 1 syllable a word - 15.59.
    expected = [50.0, 60.0, -5 / 4, -0.5, -1.0, 0.0, -2.5, 3.0, 0.39 * 3 + 11.8 - 15.59, 3.0]
    assert found.loc[-1].tolist() == pytest.approx(expected)
    assert found.loc[0, ["words", "syllables", "-loss"]].tolist() == pytest.approx([7.0, 7.0, -7 / 4])


@pytest.mark.parametrize("measure", ["rougeL", "nll"])
def test_correlations_are_those_of_pandas_with_good_up(whole, measure):
    found = statistics.powers(whole, measure)
    table, scores = statistics.indicators_of(whole), whole.outcomes(measure)
    sign = -1 if measure == "nll" else 1
    assert len(found) == 20
    for power in found:
        if power.indicator not in ("-loss", "words", "-entropy_variance"):
            continue
        values = {
            task: table[power.indicator].corr(sign * scores[task], method=power.coefficient)
            for task in whole.others
        }
        assert power.points == pytest.approx(values)
        assert power.mean.value == pytest.approx(np.mean(list(values.values())))
        assert power.mean.low < power.mean.value < power.mean.high
    planted = next(power for power in found if power.indicator == "-loss")
    assert planted.mean.low > 0.5


def test_what_does_not_vary_or_is_missing_has_a_reason(small):
    small.answers["exact_match"] = 0.0
    gap = (small.finals["task"] == "task618_x") & (small.finals["prompt"] == 2)
    small.finals.loc[gap, "rougeL"] = np.nan
    found = {power.indicator: power for power in statistics.powers(small, "rougeL")}
    assert found["exact_match"].mean.value is None
    assert found["exact_match"].mean.reason == "exact_match is the same for all prompts"
    loss = found["-loss"]
    assert loss.cells["task618_x"].reason == "task618_x is not known for every prompt"
    assert loss.mean.value == pytest.approx(loss.cells[small.trained].value)
    none, partly = statistics.pooled([found["exact_match"], loss])
    assert (none.points, none.mean.value) == ({}, None)
    assert partly.mean == loss.mean


def test_a_pool_averages_seeds_within_a_pair_and_then_pairs(whole):
    power = next(power for power in statistics.powers(whole, "nll") if power.indicator == "-loss")
    members = [
        replace(power, pair=pair, mean=replace(power.mean, value=value))
        for pair, value in (("a", 0.2), ("a", 0.4), ("b", 0.9))
    ]
    (pool,) = statistics.pooled(members)
    assert pool.points == pytest.approx({"a": 0.3, "b": 0.9})
    assert pool.mean.value == pytest.approx(0.6)
    assert pool.mean.reason == "2 pairs: an interval needs 5 or more"


def set_scores(probe, task, values):
    """Every test example of a task scores its prompt's value."""
    rows = probe.finals["task"] == task
    probe.finals.loc[rows, "rougeL"] = probe.finals.loc[rows, "prompt"].map(values)


def test_the_choice_of_the_lowest_loss_by_hand(small):
    losses = dict(zip(range(-1, 5), [1.0, 0.5, 0.7, 0.9, 0.5, 2.0], strict=True))
    small.losses["nll"] = small.losses["prompt"].map(losses) * small.losses["n_tokens"]
    set_scores(small, small.trained, {-1: 10.0, 0: 40.0, 1: 20.0, 2: 60.0, 3: 50.0, 4: 30.0})
    set_scores(small, "task618_x", {-1: 10.0, 0: 20.0, 1: 40.0, 2: 20.0, 3: 50.0, 4: 30.0})
    choice = statistics.lowest_loss_choice(small, "rougeL")
    # Means: 10, 30, 30, 40, 50, 30: the chosen one is the first of two equal losses.
    assert (choice.chosen, choice.best) == (0, 3)
    assert (choice.regret.value, choice.regret.low, choice.regret.high) == pytest.approx((20.0,) * 3)
    assert (choice.of_original, choice.of_random) == pytest.approx((40.0, 50.0 - 190 / 6))
    assert choice.regret.n == 8


def test_the_choice_is_the_one_that_sapo_would_make_with_the_probe_s_scorer(small):
    tokens = pd.DataFrame({"n_tokens": [1, 9, 1, 9], "example": [0, 1, 0, 1]})
    # Of prompt 0: 9 nats over 10 tokens, but (0 + 1) / 2 a token by examples; of prompt 1: 8 over 10, and 4.
    rows = [
        tokens.iloc[:2].assign(prompt=prompt, nll=nll)
        for prompt, nll in {-1: [0.0, 0.0], 0: [0.0, 9.0], 1: [8.0, 0.0]}.items()
    ]
    others = [tokens.iloc[:2].assign(prompt=prompt, nll=[9.0, 90.0]) for prompt in (2, 3, 4)]
    small = replace(small, losses=pd.concat(rows + others, ignore_index=True))

    def chosen(**scorer):
        return statistics.lowest_loss_choice(replace(small, **scorer), "rougeL").chosen

    assert chosen() == -1
    assert chosen(include_original=False) == 1
    assert chosen(include_original=False, reduction="example") == 0


def test_a_choice_needs_tasks_with_scores_of_every_prompt_that_differ(small):
    set_scores(small, small.trained, dict(zip(range(-1, 5), range(6), strict=True)))
    gap = (small.finals["task"] == "task618_x") & (small.finals["prompt"] == 2)
    small.finals.loc[gap, "rougeL"] = np.nan
    choice = statistics.lowest_loss_choice(small, "rougeL")
    assert (choice.best, choice.missing) == (4, ("task618_x",))
    small.finals.loc[small.finals["prompt"] == 2, "rougeL"] = np.nan
    assert statistics.lowest_loss_choice(small, "rougeL") == "no other task was evaluated for every prompt"
    small.finals["rougeL"] = 7.0
    assert statistics.lowest_loss_choice(small, "rougeL") == "all prompts score alike"


# --- spreads -----------------------------------------------------------------------------------------------


def test_relative_changes_and_variation_by_hand():
    scores = {"a": [50.0, 60.0, 40.0], "zero": [0.0, 5.0, 1.0], "gap": [1.0, np.nan, 2.0]}
    changes, reasons = statistics.relative_changes(pd.DataFrame(scores, index=[-1, 0, 1]))
    assert changes["a"].tolist() == [0.0, 20.0, -20.0]
    assert changes[["zero", "gap"]].isna().all(axis=None)
    assert reasons == {"zero": "0 under the original prompt", "gap": "not evaluated for prompt 0"}
    # 40, 50, 60: standard deviation 10, mean 50
    found = statistics.variation_of(np.array([[40.0, 0.0], [50.0, 0.0], [60.0, 0.0]]))
    assert found == pytest.approx([20.0, np.nan], nan_ok=True)


def test_95_percent_intervals_hold_the_true_value_at_least_90_percent_of_the_time():
    # In-task spread 2 %, that of three other tasks 2, 4 and 6 %; a share of each is common to all tasks.
    rng, spreads = np.random.default_rng(8), np.array([1.0, 1.0, 2.0, 3.0])
    true = [(statistics.mean_variation, 2.0), (statistics.mean_variation, 4.0), (statistics.ratio_of, 2.0)]
    held = np.zeros(3)
    for _ in range(150):
        common, own = rng.normal(size=(8, 1)), rng.normal(size=(8, 4))
        table = 50 + spreads * (0.6 * common + 0.8 * own)
        tables = (table[:, :1], table[:, 1:], table)
        for place, (rows, (statistic, value)) in enumerate(zip(tables, true, strict=True)):
            found = jackknife_interval(rows, statistic)
            held[place] += found.low <= value <= found.high
    assert ((held >= 0.88 * 150) & (held <= 0.99 * 150)).all()


def test_the_test_of_spreads_is_that_of_all_tasks_that_could_be_the_trained_one():
    table = 50 + np.random.default_rng(8).normal(size=(6, 3)) * [1.0, 2.2, 2.0]
    deviations = np.abs(table - np.median(table, axis=0)) / table.mean(axis=0)

    def difference(chosen):
        in_task = deviations[range(6), chosen]
        return abs(in_task.mean() - (deviations.sum(axis=1) - in_task).mean() / 2)

    every = np.array([difference(chosen) for chosen in product(range(3), repeat=6)])
    exact = np.mean(every >= difference([0] * 6) - 1e-12)
    assert 0.02 < exact < 0.9
    assert statistics.spread_test(table, permutations=20000) == pytest.approx(exact, abs=0.02)


def test_a_planted_spread_is_found(whole):
    for measure in ("rougeL", "nll"):
        result = statistics.spread(whole, measure)
        scores = whole.outcomes(measure)
        expected = 100 * scores.std() / scores.mean()
        assert result.in_task.value == pytest.approx(expected[whole.current])
        assert result.cross_task.value == pytest.approx(expected[list(whole.others)].mean())
        assert result.ratio.value == pytest.approx(result.cross_task.value / result.in_task.value)
        assert result.ratio.low < result.ratio.value < result.ratio.high
        assert result.ratio.low > 2
        assert result.p < 0.01


def test_scores_that_are_0_or_alike_have_reasons(small):
    frame = small.finals
    frame.loc[frame["task"] == "task618_x", "rougeL"] = 0.0
    some = statistics.spread(small, "rougeL")
    assert some.variation["task618_x"].reason == "0 under every prompt"
    assert some.no_change == {"task618_x": "0 under the original prompt"}
    assert some.p is not None
    frame.loc[frame["task"] == small.current, "rougeL"] = 7.0
    alike = statistics.spread(small, "rougeL")
    assert (alike.in_task.value, alike.ratio.value) == (0.0, None)
    assert alike.ratio.reason == "no in-task spread to divide by"
    frame["rougeL"] = 0.0
    nothing = statistics.spread(small, "rougeL")
    assert (nothing.p, nothing.why_no_p) == (None, "0 under every prompt")


# --- cosines of gradients ----------------------------------------------------------------------------------


def test_means_by_role_and_rank_are_those_of_pandas(whole):
    cells = statistics.alignments(whole.gradients)
    assert list(cells) == [(role, rank) for role in ("trained", "unseen") for rank in (1, 7, 13, 20)]
    means = whole.gradients.groupby(["role", "rank"])["cosine"].mean()
    for key, cell in cells.items():
        assert cell.value == pytest.approx(means[key])
        assert cell.low < cell.value < cell.high
    # 12 modules, and three unseen tasks.
    assert [cell.n for cell in cells.values()] == [12] * 4 + [36] * 4


def test_the_difference_pairs_modules_of_two_ranks():
    rows = [
        {"rank": rank, "task": "t", "role": "trained", "module": module, "cosine": cosine}
        for module, (first, last) in enumerate([(0.5, 0.1), (0.3, 0.1), (0.9, 0.6)])
        for rank, cosine in ((1, first), (4, last), (2, 0.0))
    ]
    gradients = pd.DataFrame(rows)
    difference = statistics.rank_difference(gradients, "trained")
    assert difference.value == pytest.approx((0.4 + 0.2 + 0.3) / 3)
    assert difference.reason == "3 modules: an interval needs 5 or more"
    none = statistics.rank_difference(gradients[gradients["rank"] == 1], "trained")
    assert none.reason == "a difference needs two ranked prompts"


def test_fewer_prompts_or_rows_choose_as_all_their_subsets_do_on_average(small):
    found = statistics.smaller_choices(small, "nll").set_index(["prompts", "rows"])["gain"]
    losses, means = small.pre_update_losses(), -small.outcomes("nll")[list(small.others)].mean(axis=1)
    n_rows = small.losses["example"].nunique()
    for size in (2, 5, 6):
        pools = [list(pool) for pool in combinations(small.candidates, size)]
        gains = [means[losses[pool].idxmin()] - means[small.candidates].mean() for pool in pools]
        assert found[size, n_rows] == pytest.approx(np.mean(gains))
    assert set(found.index) == {(size, n_rows) for size in (2, 5, 6)}
    twice = pd.concat([small.losses, small.losses.assign(example=small.losses["example"] + n_rows)])
    found = statistics.smaller_choices(replace(small, losses=twice), "nll").set_index(["prompts", "rows"])[
        "gain"
    ]
    assert list(found.index[-1:]) == [(6, 4)]
    # Drawn rows never choose better than the best, nor worse than the worst.
    assert (means.min() <= found + means.mean()).all()
    assert (found + means.mean() <= means.max() + 1e-12).all()
