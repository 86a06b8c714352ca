"""How large batches are where nothing is said: by the device, and by a GPU's free memory."""

from types import SimpleNamespace

import pytest
import torch
import transformers

from sapo.conf.load import load_one
from sapo.experiments.model import budgets
from sapo.experiments.model.budgets import reading_tokens, training_tokens

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 1000}
CONFIG = transformers.LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2)
# By hand: 2 layers x (24 x 64 + 6 x 128) elements x 2 bytes + 10 bytes x 1000 words.
TRAINING_BYTES = 2 * (24 * 64 + 6 * 128) * 2 + 10 * 1000
# 2 (keys, values) x 2 (joined) x 2 layers x 2 heads x 16, one layer's 2304, 1000 words; 2 bytes each.
READING_BYTES = (2 * 2 * 2 * 2 * 16 + 2304 + 1000) * 2


def model(device: str, config: transformers.PreTrainedConfig = CONFIG) -> SimpleNamespace:
    return SimpleNamespace(config=config, dtype=torch.bfloat16, device=torch.device(device))


@pytest.fixture
def gpu(monkeypatch):
    """`gpu(free, reserved, allocated)`: a GPU with so many bytes."""

    def set_memory(free: int, reserved: int = 0, allocated: int = 0) -> SimpleNamespace:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)
        return model("cuda:0")

    return set_memory


def test_what_is_asked_for_is_taken_and_a_cpu_has_its_own():
    for device in ("cpu", "cuda:0"):
        assert training_tokens(model(device), 77) == reading_tokens(model(device), 77) == 77
    assert training_tokens(model("cpu"), None) == budgets.CPU_TRAINING
    assert reading_tokens(model("cpu"), None) == budgets.CPU_READING


def test_a_gpu_takes_what_most_of_its_free_memory_holds(gpu):
    free = 10_000_000
    assert training_tokens(gpu(free), None) == 8_000_000 // TRAINING_BYTES
    assert reading_tokens(gpu(free), None) == 8_000_000 // READING_BYTES
    # What PyTorch holds and does not use is free, too.
    assert training_tokens(gpu(free - 3_000_000, 5_000_000, 2_000_000), None) == 8_000_000 // TRAINING_BYTES
    for size in (training_tokens, reading_tokens):
        assert (size(gpu(10**12), None), size(gpu(0), None)) == (budgets.LARGEST, 1)


@pytest.mark.parametrize("family", ["Bloom", "Falcon", "GPT2", "GPTNeoX", "OPT"])
def test_every_family_of_models_has_a_size(gpu, family):
    """Their configs name heads and sizes otherwise, or not at all."""
    gpu(10**9)
    of_family = model("cuda:0", getattr(transformers, f"{family}Config")())
    assert 1 < training_tokens(of_family, None) < budgets.LARGEST
    assert 1 < reading_tokens(of_family, None) < budgets.LARGEST


def test_the_trainers_of_the_package_leave_it_to_the_device():
    for config in (load_one([f"trainer={name}"]) for name in ("mini", "paper")):
        assert config.trainer.micro_batch_tokens is config.evaluator.batch_tokens is None
