"""What a loaded model keeps between stages."""

import pytest
import torch
from transformers import LlamaConfig, MambaConfig

from sapo.conf.errors import UserError
from sapo.data.mini import generate
from sapo.experiments.model import load as models
from sapo.experiments.model.load import device_of, load_model, require_runnable


def test_test_examples_are_tokenized_once_a_task_and_prompt(tiny_config, monkeypatch):
    language_model = load_model(tiny_config())
    renderer = language_model.renderer(512)
    task = generate("mini_price", 2, 4, 0)
    first = language_model.rendered_test(renderer, task, "How much?")
    assert first == renderer.render(task, "How much?", task.test, for_test=True)
    # The same task loaded again is the same; another prompt, frame or limit is not.
    assert language_model.rendered_test(renderer, generate("mini_price", 2, 4, 0), "How much?") is first
    others = [
        language_model.rendered_test(renderer, task, "Which price?"),
        language_model.rendered_test(language_model.renderer(400), task, "How much?"),
        language_model.rendered_test(renderer, generate("mini_price", 2, 3, 0), "How much?"),
    ]
    assert all(other is not first for other in others)
    monkeypatch.setattr(models, "KEPT_TESTS", 1)
    language_model.rendered_test(renderer, task, "Another?")
    assert language_model.rendered_test(renderer, task, "How much?") is not first


@pytest.mark.parametrize(("settings", "keeps"), [(LlamaConfig(), True), (MambaConfig(), False)])
def test_a_model_that_keeps_no_keys_and_values_is_refused(
    tiny_config, tmp_path, monkeypatch, settings, keeps
):
    settings.save_pretrained(tmp_path)
    monkeypatch.setattr(models, "require_model", lambda model: tmp_path)
    model = tiny_config().model
    if keeps:
        assert require_runnable(model) == tmp_path
        return
    with pytest.raises(UserError, match="MambaForCausalLM keeps no keys and values"):
        require_runnable(model)


@pytest.mark.parametrize(
    ("device", "is_there"), [("cuda", torch.cuda.is_available), ("mps", torch.backends.mps.is_available)]
)
def test_a_device_that_is_not_there_is_refused(tiny_config, device, is_there):
    if is_there():
        assert device_of(tiny_config(f"engine.device={device}")).type == device
        return
    with pytest.raises(UserError, match=f"engine.device={device}, and PyTorch sees no"):
        device_of(tiny_config(f"engine.device={device}"))
