"""Arguments that cannot be, for the commands that take more than settings: one message, nothing written."""

import pytest
from test_bad_overrides import refused

POOLED = ("data={tmp}/rows.csv", "instruction=Sort it.", "paraphrases.file={tmp}/pool.yaml")
OWN = ("paraphrase", "instruction=Sort it.")
FILE = "{tmp}/rows.csv"  # where a folder is wanted

# What typer refuses, before a command begins.
USAGE = [
    (("nonesuch",), "No such command"),
    (("train", "--nonesuch"), "No such option"),
    (("plan", "--nonesuch"), "No such option"),
    (("analyze",), "Missing argument"),
    (("metrics",), "Missing argument"),
    (("metrics", "a.csv", "b.csv"), "unexpected extra argument"),
    (("reproduce",), "Missing argument"),
    (("store", "nonesuch"), "No such command"),
    (("store", "verify", "more"), "unexpected extra argument"),
    (("store", "gc", "--yes=perhaps"), "does not take a value"),
    (("store", "export"), "Missing argument"),
    (("store", "export", "one"), "Missing argument"),
    (("store", "import"), "Missing argument"),
    (("export",), "Missing argument"),
    (("export", "{run}"), "Missing option '--to'"),
    (("fetch", "nonesuch"), "No such command"),
    (("fetch", "model"), "Missing argument"),
    (("fetch", "benchmarks", "more"), "unexpected extra argument"),
    (("ls", "models", "more"), "unexpected extra argument"),
    (("show", "nonesuch"), "No such command"),
    (("show", "model"), "Missing argument"),
    (("show", "run"), "Missing argument"),
    (("show", "example"), "Missing argument"),
    (("paraphrase",), "Missing argument"),
    (("eval",), "Missing argument"),
    (("eval", "{run}", "--nonesuch"), "No such option"),
    (("select", "--nonesuch"), "No such option"),
]

COMMANDS = [
    (("store", "ls", "--root", "{tmp}/none"), "--root FOLDER"),
    (("store", "ls", "--root", FILE), "--root FOLDER"),
    (("store", "verify", "--delete", "--root", "{tmp}/none"), "--root FOLDER"),
    (("store", "gc", "--root", "{tmp}/none"), "--root FOLDER"),
    (("store", "gc", "--yes", "--root", FILE), "--root FOLDER"),
    (("store", "export", "none", "{tmp}/x.tgz"), "Unknown run 'none'"),
    (("store", "export", "no*ne", "{tmp}/x.tgz"), "No run matches"),
    (("store", "export", "{run}", "{tmp}/x.tgz", "--root", "{tmp}/none"), "Unknown run"),
    (("store", "export", "{run}", FILE), "exists already"),
    (("store", "export", "{run}", f"{FILE}/x.tgz"), "Cannot write"),
    (("store", "import", "{tmp}/none.tgz"), "no whole archive"),
    (("store", "import", "{tmp}"), "no whole archive"),
    (("store", "import", FILE), "no whole archive"),
    (("store", "import", FILE, "--root", FILE), "no whole archive"),
    (("export", "none", "--to", "{tmp}/out"), "Unknown run 'none'"),
    (("export", "{run}", "--to", FILE), "this is a file"),
    (("export", "{run}", "--to", "{tmp}"), "not empty"),
    (("export", "{run}", "--to", "{tmp}/out", "--state", "9"), "has the states last, 1, 2"),
    (("export", "{run}", "--to", "{tmp}/out", "--state", "-1"), "has the states"),
    (("export", "{run}", "--to", "{tmp}/out", "--state", "none"), "has the states"),
    (("export", "{run}", "--to", "{tmp}/out", "--state", "base"), "no adapter to export"),
    (("export", "{run}", "--to", "{tmp}/out", "--state", "0"), "no adapter to export"),
    (("fetch", "model", "none"), "Unknown model 'none'"),
    (("fetch", "model", "tiny_llama", "none"), "Unknown model 'none'"),
    (("fetch", "model", "../x"), "Unknown model '../x'"),
    (("fetch", "model", ""), "Unknown model ''"),
    (("fetch", "benchmarks", "--to", FILE), "is a file. Choose another folder"),
    (("fetch", "benchmarks", "--to", f"{FILE}/x"), "Choose another folder"),
    (("ls", "none"), "Unknown kind 'none'"),
    (("ls", "run"), "Did you mean runs"),
    (("ls", ""), "Unknown kind ''"),
    (("ls", "../x"), "Unknown kind '../x'"),
    (("show", "model", "none"), "Unknown model 'none'"),
    (("show", "model", "../x"), "Unknown model '../x'"),
    (("show", "model", "tiny_llama", "tiny_qwen3"), "shows one model, and 2 are named"),
    (("show", "model", "tiny_llama", "seed=0,1"), "describe 2 runs"),
    (("show", "model", "model.path={tmp}/none"), "no config.json"),
    (("show", "model", "model.path={tmp}"), "no config.json"),
    (("show", "task", "mini_city", "mini_topic"), "shows one task, and 2 are named"),
    (("show", "task", "none"), "Unknown mini task 'none'"),
    (("show", "pool", "mini_none"), "Unknown mini task 'mini_none'"),
    (("show", "config", "seed=0,1"), "describe 2 runs"),
    (("show", "example", "task=mini_city", "index=0,1"), "must be a whole number"),
    (("paraphrase", "instruction="), "What shall be paraphrased?"),
    (("paraphrase", "model=tiny_llama"), "What shall be paraphrased?"),
    (("paraphrase", "instruction=Sort it.", "task=mini_city"), "What shall be paraphrased?"),
    (("paraphrase", "task=mini_city", "suffix=Answer:"), "has its own"),
    (("paraphrase", "task=mini_city", "labels=[a,b]"), "has its own"),
    (("paraphrase", "task=none"), "Unknown mini task 'none'"),
    (("paraphrase", "task=mini_city", "paraphrases=file"), "paraphrases.file"),
    (("paraphrase", "task=mini_city", "--write", FILE), "is there already"),
    (("paraphrase", "task=mini_city", "--write", f"{FILE}/p.yaml"), "Cannot write the prompt pool"),
    (OWN, "Say who is to write them"),
    ((*OWN, "paraphrases=none"), "Unknown paraphrases 'none'"),
    ((*OWN, "paraphrases=openai", "paraphrases.key_variable=SAPO_NO_KEY"), "SAPO_NO_KEY is not set"),
    ((*OWN, "paraphrases=openai", "paraphrases.base_url=here"), "paraphrases.base_url"),
    ((*OWN, "paraphrases=local", "model.path={tmp}/none"), "no config.json in {tmp}/none"),
    (("eval", "{run}", "none"), "Unknown mini task 'none'"),
    (("eval", "{run}", "../x"), "Unknown mini task '../x'"),
    (("eval", "{run}", "NI195"), "sapo fetch benchmarks"),
    (("eval", "{run}", "--state", "3"), "states 0 (base) to 2 (last)"),
    (("eval", "{run}", "--state", "-1"), "states 0 (base) to 2 (last)"),
    (("eval", "{run}", "--state", ""), "states 0 (base) to 2 (last)"),
    (("eval", "{run}", "--prompt", "best"), "original, trained"),
    (("eval", "{run}", "--prompt", "1.5"), "original, trained"),
    (("eval", "{run}", "--prompt", "-2"), "No prompt -2"),
    (("eval", "{run}", "--prompt", "99"), "No prompt 99"),
    (("select",), "Which rows?"),
    (("select", "data={tmp}/none.csv", *POOLED[1:]), "none.csv"),
    (("select", "data={tmp}/rows.csv"), "Which instruction?"),
    (("select", *POOLED[:2]), "no paraphrases of this instruction"),
    (("select", "task=mini_city", "data={tmp}/rows.csv"), "brings its own data"),
    (("select", "task=mini_city", "instruction=x"), "brings its own instruction"),
    (("select", "task=none"), "Unknown mini task 'none'"),
    (("select", "task=mini_city", "scorer=race"), "scores every prompt"),
    (("select", "task=mini_city", "data.truncation=end"), "shortens inputs only"),
    (("select", "task=mini_city", "scorer.reduction=batch"), "takes token or example"),
    (("select", "task=mini_city", "seed=0,1"), "describe 2 runs"),
    (("select", *POOLED, "columns=[a,b]"), "no column 'a' and 'b'"),
    (("select", *POOLED, "columns=a"), "columns=[INPUT,TARGET]"),
    (("select", *POOLED, "adapter={tmp}/none"), "no adapter_config.json"),
    (("select", *POOLED, "adapter={tmp}"), "no adapter_config.json"),
    (("select", *POOLED, "--write", FILE), "there is such a file already"),
    (("select", *POOLED, "--write", f"{FILE}/x.jsonl"), "there is no folder"),
    (("metrics", "{tmp}/none.csv"), "No such file"),
    (("metrics", "{tmp}"), "Is a directory"),
    (("analyze", "{run}", "--measure", "none"), "none"),
    (("analyze", "{run}", "--definition", "none"), "none"),
    (("analyze", "{run}", "--output", FILE), FILE),
    (("reproduce", "table1", "--scale", "none"), "Unknown scale"),
]

COUNT = len(USAGE) + len(COMMANDS)


def shown(value):
    return ascii(" ".join(value) if isinstance(value, tuple) else value)[:60]


@pytest.fixture
def filled(trained, tmp_path):
    """`filled(TEXT)` puts in a folder with rows and a pool, and the id of a finished run."""
    (tmp_path / "rows.csv").write_text("input,output\nx,y\nz,w\n", encoding="utf-8")
    (tmp_path / "pool.yaml").write_text("prompts: [Put it in order.]\n", encoding="utf-8")
    return lambda text: text.format(tmp=tmp_path, run=trained.static["id"])


def stored(root):
    """Everything in a store but its locks."""
    return {path for path in root.rglob("*") if path.relative_to(root).parts[0] != "locks"}


@pytest.mark.parametrize(("arguments", "message"), USAGE, ids=shown)
def test_what_is_no_command(sapo, filled, arguments, message):
    done = sapo(*map(filled, arguments))
    assert (done.code, done.out) == (2, "")
    assert message in " ".join(done.err.replace("│", "").split())  # it stands in a box
    assert "Traceback" not in done.err


@pytest.mark.parametrize(("arguments", "message"), COMMANDS, ids=shown)
def test_arguments_that_cannot_be(sapo, filled, trained, tmp_path, arguments, message):
    before = stored(trained.root)
    assert filled(message) in refused(sapo(*map(filled, arguments)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool.yaml", "rows.csv"]
    assert stored(trained.root) == before
