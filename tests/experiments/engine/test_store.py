"""Stages are there entirely or not at all."""

import errno
import json
import multiprocessing
import os
import queue
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from making import add_stage

from sapo.conf.errors import UserError, WorkError
from sapo.data import records
from sapo.data.files import sync
from sapo.data.records import MANIFEST, StageResult
from sapo.experiments.engine import store as store_module
from sapo.experiments.engine.store import Store

RESULT = {"task": "t", "model": "m", "seconds": 1.5, "tokens": 3}


def put(store: Store, key: str, text: str = "content") -> None:
    with store.building("train", key) as folder:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "weights").write_text(text)
        (folder / "result.json").write_text(json.dumps(RESULT))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def read(monkeypatch):
    """The files whose digest was asked for."""
    names, sha256 = [], records.sha256
    monkeypatch.setattr(records, "sha256", lambda path: names.append(path.name) or sha256(path))
    return names


def test_a_stage_is_there_with_its_result_or_not_at_all(store, tmp_path):
    left, half = tmp_path / "building" / f"train-{'a' * 12}-x1", tmp_path / "stages" / "train" / ("a" * 64)
    for folder in (left, half):  # what a killed process left, and an interrupted copy
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("{")
    with pytest.raises(FileExistsError), store.building("train", "a" * 64) as folder:
        folder.mkdir()
    assert store.find("train", "a" * 64) is None
    put(store, "a" * 64)
    stored = store.find("train", "a" * 64)
    assert stored.result == StageResult(**RESULT)
    assert (stored.folder / "adapter" / "weights").read_text() == "content"
    assert [(kind, s.key) for kind, s in store.stages()] == [("train", "a" * 64)]
    assert not list((tmp_path / "building").iterdir())


def test_damage_is_looked_for_once_a_process_and_refused_by_name(store, read):
    """That every kind of file is looked at: tests/faults."""
    put(store, "a")
    weights = store.find("train", "a").folder / "adapter" / "weights"
    assert store.find("train", "a")
    assert Counter(read) == {"result.json": 2, "weights": 2}  # when it was stored, and now
    for damage in (lambda: weights.write_text("Content"), weights.unlink):
        damage()
        with pytest.raises(WorkError, match=r"Damaged: .*weights.*sapo store verify --delete"):
            Store(store.root).find("train", "a")
        # Whoever only asks what there is looks at sizes.
        assert not weights.exists() or Store(store.root).find("train", "a", whole=False)


def test_what_is_replaced_while_it_is_read_is_no_damage(store, monkeypatch):
    """As beside `--force`: the manifest is the old folder's, the files are the new one's."""
    put(store, "a", "old")
    sha256, left = records.sha256, ["new", "newer"]

    def replacing(path):
        if path.name == "weights" and "stages" in path.parts and left:
            put(store, "a", left.pop())
        return sha256(path)

    monkeypatch.setattr(records, "sha256", replacing)
    assert Store(store.root).find("train", "a")
    assert not left


def test_a_stage_that_was_computed_as_another_is_refused_with_the_difference(store):
    key = add_stage(store, "score")["key"]
    asked = {"kind": "score", "state": "base", "seed": 0}
    assert store.find("score", key, asked)
    assert store.find("score", key, asked | {"tuple": None})
    with pytest.raises(WorkError, match=r'asked for: data: null -> \{"root": "x"\} \(stored -> asked\)'):
        store.find("score", key, asked | {"data": {"root": "x"}})
    stored = {"a": {"b": [1, {"c": 2}], "same": [1, 2]}, "gone": 1, "cut": [1]}
    other = {"a": {"b": [1, {"c": 3}], "same": [1, 2]}, "new": "x", "cut": [1, 2]}
    lines = ["a.b.1.c: 2 -> 3", "gone: 1 -> null", "cut: [1] -> [1, 2]", 'new: null -> "x"']
    assert list(records.differences(stored, other)) == lines


# --- what the system refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (errno.ENOSPC, WorkError, r"/store: .*No space left.*Make room"),
        (errno.EACCES, UserError, r"/store: .*Permission denied.*another user's.*store\.root=FOLDER.*chmod"),
    ],
)
def test_what_fails_while_a_stage_is_built_names_path_and_remedy(tmp_path, code, error, message):
    with pytest.raises(error, match=message), Store(tmp_path / "store").building("train", "a") as folder:
        raise OSError(code, os.strerror(code), str(folder / "x"))


def test_a_store_that_cannot_be_made_or_is_deleted_meanwhile_says_so(tmp_path):
    store = Store(tmp_path / "store")
    deleted = pytest.raises(WorkError, match="deleted meanwhile: run the same command again")
    with deleted, store.building("train", "a") as folder:
        shutil.rmtree(store.root)
        (folder / "result.json").write_text("{}")
    store.root.write_text("")
    with pytest.raises(UserError, match=r"Cannot write to the store .*store\.root"), store.lock("a"):
        pass


def test_a_file_system_without_locks_is_refused(store, monkeypatch):
    """What stands in for a lock there would outlive a process that is killed."""
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.ENOSYS, "no")))
    with pytest.raises(UserError, match=r"without file locks \(flock: .*store\.root=FOLDER"), store.lock("a"):
        pass


def test_a_stage_is_in_its_place_on_the_disk_before_it_counts(store, tmp_path, monkeypatch):
    """The name of its folder is flushed after the rename: its checkpoints are deleted next."""
    done, rename, fsync = [], Path.rename, os.fsync

    def noted(descriptor):
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", lambda path, to: done.append("rename") or rename(path, to))
    put(store, "a" * 64)
    assert done[-2:] == ["rename", tmp_path / "stages" / "train"]
    assert {"weights", "adapter", "result.json", MANIFEST} < {path.name for path in done[:-2]}


def test_a_folder_that_cannot_be_flushed_is_no_error_and_a_file_is(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.EINVAL, "Invalid argument")))
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "file")


def test_a_stage_that_is_computed_again_is_never_there_in_parts(store, tmp_path, monkeypatch):
    """Killed at the last step: the old one is out of its place, the new one not yet in it."""
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
    put(store, "a", "newest")
    assert not list((tmp_path / "building").iterdir())


# --- several processes, several users ----------------------------------------------------------------------


def test_a_lock_that_says_nothing_is_another_command_s(tmp_path):
    (tmp_path / "a.lock").touch()  # a full disk takes locks, and no text
    for name in ("a.lock", "none.lock"):
        assert store_module.holder(tmp_path / name) == "another command"


def test_whoever_waits_for_a_lock_says_for_whom_and_since_when(store, monkeypatch):
    monkeypatch.setattr(store_module, "PATIENCE", 0)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/sapo", "train", "secret=1"])
    lines, got = queue.Queue(), threading.Event()
    monkeypatch.setattr(store_module._log, "warning", lambda text, *parts: lines.put(text % parts))

    def wait():
        with Store(store.root).lock("a"):
            got.set()

    with store.lock("a"):
        threading.Thread(target=wait).start()
        line = lines.get(timeout=60)
        assert not got.is_set()
    assert got.wait(60)
    assert lines.empty()
    process = f"process {os.getpid()} on {os.uname().nodename}, since 20"
    assert line.startswith(f"Waiting for `sapo train` ({process}")
    assert line.endswith(f", which holds {store.root / 'locks' / 'a.lock'}.")


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_what_is_stored_is_open_to_others_as_the_umask_says(store, umask):
    before = os.umask(umask)
    try:
        with store.building("train", "a") as folder:
            (folder / "adapter").mkdir(mode=0o700)
            for path, mode in ((folder / "adapter" / "weights", 0o600), (folder / "result.json", 0o666)):
                path.touch(mode)
    finally:
        os.umask(before)
    stored = store.root / "stages" / "train" / "a"
    for path in (stored, *stored.rglob("*"), *(store.root / "locks").glob("*")):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


GROUP = 54321
FORKS = multiprocessing.get_context("fork")


@pytest.fixture
def shared():
    """A folder that a group may write, outside of what the tests' own user keeps to himself."""
    if os.geteuid():
        pytest.skip("only root can be other users")
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    os.chown(folder, 0, GROUP)
    folder.chmod(0o2770)
    yield folder
    shutil.rmtree(folder)


def as_user(number: int, umask: int, action: Callable[[], object]) -> str:
    """What a user of the group is told when he does something: nothing, or the error."""
    said, says = FORKS.Pipe(duplex=False)

    def act():
        try:
            os.setgroups([])
            os.setgid(GROUP)
            os.setuid(number)
            os.umask(umask)
            action()
            says.send("")
        except BaseException as error:
            says.send(f"{type(error).__name__}: {error}")

    (process := FORKS.Process(target=act)).start()
    process.join()
    return said.recv()


def test_two_users_of_a_group_share_a_store(shared):
    store = Store(shared / "store")

    def compute():
        with Store(store.root).at_work(), Store(store.root).lock("a"):
            put(Store(store.root), "a")
            assert Store(store.root).find("train", "a").result.seconds == 1.5

    # The second reads what the first has stored, and puts his own in its place.
    assert [as_user(user, 0o002, compute) for user in (50001, 50002)] == ["", ""]
    assert (store.root / "stages" / "train" / "a").stat().st_uid == 50002
    assert (store.root / "locks" / "a.lock").stat().st_mode & 0o777 == 0o664


def test_a_store_of_another_user_is_read_or_refused_with_path_and_remedy(shared):
    root = shared / "store"
    weights = root / "stages" / "train" / "a" / "adapter" / "weights"
    assert as_user(50001, 0o022, lambda: put(Store(root), "a")) == ""

    def lock():
        with Store(root).lock("a"):
            pass

    assert as_user(50002, 0o022, lambda: Store(root).find("train", "a").result) == ""
    error = as_user(50002, 0o022, lock)
    assert error.startswith(f"UserError: Cannot write to the store {root}: [Errno 13] Permission denied")
    assert "store.root=FOLDER" in error
    weights.chmod(0o600)
    error = as_user(50002, 0o022, lambda: Store(root).find("train", "a"))
    assert error.startswith(f"UserError: Cannot read {weights}: Permission denied. Have its owner")
    assert f"`chmod -R g+rX {weights.parent}`" in error
    assert "Delete" not in error
