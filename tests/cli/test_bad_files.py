"""Files of data and records that do not fit: one message that names file and place."""

import json
import shutil
from dataclasses import replace

import pytest
from tiny import refusal

from sapo.conf.load import load_one
from sapo.data.benchmarks import load_task
from sapo.data.files import write_json
from sapo.data.prompts import read_pool
from sapo.data.records import MANIFEST, manifest_of
from sapo.data.tasks import own_task

DEEP = "[" * 100_000
ROW = {"sentence": "good", "label": "positive"}
FACTS = {"instruction": "Say positive or negative.", "suffix": "Answer:", "labels": ["positive"]}
FOLDER = "task195_sentiment140_classification"

# A file of one SuperNI task, its content, and what is said of it; None: it is gone.
ROWS, INSTRUCTIONS = f"SUPERNI/{FOLDER}/train.json", "SUPERNI/instructions.json"
SUPERNI = [
    (ROWS, "", "line 1, column 1"),
    (ROWS, '[{"sentence": "a", "label": "b"},\n {"sentence": "a" "label": "b"}]', "line 2, column 19"),
    (ROWS, "null", "expected a list"),
    (ROWS, "[]", "expected a list of at least one example"),
    (ROWS, "[[]]", "row 1"),
    (ROWS, json.dumps([ROW, {"input": "a"}]), ', row 2: expected {"sentence": '),
    (ROWS, '[{"sentence": 3, "label": "b"}]', "`sentence` must be a text"),
    (ROWS, '[{"sentence": "a", "label": true}]', "`label` a text or number"),
    (ROWS, '[{"sentence": "a", "label": ["b"]}]', "`label` a text or number"),
    (ROWS, '[{"sentence": "a", "label": NaN}]', "`label` a text or number"),
    (ROWS, '[{"sentence": "a", "label": Infinity}]', "`label` a text or number"),
    (ROWS, '[{"sentence": "\\ud800", "label": "b"}]', "`sentence` must be a text"),
    (ROWS, json.dumps([ROW, {"sentence": "c", "label": " "}]), "is empty) in 1 of 2 rows: 2."),
    (ROWS, DEEP, "nested too deeply"),
    (ROWS, f'[{{"sentence": "a", "label": {"9" * 5000}}}]', "too many digits"),
    (ROWS, b"PK\x03\x04\xff\xfe", "not UTF-8"),
    (INSTRUCTIONS, "[]", "expected an object"),
    (INSTRUCTIONS, "{", "line 1"),
    (INSTRUCTIONS, json.dumps({FOLDER: None}), "needs `instruction`"),
    (INSTRUCTIONS, json.dumps({FOLDER: {**FACTS, "instruction": 3}}), "`instruction` must be a text"),
    (INSTRUCTIONS, json.dumps({FOLDER: {**FACTS, "suffix": None}}), "`suffix` must be a text"),
    (INSTRUCTIONS, json.dumps({FOLDER: {**FACTS, "labels": "yes"}}), "`labels` must be a list"),
    (INSTRUCTIONS, json.dumps({FOLDER: {**FACTS, "labels": [True]}}), "`labels` must be a list"),
    (INSTRUCTIONS, json.dumps({FOLDER: FACTS, "../x": FACTS}), "cannot be a task's folder"),
    (INSTRUCTIONS, json.dumps({FOLDER: FACTS, "/etc": FACTS}), "cannot be a task's folder"),
    (INSTRUCTIONS, json.dumps({FOLDER: FACTS, "a\0b": FACTS}), "cannot be a task's folder"),
    (INSTRUCTIONS, json.dumps({FOLDER: FACTS, "x" * 300: FACTS}), "cannot be a task's folder"),
    (INSTRUCTIONS, json.dumps({"task195_other": FACTS}), "no folder"),
    (INSTRUCTIONS, DEEP, "nested too deeply"),
    (INSTRUCTIONS, None, "No file"),
    ("SUPERNI", None, "No folder SUPERNI"),
    (f"SUPERNI/{FOLDER}/test.json", None, "No file"),
]

OWN_TASKS = [
    ("", "needs `instruction`"),
    ("instruction: [a]\ndata: rows.csv", "`instruction` must be a text"),
    ("instruction: x\ndata: 3", "`data` must be a text"),
    ("instruction: x\ndata: rows.csv\nsuffix:", "`suffix` must be a text"),
    ("instruction: x\ndata: rows.csv\nlabels: [yes, no]", "in quotes"),
    ("instruction: x\ndata: rows.csv\nlabels: {a: [b]}", "must be a list"),
    ("instruction: x\ndata: rows.csv\ncolumns: [a, b, c]", "`columns` is a list of two"),
    ("instruction: x\ndata: rows.csv\nlables: [a]", "'lables'. Did you mean labels?"),
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
    ("[a, 3]", "`prompts:`, a list of texts"),
    ("prompts: [1]", "`prompts:`, a list of texts"),
    ("prompts: [[a]]", "`prompts:`, a list of texts"),
    ('prompts: ["\\ud800"]', "prompt pool"),
    ("prompts: [Sort this.]\noriginal: Do something else.", "another instruction"),
    ("prompts: [Sort this.]\noriginal: [a]", "`original:` must be a text"),
    ("prompts: [Sort this.]\nsource: [a]", "`source:` a text"),
    ("prompts: [Sort this.", "Cannot read the prompt pool"),
    ("!!python/name:os.system", "Cannot read the prompt pool"),
    ("? [a]\n: b", "Cannot read the prompt pool"),
    ("prompts: !!timestamp x", "not what its type says"),
    (b"\xff\xfe", "not UTF-8"),
]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture(scope="module")
def default():
    return load_one([])


@pytest.fixture
def task_of(default, tmp_path):
    """`task_of(NAME, BENCHMARK)` loads a task from the test's folder."""

    def load(name, benchmark):
        data = replace(default.data, root=str(tmp_path))
        sequence = replace(default.sequence, benchmark=benchmark)
        return load_task(name, replace(default, data=data, sequence=sequence))

    return load


@pytest.mark.parametrize(("name", "content", "message"), SUPERNI)
def test_benchmarks(task_of, tmp_path, name, content, message):
    write(tmp_path / INSTRUCTIONS, json.dumps({FOLDER: FACTS}))
    for split in ("train", "test"):
        write(tmp_path / "SUPERNI" / FOLDER / f"{split}.json", json.dumps([ROW] * 3))
    assert task_of("NI195", "superni").train
    if content is None:
        shutil.rmtree(tmp_path / name) if (tmp_path / name).is_dir() else (tmp_path / name).unlink()
    else:
        write(tmp_path / name, content)
    said = refusal(task_of, "NI195", "superni")
    assert message in said
    assert str(tmp_path) in said


@pytest.mark.parametrize(("content", "message"), OWN_TASKS)
def test_task_files(task_of, tmp_path, content, message):
    write(tmp_path / "rows.csv", "input,output\nx,y\nz,w\n")
    write(tmp_path / "mine.yaml", content)
    said = refusal(task_of, "mine", "own")
    assert message in said
    assert "mine.yaml" in said


@pytest.mark.parametrize(("content", "message"), POOLS)
def test_prompt_pools(tmp_path, content, message):
    said = refusal(read_pool, write(tmp_path / "pool.yaml", content), own_task("mine", "Sort it."))
    assert message in said
    assert "pool.yaml" in said


# --- records, as every command meets them ------------------------------------------------------------------


@pytest.mark.parametrize("command", [("analyze",), ("show", "run"), ("eval",)])
def test_run_folders(sapo, tmp_path, command):
    """A folder without a record is none of a run (2); what was written is found damaged (1)."""
    (tmp_path / "run").mkdir()
    assert "no run.json" in sapo(*command, tmp_path / "run", "--json").refused()
    check_damaged(sapo, tmp_path / "run", "run.json", command)


def test_probe_folders(sapo, tmp_path):
    check_damaged(sapo, tmp_path / "probe", "probe.json", ("analyze", "--output", tmp_path / "out"))


def check_damaged(sapo, folder, name, command):
    """A record without its facts is named, and nothing is written."""
    write(folder / name, "{}")
    write_json(folder / MANIFEST, manifest_of(folder))  # only what the record says is wrong
    found = sapo(*command, folder, "--json").refused(code=1)
    assert "damaged" in found.lower()
    assert name in found
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
