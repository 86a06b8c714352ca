"""Indicators before training by hand, their correlations against pandas, and what the lowest loss chooses."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sapo.analysis.probes.indicators import (
    INDICATORS,
    indicators_of,
    lowest_loss_choice,
    pooled,
    powers,
)
from sapo.analysis.probes.results import load_probe
from sapo.analysis.probes.tables import indicator_table


@pytest.fixture(scope="module")
def probe(stored_probe):
    return load_probe(stored_probe)


@pytest.fixture
def small(probe_folder):
    return load_probe(probe_folder("small", n_prompts=6, unseen=("task618_x",), n=4, gradients=False))


def test_indicators_by_hand(small):
    keys = {"prompt": [-1, -1, 0, 0], "example": [0, 1, 0, 1]}
    losses = pd.DataFrame(
        keys | {"nll": [2.0, 3.0, 1.0, 6.0], "entropy": [1.0, 3.0, 2.0, 2.0], "n_tokens": [1, 3, 1, 3]}
    )
    answers = pd.DataFrame(keys | {"rougeL": [50.0, 70.0, 0.0, 10.0], "exact_match": [0.0, 100.0, 0.0, 0.0]})
    object.__setattr__(small, "losses", losses)
    object.__setattr__(small, "answers", answers)
    object.__setattr__(small, "prompts", {-1: "The cat sat.", 0: "Read it now. Say yes or no."})
    found = indicators_of(small)
    assert list(found) == list(INDICATORS)
    # Per-token losses 2 and 1 (mean 1.5, sample variance 0.5), entropies 1 and 1.
    expected = {
        "exact_match": 50.0,
        "rougeL": 60.0,
        "-loss": -5 / 4,
        "-loss_variance": -0.5,
        "-entropy": -1.0,
        "-entropy_variance": 0.0,
        "sum_log_prob": -2.5,
        "words": 3.0,
        # 0.39 * 3 words a sentence + 11.8 * 1 syllable a word - 15.59
        "flesch_kincaid": 0.39 * 3 + 11.8 - 15.59,
        "syllables": 3.0,
    }
    assert found.loc[-1].to_dict() == pytest.approx(expected)
    assert found.loc[0, ["words", "syllables", "-loss"]].tolist() == pytest.approx([7.0, 7.0, -7 / 4])


@pytest.mark.parametrize("measure", ["rougeL", "nll"])
def test_correlations_are_those_of_pandas_with_good_up(probe, measure):
    found = powers(probe, measure)
    table, scores = indicators_of(probe), probe.outcomes(measure)
    sign = -1 if measure == "nll" else 1
    assert len(found) == 20
    for power in found:
        if power.indicator not in ("-loss", "words", "-entropy_variance"):
            continue
        by_task = {
            task: table[power.indicator].corr(sign * scores[task], method=power.coefficient)
            for task in probe.others
        }
        assert {task: cell.value for task, cell in power.by_task.items()} == pytest.approx(by_task)
        assert power.mean.value == pytest.approx(np.mean(list(by_task.values())))
        assert power.mean.low < power.mean.value < power.mean.high
    planted = next(power for power in found if power.indicator == "-loss")
    assert planted.mean.low > 0.5


def test_equal_token_counts_make_the_sum_a_multiple_of_the_loss(probe):
    found = {power.indicator: power.mean for power in powers(probe, "rougeL")}
    assert found["sum_log_prob"].value == pytest.approx(found["-loss"].value)


def test_what_does_not_vary_or_is_missing_has_a_reason(small):
    small.answers["exact_match"] = 0.0
    gap = (small.finals["task"] == "task618_x") & (small.finals["prompt"] == 2)
    small.finals.loc[gap, "rougeL"] = np.nan
    found = {power.indicator: power for power in powers(small, "rougeL")}
    assert found["exact_match"].mean.value is None
    assert found["exact_match"].mean.reason == "exact_match is the same for all prompts"
    loss = found["-loss"]
    assert loss.by_task["task618_x"].reason == "task618_x is not evaluated for every prompt"
    assert loss.mean.value == pytest.approx(loss.by_task[small.trained].value)
    (one,) = (cell for cell in pooled([found["exact_match"]]))
    assert (one.points, one.mean.value) == ({}, None)
    (partly,) = pooled([loss])
    assert (partly.n_defined, partly.n_tasks) == (1, 2)
    assert (
        indicator_table([("m", pooled(powers(small, "rougeL")))])["tasks"].tolist()
        == ["0 of 2"] + ["1 of 2"] * 9
    )


def test_a_pool_averages_seeds_within_a_pair_and_then_pairs(probe):
    power = next(power for power in powers(probe, "nll") if power.indicator == "-loss")
    values = {("a", 0): 0.2, ("a", 1): 0.4, ("b", 0): 0.9}
    members = [
        replace(power, probe=replace(probe, current=task, seed=seed), mean=replace(power.mean, value=value))
        for (task, seed), value in values.items()
    ]
    (pool,) = pooled(members)
    assert pool.points == pytest.approx({f"{probe.trained} > a": 0.3, f"{probe.trained} > b": 0.9})
    assert (pool.n_defined, pool.n_tasks) == (27, 27)
    assert pool.mean.value == pytest.approx(0.6)
    assert pool.mean.reason == "2 pairs: an interval needs 5 or more"
    (alone,) = pooled([power])
    assert alone.mean == power.mean


def set_scores(probe, task, values):
    """Every test example of a task scores its prompt's value."""
    rows = probe.finals["task"] == task
    probe.finals.loc[rows, "rougeL"] = probe.finals.loc[rows, "prompt"].map(values)


def test_the_choice_of_the_lowest_loss_by_hand(small):
    losses = dict(zip(range(-1, 5), [1.0, 0.5, 0.7, 0.9, 0.5, 2.0], strict=True))
    small.losses["nll"] = small.losses["prompt"].map(losses) * small.losses["n_tokens"]
    set_scores(small, small.trained, {-1: 10.0, 0: 40.0, 1: 20.0, 2: 60.0, 3: 50.0, 4: 30.0})
    set_scores(small, "task618_x", {-1: 10.0, 0: 20.0, 1: 40.0, 2: 20.0, 3: 50.0, 4: 30.0})
    choice = lowest_loss_choice(small, "rougeL")
    # Means: 10, 30, 30, 40, 50, 30: the chosen one, first of two equal losses, is at the median, not above.
    assert (choice.chosen, choice.best, choice.above_median) == (0, 3, False)
    assert (choice.tasks_above, choice.n_tasks, choice.n_prompts) == (1, 2, 6)
    # Of six prompts two are above the median mean, three above that of each task.
    assert (choice.above_by_chance, choice.tasks_above_by_chance) == pytest.approx((2 / 6, 1.0))
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
        return lowest_loss_choice(replace(small, **scorer), "rougeL").chosen

    assert chosen() == -1
    assert chosen(include_original=False) == 1
    assert chosen(include_original=False, reduction="example") == 0
    by_examples = replace(small, reduction="example").pre_update_losses()
    assert by_examples[[0, 1]].tolist() == pytest.approx([0.5, 4.0])


def test_nothing_to_choose_where_all_prompts_score_alike(small):
    for task in small.others:
        set_scores(small, task, dict.fromkeys(range(-1, 5), 0.0))
    assert lowest_loss_choice(small, "rougeL") == "all prompts score alike"
    assert not isinstance(lowest_loss_choice(small, "nll"), str)


def test_tasks_that_some_prompt_lacks_are_missing_from_a_choice(small):
    set_scores(small, small.trained, dict(zip(range(-1, 5), range(6), strict=True)))
    gap = (small.finals["task"] == "task618_x") & (small.finals["prompt"] == 2)
    small.finals.loc[gap, "rougeL"] = np.nan
    choice = lowest_loss_choice(small, "rougeL")
    assert (choice.best, choice.n_tasks, choice.missing) == (4, 1, ("task618_x",))
    small.finals.loc[small.finals["prompt"] == 2, "rougeL"] = np.nan
    assert lowest_loss_choice(small, "rougeL") == "no other task was evaluated for every prompt"


def test_a_lower_nll_is_the_better_one(probe):
    by_nll, by_rouge = (lowest_loss_choice(probe, measure) for measure in ("nll", "rougeL"))
    # The made-up NLL falls as ROUGE-L rises: one choice, one best.
    assert (by_nll.chosen, by_nll.best) == (by_rouge.chosen, by_rouge.best)
    assert by_nll.regret.value == pytest.approx(by_rouge.regret.value / 25)
    assert by_nll.above_median
