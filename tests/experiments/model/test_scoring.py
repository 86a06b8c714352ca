"""The pre-update loss of each prompt."""

import asyncio
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainings import plain_nll, read_task

from sapo.conf.errors import WorkError
from sapo.data.benchmarks import load_tasks
from sapo.data.losses import prompt_losses
from sapo.data.mini import generate
from sapo.data.prompts import ORIGINAL, Prompt
from sapo.experiments.continual import choose_prompt, pool_for
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store
from sapo.experiments.model import forward
from sapo.experiments.model.forward import shared_prefix
from sapo.experiments.model.scoring import example_losses, race, require_finite, weights
from sapo.experiments.stages import BASE, Score


def test_a_target_that_was_cut_off_counts_nothing(tiny_config):
    model, _, (first, *others) = read_task(tiny_config(), "mini_price", 3)
    cut = replace(first, input_ids=first.prompt_ids)
    found = example_losses(model.base, [cut, *others], 1000)
    assert found.loc[0, ["nll", "entropy", "n_tokens"]].tolist() == [0, 0, 0]
    assert found["nll"][1:].tolist() == example_losses(model.base, others, 1000)["nll"].tolist()


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("budget", [1, 100, 10_000])
def test_losses_equal_a_plain_computation_whatever_the_batches(tiny_config, budget, share):
    model, _, rendered = read_task(tiny_config(), "mini_price", 6)
    with torch.inference_mode():
        prefix = shared_prefix(model.base, rendered, share)
    assert (prefix.length > 0) == share
    found = example_losses(model.base, rendered, budget, prefix)
    for i, example in enumerate(rendered):
        with torch.inference_mode():
            assert found["nll"][i] == pytest.approx(plain_nll(model.base, example).item(), rel=1e-5)
        assert found["n_tokens"][i] == len(example.target_ids)
        assert 0 < found["entropy"][i] <= len(example.target_ids) * math.log(len(model.tokenizer))


@pytest.mark.parametrize("layout", ["system", "{instruction} {input}", "{input}\n\n{instruction}"])
def test_a_layout_changes_what_is_shared_and_not_what_comes_out(tiny_config, layout):
    model, task, rendered = read_task(tiny_config(f"data.layout={layout}"), "mini_price", 12)
    plain = example_losses(model.base, rendered, 10_000)
    with torch.inference_mode():
        prefix = shared_prefix(model.base, rendered)
    n_instruction = len(model.tokenizer(task.instruction)["input_ids"])
    assert (prefix.length > n_instruction) == (not layout.startswith("{input}"))
    shared = example_losses(model.base, rendered, 10_000, prefix)
    assert shared["nll"].tolist() == pytest.approx(plain["nll"].tolist(), rel=1e-5)


def test_a_loss_that_is_not_finite_is_refused_with_task_and_prompt():
    losses = pd.DataFrame({"example": [0, 1], "nll": [1.0, float("nan")]})
    with pytest.raises(WorkError, match=r"mini_price under prompt 3 .*example 1"):
        require_finite(losses, generate("mini_price", 2, 2, 0), Prompt("…", 3))


def raced(values, order, confidence=0.95):
    """A race over a stored matrix: how many examples were read of each candidate, and what was asked for."""
    log = []

    def read(candidates, examples):
        log.append((list(candidates), list(examples)))
        return values[np.ix_(candidates, examples)]

    return race(read, len(values), order, confidence).tolist(), log


def test_looks_double_until_three_quarters():
    looks = {250: [8, 16, 32, 64, 128], 100: [8, 16, 32, 64], 11: [8], 10: []}
    for n, sizes in looks.items():  # equal ones stay together
        _, log = raced(np.tile(np.random.default_rng(0).normal(size=n), (3, 1)), range(n))
        assert [examples[-1] + 1 for _, examples in log] == [*sizes, n]


def test_a_clear_loser_is_read_eight_times_and_the_winner_to_the_end():
    noise = np.random.default_rng(0).normal(size=250)
    values = np.array([noise, noise + 5 + np.linspace(0, 0.1, 250)])
    asked = [([0, 1], list(range(8))), ([0], list(range(8, 250)))]
    assert raced(values, range(250)) == ([250, 8], asked)


def test_the_look_is_the_t_test_worked_by_hand():
    """Differences 1, …, 8 of 11: t = 4.5 / (2.449 / sqrt 8 x sqrt(1 - 8 / 11)) = 9.95, df 7: p = 1.1e-5."""
    values = np.array([[0.0] * 11, [1, 2, 3, 4, 5, 6, 7, 8, -99, -99, -99]])
    assert raced(values, range(11), 0.99996)[0] == [11, 8]
    assert raced(values, range(11), 0.99999)[0] == [11, 11]


def test_one_alone_is_read_at_once_and_so_is_a_small_subset():
    for values in (np.ones((1, 250)), np.arange(30.0).reshape(3, 10)):
        seen, log = raced(values, range(values.shape[1]))
        assert (seen, len(log)) == ([values.shape[1]] * len(values), 1)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 120), st.floats(0.0, 2.0))
def test_whoever_is_left_was_read_whole_and_nothing_was_read_twice(seed, n_candidates, n_examples, spread):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n_candidates, n_examples)) + spread * rng.normal(size=(n_candidates, 1))
    order = rng.permutation(n_examples).tolist()
    seen, log = raced(values, order)
    assert max(seen) == n_examples
    for candidate in range(n_candidates):
        read = [example for candidates, examples in log if candidate in candidates for example in examples]
        assert read == order[: seen[candidate]]


def test_the_winner_is_dropped_more_rarely_than_promised():
    """21 candidates, two of them close, skewed losses, 300 orders: it may be lost in 15."""
    rng = np.random.default_rng(1)
    base = rng.gamma(1.0, 2.0, size=250)
    values = base + rng.normal(size=(21, 250)) * 0.5 + np.r_[0.0, 0.05, np.linspace(0.1, 1.0, 19)][:, None]
    winner = int(values.mean(axis=1).argmin())
    seen = np.array([raced(values, rng.permutation(250).tolist())[0] for _ in range(300)])
    assert (seen[:, winner] < 250).sum() <= 15
    assert seen.sum(axis=1).mean() < 0.3 * values.size


@pytest.mark.parametrize("reduction", ["token", "example"])
def test_weighted_sums_have_the_loss_as_their_mean(reduction):
    nll, tokens = np.array([6.0, 2.0, 1.0]), [2, 2, 5]
    table = pd.DataFrame({"prompt": 0, "example": range(3), "nll": nll, "n_tokens": tokens})
    expected = prompt_losses(table, reduction)["loss"].item()
    assert (weights(tokens, reduction) * nll).mean() == pytest.approx(expected)
    assert weights([2, 0, 4], "example").tolist() == [0.75, 0, 0.375]  # one without a target counts nothing


RACE = ("scorer=race", "scorer.examples=40", "data.train_examples=40", "paraphrases.count=4")


def scored(config, root):
    """The first task's scored pool: the choice, its candidates, and the stage's facts."""
    (task, *_), _ = load_tasks(config)
    store = Store(root)
    choice = asyncio.run(choose_prompt(config, LocalEngine(store), BASE, task))
    (stage,) = (stored for kind, stored in store.stages() if kind == "score")
    return choice, stage


def test_a_race_reads_parts_of_the_full_matrix_and_chooses_the_same(tiny_config, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(forward, "shared_prefix", lambda *given: read.append(given) or shared_prefix(*given))
    full, full_stage = scored(tiny_config(*RACE, "scorer=full"), tmp_path / "full")
    raced, race_stage = scored(tiny_config(*RACE), tmp_path / "race")
    both = race_stage.examples().merge(full_stage.examples(), on=["prompt", "example"], validate="1:1")
    assert len(both) == len(race_stage.examples()) < len(full_stage.examples())
    assert both["nll_x"].to_numpy() == pytest.approx(both["nll_y"].to_numpy(), rel=1e-4)
    assert raced.prompt == full.prompt
    counts = {candidate.index: candidate.n_examples for candidate in raced.candidates}
    assert counts[raced.prompt.index] == 40
    assert min(counts.values()) < 40
    assert race_stage.result.tokens < race_stage.result.full_tokens == full_stage.result.tokens
    assert len(read) == 2 * len(counts) == 2 * 5  # the beginning of each prompt once


def test_an_original_that_cannot_be_chosen_does_not_race(tiny_config, tmp_path):
    choice, stage = scored(tiny_config(*RACE, "scorer.include_original=false"), tmp_path)
    assert ORIGINAL not in set(stage.examples()["prompt"])
    assert choice.prompt.index != ORIGINAL


def test_the_key_of_a_race_holds_what_decides_it(tiny_config):
    config = tiny_config("scorer=race")
    (task, *_), _ = load_tasks(config)
    stage = Score(config, BASE, task, task.train[:4], pool_for(task, config).candidates(True))
    changes = ({"confidence": 0.9}, {"reduction": "example"}, {"name": "full"})
    configs = [replace(config, scorer=replace(config.scorer, **change)) for change in changes]
    keys = {replace(stage, config=other).key for other in (config, *configs, replace(config, seed=1))}
    assert len(keys) == 5
    other = replace(config.scorer, examples=7, include_original=False)
    assert replace(stage, config=replace(config, scorer=other)).key == stage.key
