"""What nothing refers to any more goes, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sapo.conf.errors import UserError, WorkError
from sapo.data.files import write_json
from sapo.data.records import MANIFEST, manifest_of
from sapo.experiments.engine.garbage import collect, leftovers, locked, referred
from sapo.experiments.engine.store import Store

RUN, EVAL, LATER, LOST, BASE = (letter * 64 for letter in "abcde")


def add(store: Store, kind: str, key: str, state: str = "base") -> None:
    with store.building(kind, key) as folder:
        write_json(folder / "identity.json", {"kind": kind, "state": state})
        (folder / "table").write_text("1234")


@pytest.fixture
def store(tmp_path) -> Store:
    """A finished run of two stages, an evaluation of its state, and two stages of no finished run."""
    store = Store(tmp_path / "store")
    add(store, "train", RUN)
    add(store, "evaluate", EVAL, RUN)
    add(store, "evaluate", LATER, RUN)
    add(store, "train", LOST, RUN)
    add(store, "score", BASE)
    folder = store.run_folder("r")
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {"stages": [{"key": RUN}, {"key": EVAL}], "states": [{"key": "base"}]})
    write_json(folder / MANIFEST, manifest_of(folder))
    return store


def remains(store: Store) -> list[Path]:
    """What processes that died leave."""
    root = store.root
    paths = [
        root / "building" / f"train-{LOST[:12]}-x1",
        root / "stages" / "evaluate" / ("f" * 64),
        root / "runs" / "half",
        root / "checkpoints" / RUN,
    ]
    for path in paths:
        path.mkdir(parents=True)
        (path / "file").write_text("12345")
    return paths


def test_only_stages_of_no_finished_run_are_listed(store):
    assert {item.path.name for item in leftovers(store) if item.is_of_no_run} == {LOST, BASE}
    assert referred(store) == {RUN, EVAL}


def test_a_probe_keeps_what_it_names(store):
    folder = store.probe_folder("p")
    folder.mkdir(parents=True)
    (folder / "probe.json").write_text(json.dumps({"states": {"first": {"keys": [LOST]}}}))
    assert {item.path.name for item in leftovers(store) if item.is_of_no_run} == {BASE}


def test_remains_go_and_everything_else_stays(store):
    paths = remains(store)
    with store.lock(RUN):  # leaves its file
        pass
    before = {stored.key for _, stored in store.stages()}
    items = [item for item in leftovers(store) if not item.is_of_no_run]
    assert {item.path for item in items} == {*paths, store.root / "locks" / f"{RUN}.lock"} | set(
        store.root.glob("locks/*")
    )
    assert {item.bytes for item in items if item.path in paths} == {5}
    assert len(collect(store, items)) == len(items)
    assert not any(path.exists() for path in paths)
    assert not list(store.root.glob("building/*"))
    assert not list(store.root.glob("locks/*"))
    assert {stored.key for _, stored in store.stages()} == before
    assert leftovers(store) == [item for item in leftovers(store) if item.is_of_no_run]


def test_stray_files_go_too(store):
    paths = [
        store.root / "building" / "x.txt",
        store.root / "stages" / "train" / ".DS_Store",
        store.root / "checkpoints" / ".DS_Store",
    ]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text("123")
    items = [item for item in leftovers(store) if item.path in paths]
    assert {(item.path, item.what, item.bytes) for item in items} == {(p, "stray file", 3) for p in paths}
    assert collect(store, items) == items
    assert not any(path.exists() for path in paths)
    assert store.find("train", RUN)


@pytest.mark.parametrize("identity", [{"kind": "score"}, {"state": ["a"]}, {"state": None}])
def test_a_stage_that_names_no_state_is_of_no_run(store, identity):
    with store.building("score", "f" * 64) as folder:
        write_json(folder / "identity.json", identity)
    assert "f" * 64 in {item.path.name for item in leftovers(store) if item.is_of_no_run}


def test_an_identity_that_is_none_is_damage(store):
    with store.building("score", "f" * 64) as folder:
        write_json(folder / "identity.json", ["state"])
    with pytest.raises(WorkError, match=r"Damaged: cannot read .*identity\.json \(not a JSON object\)"):
        leftovers(store)


def test_a_checkpoint_to_go_on_from_is_of_no_run(store):
    path = store.checkpoints("f" * 64)
    path.mkdir(parents=True)
    (item,) = [item for item in leftovers(store) if item.path == path]
    assert item.is_of_no_run


def test_stages_of_no_run_go_when_asked_for(store):
    collect(store, leftovers(store))
    assert {stored.key for _, stored in store.stages()} == {RUN, EVAL, LATER}
    assert leftovers(store) == []


def test_what_another_process_builds_is_left_alone(store):
    remains(store)
    program = (
        "import sys; from pathlib import Path; from sapo.experiments.engine.store import Store\n"
        "with Store(Path(sys.argv[1])).lock(sys.argv[2]):\n"
        "    print(flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(store.root), LOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        assert locked(store) == {LOST}
        found = leftovers(store)
        assert not [item for item in found if LOST[:12] in item.path.name]
        with pytest.raises(UserError, match="at work"):
            collect(store, found)
        collect(store, [item for item in found if not item.is_of_no_run])
        assert (store.root / "building" / f"train-{LOST[:12]}-x1" / "file").is_file()
        assert store.find("train", LOST)
        other.kill()
    assert locked(store) == set()  # the lock file is there, and nobody holds it
    assert (store.root / "locks" / f"{LOST}.lock").is_file()
    collect(store, leftovers(store))
    assert store.find("train", LOST) is None


def test_a_damaged_run_stops_it(store):
    (store.run_folder("r") / "run.json").write_text("{}")
    with pytest.raises(WorkError, match=r"Damaged: .*run\.json"):
        leftovers(store)


def test_what_was_finished_since_it_was_listed_stays(store):
    stage, run = store.root / "stages" / "evaluate" / ("f" * 64), store.run_folder("half")
    stage.mkdir(parents=True)
    run.mkdir()
    found = [item for item in leftovers(store) if item.path in (stage, run)]
    assert len(found) == 2
    add(store, "evaluate", "f" * 64)
    write_json(run / "run.json", {"stages": []})
    assert collect(store, found) == []
    assert store.find("evaluate", "f" * 64)
    assert (run / "run.json").is_file()


def test_what_is_gone_since_it_was_listed_is_no_error(store):
    (path, *_) = remains(store)
    (item,) = [item for item in leftovers(store) if item.path == path]
    (path / "file").unlink()
    path.rmdir()
    assert item.age == 0.0
    assert collect(store, [item]) == [item]


def test_runs_are_at_work_also_between_their_stages(store):
    found = leftovers(store)
    with store.at_work():
        assert len(locked(store)) == 1
        with pytest.raises(UserError, match="at work"):
            collect(store, found)
    assert locked(store) == set()
    assert not list(store.root.glob("locks/driver-*"))
    collect(store, found)
    assert leftovers(store) == []


def test_the_next_command_sweeps_the_locks_of_killed_ones(store):
    """A command that was killed at work holds nothing, and one that is at work keeps its lock."""
    locks = store.root / "locks"
    locks.mkdir(exist_ok=True)
    (locks / "driver-dead.lock").touch()
    with store.at_work():
        (mine,) = locks.glob("driver-*")
        with Store(store.root).at_work():
            assert len({mine, *locks.glob("driver-*")}) == len(set(locks.glob("driver-*"))) == 2
    assert not list(locks.glob("driver-*"))
