"""The pre-update loss: how well a model that is not yet trained on a task predicts its targets."""

import random
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from sapo.conf.errors import WorkError
from sapo.data.prompts import Prompt
from sapo.data.render import Rendered
from sapo.data.tasks import Example, Task
from sapo.experiments.forward import in_batches, target_entropy, target_logits, target_nll

PUBLISHED_BATCH = 8
NOTHING = (0.0, 0.0)


def subset(task: Task, count: int, choice: str, seed: int) -> tuple[Example, ...]:
    """The training examples that are scored: `first` rows, or a `random` draw that only (seed, task) decide.

    All of them where the task has no more than `count`.
    """
    if choice == "first" or count >= len(task.train):
        return task.train[:count]
    rows = random.Random(f"subset {seed} {task.name}").sample(range(len(task.train)), count)  # noqa: S311
    return tuple(task.train[row] for row in sorted(rows))


@torch.inference_mode()
def example_losses(
    model, batches_of: Sequence[Rendered], budget: int, share_prefix: bool = True
) -> pd.DataFrame:
    """Per example: `nll` and `entropy` summed over its target tokens (nats), and `n_tokens`.

    All are 0 for an example whose target was cut off (`data.truncation=end`).
    """
    with_target = [i for i, rendered in enumerate(batches_of) if rendered.target_ids]

    def work(batch: list[int]) -> list[tuple[float, float]]:
        rendered = [batches_of[with_target[i]] for i in batch]
        logits, targets = target_logits(model, rendered, share_prefix)
        nll = target_nll(logits, targets).sum(-1).tolist()
        entropy = target_entropy(logits, targets).sum(-1).tolist()
        return list(zip(nll, entropy, strict=True))

    found = in_batches([len(batches_of[i].input_ids) for i in with_target], budget, work)
    sums = {with_target[i]: pair for i, pair in found}
    return pd.DataFrame(
        [
            {
                "example": i,
                "nll": sums.get(i, NOTHING)[0],
                "entropy": sums.get(i, NOTHING)[1],
                "n_tokens": len(rendered.target_ids),
                "is_shortened": rendered.is_shortened,
            }
            for i, rendered in enumerate(batches_of)
        ]
    )


def require_finite(losses: pd.DataFrame, task: Task, prompt: Prompt) -> None:
    """WorkError naming task and prompt if a loss is NaN or infinite."""
    bad = losses[~losses["nll"].map(lambda value: abs(value) < float("inf"))]
    if len(bad):
        raise WorkError(
            f"The loss of task {task.name} under prompt {prompt.index} is not finite "
            f"(example {bad['example'].iloc[0]}). Nothing was stored."
        )


def prompt_losses(losses: pd.DataFrame, reduction: str) -> pd.DataFrame:
    """Loss of each prompt from per-example sums: `prompt`, `loss`, `n_examples`, `n_tokens`, `is_complete`.

    Prompts that a race has dropped have fewer examples than the others: they are not complete, and their
    losses cannot be compared.

    `token`: total NLL over total target tokens. `example`: mean over examples of their own token means.
    `batch`: mean over full batches of eight rows of their token means, as the published code has it on eight
    devices, which drops the rows that are left (D8, D9).
    """
    grouped = losses.groupby("prompt")
    totals = grouped.agg(nll=("nll", "sum"), n_tokens=("n_tokens", "sum"), n_examples=("nll", "size"))
    if reduction == "token":
        totals["loss"] = totals["nll"] / totals["n_tokens"]
    elif reduction == "example":
        totals["loss"] = (losses["nll"] / losses["n_tokens"]).groupby(losses["prompt"]).mean()
    else:
        totals["loss"] = [_batch_mean(rows) for _, rows in grouped]
    totals["is_complete"] = totals["n_examples"] == totals["n_examples"].max()
    return totals.reset_index()[["prompt", "loss", "n_examples", "n_tokens", "is_complete"]]


def _batch_mean(rows: pd.DataFrame) -> float:
    rows = rows.sort_values("example")
    whole = rows.iloc[: len(rows) // PUBLISHED_BATCH * PUBLISHED_BATCH or len(rows)]
    batch = np.arange(len(whole)) // PUBLISHED_BATCH
    sums = whole.groupby(batch)[["nll", "n_tokens"]].sum()
    return float((sums["nll"] / sums["n_tokens"]).mean())
