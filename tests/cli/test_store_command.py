"""`sapo store`: sizes, mending, collecting and moving, on the finished runs of the tiny model."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from sapo.experiments.engine.store import Store


def test_ls_says_what_everything_takes(sapo, copy):
    document = sapo("store", "ls", "--json").document
    records = [json.loads(file.read_text()) for file in copy.glob("runs/*/run.json")]
    stages = {stage["key"]: stage["kind"] for record in records for stage in record["stages"]}
    others = {"runs": 2, "probes": 0, "checkpoints": 0, "building": 0}
    counts = {kind: facts["count"] for kind, facts in document["kinds"].items()}
    assert counts == {**Counter(stages.values()), **others}
    for kind in ("score", "train", "evaluate"):
        of_kind = [entry for entry in document["stages"] if entry["name"].startswith(kind)]
        size = sum(entry["bytes"] for entry in of_kind)
        assert document["kinds"][kind] == {"count": len(of_kind), "bytes": size}
    files = [path for part in ("stages", "runs") for path in (copy / part).rglob("*") if path.is_file()]
    assert document["bytes"] == sum(path.stat().st_size for path in files)
    assert sapo("store", "ls").out.splitlines()[-2].split()[0] == "all"


def test_verify_deletes_what_is_damaged_when_asked_and_says_what_makes_it_again(sapo, trained, copy):
    record = json.loads((copy / "runs" / trained.static["id"] / "run.json").read_text())
    stage = copy / "stages" / "train" / record["states"][-1]["key"]
    victims = [next(stage.glob("adapter/*.safetensors")), copy / "runs" / trained.adaptive["id"] / "run.json"]
    for victim in victims:
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(bytes(content))
    refused = sapo("store", "verify")
    assert refused.code == 1
    assert "`sapo store verify --delete`" in refused.err
    assert all(victim.is_file() and str(victim) in refused.err for victim in victims)
    with Store(copy).at_work():
        beside = sapo("store", "verify", "--delete")
    assert beside.code == 1
    assert "Nothing was deleted. At work in" in beside.err
    assert all(victim.is_file() and str(victim) in beside.err for victim in victims)
    document = sapo("store", "verify", "--delete", "--json").document
    assert len(document["damaged"]) == len(document["deleted"]) == 2
    assert not any(victim.exists() for victim in victims)
    with Store(copy).at_work():  # what is only missing cannot be deleted
        assert "At work" not in sapo("store", "verify", "--delete").err
    lacking = sapo("store", "verify")
    assert (lacking.code, lacking.out) == (1, "")
    assert f"Run {trained.static['id']} lacks train {stage.name[:12]}" in lacking.err
    assert "sapo train sequence=" in lacking.err


def test_gc_is_dry_unless_told_and_says_of_all_locks_in_one_line(sapo, copy):
    left = copy / "building" / "train-0123456789ab-x" / "result.json"
    left.parent.mkdir(parents=True)
    left.write_text("{}")
    (copy / "locks").mkdir(exist_ok=True)
    for name in ("train-0123456789ab", "train-ba9876543210"):
        (copy / "locks" / f"{name}.lock").touch()
    before = {path for path in copy.rglob("*") if "locks" not in path.parts}
    document = sapo("store", "gc", "--json").document
    paths = [item["path"] for item in document["items"]]
    assert str(left.parent) in paths
    assert (document["deleted"], document["kept"]) == (0, 0)
    shown = sapo("store", "gc").out
    assert "nothing was deleted" in shown
    locks = [path for path in paths if path.endswith(".lock")]
    assert len(locks) >= 2
    (line,) = [line for line in shown.splitlines() if "lock" in line.removeprefix(str(copy))]
    assert line.startswith(f"{copy / 'locks'}  {len(locks)} locks that nobody holds")
    assert {path for path in copy.rglob("*") if "locks" not in path.parts} == before
    assert sapo("store", "gc", "--yes").out.splitlines()[-1].startswith("Deleted ")
    after = {path for path in copy.rglob("*") if "locks" not in path.parts}
    assert after == before - {left, left.parent}


def test_gc_keeps_what_no_finished_run_refers_to_unless_told(sapo, trained, copy):
    shutil.rmtree(copy / "runs" / trained.adaptive["id"])
    stages = {stored.key for _, stored in Store(copy).stages()}
    record = json.loads((copy / "runs" / trained.static["id"] / "run.json").read_text())
    kept = sapo("store", "gc", "--yes")
    assert "--unfinished" in kept.out
    assert {stored.key for _, stored in Store(copy).stages()} == stages
    assert sapo("store", "gc", "--unfinished", "--yes").code == 0
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
