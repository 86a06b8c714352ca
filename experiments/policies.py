"""Which prompt a task is trained with: one entry a policy.

A new policy is an entry in `POLICIES` and `conf/policy/NAME.yaml`.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sapo.conf.errors import UserError
from sapo.conf.plugins import load_plugin
from sapo.conf.schema import PolicyConfig
from sapo.data.prompts import ORIGINAL, Prompt, PromptPool


@dataclass(frozen=True)
class Offer:
    """What a policy chooses from.

    `candidates` are the prompts of the pool that may be chosen. `losses` are their pre-update losses (nats)
    by index, for a policy that needs them; a candidate that is not in it cannot be chosen.
    """

    config: PolicyConfig
    pool: PromptPool
    candidates: Sequence[Prompt]
    seed: int
    losses: Mapping[int, float]


@dataclass(frozen=True)
class Policy:
    """How a task's prompt is chosen.

    Attributes:
        choose: The prompt; UserError if it asks for one that the pool does not have.
        needs_pool: Whether it reads the paraphrases of a task, which may be the sequence's last.
        needs_losses: Whether it reads the candidates' pre-update losses.
        draws: Whether training draws one of the candidates for every example; `choose` is for testing then.
        note: What a reader of the results must know; None if the name says it.
    """

    choose: Callable[[Offer], Prompt]
    needs_pool: Callable[[PolicyConfig, bool], bool] = lambda *_: True
    needs_losses: bool = False
    draws: bool = False
    note: str | None = None


def by_loss(candidates: Iterable[Prompt], losses: Mapping[int, float], sign: int = 1) -> list[Prompt]:
    """The candidates whose loss is known, the lowest first (with `sign` -1 the highest), then by index."""
    measured = (prompt for prompt in candidates if prompt.index in losses)
    return sorted(measured, key=lambda prompt: (sign * losses[prompt.index], prompt.index))


class _Policies(dict[str, Policy]):
    def __missing__(self, name: str) -> Policy:
        """One from outside, loaded when it is first asked for."""
        found, _ = load_plugin("policy", name)
        if not isinstance(found, Policy):
            raise UserError(f"policy {name}: POLICY must be a sapo.experiments.policies.Policy.")
        self[name] = found
        return found


POLICIES = _Policies(
    {
        "static": Policy(lambda offer: offer.pool.original, needs_pool=lambda *_: False),
        "fixed": Policy(
            lambda offer: offer.pool.at(offer.config.index),
            needs_pool=lambda config, is_last: config.index != ORIGINAL and (is_last or not config.last_only),
        ),
        # Seed and task alone decide.
        "random": Policy(
            lambda offer: random.Random(f"random {offer.seed} {offer.pool.task}").choice(offer.candidates)  # noqa: S311
        ),
        # The lowest loss (paper, Algorithm 1).
        "sapo": Policy(lambda offer: by_loss(offer.candidates, offer.losses)[0], needs_losses=True),
        "sapp": Policy(lambda offer: by_loss(offer.candidates, offer.losses, -1)[0], needs_losses=True),
        # PAFT, EMNLP 2025.
        "paft": Policy(
            lambda offer: offer.pool.original,
            draws=True,
            note="paft: every example is trained under a prompt drawn from the pool; tests use the original.",
        ),
    }
)
