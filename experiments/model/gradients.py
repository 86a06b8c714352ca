"""Gradients of a fresh adapter, and how far those of two tasks point the same way (paper, Figure 4).

No weight is updated. The adapter's A (r, d_in) is random and its B (d_out, r) zero, so that the gradient of A
is zero, and only that of B (d_out, r), one of each module, says in which direction a task would pull.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from sapo.conf.errors import WorkError
from sapo.conf.schema import Config, TrainerConfig
from sapo.data.render import Rendered
from sapo.data.tasks import digest
from sapo.experiments.model import forward, ranks
from sapo.experiments.model.adapters import CURRENT, with_new_adapter
from sapo.experiments.model.budgets import training_tokens

FILE = "gradients.safetensors"  # in a stage's folder: gradients by module
# Of the paper's Figure 4: ranks of the prompts by loss (1, 7, 13 and 20 of 20), and which part of the layers.
PAPER_RANKS, TOP_PART = 4, 4
_B = re.compile(rf"base_model\.model\.(?P<module>.+)\.lora_B\.{CURRENT}\.weight")


def spread_ranks(count: int) -> list[int]:
    """Four ranks spread evenly from 1 to `count`, fewer where there are no four: 1, 7, 13, 20 of 20."""
    return sorted({1 + place * (count - 1) // (PAPER_RANKS - 1) for place in range(PAPER_RANKS)})


def with_fresh_adapter(base: PreTrainedModel, earlier: Path | None, config: Config) -> PeftModel:
    """The model of a state, frozen, with a new adapter beside its own; only B in the top quarter is free.

    `earlier` is the folder of the state's adapter. A is drawn from the seed alone, so that the gradients of
    all tasks and prompts in a state lie in one space.
    """
    torch.manual_seed(int(digest(["gradient", config.seed])[:8], 16))
    model = with_new_adapter(base, earlier, config).eval()
    layers = base.config.num_hidden_layers
    first = layers - max(1, layers // TOP_PART)
    for key, parameter in model.named_parameters():
        name = _B.fullmatch(key)
        parameter.requires_grad_(name is not None and layer_of(name["module"]) >= first)
    return model


def adapter_gradients(
    model: Any, rows: Sequence[Rendered], config: TrainerConfig, what: str
) -> dict[str, Tensor]:
    """Gradient of the rows' token-mean loss with respect to each free B (d_out, r), by module, in float32.

    `model` is what `with_fresh_adapter` gave. Raises WorkError naming `what` if a gradient is zero or not
    finite: it then has no direction.
    """
    free = {_B.sub(r"\g<module>", key): p for key, p in model.named_parameters() if p.requires_grad}
    sums = {module: torch.zeros_like(p, dtype=torch.float32) for module, p in free.items()}
    n_tokens = sum(len(row.target_ids) for row in rows)
    rows = ranks.share(rows)
    prefix = forward.shared_prefix(model, rows, config.shared_prefix)

    def work(batch: list[Rendered]) -> list[Rendered]:
        loss = forward.target_nll(*forward.target_logits(model, batch, prefix)).sum() / n_tokens
        parts = torch.autograd.grad(loss, list(free.values()), retain_graph=prefix.length > 0)
        # Added when the whole batch is through: one that does not fit in memory begins again in halves.
        for total, part in zip(sums.values(), parts, strict=True):
            total += part
        return batch

    budget = training_tokens(model, config.micro_batch_tokens)
    forward.in_batches(rows, budget, forward.pass_tokens(model), work, prefix.length)
    ranks.add_up(list(sums.values()))
    for module, gradient in sums.items():
        if not 0 < gradient.norm().item() < float("inf"):
            raise WorkError(f"The gradient of {what} at {module} is zero or not finite: it has no direction.")
    return {module: gradient.cpu() for module, gradient in sums.items()}


def cosines(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, float]:
    """Cosine of the angle between two tasks' gradients in each module, in float64."""
    pairs = {module: (first[module].double(), second[module].double()) for module in first}
    return {module: ((a * b).sum() / (a.norm() * b.norm())).item() for module, (a, b) in pairs.items()}


def layer_of(module: str) -> int:
    """The layer that a module belongs to: 29 for `model.layers.29.self_attn.q_proj`."""
    return next(int(part) for part in module.split(".") if part.isdigit())
