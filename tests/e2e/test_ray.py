"""`engine=ray` in earnest: worker processes on this machine, one of which is killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'sapo-prompts[ray]'")

# `Deadly` kills the process that computes it, the first time; its key is that of the training it stands for.
SCRIPT = """
import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import ray as ray_module

from sapo.cli.console import nothing_on_stdout
from sapo.conf.load import load
from sapo.data.benchmarks import load_tasks
from sapo.data.prompts import Prompt
from sapo.experiments.run import open_engine, run
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.jobs import Job
from sapo.experiments.stages import BASE, Evaluate, Score, Train
from sapo.experiments.engine.store import Store

MARK = Path(sys.argv[1]) / "killed"
DRIVER = os.getpid()


@dataclass(frozen=True)
class Deadly(Train):
    def identity(self):
        if os.getpid() != DRIVER and not MARK.exists():
            MARK.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().identity()


def configs_in(name):
    return [Job(config) for config in load([*sys.argv[2:], f"store.root='{sys.argv[1]}/{name}'"])]


async def error_of(engine, stage):
    try:
        await engine.run(stage)
    except Exception as error:
        return [type(error).__name__, str(error)]


events, told = [], []
local, ray = configs_in("local"), configs_in("ray")
run(local, LocalEngine(Store(Path(local[0].config.store.root))), keep_going=False)
watch = lambda stage, event: events.append([stage.kind, event])
with nothing_on_stdout(), open_engine(ray, watch, told.append) as engine:
    ask = engine.run

    async def run_deadly(stage):
        if isinstance(stage, Train) and stage.position == 1:
            stage = Deadly(**{f.name: getattr(stage, f.name) for f in fields(stage)})
        return await ask(stage)

    engine.run = run_deadly
    run(ray, engine, keep_going=False)
    config = ray[0].config
    cut = replace(config, data=replace(config.data, truncation="end", max_input_tokens=16))
    task = load_tasks(cut)[0][0]
    score = Score(cut, BASE, task, task.train[:2], (Prompt(task.instruction),))
    (wrong,) = engine.complete([error_of(engine, score)])
    address = ray_module.get_runtime_context().gcs_address
    strangers = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    join = f"import ray; ray.init(address='{address}', log_to_driver=False)"
    stranger = subprocess.run(
        [sys.executable, "-c", join], env={**strangers, "HOME": sys.argv[1]}, capture_output=True, text=True
    )
print(json.dumps({
    "events": events, "told": told, "wrong": wrong, "address": address, "stranger": stranger.returncode
}))
"""


def keys_in(store: Path) -> set[str]:
    return {path.parent.name for path in store.glob("stages/*/*/manifest.json")}


def predictions_in(store: Path) -> dict[str, pd.DataFrame]:
    return {path.name: pd.read_parquet(path / "predictions.parquet") for path in store.glob("runs/*")}


def assert_same(store: Path, other: Path) -> None:
    assert keys_in(store) == keys_in(other)
    ours, theirs = predictions_in(store), predictions_in(other)
    assert set(ours) == set(theirs)
    for name, table in ours.items():
        pd.testing.assert_frame_equal(table, theirs[name])


def test_a_killed_worker_s_stage_is_run_again_and_nothing_else_changes(
    small, ray_folder, ray_processes, tmp_path
):
    overrides = [*small, "policy=sapo", "seed=range(2)", "engine=ray", "engine.workers=2"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (tmp_path / "killed").is_file()
    (line,) = [line for line in found["told"] if "died" in line]
    assert "died while train of mini_topic ran" in line
    assert f"(process {(tmp_path / 'killed').read_text()})" in line
    assert_same(tmp_path / "ray", tmp_path / "local")
    # Both runs test the untouched model in the same way: computed for one, stored for the other.
    assert found["events"].count(["evaluate", "stored"]) == 2
    assert found["events"].count(["train", "done"]) == 4
    assert found["wrong"] == [
        "WorkError",
        "Every target of task mini_city is cut off; raise data.max_input_tokens.",
    ]
    # It listens on this machine only, and turns away who has no token.
    assert found["address"].startswith("127.0.0.1:")
    assert found["stranger"] != 0
    assert not ray_processes()
    # The logs of the worker that was killed are kept, where the message says.
    (kept,) = ray_folder.iterdir()
    assert str(kept) in line


def test_the_command_line_prints_one_document_and_leaves_nothing_running(
    small, ray_folder, ray_processes, document
):
    several = ("train", *small, "policy=static", "method=sequential", "seed=range(2)")
    by_ray = document(*several, "engine=ray", "engine.workers=2", "store.root=ray")
    local = document(*several, "store.root=local")
    keys = ("id", "prompts", "metrics", "metrics_common")
    ours, theirs = ([{key: run[key] for key in keys} for run in each["runs"]] for each in (by_ray, local))
    assert ours == theirs
    # Runs at once: which of them computes what both need is a matter of moments.
    computed = [sum(run["stages"]["computed"] for run in each["runs"]) for each in (by_ray, local)]
    assert computed[0] == computed[1]
    assert not ray_processes()
    assert not list(ray_folder.iterdir())
