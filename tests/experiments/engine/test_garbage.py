"""What is damaged is named, what nothing refers to any more goes, and nothing else."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from made_up import seal, write_probe
from making import RUN, add_run, add_stage, record

from sapo.conf.errors import UserError, WorkError
from sapo.data import records
from sapo.data.files import write_json
from sapo.data.records import MANIFEST
from sapo.experiments.engine import garbage
from sapo.experiments.engine.garbage import collect, delete_damaged, leftovers, locked, referred, verify
from sapo.experiments.engine.store import Store

LOST = "f" * 64


@pytest.fixture
def store(tmp_path):
    """A finished run of two stages, an evaluation of its state, and two stages of no finished run.

    The folder's name is one that patterns, shells and URLs take for something else.
    """
    store = Store(tmp_path / "sto[r]e *? 'x' #=~ü")
    trained = add_stage(store, "train")
    add_run(store, RUN, [trained, add_stage(store, "evaluate", trained["key"])])
    add_stage(store, "evaluate", trained["key"], seed=1)
    add_stage(store, "train", trained["key"], seed=1)
    add_stage(store, "score")
    (store.root / "locks").mkdir()
    return store


def stages_of_run(store: Store) -> list[dict[str, str]]:
    return json.loads((store.run_folder(RUN) / "run.json").read_text())["stages"]


def keys(store: Store) -> set[str]:
    return {stored.key for _, stored in store.stages()}


def lost(store: Store) -> set[str]:
    """The stages that no finished run refers to."""
    return {item.path.name for item in leftovers(store) if item.is_of_no_run}


# --- what is damaged ---------------------------------------------------------------------------------------

Harm = Callable[[Path, Path], object]
# What is done to the folders of a run and of its training; what is named; whether something can go.
HARMS: dict[str, tuple[Harm, str, bool]] = {
    "file": (lambda run, stage: (stage / "config.yaml").write_text("seed: 1"), "config.yaml", True),
    "manifest": (lambda run, stage: (stage / MANIFEST).unlink(), "manifest.json is gone", True),
    "no names": (lambda run, stage: (stage / MANIFEST).write_text("{}"), "manifest.json", True),
    "more": (lambda run, stage: (stage / "x.json").write_text(""), "x.json is not in its stage's", True),
    "stage": (lambda run, stage: shutil.rmtree(stage), f"Run {RUN} lacks train", False),
    "name": (lambda run, stage: stage.rename(stage.with_name(LOST)), "another stage than its", True),
    "result": (lambda run, stage: rewrite(stage / "result.json", {"task": 1}), "result.json: task: ", True),
    "file of run": (lambda run, stage: (run / "config.yaml").write_text(""), "config.yaml is not what", True),
    "manifest of run": (lambda run, stage: (run / MANIFEST).unlink(), "has no manifest.json", True),
    "record": (lambda run, stage: (run / "run.json").unlink(), "has no run.json", True),
    "type": (lambda run, stage: rewrite(run / "run.json", {"seed": "0"}), "run.json: ", True),
}


def rewrite(path: Path, content: object) -> None:
    write_json(path, content)
    seal(path.parent)


@pytest.mark.parametrize("harm", HARMS)
def test_verify_names_what_is_damaged_or_missing(store, harm):
    assert verify(store) == []
    strike, text, can_go = HARMS[harm]
    run, stage = store.run_folder(RUN), store.root / "stages" / "train" / stages_of_run(store)[0]["key"]
    strike(run, stage)
    problem, *more = verify(store)
    assert text in problem.line
    assert (problem.path is not None) == can_go
    # A run whose stage has lost its place lacks it as well.
    assert all("lacks train" in another.line for another in more)
    assert len(more) == (harm in ("manifest", "name"))
    gone = delete_damaged(store, [problem])
    assert gone == [problem.path] * can_go
    assert not any(path.exists() for path in gone)
    if harm == "more":
        assert verify(store) == []


def test_copies_of_runs_are_no_damage(store):
    copied = shutil.copytree(store.run_folder(RUN), store.run_folder("backup"))
    assert delete_damaged(store, verify(store)) == []
    assert copied.is_dir()


def test_a_probe_has_its_stages_and_runs(store):
    stage = add_stage(store, "gradient")
    write_probe(store.root, "p", 3, unseen=["u"], n=3, stages=[stage])
    assert verify(store) == []
    assert stage["key"] in referred(store)
    shutil.rmtree(store.root / "stages" / "gradient")
    shutil.rmtree(store.run_folder("p-0"))
    assert [problem.line.split(":")[0] for problem in verify(store)] == [
        f"Probe p lacks gradient {stage['key'][:12]} of t",
        "Probe p lacks run p-0",
    ]


def test_what_is_written_meanwhile_is_not_judged(store, monkeypatch):
    """A command with --force holds the stage's lock, and has put half of the new files in place."""
    key = stages_of_run(store)[0]["key"]
    (store.root / "stages" / "train" / key / "config.yaml").write_text("seed: 1")
    with store.lock(key):
        assert verify(store) == []
    assert len(verify(store)) == 1
    # And one that has put the whole stage in its place by the time of the second look.
    damage, again = records.damage, [1]

    def late(folder, whole=True):
        yield from list(damage(folder, whole))
        if folder.name == key and again:
            again.pop()
            with pytest.raises(UserError, match="At work"):  # whoever reads keeps collections away
                collect(Store(store.root), leftovers(Store(store.root)))
            add_stage(store, "train")

    monkeypatch.setattr(records, "damage", late)
    assert verify(store) == []


def test_what_may_not_be_read_is_named_and_not_deleted(store, monkeypatch):
    monkeypatch.setattr(records, "sha256", Mock(side_effect=PermissionError(13, "Permission denied")))
    problems = verify(store)
    assert len(problems) == 5 + 1
    assert all("Permission denied. Have its owner" in problem.line for problem in problems)
    assert delete_damaged(store, problems) == []


# --- what nothing refers to --------------------------------------------------------------------------------


def remains(store: Store) -> list[Path]:
    """What processes that died leave, and files that somebody else has put there."""
    root, key = store.root, stages_of_run(store)[0]["key"]
    folders = [
        root / "building" / f"train-{LOST[:12]}-x1",
        root / "stages" / "evaluate" / LOST,
        root / "runs" / "half",
        root / "probes" / "half",
        root / "checkpoints" / key,
    ]
    strays = [root / "building" / "x.txt", root / "stages/train/.DS_Store", root / "checkpoints/.DS_Store"]
    for path in [*(folder / "file" for folder in folders), *strays]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("12345")
    return [*folders, *strays]


def test_remains_go_and_everything_else_stays(store):
    paths = remains(store)
    locks = store.root / "locks"
    (locks / f"{RUN}.lock").touch()
    (locks / "gc.lock").touch()  # not listed: it is held while the rest goes
    paths.append(store.run_folder("my_gcode-x"))
    paths[-1].mkdir()
    # What is no lock is held by nobody, and blocks nothing.
    (locks / "link.lock").symlink_to(store.root / "elsewhere")
    (locks / "folder.lock").mkdir()
    before, of_run = keys(store), {stage["key"] for stage in stages_of_run(store)}
    assert referred(store) == of_run
    (evaluated,) = (key for key in before - of_run - lost(store))  # in the run's state
    assert store.find("evaluate", evaluated)
    items = [item for item in leftovers(store) if not item.is_of_no_run]
    assert {item.path for item in items} == {*paths, *locks.iterdir()} - {locks / "gc.lock"}
    assert {item.bytes for item in items if item.path in paths[:-1]} == {5}
    assert {item.what for item in items if item.path in paths[5:-1]} == {"stray file"}
    assert len(collect(store, items)) == len(items)
    assert not any(path.exists() for path in paths)
    assert not list(store.root.glob("building/*"))
    assert not list(locks.iterdir())
    assert keys(store) == before
    assert leftovers(store) == [item for item in leftovers(store) if item.is_of_no_run]
    store.checkpoints(LOST).mkdir()  # to go on from
    assert lost(store) == before - of_run - {evaluated} | {LOST}
    collect(store, leftovers(store))  # when asked for, stages of no run go, too
    assert (keys(store), leftovers(store)) == (of_run | {evaluated}, [])


def test_a_symlink_in_the_place_of_a_lock_does_not_stop_a_command(store):
    (store.root / "locks" / "a.lock").symlink_to(store.root / "elsewhere")
    with store.lock("a"):
        assert set(locked(store)) == {"a"}
        assert not garbage._delete(store, store.root / "locks" / "a.lock")  # taken since it was listed
    assert not (store.root / "elsewhere").exists()


def test_what_another_process_builds_is_left_alone(store):
    remains(store)
    (key,) = (key for key in lost(store) if (store.root / "stages" / "train" / key / MANIFEST).exists())
    with Store(store.root).lock(key):
        assert set(locked(store)) == {key}
        found = leftovers(store)
        assert not [item for item in found if key in item.path.name]
        with pytest.raises(UserError, match=rf"At work in .*process {os.getpid()} on .*Wait for it"):
            collect(store, found)
        assert store.find("train", key)
    assert locked(store) == {}  # the lock file is there, and nobody holds it
    assert (store.root / "locks" / f"{key}.lock").is_file()
    collect(store, leftovers(store))
    assert store.find("train", key) is None


def test_a_damaged_record_stops_it(store):
    (store.run_folder(RUN) / "run.json").write_text("{}")
    with pytest.raises(WorkError, match=r"Damaged: .*run\.json"):
        leftovers(store)


def test_what_was_finished_since_it_was_listed_stays(store):
    stage, run = store.root / "stages" / "evaluate" / LOST, store.run_folder("half")
    stage.mkdir(parents=True)
    run.mkdir()
    (path, *_) = remains(store)
    found = leftovers(store)
    (away,) = [item for item in found if item.path == path]
    shutil.rmtree(path)
    assert away.age == 0.0
    assert collect(store, [away]) == [away]  # what has gone by itself is no error
    with store.building("evaluate", LOST) as folder:
        write_json(folder / "identity.json", {"state": stages_of_run(store)[0]["key"]})
    write_json(run / "run.json", record("half", []))
    seal(run)
    # A run that has finished meanwhile, of stages that were listed because no run referred to them.
    wanted = add_stage(store, "score")
    add_run(store, "late", [wanted])
    gone = collect(store, found)
    assert store.find("evaluate", LOST)
    assert store.find("score", wanted["key"])
    assert (run / "run.json").is_file()
    assert {item.path for item in gone}.isdisjoint({stage, run, store.root / "stages/score" / wanted["key"]})


def test_runs_are_at_work_also_between_their_stages(store):
    found = leftovers(store)
    locks = store.root / "locks"
    with store.at_work():
        assert len(locked(store)) == 1
        with Store(store.root).at_work():
            assert len(list(locks.glob("driver-*"))) == 2
        with pytest.raises(UserError, match="At work"):
            collect(store, found)
    assert locked(store) == {}
    assert not list(locks.glob("driver-*"))
    collect(store, found)
    assert lost(store) == set()
