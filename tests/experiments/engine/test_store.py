"""Stages are there entirely or not at all."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sapo.conf.errors import UserError, WorkError
from sapo.data import records
from sapo.data.files import sync, write_json
from sapo.data.records import MANIFEST, StageResult, manifest_of
from sapo.experiments.engine.store import Store

RESULT = {"task": "t", "model": "m", "seconds": 1.5, "tokens": 3}


def put(store: Store, key: str, text: str = "content") -> None:
    with store.building("train", key) as folder:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "weights").write_text(text)
        (folder / "result.json").write_text(json.dumps(RESULT))


def test_a_finished_stage_is_found_with_its_result(tmp_path):
    store = Store(tmp_path)
    assert store.find("train", "a" * 64) is None
    put(store, "a" * 64)
    stored = store.find("train", "a" * 64)
    assert stored.result == StageResult(**RESULT)
    assert (stored.folder / "adapter" / "weights").read_text() == "content"
    assert [(kind, s.key) for kind, s in store.stages()] == [("train", "a" * 64)]
    assert not list((tmp_path / "building").iterdir())
    assert not list(store.damaged())


def test_a_stage_that_fails_half_way_leaves_nothing(tmp_path):
    store = Store(tmp_path)

    def fails():
        with store.building("train", "a") as folder:
            (folder / "result.json").write_text("{}")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fails()
    assert store.find("train", "a") is None
    assert not list((tmp_path / "building").iterdir())


def test_what_a_killed_process_left_is_swept(tmp_path):
    left = tmp_path / "building" / f"train-{'a' * 12}-x1"
    left.mkdir(parents=True)
    (left / "result.json").write_text("{")
    put(Store(tmp_path), "a" * 64)
    assert not list((tmp_path / "building").iterdir())


def test_a_folder_without_a_manifest_is_no_stage_and_gives_way(tmp_path):
    store = Store(tmp_path)
    half = tmp_path / "stages" / "train" / "a"
    half.mkdir(parents=True)
    (half / "result.json").write_text("{")
    assert store.find("train", "a") is None
    put(store, "a")
    assert store.find("train", "a").result.seconds == 1.5


@pytest.mark.parametrize("damage", ["cut", "gone", "flipped", "manifest"])
def test_damage_is_named(tmp_path, damage):
    store = Store(tmp_path)
    put(store, "a")
    folder = tmp_path / "stages" / "train" / "a"
    path = folder / "adapter" / "weights"
    if damage == "cut":
        path.write_text("cont")
    elif damage == "gone":
        path.unlink()
    elif damage == "flipped":
        path.write_text("Content")
    else:
        path = folder / MANIFEST
        path.write_text("{")
    ((found, line),) = store.damaged()
    assert found == folder
    assert str(path) in line
    with pytest.raises(WorkError, match=f"Damaged: .*{path.name}.*sapo store verify --delete"):
        Store(tmp_path).find("train", "a")
    if damage == "flipped":  # whoever only asks what there is looks at sizes
        assert Store(tmp_path).find("train", "a", whole=False)


def test_damage_is_looked_for_once_a_process(tmp_path, monkeypatch):
    store = Store(tmp_path)
    put(store, "a")
    read = []
    sha256 = records.sha256
    monkeypatch.setattr(records, "sha256", lambda path: read.append(path.name) or sha256(path))
    assert store.find("train", "a", whole=False)
    assert read == []
    assert store.find("train", "a")
    assert store.find("train", "a")
    assert sorted(read) == ["result.json", "weights"]


def test_a_damaged_run_is_named(tmp_path):
    store = Store(tmp_path)
    folder = store.run_folder("r")
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    assert list(store.runs()) == [folder]
    assert not list(store.damaged())  # from before runs had manifests
    write_json(folder / MANIFEST, manifest_of(folder, ["run.json"]))
    (folder / "metrics.json").write_text("{}")
    assert not list(store.damaged())
    (folder / "run.json").write_text("[]")
    assert [found for found, _ in store.damaged()] == [folder]


def test_a_store_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file")
    with pytest.raises(UserError, match=r"Cannot write to the store .*store\.root"), store.lock("a"):
        pass


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    """What stands in for a lock there would outlive a process that is killed."""

    def missing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", missing)
    store = Store(tmp_path)
    with pytest.raises(UserError, match=r"without file locks \(flock: .*store\.root=FOLDER"), store.lock("a"):
        pass


def test_a_stage_is_in_its_place_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    """The name of its folder is flushed after the rename: its checkpoints are deleted next."""
    done, rename, fsync = [], Path.rename, os.fsync

    def noted(descriptor):
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", lambda path, to: done.append("rename") or rename(path, to))
    put(Store(tmp_path), "a" * 64)
    assert done[-2:] == ["rename", tmp_path / "stages" / "train"]
    names = {path.name for path in done[:-2]}
    assert {"weights", "adapter", "result.json", MANIFEST} < names


def test_a_folder_that_cannot_be_flushed_is_no_error_and_a_file_is(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")

    def refuse(descriptor):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "file")


@pytest.mark.parametrize("name", ["/dev/zero", "../outside", "adapter/../../outside", "a\0b"])
def test_a_manifest_leads_to_no_file_outside_its_folder(tmp_path, monkeypatch, name):
    store = Store(tmp_path)
    put(store, "a")
    (tmp_path / "stages" / "train" / "outside").write_text("")
    path = tmp_path / "stages" / "train" / "a" / MANIFEST
    write_json(path, json.loads(path.read_text()) | {name: {"bytes": 0, "sha256": "0" * 64}})
    read = []
    sha256 = records.sha256
    monkeypatch.setattr(records, "sha256", lambda path: read.append(path.name) or sha256(path))
    ((_, line),) = store.damaged()
    assert "does not lie in its folder" in line or "cannot read" in line
    assert sorted(read) == ["result.json", "weights"]


def test_processes_wait_for_each_others_stages(tmp_path):
    """Four processes add to one file under the lock; no addition is lost."""
    program = (
        "import sys; from pathlib import Path; from sapo.experiments.engine.store import Store\n"
        "count = Path(sys.argv[1]) / 'count'\n"
        "for _ in range(25):\n"
        "    with Store(Path(sys.argv[1])).lock('a'):\n"
        "        count.write_text(str(int(count.read_text()) + 1))\n"
    )
    (tmp_path / "count").write_text("0")
    several = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(4)]
    assert [process.wait() for process in several] == [0] * 4
    assert (tmp_path / "count").read_text() == "100"


def test_a_stage_that_is_computed_again_is_never_there_in_parts(tmp_path, monkeypatch):
    """Killed at the last step: the old one is out of its place, the new one not yet in it."""
    store = Store(tmp_path)
    put(store, "a", "old")
    put(store, "a", "new")
    assert (store.find("train", "a").folder / "adapter" / "weights").read_text() == "new"
    rename = Path.rename

    def dies(path, target):
        if "stages" in Path(target).parts:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            put(store, "a", "newest")
    assert Store(tmp_path).find("train", "a") is None
    assert not list(store.damaged())
    put(store, "a", "newest")
    assert not list((tmp_path / "building").iterdir())
