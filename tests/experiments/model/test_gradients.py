"""Gradients of a fresh adapter against a plain computation, and the angles between them."""

import json

import pytest
import torch
from trainings import plain_nll

from sapo.conf.errors import WorkError
from sapo.conf.load import load_one
from sapo.data.render import Rendered
from sapo.experiments.model import gradients
from sapo.experiments.model.adapters import FOLDER, plain, save_adapter
from sapo.experiments.model.gradients import adapter_gradients, cosines, with_fresh_adapter
from sapo.experiments.model.load import load_model

HEAD = list(range(3, 93))
ROWS = [Rendered([*HEAD, 95 + i, *([7] * i), 20 + i, 21], 91 + i) for i in range(5)]
QUARTER = ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]


@pytest.fixture(scope="module")
def config():
    return load_one(
        ["model=tiny_llama", "method.rank=4", "engine.device=cpu", "trainer.micro_batch_tokens=200"]
    )


@pytest.fixture(scope="module")
def state(config, tmp_path_factory):
    """The folder of a training that left an adapter with weights that change every logit."""
    torch.manual_seed(1)
    weights = {}
    for layer in range(2):
        for name, size in (("q_proj", 32), ("v_proj", 16)):
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{key}.lora_A.weight"] = torch.randn(4, 32) * 0.1
            weights[f"{key}.lora_B.weight"] = torch.randn(size, 4) * 0.1
    folder = tmp_path_factory.mktemp("state")
    save_adapter(config, weights, folder / FOLDER)
    return folder


def test_adapters_say_their_modules_in_one_order(tmp_path):
    targets = "[q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]"
    config = load_one(["model=tiny_llama", f"model.lora_targets={targets}"])
    save_adapter(config, {"lora_A": torch.zeros(4, 1)}, tmp_path / FOLDER)
    modules = json.loads((tmp_path / FOLDER / "adapter_config.json").read_text())["target_modules"]
    assert modules == sorted(targets.strip("[]").split(","))


def plainly(model, config, rows):
    """From the gradient of the whole weight W: with W + s B A and B = 0, that of B is s dL/dW A^T."""
    scale = config.method.alpha / config.method.rank
    layers = {module: model.get_submodule(f"base_model.model.{module}") for module in QUARTER}
    for layer in layers.values():
        layer.base_layer.weight.requires_grad_(True)
    n_tokens = sum(len(row.target_ids) for row in rows)
    for row in rows:
        (plain_nll(model, row) / n_tokens).backward()
    found = {}
    for module, layer in layers.items():
        weight = layer.base_layer.weight
        found[module] = scale * weight.grad @ layer.lora_A["current"].weight.detach().T
        weight.requires_grad_(False)
        weight.grad = None
    return found


@pytest.mark.parametrize("share", [True, False])
def test_gradients_and_cosines_equal_a_plain_computation(config, state, share):
    config.trainer.shared_prefix = share
    language_model = load_model(config)
    with plain(language_model.base):
        model = with_fresh_adapter(language_model.base, state / FOLDER, config)
        first = adapter_gradients(model, ROWS[:3], config.trainer, "first")
        second = adapter_gradients(model, ROWS[2:], config.trainer, "second")
        expected = [plainly(model, config, rows) for rows in (ROWS[:3], ROWS[2:])]
    assert list(first) == QUARTER
    for found, other in zip((first, second), expected, strict=True):
        for module in QUARTER:
            torch.testing.assert_close(found[module], other[module], rtol=1e-3, atol=1e-6)
    for module, cosine in cosines(first, second).items():
        a, b = (parts[module].flatten() for parts in expected)
        assert cosine == pytest.approx(torch.nn.functional.cosine_similarity(a, b, dim=0).item(), abs=1e-4)
        assert abs(cosine) < 0.999


def test_the_fresh_adapter_changes_no_logit_and_is_the_same_for_every_task(config, state):
    language_model = load_model(config)
    with plain(language_model.base):
        once = with_fresh_adapter(language_model.base, state / FOLDER, config)
        trainable = [key for key, p in once.named_parameters() if p.requires_grad]
        drawn = {key: p.clone() for key, p in once.named_parameters() if "lora_A.current" in key}
        assert all(p.abs().max() == 0 for key, p in once.named_parameters() if "lora_B.current" in key)
    assert [f"base_model.model.{module}.lora_B.current.weight" for module in QUARTER] == trainable
    torch.manual_seed(99)
    with plain(language_model.base):
        again = dict(with_fresh_adapter(language_model.base, state / FOLDER, config).named_parameters())
        assert drawn
        assert all(torch.equal(again[key], value) for key, value in drawn.items())


def test_a_gradient_without_a_direction_is_an_error_that_names_task_and_module(config):
    language_model = load_model(config)
    with plain(language_model.base):
        model = with_fresh_adapter(language_model.base, None, config)
        for key, parameter in model.named_parameters():
            if "layers.1.self_attn.v_proj.lora_A" in key:
                parameter.data.zero_()
        with pytest.raises(
            WorkError, match=r"gradient of sums at model\.layers\.1\.self_attn\.v_proj is zero"
        ):
            adapter_gradients(model, ROWS, config.trainer, "sums")


def test_cosines_by_hand():
    first = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([[1.0, 0.0]])}
    second = {"a": torch.tensor([[4.0, 3.0]]), "b": torch.tensor([[-2.0, 0.0]])}
    assert cosines(first, second) == pytest.approx({"a": 0.96, "b": -1.0})


def test_ranks_are_spread_over_the_paraphrases_as_in_the_paper():
    ranks = {20: [1, 7, 13, 20], 7: [1, 3, 5, 7], 3: [1, 2, 3], 1: [1]}
    assert {count: gradients.spread_ranks(count) for count in ranks} == ranks
    assert gradients.layer_of("model.layers.29.self_attn.q_proj") == 29
