"""`sapo store`: sizes, mending, collecting and moving, on the finished runs of the tiny model."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from sapo.experiments.engine.garbage import collect, leftovers, referred
from sapo.experiments.engine.store import Store


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    """A store of the test's own with the two runs and their stages, without what other tests have added."""
    root = shutil.copytree(trained.root, tmp_path / "copy")
    for folder in (*root.glob("runs/*"), *root.glob("probes/*")):
        if folder.name not in (trained.static["id"], trained.adaptive["id"]):
            shutil.rmtree(folder)
    wanted = referred(Store(root))
    for _, stored in Store(root).stages():
        if stored.key not in wanted:
            shutil.rmtree(stored.folder)
    collect(Store(root), leftovers(Store(root)))
    return root


def test_ls_says_what_everything_takes(sapo, copy):
    document = sapo("store", "ls", "--json", "--root", copy).document
    records = [json.loads(file.read_text()) for file in copy.glob("runs/*/run.json")]
    stages = {stage["key"]: stage["kind"] for record in records for stage in record["stages"]}
    assert {kind: facts["count"] for kind, facts in document["kinds"].items()} == {
        **Counter(stages.values()),
        "runs": 2,
        "probes": 0,
        "checkpoints": 0,
        "building": 0,
    }
    for kind in ("score", "train", "evaluate"):
        of_kind = [entry for entry in document["stages"] if entry["name"].startswith(kind)]
        assert document["kinds"][kind] == {
            "count": len(of_kind),
            "bytes": sum(entry["bytes"] for entry in of_kind),
        }
    files = [path for part in ("stages", "runs") for path in (copy / part).rglob("*") if path.is_file()]
    assert document["bytes"] == sum(path.stat().st_size for path in files)
    assert sapo("store", "ls", "--root", copy).out.splitlines()[-2].split()[0] == "all"


@pytest.mark.slow  # trains again
def test_verify_deletes_what_is_damaged_when_asked_and_the_same_command_makes_it_again(
    sapo, small, trained, copy
):
    record = json.loads((copy / "runs" / trained.static["id"] / "run.json").read_text())
    stage = copy / "stages" / "train" / record["states"][-1]["key"]
    victims = [next(stage.glob("adapter/*.safetensors")), copy / "runs" / trained.adaptive["id"] / "run.json"]
    for victim in victims:
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(bytes(content))
    refused = sapo("store", "verify", "--root", copy)
    assert refused.code == 1
    assert "`sapo store verify --delete`" in refused.err
    assert all(victim.is_file() and str(victim) in refused.err for victim in victims)
    document = sapo("store", "verify", "--delete", "--root", copy, "--json").document
    assert len(document["damaged"]) == len(document["deleted"]) == 2
    assert not any(victim.exists() for victim in victims)
    lacking = sapo("store", "verify", "--root", copy)
    assert (lacking.code, lacking.out) == (1, "")
    assert f"Run {trained.static['id']} lacks train {stage.name[:12]}" in lacking.err
    assert "sapo train sequence=" in lacking.err
    assert sapo("train", *small, "policy=static,sapo", f"store.root='{copy}'").code == 0
    assert sapo("store", "verify", "--root", copy).code == 0


def test_gc_is_dry_unless_told(sapo, copy):
    left = copy / "building" / "train-0123456789ab-x"
    left.mkdir(parents=True)
    (left / "result.json").write_text("{}")
    before = {path for path in copy.rglob("*") if "locks" not in path.parts}
    document = sapo("store", "gc", "--root", copy, "--json").document
    assert str(left) in [item["path"] for item in document["items"]]
    assert (document["deleted"], document["kept"]) == (0, 0)
    assert "nothing was deleted" in sapo("store", "gc", "--root", copy).out
    assert {path for path in copy.rglob("*") if "locks" not in path.parts} == before
    assert sapo("store", "gc", "--yes", "--root", copy).out.splitlines()[-1].startswith("Deleted ")
    assert {path for path in copy.rglob("*") if "locks" not in path.parts} == before - {
        left,
        left / "result.json",
    }


def test_gc_says_of_all_locks_in_one_line(sapo, copy):
    (copy / "locks").mkdir(exist_ok=True)
    for name in ("train-0123456789ab", "train-ba9876543210"):
        (copy / "locks" / f"{name}.lock").touch()
    items = sapo("store", "gc", "--root", copy, "--json").document["items"]
    locks = [item["path"] for item in items if item["path"].endswith(".lock")]
    assert len(locks) >= 2
    lines = sapo("store", "gc", "--root", copy).out.splitlines()
    (line,) = [line for line in lines if "lock" in line.removeprefix(str(copy))]
    assert line.startswith(f"{copy / 'locks'}  {len(locks)} locks that nobody holds")


def test_gc_keeps_what_no_finished_run_refers_to_unless_told(sapo, trained, copy):
    shutil.rmtree(copy / "runs" / trained.adaptive["id"])
    stages = {stored.key for _, stored in Store(copy).stages()}
    record = json.loads((copy / "runs" / trained.static["id"] / "run.json").read_text())
    kept = sapo("store", "gc", "--yes", "--root", copy)
    assert "--unfinished" in kept.out
    assert {stored.key for _, stored in Store(copy).stages()} == stages
    assert sapo("store", "gc", "--unfinished", "--yes", "--root", copy).code == 0
    assert {stored.key for _, stored in Store(copy).stages()} == {stage["key"] for stage in record["stages"]}


@pytest.mark.slow  # trains again
def test_a_run_goes_on_on_another_machine(sapo, small, trained, tmp_path):
    file, root = tmp_path / "run.tar.gz", tmp_path / "there"
    exported = sapo("store", "export", trained.adaptive["id"], file, "--json").document
    record = json.loads((Path(trained.adaptive["dir"]) / "run.json").read_text())
    assert exported["runs"] == [trained.adaptive["id"]]
    assert exported["stages"] == len({stage["key"] for stage in record["stages"]})
    imported = sapo("store", "import", file, "--root", root, "--json").document
    assert "not who made it" in sapo("store", "import", file, "--root", root).err
    expected = {"root": str(root), "runs": exported["runs"], "probes": [], "stages": exported["stages"]}
    assert imported == {**expected, "kept": 0}
    (run,) = sapo("train", *small, "policy=sapo", f"store.root='{root}'", "--json").document["runs"]
    assert run["stages"] == {
        "computed": 0,
        "stored": trained.adaptive["stages"]["stored"] + trained.adaptive["stages"]["computed"],
    }
    assert run["metrics"] == trained.adaptive["metrics"]
