"""Which prompt each policy takes."""

import pytest

from sapo.conf.errors import UserError
from sapo.conf.load import choices
from sapo.conf.schema import PolicyConfig
from sapo.data.prompts import Prompt, PromptPool
from sapo.experiments.policies import POLICIES, Offer

POOL = PromptPool("t", Prompt("o"), tuple(Prompt(text, i) for i, text in enumerate("abc")))


def pick(name, losses=None, include_original=True, seed=0, index=-1):
    candidates = POOL.candidates(include_original)
    return POLICIES[name].choose(Offer(PolicyConfig(name, index), POOL, candidates, seed, losses or {})).index


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


def test_random_is_decided_by_seed_and_task_and_reaches_every_candidate():
    drawn = [pick("random", seed=seed) for seed in range(100)]
    assert drawn == [pick("random", seed=seed) for seed in range(100)]
    assert set(drawn) == {-1, 0, 1, 2}
    assert {pick("random", include_original=False, seed=seed) for seed in range(100)} == {0, 1, 2}


def test_static_fixed_and_the_prompt_that_paft_is_tested_with():
    assert pick("static") == pick("paft") == -1
    assert pick("fixed", index=2) == 2
    with pytest.raises(UserError, match="No prompt 3: the pool of t has paraphrases 0 to 2"):
        pick("fixed", index=3)


def test_only_sapo_and_sapp_cost_a_scoring_pass_and_only_paft_draws():
    policies = {name: POLICIES[name] for name in choices("policy")}
    assert [name for name, policy in policies.items() if policy.needs_losses] == ["sapo", "sapp"]
    assert [name for name, policy in policies.items() if policy.draws] == ["paft"]
