"""What a training needs of memory, against counts by hand, and what is said where it does not fit."""

from dataclasses import replace

import pytest
from tiny import refusal

from sapo.experiments.model import memory
from sapo.experiments.model.load import load_model
from sapo.experiments.model.memory import device_memory, require_memory, training_memory, ways_to_fit

LONGEST = ("data.max_input_tokens=372",)  # and a target of 128: 500 tokens


def test_a_model_that_is_here_is_counted(tiny_config):
    config = tiny_config(*LONGEST, "method.rank=8")
    base = load_model(config).base
    found = training_memory(config, earlier=3)
    assert found.weights == 4 * sum(parameter.numel() for parameter in base.parameters())
    # Two layers: A and B of q (32 to 32) and v (32 to 16); weights, gradient, two moments, and three earlier.
    assert found.adapters == 2 * 8 * ((32 + 32) + (32 + 16)) * 4 * (4 + 3)
    kept = 24 * 32 + 6 * 64
    words = base.config.vocab_size
    assert found.activations == 500 * 2 * kept * 4 + 128 * words * 10
    light = training_memory(replace(config, trainer=replace(config.trainer, gradient_checkpointing=True)))
    assert light.activations == 500 * (2 * 32 + kept) * 4 + 128 * words * 10
    all_linear = training_memory(tiny_config("model.lora_targets=[all-linear]", "method.rank=1"))
    # q, k, v, o; gate, up, down of both layers, the output layer not.
    assert all_linear.adapters == 2 * (64 + 48 + 48 + 64 + 96 + 96 + 96) * 4 * 4


@pytest.mark.parametrize(
    ("room", "ways", "said"),
    [
        (40, None, ""),
        (24, ["trainer.gradient_checkpointing=true"], "trainer.gradient_checkpointing=true would fit"),
        (8, ["trainer.gradient_checkpointing=true", "model.load=nf4"], "qwen3_8b cannot be trained here"),
        (4, [], "qwen3_8b cannot be trained here"),
    ],
)
def test_which_card_takes_qwen3_8b(tiny_config, monkeypatch, room, ways, said):
    """16.4 GB of weights in bfloat16, about 6 in 4 bits; a row of 1,664 tokens keeps about 20 GB."""
    config = tiny_config("model=qwen3_8b", "data.max_input_tokens=1536")
    need = training_memory(config)
    assert need.weights == pytest.approx(8.2e9 * 2)
    assert 36e9 < sum(need) < 40e9
    assert (sum(need) <= room * 1e9) == (ways is None)
    if ways is not None:
        assert ways_to_fit(config, room * 1e9) == ways
    monkeypatch.setattr(memory, "device_memory", lambda config: room * 1e9)
    found = require_memory(config) if room > 20 else refusal(require_memory, config)
    assert said in found
    assert (found == "") == (ways is None)


def test_the_memory_of_a_cpu_is_the_machines_or_what_a_group_may_have(tiny_config, tmp_path, monkeypatch):
    whole = device_memory(tiny_config())
    assert whole > 2**28
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text("1000000\n")
    assert device_memory(tiny_config()) == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert device_memory(tiny_config()) >= whole


def test_a_model_of_unknown_size_is_not_judged(tiny_config):
    config = tiny_config("model=qwen3_8b", "model.parameters=0")
    assert training_memory(config) is None
    assert require_memory(config) == ""
