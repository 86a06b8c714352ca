"""Gradients of a fresh adapter, and how far those of two tasks point the same way (paper, Figure 4).

No weight is updated. The adapter's A is random and its B zero, so that the gradient of A is zero, and only
that of B says in which direction a task would pull.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from sapo.conf.errors import WorkError
from sapo.conf.schema import Config, TrainerConfig
from sapo.data.render import Rendered
from sapo.data.tasks import digest
from sapo.experiments.model.adapters import CURRENT, with_new_adapter
from sapo.experiments.model.budgets import training_tokens
from sapo.experiments.model.forward import in_batches, pass_tokens, shared_prefix, target_logits, target_nll

FILE = "gradients.safetensors"
PAPER_RANKS = 4  # of the prompts by loss: 1, 7, 13 and 20 of 20
_B = re.compile(rf"base_model\.model\.(?P<module>.+)\.lora_B\.{CURRENT}\.weight")


def spread_ranks(count: int) -> list[int]:
    """Four ranks spread evenly from 1 to `count`, fewer where there are no four: 1, 7, 13, 20 of 20."""
    return sorted({1 + place * (count - 1) // (PAPER_RANKS - 1) for place in range(PAPER_RANKS)})


def with_fresh_adapter(base: PreTrainedModel, earlier: Path | None, config: Config) -> PeftModel:
    """The model of a state, frozen, with a new adapter beside its own; only B of the top quarter's is free.

    `earlier` is the folder of the state's adapter. A is drawn from the seed alone, so that the gradients of
    all tasks and prompts in a state lie in one space.
    """
    torch.manual_seed(int(digest(["gradient", config.seed])[:8], 16))
    model = with_new_adapter(base, earlier, config.method, list(config.model.lora_targets)).eval()
    layers = base.config.num_hidden_layers
    first = layers - max(1, layers // 4)
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
    free = {key: p for key, p in model.named_parameters() if p.requires_grad}
    sums = {key: torch.zeros_like(p, dtype=torch.float32) for key, p in free.items()}
    n_tokens = sum(len(row.target_ids) for row in rows)
    prefix = shared_prefix(model, rows) if config.shared_prefix else None

    def work(batch: list[int]) -> list[int]:
        logits, targets = target_logits(model, [rows[i] for i in batch], prefix)
        loss = target_nll(logits, targets).sum() / n_tokens
        parts = torch.autograd.grad(loss, list(free.values()), retain_graph=prefix is not None)
        # Added when the whole batch is through: one that does not fit in memory begins again in halves.
        for total, part in zip(sums.values(), parts, strict=True):
            total += part
        return batch

    skip = prefix.length if prefix else 0
    lengths = [len(row.input_ids) - skip for row in rows]
    budget = training_tokens(model, config.micro_batch_tokens)
    for _ in in_batches(lengths, budget, pass_tokens(model.device), work, skip):
        pass
    modules = [key.removeprefix("base_model.model.").partition(".lora_B.")[0] for key in sums]
    found = dict(zip(modules, (total.cpu() for total in sums.values()), strict=True))
    for module, gradient in found.items():
        if not 0 < gradient.norm().item() < float("inf"):
            raise WorkError(f"The gradient of {what} at {module} is zero or not finite: it has no direction.")
    return found


def cosines(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, float]:
    """Cosine of the angle between two tasks' gradients in each module, in float64."""
    if first.keys() != second.keys():
        raise ValueError("gradients of different modules")
    pairs = {module: (first[module].double(), second[module].double()) for module in first}
    return {module: ((a * b).sum() / (a.norm() * b.norm())).item() for module, (a, b) in pairs.items()}


def layer_of(module: str) -> int:
    """The layer that a module belongs to: 29 for `model.layers.29.self_attn.q_proj`."""
    return next(int(part) for part in module.split(".") if part.isdigit())


def save_gradients(gradients: Mapping[str, Tensor], folder: Path) -> None:
    """Writes gradients by module to a stage's folder."""
    save_file(dict(gradients), folder / FILE)


def load_gradients(folder: Path) -> dict[str, Tensor]:
    """The gradients by module that a stage left."""
    return load_file(folder / FILE)
