"""From training to the table, each command a process of its own that finds what the last one left."""

import os
import subprocess
import sys
from pathlib import Path

from tiny import read_json


def snapshot(folder: Path) -> dict[Path, int]:
    """Every file of the store's stages and when it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("stages/**/*") if path.is_file()}


def test_train_analyze_reproduce(small, tmp_path):
    """In an empty working folder; the store is `runs`, the default."""
    environment = {name: value for name, value in os.environ.items() if name != "SAPO_STORE"}

    def document(*arguments):
        command = [Path(sys.executable).with_name("sapo"), *arguments, "--json"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return read_json(done.stdout)  # and nothing else on stdout

    # What `reproduce table1 --scale mini` runs.
    policies = "policy=static,sapo"
    trained = document("train", "experiment=table1_mini", *small, policies)
    assert [run["policy"] for run in trained["runs"]] == ["static", "sapo"]
    stages = snapshot(tmp_path / "runs")
    assert stages

    analyzed = document("analyze", *(run["id"] for run in trained["runs"]))
    assert [run["metrics"] for run in analyzed["runs"]] == [run["metrics"] for run in trained["runs"]]
    labels = [
        (row["policy"], row["difference"]) for row in analyzed["table"]["rows"] if row["source"] == "ours"
    ]
    assert labels == [("static", False), ("sapo", True)]

    reproduced = document("reproduce", "table1", *small, policies)
    assert reproduced["stages"]["computed"] == 0
    assert {run["id"] for run in reproduced["runs"]} == {run["id"] for run in trained["runs"]}
    assert all((tmp_path / file).is_file() for file in reproduced["files"])
    assert snapshot(tmp_path / "runs") == stages
