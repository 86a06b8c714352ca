"""The pre-update loss: how well a model that is not yet trained on a task predicts its targets."""

from collections.abc import Sequence

import pandas as pd
import torch

from sapo.conf.errors import WorkError
from sapo.data.prompts import Prompt
from sapo.data.render import Rendered
from sapo.data.tasks import Task
from sapo.experiments.model.forward import Prefix, in_batches, nll_and_entropy, pass_tokens, target_logits

NOTHING = (0.0, 0.0)


@torch.inference_mode()
def example_losses(
    model, examples: Sequence[Rendered], budget: int, prefix: Prefix | None = None
) -> pd.DataFrame:
    """Per example: `nll` and `entropy` summed over its target tokens (nats), and `n_tokens`.

    `prefix` is what all examples begin with, if that is not to be read again. All are 0 for an example whose
    target was cut off (`data.truncation=end`).
    """
    with_target = [i for i, rendered in enumerate(examples) if rendered.target_ids]
    skip = prefix.length if prefix else 0

    def work(batch: list[int]) -> list[tuple[float, float]]:
        rendered = [examples[with_target[i]] for i in batch]
        nll, entropy = nll_and_entropy(*target_logits(model, rendered, prefix))
        return list(zip(nll.tolist(), entropy.tolist(), strict=True))

    lengths = [len(examples[i].input_ids) - skip for i in with_target]
    found = in_batches(lengths, budget, pass_tokens(model.device), work, skip)
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
            for i, rendered in enumerate(examples)
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
