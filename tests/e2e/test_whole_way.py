"""From training to the table, each command a process of its own that finds what the last one left."""

import csv
from pathlib import Path

import pytest


def snapshot(folder: Path) -> dict[Path, int]:
    """Every file of the store's stages and when it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("stages/**/*") if path.is_file()}


def test_train_eval_analyze_reproduce(start, document, small, workplace):
    # What `reproduce table1 --scale mini` runs.
    policies = "policy=static,sapo"
    trained = document("train", "experiment=table1_mini", *small, policies)
    assert [run["policy"] for run in trained["runs"]] == ["static", "sapo"]
    stages = snapshot(workplace / "runs")
    assert stages

    adaptive = trained["runs"][1]
    evaluated = document("eval", adaptive["id"], "mini_city", "--state", "last")
    with (workplace / adaptive["matrix"]).open() as file:
        last = list(csv.DictReader(file))[-1]
    assert evaluated["evaluations"][0]["rougeL"] == pytest.approx(float(last["mini_city"]), abs=1e-3)

    analyzed = document("analyze", *(run["id"] for run in trained["runs"]))
    assert [run["metrics"] for run in analyzed["runs"]] == [run["metrics"] for run in trained["runs"]]
    labels = [
        (row["policy"], row["difference"]) for row in analyzed["table"]["rows"] if row["source"] == "ours"
    ]
    assert labels == [("static", False), ("sapo", True)]

    reproduced = document("reproduce", "table1", *small, policies)
    assert reproduced["stages"]["computed"] == 0
    assert {run["id"] for run in reproduced["runs"]} == {run["id"] for run in trained["runs"]}
    assert all((workplace / file).is_file() for file in reproduced["files"])
    assert snapshot(workplace / "runs") == stages

    verified = start("store", "verify")
    assert verified.returncode == 0, verified.stderr
    assert "none damaged" in verified.stdout
