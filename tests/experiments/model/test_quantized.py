"""A model in 4 bits against a whole one that has the same, rounded weights."""

import pytest
import torch
from trainings import close, learn, price_method
from transformers import AutoModelForCausalLM

from sapo.conf.errors import UserError
from sapo.experiments.model import load
from sapo.experiments.model.fetch import model_folder
from sapo.experiments.model.identity import model_identity
from sapo.experiments.model.load import load_model, require_loadable

SMALL = ("data.max_input_tokens=600", "trainer.epochs=2", "method.dropout=0")
IDS = torch.arange(3, 60).unsqueeze(0)


def logits(base):
    with torch.inference_mode():
        return base(input_ids=IDS).logits.clone()


def test_losses_and_adapters_are_those_of_the_rounded_weights(tiny_config, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="no bitsandbytes (extra `quant`)")
    config = tiny_config("model.load=nf4", *SMALL)
    quantized = load_model(config)
    base, twin = quantized.base, AutoModelForCausalLM.from_pretrained(model_folder(config.model))
    rounded = 0
    for name, module in base.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            twin.get_submodule(name).weight.data.copy_(weight)
            rounded += 1
    assert rounded == 2 * 7  # all linear layers but the output
    before = logits(base)
    assert torch.allclose(before, logits(twin.eval()), atol=1e-4)
    facts, weights = learn(price_method(config), tmp_path)
    assert torch.equal(logits(base), before)  # neither reading nor training has touched the base
    twin.save_pretrained(tmp_path / "twin")
    quantized.tokenizer.save_pretrained(tmp_path / "twin")
    whole = tiny_config(f"model.path={tmp_path / 'twin'}", *SMALL)
    plain_facts, plain_weights = learn(price_method(whole), tmp_path)
    assert facts["losses"] == pytest.approx(plain_facts["losses"], rel=1e-4)
    assert close(weights, plain_weights)


def test_only_a_model_in_4_bits_has_another_identity(tiny_config):
    whole, quantized = (model_identity(tiny_config(f"model.load={how}")) for how in ("full", "nf4"))
    assert "load" not in whole
    assert quantized == whole | {"load": "nf4"}


def test_without_bitsandbytes_or_its_kernels_it_is_refused(tiny_config, monkeypatch):
    monkeypatch.setattr(load, "find_spec", lambda name: None)
    config = tiny_config("model.load=nf4")
    for refuse in (require_loadable, load_model):
        with pytest.raises(UserError, match=r"bitsandbytes.*pip install 'sapo-prompts\[quant\]'"):
            refuse(config)
    monkeypatch.setattr(load, "find_spec", lambda name: object())
    monkeypatch.setattr(load, "device_of", lambda config: torch.device("mps"))
    with pytest.raises(UserError, match="no 4-bit kernels for mps"):
        require_loadable(config)
    require_loadable(tiny_config())
