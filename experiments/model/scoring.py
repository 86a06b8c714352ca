"""The pre-update loss of prompts: how well a model that is not yet trained on a task predicts its targets.

In a race candidates are compared on the same examples in growing rounds, and those that have lost drop out.

A round ends with a look: every candidate left is compared with the leader by a one-sided paired t-test on the
examples read so far, with the finite-population correction for drawing them without replacement. Let N be the
size of the subset, n of them read at a look, K the number of candidates, R the number of looks: values are
(K, n), differences to the leader's row (K, n), their means, spreads and verdicts (K). Each test has the level
(1 - confidence) / ((K - 1) R).

What is guaranteed: the candidate that wins on the whole subset is lost only if a test against one of its
K - 1 rivals is wrong at one of R looks; which rival leads does not matter. If each test keeps its level, it
reaches the end with at least the given probability over random orders (union bound), and there the whole
subset decides. The level is approximate, not exact: the t-distribution takes mean differences to be normal,
which those of 8 examples of a skewed loss are not. Where a few rare examples decide a mean (an outlier in 50,
a label of 10 %), early looks may not see them, and the winner is lost more often than promised. Bounds that
hold exactly (empirical Bernstein: Audibert, Munos and Szepesvari 2009; without replacement: Bardenet and
Maillard 2015) need a bounded loss and many more examples. Nothing is saved between candidates that are nearly
tied: they are all read to the end.

Sources: Maron and Moore 1994 (racing); Moore and Lee 1994 (paired comparisons); Cochran, Sampling Techniques,
1977, Section 2.6 (finite-population correction).
"""

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import count, takewhile
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor

from sapo.conf.errors import WorkError
from sapo.conf.schema import Config
from sapo.data.prompts import Prompt
from sapo.data.render import Rendered
from sapo.data.tasks import Task
from sapo.experiments.model import forward, ranks
from sapo.experiments.model.budgets import reading_tokens
from sapo.experiments.model.forward import NO_PREFIX, Prefix

# Chosen on two SuperNI tasks, tried on two others (docs/performance.md, Racing). A look after three quarters
# could save no more than the last quarter.
FIRST_ROUND, GROWTH, LAST_LOOK = 8, 2, 0.75


@torch.inference_mode()
def example_losses(
    model: Any, examples: Sequence[Rendered], budget: int, prefix: Prefix = NO_PREFIX
) -> pd.DataFrame:
    """Per example: `nll` and `entropy` summed over its target tokens (nats), and `n_tokens`.

    `prefix` is what all examples begin with, if that is not to be read again. All are 0 for an example whose
    target was cut off (`data.truncation=end`).
    """

    def work(batch: list[Rendered]) -> Sequence[Tensor]:
        sums = forward.nll_and_entropy(*forward.target_logits(model, batch, prefix))
        return torch.stack(sums, 1).unbind()

    with_target = [rendered for rendered in examples if rendered.target_ids]
    found = forward.in_batches(with_target, budget, forward.pass_tokens(model), work, prefix.length)
    sums = iter(torch.stack(found).tolist() if found else [])  # one wait for a GPU
    rows = [
        (i, *(next(sums) if row.target_ids else (0.0, 0.0)), len(row.target_ids), row.is_shortened)
        for i, row in enumerate(examples)
    ]
    return pd.DataFrame(rows, columns=["example", "nll", "entropy", "n_tokens", "is_shortened"])


def require_finite(losses: pd.DataFrame, task: Task, prompt: Prompt) -> None:
    """WorkError naming task and prompt if a loss is NaN or infinite."""
    bad = losses[~np.isfinite(losses["nll"])]
    if len(bad):
        raise WorkError(
            f"The loss of task {task.name} under prompt {prompt.index} is not finite "
            f"(example {bad['example'].iloc[0]}). Nothing was stored."
        )


def race(
    read: Callable[[Sequence[int], Sequence[int]], NDArray[np.float64]],
    n_candidates: int,
    order: Sequence[int],
    confidence: float,
) -> NDArray[np.int64]:
    """How many examples were read of each candidate (K), in the order given: all N of those that were left.

    `read` gives the values of candidates at examples, a row a candidate; its mean is the loss. The lowest is
    among those left with probability `confidence`, as the module says. A single candidate is read at once.
    """
    n = len(order)
    sizes = (FIRST_ROUND * GROWTH**look for look in count())
    looks = list(takewhile(lambda size: size < LAST_LOOK * n, sizes))  # none where the subset is too small
    values = np.full((n_candidates, n), np.nan)
    seen = np.zeros(n_candidates, dtype=np.int64)
    left = np.arange(n_candidates)
    begin = 0
    for end in (*looks, n):
        if len(left) == 1:
            end = n
        values[left, begin:end] = read(left.tolist(), list(order[begin:end]))
        seen[left] = end
        if end == n:
            break
        so_far = values[left, :end]
        differences = so_far - so_far[so_far.mean(axis=1).argmin()]  # to the leader
        errors = differences.std(axis=1, ddof=1) * np.sqrt((1 - end / n) / end)  # of their means
        level = (1 - confidence) / ((n_candidates - 1) * len(looks))
        left = left[differences.mean(axis=1) <= student.ppf(1 - level, end - 1) * errors]
        begin = end
    return seen


def weights(n_tokens: Sequence[int], reduction: str) -> NDArray[np.float64]:
    """What each example's summed NLL is multiplied by, so that the mean over all examples is the loss.

    Target tokens are counted without the model, so the denominators are the whole subset's from the start.
    An example whose target was cut off counts nothing.
    """
    counts = np.asarray(n_tokens, dtype=np.float64)
    if reduction == "token":
        return np.full(len(counts), len(counts) / counts.sum())
    return len(counts) / (counts > 0).sum() / np.where(counts > 0, counts, np.inf)


@torch.inference_mode()
def pool_losses(
    model: Any, task: Task, prompts: Sequence[Prompt], rendered: Sequence[Sequence[Rendered]], config: Config
) -> pd.DataFrame:
    """The table of `example_losses` of every prompt, with column `prompt`: in full, or what a race has read.

    `rendered` holds the same examples under each prompt; seed and task alone decide in which order a race
    reads them. Raises WorkError if a loss is not finite.
    """
    is_race = config.scorer.name == "race"
    budget = reading_tokens(model, config.evaluator.batch_tokens)

    @lru_cache(maxsize=len(prompts) if is_race else 1)  # a race comes back to its candidates
    def prefix_of(candidate: int) -> Prefix:
        return forward.shared_prefix(model, rendered[candidate], config.trainer.shared_prefix)

    order = list(range(len(rendered[0])))
    scales = [weights([len(r.target_ids) for r in rows], config.scorer.reduction) for rows in rendered]
    parts: list[list[pd.DataFrame]] = [[] for _ in rendered]

    def read(candidates: Sequence[int], examples: Sequence[int]) -> NDArray[np.float64]:
        found = {}
        for c in ranks.share(candidates):
            losses = example_losses(model, [rendered[c][i] for i in examples], budget, prefix_of(c))
            found[c] = losses.assign(example=list(examples), prompt=prompts[c].index)
            require_finite(found[c], task, prompts[c])
        found = {c: losses for part in ranks.gathered(found) for c, losses in part.items()}
        for c in candidates:
            parts[c].append(found[c])
        return np.array([found[c]["nll"].to_numpy() * scales[c][list(examples)] for c in candidates])

    if is_race:
        random.Random(f"race {config.seed} {task.name}").shuffle(order)  # noqa: S311
        race(read, len(rendered), order, config.scorer.confidence)
    else:
        read(range(len(rendered)), order)
    return pd.concat([pd.concat(own).sort_values("example") for own in parts], ignore_index=True)
