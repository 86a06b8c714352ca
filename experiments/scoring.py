"""The pre-update loss: how well a model that is not yet trained on a task predicts its targets."""

import random
from collections.abc import Sequence

import pandas as pd
import torch

from sapo.conf.errors import WorkError
from sapo.data.prompts import Prompt
from sapo.data.render import Rendered
from sapo.data.tasks import Example, Task
from sapo.experiments.forward import in_batches, target_entropy, target_logits, target_nll


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
    """Per example: `nll` and `entropy` summed over its target tokens (nats), and `n_tokens`."""

    def work(batch: list[int]) -> list[tuple[float, float]]:
        logits, targets = target_logits(model, [batches_of[i] for i in batch], share_prefix)
        nll = target_nll(logits, targets).sum(-1).tolist()
        entropy = target_entropy(logits, targets).sum(-1).tolist()
        return list(zip(nll, entropy, strict=True))

    sums = dict(in_batches([len(r.input_ids) for r in batches_of], budget, work))
    return pd.DataFrame(
        [
            {
                "example": i,
                "nll": sums[i][0],
                "entropy": sums[i][1],
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
    """Loss of each prompt from per-example sums: columns `prompt`, `loss`, `n_examples`, `n_tokens`.

    `token`: total NLL over total target tokens. `example`: mean over examples of their own token means.
    """
    losses = losses.assign(mean=losses["nll"] / losses["n_tokens"])
    grouped = losses.groupby("prompt")
    totals = grouped.agg(
        nll=("nll", "sum"), n_tokens=("n_tokens", "sum"), n_examples=("nll", "size"), mean=("mean", "mean")
    )
    totals["loss"] = totals["mean"] if reduction == "example" else totals["nll"] / totals["n_tokens"]
    return totals.reset_index()[["prompt", "loss", "n_examples", "n_tokens"]]
