"""Files that cannot be read or do not fit: one message that names file and place, and nothing written."""

import json
import shutil

import pytest
from test_bad_overrides import refused

from sapo.data.files import write_json
from sapo.data.records import MANIFEST, manifest_of

COMMANDS = (["analyze"], ["show", "run"], ["eval"])  # that read runs

DEEP = "[" * 100_000
LONG_NUMBER = "9" * 5000
ROW = {"sentence": "good", "label": "positive"}
FACTS = {"instruction": "Say positive or negative.", "suffix": "Answer:", "labels": ["positive"]}
FOLDER = "task195_sentiment140_classification"
LATIN = '[{"sentence": "süß", "label": "x"}]'.encode("latin-1")

ROWS = [
    ("", "line 1, column 1"),
    ("{", "line 1"),
    ('[\n {"sentence": "a", "label": }\n]', "train.json, line 2, column"),
    ("[]", "at least one example"),
    ("{}", "expected a list"),
    ("null", "expected a list"),
    ("7", "expected a list"),
    ("[1]", "row 1"),
    ("[[]]", "row 1"),
    ('[{"sentence": "a"}]', "row 1"),
    ('[{"sentence": "a", "label": "b"}, {"label": "b"}]', "row 2"),
    ('[{"sentence": 1, "label": "b"}]', "`sentence` must be a text"),
    ('[{"sentence": null, "label": "b"}]', "`sentence` must be a text"),
    ('[{"sentence": "a", "label": null}]', "`label` a text or number"),
    ('[{"sentence": "a", "label": true}]', "`label` a text or number"),
    ('[{"sentence": "a", "label": ["b"]}]', "`label` a text or number"),
    ('[{"sentence": "a", "label": NaN}]', "`label` a text or number"),
    ('[{"sentence": "a", "label": Infinity}]', "`label` a text or number"),
    ('[{"sentence": "\\ud800", "label": "b"}]', "`sentence` must be a text"),
    ('[{"sentence": "a", "label": " "}]', "no target"),
    (DEEP, "nested too deeply"),
    (f'[{{"sentence": "a", "label": {LONG_NUMBER}}}]', "too many digits"),
    (LATIN, "not UTF-8"),
    (b"PK\x03\x04\xff\xfe", "not UTF-8"),
]

INSTRUCTIONS = [
    ("[]", "expected an object"),
    ("{", "line 1"),
    ("{}", "Unknown SUPERNI task"),
    (json.dumps({FOLDER: None}), "needs `instruction`"),
    (json.dumps({FOLDER: {"instruction": "x"}}), "needs `instruction`"),
    (json.dumps({FOLDER: {**FACTS, "instruction": 3}}), "`instruction` must be a text"),
    (json.dumps({FOLDER: {**FACTS, "suffix": None}}), "`suffix` must be a text"),
    (json.dumps({FOLDER: {**FACTS, "labels": "yes"}}), "`labels` must be a list"),
    (json.dumps({FOLDER: {**FACTS, "labels": [True]}}), "`labels` must be a list"),
    (json.dumps({FOLDER: FACTS, "../x": FACTS}), "cannot be a task's folder"),
    (json.dumps({FOLDER: FACTS, "/etc": FACTS}), "cannot be a task's folder"),
    (json.dumps({FOLDER: FACTS, "a\0b": FACTS}), "cannot be a task's folder"),
    (json.dumps({FOLDER: FACTS, "x" * 300: FACTS}), "cannot be a task's folder"),
    (json.dumps({"task195_other": FACTS}), "no folder"),
    (DEEP, "nested too deeply"),
]

OWN_TASKS = [
    ("", "needs `instruction`"),
    ("- a", "needs `instruction`"),
    ("instruction: x", "needs `instruction`"),
    ("instruction: [a]\ndata: rows.csv", "`instruction` must be a text"),
    ("instruction: x\ndata: 3", "`data` must be a text"),
    ("instruction: x\ndata: none.csv", "no such file"),
    ("instruction: x\ndata: rows.csv\nsuffix:", "`suffix` must be a text"),
    ("instruction: x\ndata: rows.csv\nlabels: [yes, no]", "in quotes"),
    ("instruction: x\ndata: rows.csv\nlabels: {a: b}", "must be a list"),
    ("instruction: x\ndata: rows.csv\ncolumns: text", "`columns` is a list of two"),
    ("instruction: x\ndata: rows.csv\ncolumns: [a, b, c]", "`columns` is a list of two"),
    ("instruction: x\ndata: rows.csv\nextra: 1", "Unknown key"),
    ("instruction: x: y", "Cannot read"),
    ("a: &a [*a", "Cannot read"),
    ("!!python/object/apply:os.system ['true']", "Cannot read"),
    ("instruction: !!int x", "not what its type says"),
    ("instruction: 2001-99-99", "not what its type says"),
    ("\t", "Cannot read"),
    (b"instruction: s\xfc\xdf", "not UTF-8"),
]

POOLS = [
    ("", "`prompts:`, a list of texts"),
    ("[]", "`prompts:`, a list of texts"),
    ("prompts:", "`prompts:`, a list of texts"),
    ("prompts: text", "`prompts:`, a list of texts"),
    ("prompts: [1]", "`prompts:`, a list of texts"),
    ("prompts: [[a]]", "`prompts:`, a list of texts"),
    ('prompts: ["\\ud800"]', "prompt pool"),
    ("prompts: []", "no paraphrases"),
    ("prompts: ['']", "it is empty"),
    ("prompts: [Sort this.]\noriginal: Do something else.", "another instruction"),
    ("prompts: [Sort this.]\noriginal: [a]", "`original:` must be a text"),
    ("prompts: [Sort this.]\nsource: [a]", "`source:` a text"),
    ("prompts: [Sort this.", "Cannot read the prompt pool"),
    ("!!python/name:os.system", "Cannot read the prompt pool"),
    ("? [a]\n: b", "Cannot read the prompt pool"),
    ("prompts: !!timestamp x", "not what its type says"),
    (b"\xff\xfe", "not UTF-8"),
]

DATA = [
    ("csv", "", "no rows"),
    ("csv", "input,output\n", "no rows"),
    ("csv", "a,b\n1,2\n3,4\n", "no known pair of columns"),
    ("csv", "input,input\n1,2\n", "occurs twice"),
    ("csv", "input,output\nx\n", "1 fields"),
    ("csv", 'input,output\n"x,y\n', "line"),
    ("csv", "input,output\nx,y\n", "1 of 1 examples"),
    ("csv", "input,output\nx,\ny,z\n", "empty target in line 2"),
    ("csv", b"input,output\ns\xfc,x\n", "not UTF-8 at byte"),
    ("tsv", "input,output\nx,y\n", "no known pair of columns"),
    ("jsonl", "", "no rows"),
    ("jsonl", "}\n", "broken JSON at line 1"),
    ("jsonl", "[1]\n", "expected an object"),
    ("jsonl", DEEP, "nested too deeply"),
    ("jsonl", '{"input": "\\ud800", "output": "x"}\n' * 2, "surrogate"),
    ("jsonl", '{"input": "x", "output": "y"}\n{"input": "x", "output": 1}\n', "mixes types"),
    ("jsonl", '{"input": "x", "output": null}\n{"input": "x", "output": "a"}\n', "empty or absent"),
    ("jsonl", '{"messages": 3}\n' * 2, "has no assistant turn"),
    ("jsonl", '{"messages": [{"role": "assistant", "content": "x"}]}\n' * 2, "has no user turn"),
    ("json", "{}", "expected a JSON list"),
    ("json", "[", "broken JSON"),
    ("parquet", "not parquet", "not a readable parquet file"),
    ("xlsx", "x", "cannot read '.xlsx' files"),
]

MATRICES = [
    ("", "is empty"),
    ("after\n1\n", "names no task"),
    ("a,b\n1,2\n", "begins with 'a'"),
    ("after,a\n", "no row"),
    ("after,a\n0,1\n", "no row"),
    ("after,a,a\n1,2,3\n", "twice"),
    ("after,a,\n1,2,3\n", "without a name"),
    ("after,a\n1,2,3\n", "3 fields"),
    ("after,a\nx,2\n", "not a whole number"),
    ("after,a\n-1,2\n", "not a whole number"),
    ("after,a\n1,x\n", "not a number"),
    ("after,a\n1,nan\n", "not a number"),
    ("after,a\n1,inf\n", "out of range"),
    ("after,a\n1,101\n", "out of range"),
    ("after,a\n1,-1\n", "out of range"),
    ("after,a\n1,1_0\n", "not a number"),
    ("after,a\n1,2\n1,3\n", "there twice"),
    ("after,a\n2,2\n", "should"),
    ("after,a\n1,2\n2,3\n", "more trained states"),
    ('after,a\n1,"2\n', "not CSV"),
    (b"after,\xff\n1,2\n", "not UTF-8"),
    ("after;a\n1;2\n", "with commas"),
]

# A folder without a record is none of a run or probe (2); what was written is found damaged (1).
RECORDS = [("", "damaged"), ("{", "damaged"), ("[]", "damaged"), ("{}", "damaged"), (b"\xff", "damaged")]

# Files of one TRACE task, of which None are taken away.
TRACE = [
    ("", None, "No folder TRACE"),
    ("instructions.json", None, "No file"),
    ("instructions.json", "[]", "expected an object"),
    ("instructions.json", "{}", "Unknown TRACE task"),
    ("instructions.json", '{"FOMC": {"instruction": 3}}', "needs `instruction`"),
    ("FOMC", None, "no folder"),
    ("FOMC/train.json", None, "No file"),
    ("FOMC/train.json", "[]", "at least one example"),
    ("FOMC/test.json", None, "No file"),
    ("FOMC/test.json", "{", "test.json, line 1"),
]

FILES = len([*ROWS, *INSTRUCTIONS, *OWN_TASKS, *POOLS, *DATA, *MATRICES, *RECORDS, *TRACE])


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def short(value):
    return ascii(value)[:40]


@pytest.fixture
def superni(tmp_path):
    """A benchmark folder with one task, NI195."""
    write(tmp_path / "data" / "SUPERNI" / "instructions.json", json.dumps({FOLDER: FACTS}))
    for split in ("train", "test"):
        write(tmp_path / "data" / "SUPERNI" / FOLDER / f"{split}.json", json.dumps([ROW] * 3))
    return tmp_path / "data" / "SUPERNI"


@pytest.mark.parametrize(("content", "message"), ROWS, ids=short)
def test_rows_of_a_benchmark(sapo, superni, content, message):
    write(superni / FOLDER / "train.json", content)
    done = sapo("show", "task", "task=NI195", f"data.root='{superni.parent}'", "--json")
    assert message in refused(done)
    assert "train.json" in done.err


@pytest.mark.parametrize(("content", "message"), INSTRUCTIONS, ids=short)
def test_instructions_of_a_benchmark(sapo, superni, content, message):
    write(superni / "instructions.json", content)
    assert message in refused(sapo("show", "task", "NI195", f"data.root='{superni.parent}'", "--json"))


@pytest.mark.parametrize(("name", "content", "message"), TRACE, ids=short)
def test_the_layout_of_trace(sapo, tmp_path, name, content, message):
    base = tmp_path / "data" / "TRACE"
    write(base / "instructions.json", json.dumps({"FOMC": FACTS}))
    for split in ("train", "test"):
        write(base / "FOMC" / f"{split}.json", json.dumps([ROW] * 3))
    if content is not None:
        write(base / name, content)
    elif (base / name).is_dir():
        shutil.rmtree(base / name)
    else:
        (base / name).unlink()
    arguments = ("sequence=trace", "sequence.tasks=[FOMC]", f"data.root='{tmp_path / 'data'}'")
    assert message in refused(sapo("plan", *arguments, "--json"))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(("content", "message"), OWN_TASKS, ids=short)
def test_task_files(sapo, tmp_path, content, message):
    write(tmp_path / "data" / "rows.csv", "input,output\nx,y\nz,w\n")
    write(tmp_path / "data" / "mine.yaml", content)
    where = (f"data.root='{tmp_path / 'data'}'", "sequence.benchmark=own")
    assert message in refused(sapo("show", "task", "task=mine", *where, "--json"))


def select(sapo, data, pool, *more):
    given = (f"data={data}", "instruction=Sort it.", f"paraphrases.file='{pool}'", "model=tiny_llama")
    return sapo("select", *given, *more, "--json")


@pytest.mark.parametrize(("content", "message"), POOLS, ids=short)
def test_prompt_pools(sapo, tmp_path, content, message):
    data = write(tmp_path / "rows.csv", "input,output\nx,y\nz,w\n")
    pool = write(tmp_path / "pool.yaml", content)
    assert message in refused(select(sapo, data, pool))


@pytest.mark.parametrize(("kind", "content", "message"), DATA, ids=short)
def test_rows_of_a_user(sapo, tmp_path, kind, content, message):
    data = write(tmp_path / f"rows.{kind}", content)
    pool = write(tmp_path / "pool.yaml", "prompts: [Put it in order.]")
    done = select(sapo, data, pool, "--write", tmp_path / "out.jsonl")
    assert message in refused(done)
    assert "Loading" not in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool.yaml", data.name]


@pytest.mark.parametrize(("content", "message"), MATRICES, ids=short)
def test_matrices(sapo, tmp_path, content, message):
    matrix = write(tmp_path / "m.csv", content)
    assert message in refused(sapo("metrics", matrix, "--json"))


def sealed(record):
    """Gives the record's folder the manifest of its files, so that only what the record says is wrong."""
    write_json(record.parent / MANIFEST, manifest_of(record.parent))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(("content", "message"), RECORDS, ids=short)
def test_run_folders(sapo, tmp_path, content, message, command):
    sealed(write(tmp_path / "run" / "run.json", content))
    found = refused(sapo(*command, tmp_path / "run", "--json"), code=1)
    assert message in found.lower()
    assert "run.json" in found
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(("content", "message"), RECORDS, ids=short)
def test_probe_folders(sapo, tmp_path, content, message):
    sealed(write(tmp_path / "probe" / "probe.json", content))
    arguments = (tmp_path / "probe", "--output", tmp_path / "out", "--json")
    assert message in (found := refused(sapo("analyze", *arguments), code=1)).lower()
    assert "probe.json" in found
    assert [path.name for path in tmp_path.iterdir()] == ["probe"]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_folder_of_no_run(sapo, tmp_path, command):
    (tmp_path / "run").mkdir()
    assert "no run.json" in refused(sapo(*command, tmp_path / "run", "--json"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("name", ["none", "../none", "no*ne", "a\0b", "x" * 5000], ids=short)
def test_runs_that_are_not_there(sapo, tmp_path, name, command):
    refused(sapo(*command, name, "--json"))
    assert list(tmp_path.iterdir()) == []
