"""A model is identified by every byte that loading it reads, and by nothing else."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from sapo.conf.errors import UserError
from sapo.experiments.model import fetch, identity
from sapo.experiments.model.identity import device_of, folder_digest, model_identity, weight_files
from sapo.experiments.model.load import read_model

SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture(autouse=True)
def _own_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "cache_folder", lambda: tmp_path / "cache")
    identity._remembered_digest.cache_clear()


def in_the_past(folder):
    for path in folder.rglob("*"):
        os.utime(path, (10**9, 10**9))


def sharded(folder, weight_map=None):
    """The same weights in a shard of a sub-folder, named by an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "part").mkdir()
    save_file(tensors, folder / "part" / SHARD, metadata={"format": "pt"})
    names = dict.fromkeys(tensors, f"part/{SHARD}") if weight_map is None else weight_map
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def test_a_byte_of_a_small_file_is_another_model(tiny_folder):
    in_the_past(tiny_folder)
    digests = [folder_digest(tiny_folder)]
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        (tiny_folder / name).write_text((tiny_folder / name).read_text() + "\n")
        digests.append(folder_digest(tiny_folder))
    assert len(set(digests)) == 5


@pytest.mark.parametrize(("share", "is_sharded"), [(0.1, True), (0.5, False), (0.99, True)])
def test_a_byte_of_large_weights_is_another_model_wherever_it_stands(tiny_folder, share, is_sharded):
    tensors = load_file(tiny_folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = torch.zeros(40_000, 32)  # 5 MB
    save_file(tensors, tiny_folder / "model.safetensors", metadata={"format": "pt"})
    folder = sharded(tiny_folder) if is_sharded else tiny_folder
    in_the_past(folder)
    before = folder_digest(folder)
    (weights,) = weight_files(folder)
    content = bytearray(weights.read_bytes())
    content[int(share * len(content))] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(10**18, 10**18 + 1))  # of the same size, a tick later
    assert folder_digest(folder) != before


def test_a_template_in_a_sub_folder_counts_and_what_is_not_read_does_not(tiny_folder):
    before = folder_digest(tiny_folder)
    for name in ("README.md", "pytorch_model.bin", "original/consolidated.00.pth", "other.safetensors"):
        (tiny_folder / name).parent.mkdir(exist_ok=True)
        (tiny_folder / name).write_text("not read")
    assert folder_digest(tiny_folder) == before
    (tiny_folder / "additional_chat_templates").mkdir()
    (tiny_folder / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    assert folder_digest(tiny_folder) != before


def test_large_files_are_read_once(tiny_folder, monkeypatch):
    monkeypatch.setattr(identity, "_LARGE", 1000)
    in_the_past(tiny_folder)
    before = folder_digest(tiny_folder)
    read = []
    digest = identity.sha256
    monkeypatch.setattr(identity, "sha256", lambda path: read.append(path.name) or digest(path))
    assert folder_digest(tiny_folder) == before
    assert read == []
    identity._remembered_digest.cache_clear()  # as in another process
    assert folder_digest(tiny_folder) == before
    assert read
    assert "model.safetensors" not in read
    (identity.cache_folder() / "digests.json").write_text("[no")
    identity._remembered_digest.cache_clear()
    assert folder_digest(tiny_folder) == before
    assert "model.safetensors" in read


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"lm_head.weight": "../other/model.safetensors"}, "in the model's folder"),
        ({"lm_head.weight": "/etc/model.safetensors"}, "in the model's folder"),
        ({"lm_head.weight": "pytorch_model.bin"}, "in the model's folder"),
        ({"lm_head.weight": "absent.safetensors"}, "absent.safetensors .* are not there"),
        ({}, "names no weights"),
        ([], "names no weights"),
    ],
)
def test_an_index_names_safetensors_in_its_folder_alone(tiny_config, tiny_folder, names, message):
    sharded(tiny_folder, names)
    # What stands beside the index is not read in place of what it names.
    save_file({}, tiny_folder / "decoy.safetensors")
    (tiny_folder / "pytorch_model.bin").write_bytes(b"")
    model = tiny_config().model
    model.path = str(tiny_folder)
    for look in (lambda: folder_digest(tiny_folder), lambda: read_model(model, "auto", "meta")):
        with pytest.raises(UserError, match=message):
            look()


def test_shards_load_as_the_same_model(tiny_config, tiny_folder):
    model = tiny_config().model
    model.path = str(tiny_folder)
    whole = read_model(model, torch.float32).state_dict()
    sharded(tiny_folder)
    parts = read_model(model, torch.float32).state_dict()
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_model_of_the_hub_is_its_commit(tiny_config, tmp_path, monkeypatch):
    config = tiny_config("model.source=hub:some/one", "model.revision=main")
    monkeypatch.setattr(fetch, "_snapshot", lambda name, revision: None)
    assert model_identity(config)["weights"] == "hub:some/one@main"  # not here: what a plan can say of it
    folder = tmp_path / "snapshots" / ("a" * 40)
    monkeypatch.setattr(fetch, "_snapshot", lambda name, revision: folder)
    assert model_identity(config)["weights"] == f"hub:some/one@{'a' * 40}"
    assert model_identity(tiny_config("model.source=hub:some/one")) == model_identity(config)


def test_a_tokenizer_of_its_own_and_a_template_file_count(tiny_config, tiny_folder):
    template = tiny_folder / "mine.jinja"
    template.write_text("{{ messages }}")
    config = tiny_config(f"model.tokenizer='{tiny_folder}'", f"model.chat_template='{template}'")
    before = model_identity(config)
    (tiny_folder / "model.safetensors").unlink()
    assert model_identity(config) == before
    (tiny_folder / "tokenizer.json").write_text((tiny_folder / "tokenizer.json").read_text() + "\n")
    template.write_text("{{ messages }} ")
    after = model_identity(config)
    assert {key for key in before if before[key] != after[key]} == {"tokenizer", "chat_template"}
    with pytest.raises(UserError, match=r"No chat template nonesuch\. Known: llama2"):
        model_identity(tiny_config("model.chat_template=nonesuch"))


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(tiny_config, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"engine.device={device}, and PyTorch sees no"):
        device_of(tiny_config(f"engine.device={device}"))


def test_a_converted_model_is_the_same_with_and_without_a_network(tmp_path, monkeypatch):
    """HF_HUB_OFFLINE goes into what a tokenizer would save of itself."""
    fetch._draw_tiny("llama", tmp_path / "drawn")
    read = fetch.AutoModelForCausalLM.from_pretrained(tmp_path / "drawn")
    tokenizer = fetch.tiny_tokenizer()
    monkeypatch.setattr(fetch.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: read)
    monkeypatch.setattr(fetch.AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    digests = set()
    for is_offline in (False, True):
        tokenizer.init_kwargs["local_files_only"] = is_offline
        fetch._convert_gguf(tmp_path / "a.gguf", folder := tmp_path / f"offline {is_offline}")
        digests.add(folder_digest(folder))
    assert len(digests) == 1
