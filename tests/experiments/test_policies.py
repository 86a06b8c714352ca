"""Which prompt each policy takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapo.conf.errors import UserError
from sapo.conf.load import choices
from sapo.conf.schema import PolicyConfig
from sapo.data.prompts import Prompt, PromptPool
from sapo.experiments.policies import POLICIES, Offer

POOL = PromptPool("t", Prompt("o"), tuple(Prompt(text, i) for i, text in enumerate("abc")))


def pick(name, losses=None, include_original=True, seed=0, index=-1):
    candidates = POOL.candidates(include_original)
    return POLICIES[name].choose(Offer(PolicyConfig(name, index), POOL, candidates, seed, losses or {})).index


def test_every_policy_that_can_be_configured_is_there():
    assert sorted(POLICIES) == sorted(choices("policy"))


@pytest.mark.parametrize(
    ("losses", "include_original", "sapo", "sapp"),
    [
        ({-1: 2.0, 0: 3.0, 1: 1.0, 2: 2.5}, True, 1, 0),
        (dict.fromkeys((-1, 0, 1, 2), 1.0), True, -1, -1),  # of equal losses the lowest index wins
        (dict.fromkeys((-1, 0, 1, 2), 1.0), False, 0, 0),
        ({-1: 0.1, 0: 3.0, 1: 1.0, 2: 2.5}, True, -1, 0),  # the original is chosen only where it takes part
        ({-1: 0.1, 0: 3.0, 1: 1.0, 2: 2.5}, False, 1, 0),
        ({-1: 2.0, 1: 3.0}, True, -1, 1),  # what was not measured to the end cannot be chosen
    ],
)
def test_sapo_takes_the_lowest_loss_and_sapp_the_highest(losses, include_original, sapo, sapp):
    assert pick("sapo", losses, include_original) == sapo
    assert pick("sapp", losses, include_original) == sapp


@given(st.integers(0, 1000))
def test_random_is_decided_by_seed_and_task_and_reaches_every_candidate(seed):
    assert pick("random", seed=seed) == pick("random", seed=seed)
    assert {pick("random", seed=s) for s in range(100)} == {-1, 0, 1, 2}
    assert {pick("random", include_original=False, seed=s) for s in range(100)} == {0, 1, 2}


def test_static_fixed_and_the_prompt_that_paft_is_tested_with():
    assert pick("static") == pick("paft") == -1
    assert pick("fixed", index=2) == 2
    with pytest.raises(UserError, match="No prompt 3: the pool of t has paraphrases 0 to 2"):
        pick("fixed", index=3)


def test_only_sapo_and_sapp_cost_a_scoring_pass_and_only_paft_draws():
    assert [name for name, policy in POLICIES.items() if policy.needs_losses] == ["sapo", "sapp"]
    assert [name for name, policy in POLICIES.items() if policy.draws] == ["paft"]
