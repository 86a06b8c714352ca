"""What people get wrong on a command line: one message that names the mend, exit code 2, nothing written."""

from copy import deepcopy
from functools import reduce

import pytest
import torch

from sapo.conf.load import load_one
from sapo.conf.schema import settings
from sapo.conf.validate import problems

# What typer refuses, before a command begins.
USAGE = [
    (("nonesuch",), "No such command"),
    (("train", "--nonesuch"), "No such option"),
    (("metrics",), "Missing argument"),
    (("metrics", "a.csv", "b.csv"), "unexpected extra argument"),
    (("store", "nonesuch"), "No such command"),
    (("store", "gc", "--yes=perhaps"), "does not take a value"),
]

POOLED = ("data={tmp}/rows.csv", "instruction=Sort it.", "paraphrases.file={tmp}/pool.yaml")
OWN = ("paraphrase", "instruction=Sort it.")
EXAMPLE = ("show", "example", "task=mini_city", "{small}")
FILE = "{tmp}/rows.csv"  # where a folder is wanted

COMMANDS = [
    (("train", "policy=sappo"), "Did you mean"),
    (("plan", "policy=sappo"), "Did you mean"),
    (("reproduce", "table1", "policy=sappo"), "Did you mean"),
    (("doctor", "policy=sappo"), "Did you mean"),
    (("show", "config", "seed=0,1"), "describe 2 runs"),
    (("train", "seed=range(2"), "range(2"),
    (("train", "seed=glob(*)"), "seed"),
    (("train", "=1"), "Unknown setting"),
    (("plan", "seed=${oc.env:NO_SUCH_VARIABLE}"), "NO_SUCH_VARIABLE"),
    (("plan", "method.alpha={a:1}"), "method.alpha"),
    (("plan", "seed=null"), "seed"),
    (("plan", "{small}", "model.path=/nowhere", "--measure"), "/nowhere"),
    (("train", "{small}", "sequence.tasks=[mini_citty]"), "mini_city"),
    (("train", "{small}", "sequence.tasks=[NI195]"), "sapo fetch benchmarks"),
    (("train", "{small}", "model.path=nowhere"), "nowhere"),
    (("train", "{small}", "task=mini_city"), "sequence.tasks=[mini_city]"),
    (("plan", "{small}", "method=ewc", "sequence.tasks=[mini_price]"), "has only one"),
    (("train", "{small}", "--dry-run", "method=replay", "method.buffer=100000"), "method.buffer=100000"),
    (("train", "{small}", "method=ewc", "method.weight=inf"), "method.weight=inf"),
    (("train", "{small}", "policy=fixed", "policy.index=-1,50"), "No prompt 50: the pool of mini_city has"),
    (("train", "{small}", "policy=random", "paraphrases.file={tmp}/other.yaml"), "another instruction"),
    (("reproduce", "table9"), "Unknown target"),
    (("reproduce", "table1", "--scale", "none"), "Unknown scale"),
    (("reproduce", "table1", "experiment=table1_mini"), "leave experiment="),
    (("store", "ls", "--root", "{tmp}/none"), "--root FOLDER"),
    (("store", "verify", "--delete", "--root", FILE), "--root FOLDER"),
    (("store", "gc", "--yes", "--root", "{tmp}/none"), "--root FOLDER"),
    (("store", "export", "none", "{tmp}/x.tgz"), "Unknown run 'none'"),
    (("store", "export", "no*ne", "{tmp}/x.tgz"), "No run matches"),
    (("store", "export", "{run}", "{tmp}/x.tgz", "--root", "{tmp}/none"), "Unknown run"),
    (("store", "export", "{run}", FILE), "exists already"),
    (("store", "export", "{run}", f"{FILE}/x.tgz"), "Cannot write"),
    (("store", "import", "{tmp}/none.tgz"), "no whole archive"),
    (("store", "import", "{tmp}"), "no whole archive"),
    (("store", "import", FILE, "--root", FILE), "no whole archive"),
    (("export", "none", "--to", "{tmp}/out"), "Unknown run 'none'"),
    (("export", "{run}", "--to", FILE), "this is a file"),
    (("export", "{run}", "--to", "{tmp}"), "not empty"),
    (("export", "{run}", "--to", "{tmp}/out", "--state", "9"), "has the states last, 1, 2"),
    (("export", "{run}", "--to", "{tmp}/out", "--state", "-1"), "has the states"),
    (("export", "{run}", "--to", "{tmp}/out", "--state", "base"), "no adapter to export"),
    (("export", "{run}", "--to", "{tmp}/out", "trainer.epochs=3"), "a run's settings stay as they were"),
    (("fetch", "model", "tiny_llama", "none"), "Unknown model 'none'"),
    (("fetch", "model", "../x"), "Unknown model '../x'"),
    (("fetch", "model", ""), "Unknown model ''"),
    (("fetch", "benchmarks", "--to", FILE), "is a file. Choose another folder"),
    (("fetch", "benchmarks", "--to", f"{FILE}/x"), "Choose another folder"),
    (("ls", "run"), "Did you mean runs"),
    (("ls", ""), "Unknown kind ''"),
    (("show", "model", "none"), "Unknown model 'none'"),
    (("show", "model", "tiny_llama", "tiny_qwen3"), "shows one model, and 2 are named"),
    (("show", "model", "model.path={tmp}/none"), "no config.json"),
    (("show", "model", "model.path={tmp}"), "no config.json"),
    (("show", "run", "no*ne"), "No run matches"),
    (("show", "run", "x" * 5000), "run 'xxxx"),
    (("show", "run", "a\0b"), "Unknown run"),
    (("show", "run", "{tmp}"), "holds no finished run"),
    (("show", "task", "model=tiny_llama"), "task=NAME"),
    (("show", "task", "none"), "Unknown mini task 'none'"),
    (("show", "task", "NI195"), "need benchmark data"),
    (("show", "example", "model=tiny_llama"), "task=NAME"),
    ((*EXAMPLE, "index=8"), "train rows 0 to 7"),
    ((*EXAMPLE, "index=-1"), "train rows 0 to 7"),
    ((*EXAMPLE, "index=4", "split=test"), "test rows 0 to 3"),
    ((*EXAMPLE, "index=0,1"), "must be a whole number"),
    ((*EXAMPLE, "split=dev"), "Unknown split"),
    ((*EXAMPLE, "prompt=3"), "paraphrases 0 to 2"),
    ((*EXAMPLE, "prompt=-2"), "paraphrases 0 to 2"),
    (("paraphrase", "instruction="), "What shall be paraphrased?"),
    (("paraphrase", "instruction=Sort it.", "task=mini_city"), "What shall be paraphrased?"),
    (("paraphrase", "task=mini_city", "suffix=Answer:"), "has its own"),
    (("paraphrase", "task=mini_city", "paraphrases=file"), "paraphrases.file"),
    (("paraphrase", "task=mini_city", "--write", FILE), "is there already"),
    (("paraphrase", "task=mini_city", "--write", f"{FILE}/p.yaml"), "Cannot write the prompt pool"),
    (OWN, "Say who is to write them"),
    ((*OWN, "paraphrases=openai", "paraphrases.key_variable=SAPO_NO_KEY"), "SAPO_NO_KEY is not set"),
    ((*OWN, "paraphrases=openai", "paraphrases.base_url=here"), "paraphrases.base_url"),
    ((*OWN, "paraphrases=local", "model.path={tmp}/none"), "no config.json in {tmp}/none"),
    (("eval", "{run}", "none"), "Unknown mini task 'none'"),
    (("eval", "{run}", "NI195"), "sapo fetch benchmarks"),
    (("eval", "{run}", "--state", "3"), "states 0 (base) to 2 (last)"),
    (("eval", "{run}", "--state", "-1"), "states 0 (base) to 2 (last)"),
    (("eval", "{run}", "--state", ""), "states 0 (base) to 2 (last)"),
    (("eval", "{run}", "--prompt", "best"), "original, trained"),
    (("eval", "{run}", "--prompt", "1.5"), "original, trained"),
    (("eval", "{run}", "--prompt", "-2"), "No prompt -2"),
    (("eval", "{run}", "--prompt", "99"), "No prompt 99"),
    (("eval", "{run}", "trainer.epochs=3"), "a run's settings stay as they were, but for data.root, "),
    (("eval", "{store}"), "runs; this command takes one"),
    (("select",), "Which rows?"),
    (("select", "{tmp}/rows.csv"), "Rows are data={tmp}/rows.csv"),
    (("train", "{tmp}/rows.csv"), "Rows are data={tmp}/rows.csv"),
    (("train", "data={tmp}/rows.csv", "sequence=trace"), "leave sequence=trace out"),
    (("train", "data={tmp}/rows.csv"), "Which instruction?"),
    (("train", "data=none.csv", "instruction=x"), "no such file"),
    (("train", "labels=[a]"), "say which"),
    (("select", "data={tmp}/none.csv", *POOLED[1:]), "no such file"),
    (("select", "data={tmp}/rows.csv"), "Which instruction?"),
    (("select", *POOLED[:2]), "write POOL.yaml yourself"),
    (("select", *POOLED[:2], "paraphrases.file={tmp}/none.yaml"), "no prompt pool {tmp}/none.yaml"),
    (("select", *POOLED[:2], "paraphrases.file={tmp}/other.yaml"), "another instruction"),
    (("select", "task=mini_city", "data={tmp}/rows.csv"), "brings its own data"),
    (("select", "task=mini_city", "instruction=x"), "brings its own instruction"),
    (("select", "task=mini_city", "scorer=race"), "scores every prompt"),
    (("select", "task=mini_city", "data.truncation=end"), "shortens inputs only"),
    (("select", "task=mini_city", "scorer.reduction=batch"), "takes token or example"),
    (("select", *POOLED, "columns=[a,b]"), "no column 'a' and 'b'"),
    (("select", *POOLED, "columns=a"), "columns=[INPUT,TARGET]"),
    (("select", *POOLED, "labels=[y,u]"), "none of the labels"),
    (("select", *POOLED, "adapter={tmp}/none"), "no adapter_config.json"),
    (("select", *POOLED, "--write", FILE), "there is such a file already"),
    (("select", *POOLED, "--write", "{tmp}"), "--write {tmp}"),
    (("select", *POOLED, "--write", f"{FILE}/x.jsonl"), "there is no folder"),
    (("select", *POOLED, "data.max_input_tokens=16", "--write", "{tmp}/out"), "data.max_input_tokens"),
    (("export", "{run}"), "Where to? Say --to FOLDER, --push OWNER/NAME"),
    (("export", "{run}", "--push", "name"), "--push name: must be OWNER/NAME"),
    (("export", "{run}", "--push", "a/b/c"), "--push a/b/c: "),
    (("export", "{run}", "--push", "me/tickets", "--to", FILE), "this is a file"),
    (("check", "{run}"), "Which endpoint? Say serve=URL"),
    (("check", "serve=http://127.0.0.1:9"), "Which run?"),
    (("check", "{run}", "serve=here"), "serve= must be http(s)://HOST"),
    (("check", "{run}", "serve=http://h", "--state", "base"), "has no adapter to export"),
    (("check", "{run}", "serve=http://h", "--task", "mini_price"), "has learned mini_city, mini_topic"),
    (("check", "{run}", "serve=http://h", "--key-variable", "NO_KEY"), "NO_KEY: this environment variable"),
    (("check", "{run}", "serve=http://h", "--request", "{tmp}/none.json"), "{tmp}/none.json"),
    (("check", "{run}", "serve=http://h", "--request", FILE), FILE),
    (("check", "{run}", "serve=http://h", "--request", "{tmp}/list.json"), "must be a request's body"),
    (("check", "{run}", "serve=http://h", "trainer.epochs=3"), "a run's settings stay as they were"),
    (("compare", *POOLED, "compare.train=[best]"), "compare.train"),
    (("compare", *POOLED, "compare.serve=[raw]"), "compare.serve"),
    (("compare", *POOLED, "compare.unseen=0"), "compare.unseen"),
    (("compare", *POOLED, "adapter=x"), "adapter"),
    (("metrics", "{tmp}/none.csv"), "No such file"),
    (("metrics", FILE), "this one is 'input,output'"),
    (("analyze", "{run}", "--output", FILE), FILE),
]


@pytest.fixture
def filled(small, trained, tmp_path):
    """`filled(WORDS)` puts in a folder with rows and pools, a store, its run, and small settings."""
    (tmp_path / "rows.csv").write_text("input,output\nx,y\nz,w\n", encoding="utf-8")
    (tmp_path / "pool.yaml").write_text("prompts: [Put it in order.]\n", encoding="utf-8")
    (tmp_path / "list.json").write_text('["{input}"]')
    (tmp_path / "other.yaml").write_text("original: Do something else.\nprompts: [Do it.]\n")
    given = {"{tmp}": tmp_path, "{run}": trained.static["id"], "{store}": trained.root}

    def fill(*texts):
        words = [word for text in texts for word in (small if text == "{small}" else [text])]
        return [reduce(lambda word, key: word.replace(key, str(given[key])), given, word) for word in words]

    return fill


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_what_is_no_command(sapo, filled, arguments, message):
    done = sapo(*filled(*arguments))
    assert (done.code, done.out) == (2, "")
    assert message in " ".join(done.err.replace("│", "").split())  # it stands in a box
    assert "Traceback" not in done.err


@pytest.mark.parametrize(("arguments", "message"), COMMANDS)
def test_arguments_that_cannot_be(sapo, filled, trained, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    here = {path: path.read_bytes() for path in tmp_path.iterdir()}
    before = {path for path in trained.root.rglob("*") if "locks" not in path.parts}
    words = filled(*arguments)
    as_json = [] if arguments[0] == "fetch" else ["--json"]
    assert filled(message)[0] in " ".join(sapo(*words, *as_json).refused().split())
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == here
    assert {path for path in trained.root.rglob("*") if "locks" not in path.parts} == before


def test_all_missing_things_are_named_at_once(sapo, small):
    models = "model=qwen3_14b,llama2_7b_chat"
    device = () if torch.cuda.is_available() else ("engine.device=cuda",)
    message = sapo("train", *small, models, "sequence.tasks=[NI195]", *device).refused()
    for part in ("sapo fetch model qwen3_14b", "sapo fetch model llama2_7b_chat", "sapo fetch benchmarks"):
        assert part in message
    assert "engine.device" in message or not device


# --- settings ----------------------------------------------------------------------------------------------

# Settings that cannot be, alone or together.
SETTINGS = [
    ({"sequence.tasks": []}, "no tasks"),
    ({"sequence.tasks": ["mini_city", "mini_city"]}, "twice"),
    ({"sequence.unseen": ["mini_price"]}, "twice"),
    ({"paraphrases.source": "file"}, "paraphrases.file"),
    ({"paraphrases.base_url": "ftp://host"}, "base_url"),
    ({"paraphrases.base_url": "http://user:secret@host"}, "base_url"),
    ({"paraphrases.key_variable": "sk-secret"}, "environment variable"),
    ({"paraphrases.prices": [1.0]}, "paraphrases.prices"),
    ({"engine.address": "foo", "engine.name": "ray"}, "engine.address=foo: must be auto or HOST:PORT"),
    ({"engine.address": "http://host:1"}, "must be auto or HOST:PORT"),
    ({"engine.gpus": 1.5}, "engine.gpus=1.5: must be a part of one GPU"),
    ({"engine.gpus": 2.5, "engine.name": "ray"}, "must be a part of one GPU"),
    ({"engine.gpus": 1.0}, "are for engine=ray"),
    ({"engine.workers": 2}, "are for engine=ray"),
    ({"engine.devices": 65}, "engine.devices=65: each needs a row of every global batch"),
    ({"engine.devices": 2, "engine.gpus": 0.5, "engine.name": "ray"}, "each has a whole device"),
    ({"engine.address": "auto"}, "are for engine=ray"),
    ({"policy.name": "random", "policy.last_only": True}, "policy.last_only=true with policy=random"),
    ({"method.name": "inscl", "method.unit": "instance"}, "needs tags of all training rows"),
    ({"method.name": "inscl", "method.tags": "FILE"}, "only method.unit=instance"),
    ({"scorer.name": "race", "policy.name": "sapp"}, "a race finds the lowest loss"),
    ({"scorer.name": "race", "scorer.reduction": "batch"}, "rows are read in another order"),
    ({"sequence.name": "s" * 100, "model.name": "m" * 100}, "the run's id is made of them"),
    ({"sequence.name": "../x"}, "sequence.name"),
    ({"sequence.name": "/etc/x"}, "sequence.name"),
    ({"sequence.name": ".hidden"}, "sequence.name"),
    ({"sequence.name": ""}, "sequence.name"),
    ({"model.name": "a/b"}, "model.name"),
    ({"model.name": "a\\b"}, "model.name"),
    ({"model.name": "x" * 300}, "longer than"),
    ({"model.name": "nul"}, "reserved"),
    ({"model.name": "a\0b"}, "control character"),
    ({"paraphrases.name": "../../pools"}, "paraphrases.name"),
    ({"task": "../../etc/passwd"}, "task="),
    ({"sequence.tasks": ["../mini_city"]}, "sequence.tasks"),
    ({"sequence.unseen": ["mini_city\n"]}, "sequence.unseen"),
    ({"model.source": "tiny:../../x"}, "model.source"),
    ({"model.source": "wheel:../x==1"}, "model.source"),
    ({"model.source": "hub:a/b/c"}, "model.source"),
    ({"model.source": "hub:"}, "model.source"),
    ({"model.source": "nothing"}, "model.source"),
]


@pytest.fixture(scope="module")
def changed():
    """`changed({KEY: VALUE})` is the default config with other values."""
    default = load_one([])

    def change(values):
        config = deepcopy(default)
        for key, value in values.items():
            *groups, name = key.split(".")
            setattr(reduce(getattr, groups, config), name, value)
        return config

    return change


@pytest.mark.parametrize(("values", "message"), SETTINGS, ids=lambda value: str(value)[:60])
def test_settings_that_cannot_be(changed, values, message):
    found = "\n".join(problems(changed(values)))
    assert message in found
    assert "secret" not in found  # a secret in the wrong place is not repeated


def test_every_setting_with_limits_refuses_what_is_just_outside(changed):
    steps = {"least": -1, "most": 1, "above": 0, "below": 0}
    tried = 0
    for key, field in settings().items():
        outside = [limit + steps[name] for name, limit in field.metadata.items() if name in steps]
        if field.type in (float, float | None, list[float]):
            outside += [float("inf"), float("nan")]
        outside += ["nonesuch"] if "choices" in field.metadata else []
        for value in outside:
            given = [1.0, value] if field.type == list[float] else value
            found = problems(changed({key: given}))
            assert any(line.startswith(f"{key}=") for line in found), (key, value)
            tried += 1
    assert tried > 70
