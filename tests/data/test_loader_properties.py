"""Any JSON, YAML or CSV in the place of a file of tasks, prompts or rows: its content, or a UserError."""

import ast
import json
import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sapo.conf.errors import UserError
from sapo.conf.load import FOLDER
from sapo.conf.names import why_no_name
from sapo.conf.schema import ModelConfig
from sapo.data.benchmarks import load_benchmark_task, load_own_task, read_examples
from sapo.data.own import OwnExamples
from sapo.data.own_files import read_splits
from sapo.data.pool_checks import check_pool
from sapo.data.prompts import read_pool
from sapo.data.remembering import remembered, stamp
from sapo.data.tasks import Example, Task, examples_digest

TASK = Task("mine", "Sort it.", "Answer:", (), ())
SMALL = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Also half surrogates, NUL, and names that the readers look for.
TEXTS = st.text(max_size=8) | st.sampled_from(["\ud800", "\0", "a", "../x", "", " "])
NAMES = "sentence label instruction suffix labels data columns prompts original source"
KEYS = st.sampled_from(NAMES.split())
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | TEXTS, inner, max_size=4),
    max_leaves=12,
)
ROWS = st.lists(st.fixed_dictionaries({"sentence": TEXTS, "label": PLAIN}), min_size=1, max_size=4)


def outcome(call, *arguments):
    """What the call gives, or None for a UserError that says something."""
    try:
        return call(*arguments)
    except UserError as error:
        said = str(error)
    assert said.strip()
    return None


@SMALL
@given(content=VALUES | ROWS)
def test_any_json_gives_examples_or_a_user_error(tmp_path, content):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    examples = outcome(read_examples, path)
    if examples is not None:
        assert all(isinstance(example, Example) for example in examples)
        assert len(examples) == len(content)
        assert re.fullmatch("[0-9a-f]{64}", examples_digest(examples))


@SMALL
@given(content=VALUES, raw=st.binary(max_size=30), is_raw=st.booleans())
def test_any_json_gives_a_task_or_a_user_error(tmp_path, content, raw, is_raw):
    base = tmp_path / "SUPERNI"
    folder = base / "task001_x"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({folder.name: content}).encode()
    (base / "instructions.json").write_bytes(raw if is_raw else text)
    for split in ("train", "test"):
        (folder / f"{split}.json").write_text('[{"sentence": "a", "label": "b"}]')
    task = outcome(load_benchmark_task, "NI001", "superni", tmp_path)
    assert task is None or task.name == "NI001"


@SMALL
@given(content=VALUES)
def test_any_yaml_gives_a_task_or_a_user_error(tmp_path, content):
    (tmp_path / "rows.csv").write_text("input,output\nx,y\nz,w\n")
    if isinstance(content, dict):
        content = {"instruction": "Sort it.", **content, "data": "rows.csv"}
    (tmp_path / "mine.yaml").write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    task = outcome(load_own_task, "mine", tmp_path)
    assert task is None or isinstance(task, Task)


@SMALL
@given(prompts=st.lists(TEXTS | st.text(max_size=60), max_size=5), rest=VALUES)
def test_any_pool_is_checked(tmp_path, prompts, rest):
    path = tmp_path / "pool.yaml"
    path.write_text(json.dumps({"prompts": prompts, "source": rest}), encoding="utf-8")
    pool = outcome(read_pool, path, TASK)
    if pool is not None:
        assert [prompt.text for prompt in pool.paraphrases] == [text.strip() for text in prompts]
        found = check_pool(pool, TASK)
        assert all(problem.reason and -1 <= problem.index < len(prompts) for problem in found)


@SMALL
@given(text=st.text(max_size=40), kind=st.sampled_from(["csv", "tsv", "jsonl", "json", "parquet"]))
def test_any_rows_of_a_user(tmp_path, text, kind):
    path = tmp_path / f"rows.{kind}"
    path.write_bytes((f"input,output\n{text}" if kind == "csv" else text).encode("utf-8", errors="replace"))
    rows = outcome(lambda: list(OwnExamples(read_splits(path, str(path))["train"])))
    assert rows is None or all(example.target.strip() for example in rows)


# --- names -------------------------------------------------------------------------------------------------


@given(name=st.text(max_size=20) | st.from_regex(r"[./\\~a-]{1,8}", fullmatch=True))
def test_a_name_that_is_allowed_stays_in_its_folder(name):
    if why_no_name(name) is None:
        path = Path("/folder") / f"{name}.yaml"
        assert Path(os.path.normpath(path)).parent == Path("/folder")
        assert path.name == f"{name}.yaml"


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/b", "a\\b", "a\0", "..", ".", "", " a", "con", "x" * 201, "~a"]
)
def test_names_that_are_not_allowed(name):
    assert why_no_name(name)


# --- what is remembered ------------------------------------------------------------------------------------


def test_a_task_is_the_same_object_until_its_file_changes(tmp_path):
    (tmp_path / "rows.csv").write_text("input,output\nx,y\nz,w\n")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"instruction": "Sort.", "data": "rows.csv"}))
    first = load_own_task("mine", tmp_path)
    assert load_own_task("mine", tmp_path) is first
    (tmp_path / "rows.csv").write_text("input,output\nx,y\nz,w\nv,u\n")
    assert len(load_own_task("mine", tmp_path).train) == 2
    assert stamp(tmp_path / "none") == ()


def test_a_file_that_takes_anothers_place_is_another_though_size_and_time_are_the_same(tmp_path):
    path, other = tmp_path / "rows.csv", tmp_path / "other.csv"
    path.write_text("a,b\n")
    other.write_text("c,d\n")
    before, time = stamp(path), path.stat().st_mtime_ns
    os.utime(other, ns=(time, time))
    other.replace(path)
    assert stamp(path) != before


def test_answers_are_kept_by_identity_and_the_oldest_goes():
    asked = []

    @remembered(2)
    def length(rows, unit):
        asked.append(rows)
        return len(rows) * unit

    one, same, other = (1,), tuple(n for n in (1,)), (1, 2)
    assert [length(one, 2), length(one, 2), length(same, 2), length(other, 2)] == [2, 2, 2, 4]
    assert len(asked) == 3
    length(one, 2)
    assert len(asked) == 4


# --- nothing that runs a file's content --------------------------------------------------------------------


def test_no_reader_runs_what_it_reads():
    folders = [Path(load_own_task.__code__.co_filename).parent.parent / name for name in ("conf", "data")]
    folders += [folders[0].parent / name for name in ("experiments", "analysis", "cli")]
    forbidden = re.compile(
        r"yaml\.(?!safe_|YAMLError|SafeLoader)\w*(?:load|dump|Loader)|import pickle|pickle\.load|"
        r"torch\.load\((?!.*weights_only=True)|(?<![.\w])eval\(|\bexec\(|"
        r"weights_only=False|marshal|shelve|trust_remote_code=True|use_safetensors=False"
    )
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    assert len(sources) > 50
    found = {
        f"{path.name}: {match[0]}"
        for path in sources
        for line in path.read_text(encoding="utf-8").splitlines()
        for match in forbidden.finditer(line.partition("#")[0])
    }
    assert found == set()


def test_base_models_are_loaded_from_safetensors_alone():
    """A pickle beside them, or in their place, is not even looked at."""
    experiments, n_calls = Path(load_own_task.__code__.co_filename).parent.parent / "experiments", 0
    for path in experiments.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
            if re.fullmatch(r"AutoModel\w*\.from_pretrained", name):
                n_calls += 1
                arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                is_gguf = arguments.get(None) == "source"  # the one call that converts such a file
                assert is_gguf or arguments.get("use_safetensors") == "True", f"{path.name}: {name}"
    assert n_calls == 2  # the models of runs, and the one that is converted


def test_remote_code_is_off_unless_asked_for():
    assert ModelConfig.trust_remote_code is False
    assert not [path for path in FOLDER.rglob("*.yaml") if "trust_remote_code" in path.read_text()]
