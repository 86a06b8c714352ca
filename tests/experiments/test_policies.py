"""Which prompt each policy takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapo.conf.errors import UserError
from sapo.conf.schema import PolicyConfig
from sapo.data.prompts import Prompt, PromptPool
from sapo.experiments.policies import choose, needs_losses

POOL = PromptPool("t", Prompt("o"), tuple(Prompt(text, i) for i, text in enumerate("abc")))


def pick(name, losses=None, include_original=True, seed=0, index=-1):
    return choose(PolicyConfig(name, index), POOL, include_original, seed, losses).index


def test_sapo_takes_the_lowest_loss_and_sapp_the_highest():
    losses = {-1: 2.0, 0: 3.0, 1: 1.0, 2: 2.5}
    assert pick("sapo", losses) == 1
    assert pick("sapp", losses) == 0


def test_of_equal_losses_the_lowest_index_wins():
    assert pick("sapo", dict.fromkeys((-1, 0, 1, 2), 1.0)) == -1
    assert pick("sapp", dict.fromkeys((-1, 0, 1, 2), 1.0)) == -1
    assert pick("sapo", dict.fromkeys((-1, 0, 1, 2), 1.0), include_original=False) == 0


def test_the_original_is_chosen_only_where_it_takes_part():
    losses = {-1: 0.1, 0: 3.0, 1: 1.0, 2: 2.5}
    assert pick("sapo", losses) == -1
    assert pick("sapo", losses, include_original=False) == 1


@given(st.integers(0, 1000))
def test_random_is_decided_by_seed_and_task_and_reaches_every_candidate(seed):
    assert pick("random", seed=seed) == pick("random", seed=seed)
    assert {pick("random", seed=s) for s in range(100)} == {-1, 0, 1, 2}
    assert {pick("random", include_original=False, seed=s) for s in range(100)} == {0, 1, 2}


def test_static_and_fixed():
    assert pick("static") == -1
    assert pick("fixed", index=2) == 2
    with pytest.raises(UserError, match="No prompt 3: the pool of t has paraphrases 0 to 2"):
        pick("fixed", index=3)


def test_only_sapo_and_sapp_cost_a_scoring_pass():
    names = ("static", "random", "fixed", "sapo", "sapp")
    assert [name for name in names if needs_losses(PolicyConfig(name))] == ["sapo", "sapp"]
    with pytest.raises(ValueError, match="needs the losses"):
        pick("sapo")
