"""`sapo fetch`."""

import json
import subprocess

import pytest

from sapo.conf.errors import WorkError
from sapo.data.fetch import fetch_benchmarks


def git_repository(folder, files):
    """The address of a git repository with JSON files."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True)
    return folder.as_uri()


@pytest.fixture
def repository(tmp_path):
    """A git repository laid out as the reference's."""
    names = ("SUPERNI", "TRACE", "src")
    return git_repository(tmp_path / "reference", {f"{name}/instructions.json": {} for name in names})


def test_only_the_benchmarks_are_taken_and_what_is_there_stays(sapo, repository, tmp_path, monkeypatch):
    monkeypatch.setattr("sapo.data.fetch.fetch_benchmarks.__defaults__", (repository,))
    target = tmp_path / "to" / "data"
    (target / "TRACE").mkdir(parents=True)
    (target / "TRACE" / "mine").touch()
    text = sapo("fetch", "benchmarks", "--to", target).out
    assert f"export SAPO_DATA={target}" in text.replace("\n", "")
    assert [path.name for path in target.parent.iterdir()] == ["data"]
    assert sorted(path.name for path in target.iterdir()) == ["SUPERNI", "TRACE"]
    assert [path.name for path in (target / "TRACE").iterdir()] == ["mine"]
    monkeypatch.setattr("sapo.data.fetch.fetch_benchmarks.__defaults__", ("file:///nowhere",))  # is not asked
    again = sapo("fetch", "benchmarks", "--to", target, "--json").document
    assert again == {"path": str(target), "fetched": False}


def test_the_tasks_of_natural_instructions_are_kept_and_found(sapo, tmp_path, monkeypatch):
    rows = [{"input": str(i), "output": ["even" if i % 2 == 0 else "odd"]} for i in range(20)]
    files = {
        "tasks/task9001_evenness.json": {"Definition": ["Even?"], "Instances": rows},
        "splits/default/test_tasks.txt": [],
    }
    repository = git_repository(tmp_path / "natural", files)
    monkeypatch.setattr("sapo.data.fetch.fetch_natural.__defaults__", (repository,))
    document = sapo("fetch", "superni", "--to", tmp_path / "data", "--json").document
    assert document == {"path": str(tmp_path / "data"), "fetched": True}
    assert [path.name for path in (tmp_path / "data").rglob("*")] == ["tasks", "task9001_evenness.json"]
    shown = sapo("show", "task", "task=NI9001", f"data.root={tmp_path / 'data'}", "--json").document
    assert shown["instruction"] == "Even?"


@pytest.mark.parametrize(
    ("files", "message"),
    [(None, r"git cannot clone(?s:.*)SAPO_DATA"), ({"TRACE/instructions.json": {}}, "has no SUPERNI")],
)
def test_a_repository_that_has_it_not_leaves_nothing(tmp_path, files, message):
    address = git_repository(tmp_path / "other", files) if files else (tmp_path / "nowhere").as_uri()
    with pytest.raises(WorkError, match=message):
        fetch_benchmarks(tmp_path / "to" / "data", address)
    assert not list((tmp_path / "to").iterdir())


def test_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(WorkError, match="git is not installed"):
        fetch_benchmarks(tmp_path / "data")


def test_models_are_built_once_every_name_is_known(sapo, tmp_path, monkeypatch):
    monkeypatch.setenv("SAPO_CACHE", str(tmp_path / "cache"))
    assert sapo("fetch", "model", "tiny_llama", "tiny_lama").code == 2
    assert not (tmp_path / "cache").exists()
    document = sapo("fetch", "model", "tiny_llama", "tiny_qwen3", "--json").document
    assert [model["name"] for model in document["models"]] == ["tiny_llama", "tiny_qwen3"]
    assert all(model["path"].startswith(str(tmp_path)) for model in document["models"])
    said = sapo("fetch", "model", "no-one/no-model").refused(1)
    assert "Cannot download no-one/no-model from the hub: " in said
