"""What each method trains, freezes and keeps."""

from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from trainings import method_for, same

from sapo.conf.errors import WorkError
from sapo.experiments.methods import METHODS
from sapo.experiments.model import adapters
from sapo.experiments.model.adapters import FOLDER, WEIGHTS, adapter_tensors, load_adapter, plain
from sapo.experiments.model.load import load_model
from sapo.experiments.stages import in_state

KINDS = [name for name in METHODS if name not in ("single", "multitask", "zero_shot")]  # sequential, those
IDS = torch.arange(3, 40).unsqueeze(0)


@pytest.fixture
def base(tiny_config):
    return load_model(tiny_config()).base


def logits(model):
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits


@pytest.fixture
def method(tiny_config):
    """A method with a task's state before it, as a training would make it."""
    return lambda name, previous=None, position=0: method_for(
        tiny_config(f"method={name}"), position, previous
    )


def trained(method, folder, seed):
    """Random weights in place of training, saved to `folder`; returns the trained model's logits."""
    torch.manual_seed(seed)
    with plain(method.context.language_model.base):
        method.replayed()
        model = method.start()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.3)
        found = logits(model)
        method.save(model, folder)
    return found


@pytest.mark.parametrize("name", KINDS)
def test_what_is_saved_opens_with_plain_peft_and_training_starts_from_it(method, base, tmp_path, name):
    previous = None
    for task in range(3):
        if previous:
            with plain(base):
                scored = logits(load_adapter(base, previous / FOLDER))
            with plain(base):
                assert torch.equal(scored, logits(method(name, previous, task).start()))
        folder = tmp_path / str(task)
        expected = trained(method(name, previous, task), folder, task)
        with plain(base):
            found = logits(PeftModel.from_pretrained(base, str(folder / FOLDER)))
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
        assert (found - logits(base)).abs().max() > 1e-3
        previous = folder


def test_lorainc_keeps_earlier_adapters_to_the_bit_and_trains_only_the_new_one(method, base, tmp_path):
    previous = None
    for task in range(3):
        with plain(base):
            model = method("lorainc", previous, task).start()
            assert adapters.trained_weights(model).keys() == adapter_tensors(model, "current").keys()
        trained(method("lorainc", previous, task), tmp_path / str(task), task)
        previous = tmp_path / str(task)
    two, three = (load_file(tmp_path / name / FOLDER / WEIGHTS) for name in "12")
    for key, value in two.items():
        kept = three[key][: value.shape[0]] if "lora_A" in key else three[key][:, : value.shape[1]]
        assert torch.equal(kept, value)
        assert three[key].shape[0 if "lora_A" in key else 1] == 24


def test_sequential_goes_on_with_one_adapter(method, base, tmp_path):
    trained(method("sequential"), tmp_path / "0", 0)
    with plain(base):
        model = method("sequential", tmp_path / "0", 1).start()
        assert same(adapters.trained_weights(model), load_file(tmp_path / "0" / FOLDER / WEIGHTS))


def test_a_shrunk_state_counts_earlier_adapters_by_one_over_their_number(tiny_config, method, tmp_path):
    """The published code's scoring states of tasks 2 to 5: ratios 1, 1/2, 1/3, 1/4 (D1)."""
    previous, scales = None, []
    for task in range(4):
        trained(method("lorainc", previous, task % 3), tmp_path / str(task), task)
        previous = tmp_path / str(task)
        store = SimpleNamespace(find=lambda *_, folder=previous: SimpleNamespace(folder=folder))
        for rank in (None, 8):
            with in_state(load_model(tiny_config()), store, "a" * 64, rank) as model:
                layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
                scales.append({layer.scaling["default"] for layer in layers})
    assert scales == [{4}, {4}, {4}, {4 / 2}, {4}, {4 / 3}, {4}, {4 / 4}]


def test_concatenation_by_hand():
    first = {"x.lora_A.weight": torch.tensor([[1.0, 2.0]]), "x.lora_B.weight": torch.tensor([[3.0], [4.0]])}
    second = {"x.lora_A.weight": torch.tensor([[5.0, 6.0]]), "x.lora_B.weight": torch.tensor([[7.0], [8.0]])}
    both = adapters.concatenate(first, second)
    assert both["x.lora_A.weight"].tolist() == [[1, 2], [5, 6]]
    assert both["x.lora_B.weight"].tolist() == [[3, 7], [4, 8]]
    product = both["x.lora_B.weight"] @ both["x.lora_A.weight"]
    parts = [part["x.lora_B.weight"] @ part["x.lora_A.weight"] for part in (first, second)]
    assert torch.equal(product, parts[0] + parts[1])
    with pytest.raises(WorkError, match="different modules"):
        adapters.concatenate(first, {})


def test_an_adapter_whose_weights_do_not_arrive_is_an_error(method, base, tmp_path):
    trained(method("lorainc"), tmp_path, 0)
    path = tmp_path / FOLDER / WEIGHTS
    saved = load_file(path)
    elsewhere = {key.replace("layers.1", "layers.7"): value for key, value in saved.items()}
    fewer = {key: value for key, value in saved.items() if "layers.1" not in key}
    for weights in (elsewhere, fewer):
        save_file(weights, path)
        warns, fails = pytest.warns(match="missing adapter"), pytest.raises(WorkError, match="did not load")
        with plain(base), warns, fails:
            load_adapter(base, tmp_path / FOLDER)


def test_what_the_files_would_not_hold_is_not_trained(method, base):
    with plain(base):
        model = method("lorainc").start()
        base.lm_head.weight.requires_grad_(True)
        with pytest.raises(WorkError, match=r"lm_head\.weight would be trained"):
            adapters.trained_weights(model)
        base.lm_head.weight.requires_grad_(False)


def test_the_base_is_plain_again_afterwards(method, base, tmp_path):
    before = logits(base)
    names = [name for name, _ in base.named_modules()]
    trained(method("lorainc"), tmp_path, 0)
    assert [name for name, _ in base.named_modules()] == names
    assert torch.equal(logits(base), before)
    assert not any(parameter.requires_grad for parameter in base.parameters())
