"""Folders and archives that cannot be read: settings and models of one's own, damaged stores, archives.

A command that was wrong ends with 2; one that was right, on a store that is damaged, with 1.
"""

import gzip
import json
import shutil

import pytest
import test_bad_commands
import test_bad_files
import test_bad_overrides
from safetensors.torch import load_file, save_file
from test_bad_files import LATIN, short, write
from test_bad_overrides import refused

from sapo.conf.load import load_one
from sapo.data.records import MANIFEST, manifest_of
from sapo.experiments.model.fetch import model_folder

MINE = "name: mine\nsource: tiny:llama\n"

# A model's file in SAPO_CONF.
SETTINGS = [
    ("name: [a", "mine.yaml"),
    ("\t", "mine.yaml"),
    (LATIN, "mine.yaml, which must be YAML in UTF-8"),
    (b"PK\x03\x04\xff", "mine.yaml, which must be YAML in UTF-8"),
    ("name: !!python/object/apply:os.system ['true']", "mine.yaml"),
    ("name: !!python/name:os.system", "mine.yaml"),
    ("source: !!int x", "mine.yaml"),
    ("name: 'a\0b'", "mine.yaml"),
    ("[" * 5000, "mine.yaml"),
    ("- a", "it holds no settings"),
    ("tiny:llama", "it holds no settings"),
    ("3", "it holds no settings"),
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
    ("name: ../x\nsource: tiny:llama", "model.name"),
    ("name: mine\nsource: ../x", "model.source"),
    ("name: ${nothing}\nsource: tiny:llama", "nothing"),
    (f"defaults: 3\n{MINE}", "defaults"),
    (f"defaults: [nonesuch]\n{MINE}", "nonesuch"),
    (f"# @package a b c\n{MINE}", "package"),
]

# A file of a model's folder, its content (None: gone; a number: so many bytes less), and what is named.
MODELS = [
    ("config.json", None, "no config.json"),
    ("config.json", "", "the config of model tiny_llama"),
    ("config.json", "{", "the config of model tiny_llama"),
    ("config.json", b"\xff", "the config of model tiny_llama"),
    ("config.json", "{}", "the config of model tiny_llama"),
    ("config.json", "[]", "the config of model tiny_llama"),
    ("config.json", '{"model_type": "nonesuch"}', "the config of model tiny_llama"),
    ("config.json", '{"model_type": "llama", "hidden_size": "many"}', "the config of model tiny_llama"),
    ("tokenizer.json", None, "the tokenizer of model tiny_llama"),
    ("tokenizer.json", "", "the tokenizer of model tiny_llama"),
    ("tokenizer.json", "{", "the tokenizer of model tiny_llama"),
    ("tokenizer.json", "{}", "the tokenizer of model tiny_llama"),
    ("tokenizer_config.json", "{", "the tokenizer of model tiny_llama"),
    ("tokenizer_config.json", "[]", "the tokenizer of model tiny_llama"),
    ("chat_template.jinja", None, "no chat template"),
    ("chat_template.jinja", b"\xff", "the tokenizer of model tiny_llama"),
    ("chat_template.jinja", "{% if", "The chat template cannot write"),
    ("chat_template.jinja", "{{ nothing.at.all }}", "The chat template cannot write"),
    ("model.safetensors", None, "No model.safetensors"),
    ("model.safetensors", "", "the weights of model tiny_llama"),
    ("model.safetensors", b"PK" * 40, "the weights of model tiny_llama"),
    ("model.safetensors", 10, "the weights of model tiny_llama"),
]

ARCHIVES = [
    ("empty", b""),
    ("text", b"not an archive"),
    ("zip", b"PK\x03\x04" + bytes(26)),
    ("gzip of nothing", gzip.compress(b"")),
    ("gzip of a text", gzip.compress(b"not an archive" * 100)),
    ("gzip of zeros", gzip.compress(bytes(10_240))),
    ("cut gzip", gzip.compress(bytes(range(256)) * 40)[:60]),
]
CUTS = [0.1, 0.5, 0.99]  # of a real archive

# Damage that a command meets: the file, the command, and what is named.
READ_RUN = (
    ("analyze", "{run}"),
    ("show", "run", "{run}"),
    ("eval", "{run}"),
    ("export", "{run}", "--to", "{tmp}/o"),
)
DAMAGES = [
    *[("runs/{run}/predictions.parquet", command, "predictions.parquet") for command in READ_RUN],
    *[("runs/{run}/config.yaml", command, "config.yaml") for command in READ_RUN],
    *[("runs/{run}/manifest.json", command, "manifest.json") for command in READ_RUN],
    ("runs/{run}/predictions.parquet", ("store", "export", "{run}", "{tmp}/o"), "predictions.parquet"),
    ("runs/{run}/manifest.json", ("store", "export", "{run}", "{tmp}/o"), "manifest.json"),
    ("stages/train/{key}/adapter/adapter_model.safetensors", ("export", "{run}", "--to", "{tmp}/o"), "{key}"),
    (
        "stages/train/{key}/adapter/adapter_config.json",
        ("eval", "{run}", "mini_odd", "--state", "last"),
        "{key}",
    ),
    ("stages/train/{key}/result.json", ("store", "export", "{run}", "{tmp}/o"), "{key}"),
    ("stages/train/{key}/config.yaml", ("store", "verify"), "{key}"),
    ("stages/train/{key}/manifest.json", ("store", "verify"), "{key}"),
    ("stages/train/{key}/result.json", ("train",), "{key}"),
    ("stages/train/{key}/result.json", ("plan",), "{key}"),
]
RESULTS = ["", "{", "{}", "[]", "3", b"\xff", '{"model": "tiny_llama", "seconds": "x", "tokens": 1}']


def test_how_many_bad_inputs_are_tried():
    tables = (SETTINGS, UNFIT, MODELS, ARCHIVES, CUTS, DAMAGES, RESULTS)
    counts = [test_bad_overrides.COUNT, test_bad_files.FILES, test_bad_commands.COUNT, *map(len, tables)]
    assert sum(counts) >= 500


@pytest.fixture
def own(tmp_path, monkeypatch):
    """`own(CONTENT)` writes `model/mine.yaml` in a folder that SAPO_CONF names."""
    monkeypatch.setenv("SAPO_CONF", str(tmp_path / "conf"))
    return lambda content: write(tmp_path / "conf" / "model" / "mine.yaml", content)


@pytest.mark.parametrize(("content", "message"), SETTINGS, ids=short)
def test_settings_that_cannot_be_read(sapo, own, tmp_path, content, message):
    own(content)
    for command in (["ls", "models"], ["train", "model=mine"], ["plan"]):
        assert message in refused(sapo(*command, "--json"))
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


@pytest.mark.parametrize(("content", "message"), UNFIT, ids=short)
def test_settings_that_do_not_fit(sapo, own, tmp_path, content, message):
    own(content)
    assert message in refused(sapo("train", "model=mine", "--json"))
    assert "mine" in [model["name"] for model in sapo("ls", "models", "--json").document["models"]]
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


@pytest.mark.parametrize(
    "command", [["ls", "models"], ["train"], ["show", "model", "tiny_llama"]], ids=" ".join
)
@pytest.mark.parametrize("name", ["none", "a-file"])
def test_a_folder_of_settings_that_is_none(sapo, tmp_path, monkeypatch, name, command):
    write(tmp_path / "a-file", "")
    monkeypatch.setenv("SAPO_CONF", str(tmp_path / name))
    assert f"SAPO_CONF={tmp_path / name}" in refused(sapo(*command, "--json"))


@pytest.mark.parametrize(("name", "content", "message"), MODELS, ids=short)
def test_model_folders(sapo, small, tmp_path, name, content, message):
    folder = shutil.copytree(model_folder(load_one(["model=tiny_llama"]).model), tmp_path / "model")
    if isinstance(content, int):
        content = (folder / name).read_bytes()[:-content]
    (folder / name).unlink()
    if content is not None:
        write(folder / name, content)
    settings = (*small, f"model.path='{folder}'", f"store.root='{tmp_path / 'store'}'", "--json")
    found = refused(sapo("train", *settings))
    assert message in found
    assert str(folder) in found or "chat template" in found
    doctor = sapo("doctor", *settings)
    assert doctor.code == 1
    (check,) = [check for check in json.loads(doctor.out)["checks"] if check["name"] == "model tiny_llama"]
    assert message in check["detail"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_every_command_refuses_weights_that_are_not_all_there(sapo, small, tmp_path):
    folder = shutil.copytree(model_folder(load_one(["model=tiny_llama"]).model), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file({f"_orig_mod.{key}": value for key, value in tensors.items()}, folder / "model.safetensors")
    settings = (*small, f"model.path='{folder}'", f"store.root='{tmp_path / 'store'}'", "--json")
    for command in (["train"], ["plan"], ["reproduce", "table1"], ["select", "task=mini_odd"]):
        done = sapo(*command, *settings)
        assert (done.code, done.out) == (2, ""), command
        assert "unexpected _orig_mod.lm_head.weight" in done.err, command
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("kind", "content"), ARCHIVES, ids=[kind for kind, _ in ARCHIVES])
def test_archives(sapo, tmp_path, kind, content):
    file = write(tmp_path / "archive.tar.gz", content)
    found = refused(sapo("store", "import", file, "--root", tmp_path / "store", "--json"))
    assert f"{file} is no whole archive" in found
    assert not list(tmp_path.glob("store/*/*"))


@pytest.mark.parametrize("share", CUTS)
def test_archives_that_were_cut(sapo, trained, tmp_path, share):
    file = tmp_path / "archive.tar.gz"
    assert sapo("store", "export", trained.static["id"], file).code == 0
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert str(file) in refused(sapo("store", "import", file, "--root", tmp_path / "store", "--json"))
    assert not [path for path in tmp_path.glob("store/*/*") if path.parent.name != "locks"]


@pytest.fixture
def copy(trained, tmp_path, monkeypatch):
    """A copy of the store; `fill(TEXT)` puts in its run and the key of the run's last training."""
    root = shutil.copytree(trained.root, tmp_path / "store")
    monkeypatch.setenv("SAPO_STORE", str(root))
    record = json.loads((root / "runs" / trained.static["id"] / "run.json").read_text())
    facts = {"run": record["id"], "key": record["states"][-1]["key"], "tmp": tmp_path}
    return root, lambda text: text.format(**facts)


@pytest.mark.parametrize(("file", "command", "named"), DAMAGES, ids=short)
def test_damage_that_a_command_meets(sapo, small, copy, tmp_path, file, command, named):
    root, fill = copy
    path = root / fill(file)
    path.write_bytes(path.read_bytes()[:-2])
    before = set(tmp_path.iterdir())
    settings = (*small, "policy=static", f"store.root='{root}'") if command[0] in ("train", "plan") else ()
    done = sapo(*map(fill, command), *settings)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("sapo: ")
    assert "damaged" in done.err.lower()
    assert fill(named) in done.err
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("content", RESULTS, ids=short)
def test_a_stage_with_other_facts_is_listed_beside_the_others(sapo, small, copy, content):
    """Its manifest fits: whoever wrote the file knew how to. It gives no rate to a plan, either."""
    root, fill = copy
    folder = root / fill("stages/train/{key}")
    write(folder / "result.json", content)
    write(folder / MANIFEST, json.dumps(manifest_of(folder)))
    for command in (["ls", "stages"], ["store", "ls"]):
        entries = {
            entry["key"]: entry["description"] for entry in sapo(*command, "--json").document["stages"]
        }
        assert entries.pop(folder.name).startswith("not readable")
        assert not any(text.startswith("not readable") for text in entries.values())
    assert sapo("plan", *small, "seed=5", f"store.root='{root}'", "--json").document


@pytest.mark.parametrize("content", ["[]", "{}", '{"stages": 3}', '{"stages": [3]}'])
def test_a_record_with_other_facts_is_not_exported(sapo, copy, tmp_path, content):
    root, fill = copy
    folder = root / fill("runs/{run}")
    write(folder / "run.json", content)
    names = list(json.loads((folder / MANIFEST).read_text()))
    write(folder / MANIFEST, json.dumps(manifest_of(folder, names)))
    found = refused(sapo("store", "export", folder, tmp_path / "out.tgz"), code=1)
    assert "run.json" in found
    assert not (tmp_path / "out.tgz").exists()
