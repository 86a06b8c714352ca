"""Which prompt a task is trained with."""

import random
from collections.abc import Mapping

from sapo.conf.schema import PolicyConfig
from sapo.data.prompts import Prompt, PromptPool

SCORED = frozenset({"sapo", "sapp"})


def needs_losses(policy: PolicyConfig) -> bool:
    """Whether the policy chooses by pre-update loss."""
    return policy.name in SCORED


def choose(
    policy: PolicyConfig,
    pool: PromptPool,
    include_original: bool,
    seed: int,
    losses: Mapping[int, float] | None = None,
) -> Prompt:
    """The prompt that a task is trained with.

    `losses` maps a prompt's index to its pre-update loss, for the policies that need it; what it does not
    hold cannot be chosen. Of equal losses the lowest index wins. `random` is decided by (seed, task) alone.
    Raises UserError if `fixed` asks for a prompt that the pool does not have.
    """
    candidates = pool.candidates(include_original)
    if policy.name == "static":
        return pool.original
    if policy.name == "fixed":
        return pool.at(policy.index)
    if policy.name == "random":
        return random.Random(f"random {seed} {pool.task}").choice(candidates)  # noqa: S311
    if losses is None:
        raise ValueError(f"policy {policy.name} needs the losses of the candidates")
    sign = 1 if policy.name == "sapo" else -1
    measured = [prompt for prompt in candidates if prompt.index in losses]
    return min(measured, key=lambda prompt: (sign * losses[prompt.index], prompt.index))
