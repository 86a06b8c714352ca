"""EWC: one adapter for all tasks, held near the weights that mattered to earlier ones (PNAS 2017).

After each task the Fisher information F of the trained weights θ is taken from some of its training rows:
the mean over rows of the squared gradient of each row's own loss (empirical, labels from the data; as
DeepLearnXMU/SSR, src/llmtuner/tuner/sftreg). From the second task on, weight · Σ F (θ − θ*)² is added to the
loss, without a factor ½. `method.fisher` says how tasks add up: `half`, F ← (F + F_t) / 2, stands beside the
weight of 4,000 in the code of Jiang et al. (GangweiJiang/FvForgetting); `last`, F ← F_t, is SSR's; `online`,
F ← decay · F + F_t, is that of Schwarz et al. (2018). Each is around the last task's weights.

F and the anchor θ* have the shapes of the adapter's A (r, d_in) and B (d_out, r), one of each module, in
float32. One F and one θ* are kept, however many tasks there were.
"""

import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from sapo.conf.errors import WorkError
from sapo.conf.schema import MethodConfig
from sapo.data.render import Rendered
from sapo.experiments.methods.method import KEPT
from sapo.experiments.methods.sequential import Sequential
from sapo.experiments.model import ranks
from sapo.experiments.model.adapters import trained_weights
from sapo.experiments.model.budgets import one_example
from sapo.experiments.model.forward import target_logits, target_nll
from sapo.experiments.model.rows import training_rows

FISHER, ANCHOR = "fisher.safetensors", "anchor.safetensors"

Tensors = dict[str, Tensor]  # a value a weight, by the names that adapters are saved under
Memory = dict[str, Tensors]  # what is kept of earlier tasks, by its files: FISHER and ANCHOR


class EWC(Sequential):
    """Trains the same adapter on, its weights held where earlier tasks need them."""

    keeps = True
    reads = ("weight", "fisher", "fisher_decay", "fisher_examples")

    @classmethod
    def stored_adapters(cls, position: int) -> int:  # noqa: ARG003
        """The adapter, its Fisher information and its anchor."""
        return 3

    @cached_property
    def memory(self) -> Memory:
        """What the last task left, nothing for the first task; WorkError if it is gone."""
        if self.context.previous is None:
            return {}
        folder = self.context.previous / KEPT
        device = str(self.context.language_model.base.device)
        try:
            return {name: load_file(folder / name, device=device) for name in (FISHER, ANCHOR)}
        except FileNotFoundError as error:
            raise WorkError(
                f"EWC: {error}. Without it earlier tasks would not be protected. "
                f"Delete {self.context.previous} to train that task again."
            ) from error

    def start(self) -> PeftModel:
        """The adapter as the last task left it, and the memory that belongs to it."""
        model = super().start()
        expected = {key: value.shape for key, value in trained_weights(model).items()}
        for tensors in self.memory.values():
            if {key: value.shape for key, value in tensors.items()} != expected:
                raise WorkError(f"EWC: {self.context.previous}/{KEPT} is of other weights.")
        return model

    def penalty(self, model: PeftModel) -> Tensor | None:
        """weight · Σ F (θ − θ*)²; None for the first task and for weight 0."""
        if not self.memory or self.config.weight == 0:
            return None
        return self.config.weight * distance(self.memory, trained_weights(model))

    def save(self, model: PeftModel, folder: Path) -> None:
        """The adapter, and the memory with this task added to it.

        `method.fisher_examples` training rows, all if there are fewer, are drawn by the training's seed.
        """
        super().save(model, folder)
        renderer = self.context.language_model.renderer(self.context.config.data)
        rows = training_rows(renderer, self.context.tasks)
        draw = random.Random(f"fisher {self.context.seed}")  # noqa: S311
        chosen = draw.sample(rows, min(self.config.fisher_examples, len(rows)))
        # The prompt is the one that the task was trained with; of several, any.
        examples = [draw.choice(row.rendered) for row in chosen]
        fisher = fisher_information(model, examples)
        if not all(torch.isfinite(value).all() for value in fisher.values()):
            raise WorkError("EWC: the Fisher information of the trained weights is not finite.")
        weights = {key: value.detach().float().clone() for key, value in trained_weights(model).items()}
        (folder / KEPT).mkdir()
        for name, tensors in add_task(self.config, self.memory, {FISHER: fisher, ANCHOR: weights}).items():
            save_file(tensors, folder / KEPT / name)


def fisher_information(model: PeftModel, examples: Sequence[Rendered]) -> Tensors:
    """Mean over examples of the squared gradient of each example's mean loss a target token, dropout off.

    Float32, of the shapes of A (r, d_in) and B (d_out, r). One backward pass an example: the square of an
    averaged gradient would be something else.
    """
    model.eval()
    weights = trained_weights(model)
    squares = [torch.zeros_like(value, dtype=torch.float32) for value in weights.values()]
    for example in ranks.share(examples):
        with one_example(len(example.input_ids)):
            nll = target_nll(*target_logits(model, [example])).sum()  # type: ignore[arg-type]
            gradients = torch.autograd.grad(nll / len(example.target_ids), list(weights.values()))
        for square, gradient in zip(squares, gradients, strict=True):
            square.addcmul_(gradient.float(), gradient.float())
    ranks.add_up(squares)
    return {key: square / len(examples) for key, square in zip(weights, squares, strict=True)}


def add_task(method: MethodConfig, earlier: Memory, task: Memory) -> Memory:
    """The memory after a task, given its own Fisher information and final weights."""
    if not earlier or method.fisher == "last":
        return task
    old, new = (0.5, 0.5) if method.fisher == "half" else (method.fisher_decay, 1.0)
    return task | {FISHER: {key: old * earlier[FISHER][key] + new * own for key, own in task[FISHER].items()}}


def distance(memory: Memory, weights: Tensors) -> Tensor:
    """Σ F (θ − θ*)² over all A (r, d_in) and B (d_out, r): a scalar in float32."""
    fisher, anchor = memory[FISHER], memory[ANCHOR]
    parts = [(fisher[key] * (value.float() - anchor[key]).square()).sum() for key, value in weights.items()]
    return torch.stack(parts).sum()
