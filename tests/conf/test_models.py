"""A model is called what it is: by its folder, OWNER/NAME on the hub, or its packaged name."""

import json
from pathlib import Path

import pytest

from sapo.conf.errors import UserError
from sapo.conf.load import load, load_one
from sapo.conf.models import argument_of


@pytest.fixture
def folder(tmp_path):
    """`folder("Qwen3 mine", "qwen3")`: a model's folder with a config of that family."""

    def made(name: str, family: str, template: str = "{{ messages }}") -> Path:
        (path := tmp_path / name).mkdir(parents=True)
        sizes = {"vocab_size": 1000, "hidden_size": 2000, "tie_word_embeddings": family != "qwen3"}
        (path / "config.json").write_text(json.dumps({"model_type": family, "dtype": "bfloat16"} | sizes))
        (path / "chat_template.jinja").write_text(template)
        (path / "model.safetensors").write_bytes(b"0" * 4_000_000)
        return path

    return made


@pytest.mark.parametrize("key", ["model", "model.path", "model.source"])
def test_a_folder_gives_name_targets_switches_and_size(folder, key):
    path = folder("Qwen3 mine", "qwen3")
    model = load_one([f"{key}={'path:' if key == 'model.source' else ''}{path}"]).model
    assert (model.name, model.source, model.path) == ("Qwen3_mine", f"path:{path}", str(path))
    assert (model.template_options, model.lora_targets) == ({"enable_thinking": False}, ["q_proj", "v_proj"])
    assert (model.parameters, model.embeddings, argument_of(model)) == (0.002, 0.004, str(path))


@pytest.mark.parametrize(
    ("family", "template", "targets", "options"),
    [
        ("llama", "x", ["q_proj", "v_proj"], {}),
        ("gpt2", "x", ["c_attn"], {}),
        ("of_tomorrow", "{% if enable_thinking %}", ["all-linear"], {"enable_thinking": False}),
    ],
)
def test_what_is_known_of_families(folder, family, template, targets, options):
    model = load_one([f"model={folder('m', family, template)}"]).model
    assert (model.lora_targets, model.template_options) == (targets, options)


def test_what_is_said_wins_over_the_folder(folder):
    path = folder("m", "qwen3")
    given = ["+model.template_options.enable_thinking=true", "model.lora_targets=all-linear"]
    model = load_one([f"model={path}", *given]).model
    assert (model.template_options, model.lora_targets) == ({"enable_thinking": True}, ["all-linear"])
    model = load_one(["model=tiny_llama", f"model.path={path}", "model.name=mine"]).model
    assert (model.name, model.source, model.template_options) == ("mine", "tiny:llama", {})


def test_models_of_all_kinds_in_one_sweep(folder):
    path = folder("sub/one", "llama")
    configs = load([f"model=tiny_llama,{path},some/GPT-x", "seed=0,1"])
    assert [c.model.name for c in configs] == ["tiny_llama"] * 2 + ["one"] * 2 + ["GPT-x"] * 2
    assert [c.model.name for c in load([f"model.path={path},{folder('two', 'gpt2')}"])] == ["one", "two"]


def test_a_repository_in_the_hubs_cache(folder, monkeypatch, tmp_path):
    import huggingface_hub.constants

    repository = tmp_path / "hub" / "models--some--Thinker-1B"
    path = folder(f"hub/{repository.name}/snapshots/{'a' * 40}", "qwen3_moe")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model = load_one(["model=some/Thinker-1B"]).model
    assert (model.name, model.source, model.path) == ("Thinker-1B", "hub:some/Thinker-1B", None)
    assert (model.template_options, argument_of(model)) == ({"enable_thinking": False}, "some/Thinker-1B")
    assert load_one([f"model={path}"]).model.name == "Thinker-1B"
    assert argument_of(load_one(["model=qwen3_8b"]).model) == "qwen3_8b"


@pytest.mark.parametrize(
    ("text", "said"),
    [("nothing", "Unknown model 'nothing'.*Known:"), ("./nothing", "no config.json"), ("a/b--c", "a/b--c")],
)
def test_what_no_model_is_called(text, said):
    with pytest.raises(UserError, match=said):
        load([f"model={text}"])
