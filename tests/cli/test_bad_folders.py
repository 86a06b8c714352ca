"""Folders that cannot be read: settings and models of one's own, damaged stores.

A command that was wrong ends with 2; one that was right, on a store that is damaged, with 1.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny import refusal

from sapo.conf.load import choices, load, load_one
from sapo.data.records import MANIFEST, manifest_of
from sapo.experiments.model.fetch import model_folder
from sapo.experiments.run import require_ready

MINE = "name: mine\nsource: tiny:llama\n"

# A model's file in SAPO_CONF that cannot be read, which every command says.
UNREADABLE = [
    ("name: [a", "mine.yaml"),
    ("\t", "mine.yaml"),
    ("name: süß".encode("latin-1"), "mine.yaml, which must be YAML in UTF-8"),
    (b"PK\x03\x04\xff", "mine.yaml, which must be YAML in UTF-8"),
    ("name: !!python/object/apply:os.system ['true']", "mine.yaml"),
    ("source: !!int x", "mine.yaml"),
    ("name: 'a\0b'", "mine.yaml"),
    ("[" * 1500, "mine.yaml"),
    ("- a", "it holds no settings"),
    ("tiny:llama", "it holds no settings"),
    ("name: mine\nsource: tiny:llama\nname: other", "duplicate key"),
    ("name: &a [*a]\nsource: tiny:llama", "mine.yaml"),
]

# The same, which is read only where the model is asked for.
UNFIT = [
    ("", "No value for model.name"),
    ("name: mine", "No value for model.source"),
    (f"{MINE}nonesuch: 1", "nonesuch"),
    (f"{MINE}parameters: many", "model.parameters"),
    (f"{MINE}lora_targets: q_proj", "model.lora_targets"),
    ("name: mine\nsource: ../x", "model.source"),
    ("name: ${nothing}\nsource: tiny:llama", "nothing"),
    (f"defaults: 3\n{MINE}", "defaults"),
    (f"defaults: [nonesuch]\n{MINE}", "nonesuch"),
    (f"# @package a b c\n{MINE}", "package"),
]

# A file of a model's folder, its content (None: gone; a number: so many bytes less), and what is named.
MODELS = [
    ("config.json", None, "no config.json"),
    ("config.json", b"\xff", "the config of model tiny_llama"),
    ("config.json", "[]", "the config of model tiny_llama"),
    ("config.json", '{"model_type": "nonesuch"}', "the config of model tiny_llama"),
    ("config.json", '{"model_type": "llama", "hidden_size": "many"}', "the config of model tiny_llama"),
    ("tokenizer.json", None, "the tokenizer of model tiny_llama"),
    ("tokenizer.json", "{}", "the tokenizer of model tiny_llama"),
    ("tokenizer_config.json", "[]", "the tokenizer of model tiny_llama"),
    ("chat_template.jinja", None, "no chat template"),
    ("chat_template.jinja", b"\xff", "the tokenizer of model tiny_llama"),
    ("chat_template.jinja", "{% if", "The chat template cannot write"),
    ("chat_template.jinja", "{{ nothing.at.all }}", "The chat template cannot write"),
    ("model.safetensors", None, "No model.safetensors"),
    ("model.safetensors", b"PK" * 40, "the weights of model tiny_llama"),
    ("model.safetensors", 10, "the weights of model tiny_llama"),
]

# Damage that a command meets: the file, the command, and what is named.
EXPORT, ARCHIVE = ("export", "{run}", "--to", "{tmp}/o"), ("store", "export", "{run}", "{tmp}/o")
ADAPTER = "stages/train/{key}/adapter"
DAMAGES = [
    ("runs/{run}/predictions.parquet", ("analyze", "{run}"), "predictions.parquet"),
    ("runs/{run}/config.yaml", ("eval", "{run}"), "config.yaml"),
    ("runs/{run}/manifest.json", ("show", "run", "{run}"), "manifest.json"),
    (f"{ADAPTER}/adapter_model.safetensors", EXPORT, "{key}"),
    (f"{ADAPTER}/adapter_config.json", ("eval", "{run}", "mini_odd", "--state", "last"), "{key}"),
    ("stages/train/{key}/result.json", ARCHIVE, "{key}"),
    ("stages/train/{key}/manifest.json", ("store", "verify"), "{key}"),
    ("stages/train/{key}/result.json", ("train",), "{key}"),
    ("stages/train/{key}/result.json", ("plan",), "{key}"),
]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def own(tmp_path, monkeypatch):
    """`own(CONTENT)` writes `model/mine.yaml` in a folder that SAPO_CONF names."""
    monkeypatch.setenv("SAPO_CONF", str(tmp_path / "conf"))
    return lambda content: write(tmp_path / "conf" / "model" / "mine.yaml", content)


@pytest.mark.parametrize(("content", "message"), UNREADABLE)
def test_settings_that_cannot_be_read(own, content, message):
    own(content)
    assert message in refusal(load, [])


@pytest.mark.parametrize(("content", "message"), UNFIT)
def test_settings_that_do_not_fit(own, content, message):
    own(content)
    assert message in refusal(load, ["model=mine"])
    assert "mine" in choices("model")


@pytest.mark.parametrize("command", [["ls", "models"], ["train"]], ids=" ".join)
def test_a_folder_of_settings_that_is_none(sapo, tmp_path, monkeypatch, command):
    write(tmp_path / "a-file", "")
    for name in ("none", "a-file"):
        monkeypatch.setenv("SAPO_CONF", str(tmp_path / name))
        assert f"SAPO_CONF={tmp_path / name}" in sapo(*command, "--json").refused()


@pytest.fixture(scope="module")
def config(small):
    return load_one([*small, "policy=static"])


@pytest.fixture
def model(config, tmp_path):
    """A copy of the tiny model's folder, and the config that names it."""
    folder = shutil.copytree(model_folder(config.model), tmp_path / "model")
    return folder, replace(config, model=replace(config.model, path=str(folder)))


@pytest.mark.parametrize(("name", "content", "message"), MODELS)
def test_model_folders(model, name, content, message):
    folder, config = model
    if isinstance(content, int):
        content = (folder / name).read_bytes()[:-content]
    (folder / name).unlink()
    if content is not None:
        write(folder / name, content)
    said = refusal(require_ready, [config])
    assert message in said
    assert str(folder) in said or "chat template" in said


def test_every_command_refuses_weights_that_are_not_all_there(sapo, small, model, tmp_path):
    folder, _ = model
    tensors = load_file(folder / "model.safetensors")
    save_file({f"_orig_mod.{key}": value for key, value in tensors.items()}, folder / "model.safetensors")
    settings = (*small, f"model.path='{folder}'", f"store.root='{tmp_path / 'store'}'", "--json")
    for command in (["train"], ["plan"], ["select", "task=mini_odd"]):
        message = "unexpected _orig_mod.lm_head.weight"
        assert message in sapo(*command, *settings).err, command
    doctor = sapo("doctor", *settings)
    (check,) = [check for check in json.loads(doctor.out)["checks"] if check["name"] == "model tiny_llama"]
    assert doctor.code == 1
    assert message in check["detail"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.fixture
def fill(trained, tmp_path):
    """`fill(TEXT)` puts in a run, and the key of the run's last training."""
    record = json.loads((Path(trained.static["dir"]) / "run.json").read_text())
    facts = {"run": record["id"], "key": record["states"][-1]["key"], "tmp": tmp_path}
    return lambda text: text.format(**facts)


@pytest.mark.parametrize(("file", "command", "named"), DAMAGES)
def test_damage_that_a_command_meets(sapo, small, copy, fill, tmp_path, file, command, named):
    path = copy / fill(file)
    path.write_bytes(path.read_bytes()[:-2])
    before = set(tmp_path.iterdir())
    settings = (*small, "policy=static") if command[0] in ("train", "plan") else ()
    message = sapo(*map(fill, command), *settings).refused(code=1)
    assert "damaged" in message.lower()
    assert fill(named) in message
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("content", ["{", "{}", "3", '{"model": "tiny_llama", "seconds": "x", "tokens": 1}'])
def test_a_stage_with_other_facts_is_listed_beside_the_others(sapo, small, copy, fill, content):
    """Its manifest fits: whoever wrote the file knew how to. It gives no rate to a plan, either."""
    folder = copy / fill("stages/train/{key}")
    write(folder / "result.json", content)
    write(folder / MANIFEST, json.dumps(manifest_of(folder)))
    listed = sapo("store", "ls", "--json").document["stages"]
    entries = {entry["key"]: entry["description"] for entry in listed}
    assert entries.pop(folder.name).startswith("not readable")
    assert not any(text.startswith("not readable") for text in entries.values())
    assert sapo("plan", *small, "seed=5", "--json").document
