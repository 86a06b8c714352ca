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


def test_only_the_benchmarks_are_kept(repository, tmp_path):
    target = tmp_path / "to" / "data"
    assert fetch_benchmarks(target, repository) is True
    assert sorted(path.name for path in target.iterdir()) == ["SUPERNI", "TRACE"]
    assert [path.name for path in target.parent.iterdir()] == ["data"]
    assert fetch_benchmarks(target, "file:///nowhere") is False  # there already: nothing is asked


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


def test_what_is_there_is_left_alone(repository, tmp_path):
    (tmp_path / "data" / "TRACE").mkdir(parents=True)
    (tmp_path / "data" / "TRACE" / "mine").touch()
    assert fetch_benchmarks(tmp_path / "data", repository) is True
    assert [path.name for path in (tmp_path / "data" / "TRACE").iterdir()] == ["mine"]


def test_a_failed_clone_leaves_nothing(tmp_path):
    with pytest.raises(WorkError, match=r"git cannot clone(?s:.*)SAPO_DATA"):
        fetch_benchmarks(tmp_path / "to" / "data", (tmp_path / "nowhere").as_uri())
    assert not list((tmp_path / "to").iterdir())


def test_a_repository_without_the_folders(repository, tmp_path):
    other = tmp_path / "other"
    subprocess.run(["git", "init", "-q", str(other)], check=True)
    with pytest.raises(WorkError, match="has no SUPERNI"):
        fetch_benchmarks(tmp_path / "to" / "data", other.as_uri())
    assert not list((tmp_path / "to").iterdir())


def test_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(WorkError, match="git is not installed"):
        fetch_benchmarks(tmp_path / "data")


def test_the_command_says_where(sapo, repository, tmp_path, monkeypatch):
    monkeypatch.setattr("sapo.data.fetch.fetch_benchmarks.__defaults__", (repository,))
    text = sapo("fetch", "benchmarks", "--to", tmp_path / "data").out
    assert f"export SAPO_DATA={tmp_path / 'data'}" in text.replace("\n", "")
    again = sapo("fetch", "benchmarks", "--to", tmp_path / "data", "--json").document
    assert again == {"path": str(tmp_path / "data"), "fetched": False}


def test_models_are_built(sapo, tmp_path, monkeypatch):
    monkeypatch.setenv("SAPO_CACHE", str(tmp_path / "cache"))
    document = sapo("fetch", "model", "tiny_llama", "tiny_qwen3", "--json").document
    assert [model["name"] for model in document["models"]] == ["tiny_llama", "tiny_qwen3"]
    assert all(model["path"].startswith(str(tmp_path)) for model in document["models"])


def test_a_repository_that_cannot_be_had_is_said_in_a_sentence(sapo):
    said = sapo("fetch", "model", "no-one/no-model").refused(1)
    assert "Cannot download no-one/no-model from the hub: " in said


def test_every_name_is_checked_before_anything_is_fetched(sapo, tmp_path, monkeypatch):
    monkeypatch.setenv("SAPO_CACHE", str(tmp_path / "cache"))
    assert sapo("fetch", "model", "tiny_llama", "tiny_lama").code == 2
    assert not (tmp_path / "cache").exists()
