"""How often the processor would wait for a GPU: values that Python reads from tensors, counted on a CPU."""

from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from trainings import learn, price_method, read_task

from sapo.experiments.model.adapters import plain
from sapo.experiments.model.evaluation import evaluate
from sapo.experiments.model.forward import shared_prefix
from sapo.experiments.model.scoring import example_losses


class Reads(TorchDispatchMode):
    """Counts single values that are read, by `item`, `float`, `int` or `bool`."""

    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.counts["values"] += operation is torch.ops.aten._local_scalar_dense.default
        return operation(*args, **(kwargs or {}))


@pytest.fixture
def counted(monkeypatch):
    """`counted(work, base)`: passes through the model, lists and single values that are read."""

    def count(work, base):
        counts = Counter()
        read = torch.Tensor.tolist
        hook = base.register_forward_pre_hook(lambda *_: counts.update(["passes"]))
        with monkeypatch.context() as patch, Reads(counts):
            patch.setattr(torch.Tensor, "tolist", lambda self: counts.update(["lists"]) or read(self))
            work()
        hook.remove()
        return counts

    return count


def test_scored_batches_are_waited_for_together(tiny_config, counted):
    model, _, rendered = read_task(tiny_config(), "mini_price", 12)
    with torch.inference_mode():
        prefix = shared_prefix(model.base, rendered)
    counts = counted(lambda: example_losses(model.base, rendered, 100, prefix), model.base)
    assert counts["passes"] > 2
    assert counts == {"passes": counts["passes"], "lists": 1, "values": 0}


def test_losses_and_divergences_are_waited_for_together(tiny_config, counted):
    config = tiny_config("evaluator.answers=false", "evaluator.batch_tokens=100")
    model, task, rendered = read_task(config, "mini_price", 12)
    with plain(model.base) as base:
        trained = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).eval()
        counts = counted(
            lambda: evaluate(model, trained, task.test, rendered, config), trained.base_model.model
        )
    # Each batch is read by both models, and each of these has read the beginning before.
    assert counts["passes"] > 2 + 2 * 2
    assert (counts["lists"], counts["values"]) == (1, 0)


def test_a_step_of_training_is_waited_for_twice(tiny_config, tmp_path, counted):
    """For its loss and its gradient's norm, however many micro-batches it has."""
    config = tiny_config(
        "trainer.global_batch=5", "trainer.micro_batch_tokens=90", "trainer.checkpoint_steps=0"
    )
    method = price_method(config)
    counts = counted(lambda: learn(method, tmp_path), method.context.language_model.base)
    assert counts["passes"] > 6
    assert counts["values"] == 2 * 2
