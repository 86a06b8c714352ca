"""`engine=ray` in earnest: worker processes on this machine, the numbers of `engine=local`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from sapo.data.records import MANIFEST

pytest.importorskip("ray", reason="Ray is not installed: pip install 'sapo-prompts[ray]'")

SCRIPT = """
import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import ray as ray_module

from sapo.conf.load import load
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store
from sapo.experiments.jobs import Job
from sapo.experiments.run import open_engine, run


def jobs_in(name):
    jobs = [Job(config) for config in load([*sys.argv[2:], f"store.root='{sys.argv[1]}/{name}'"])]
    bad = jobs[0].config
    return [*jobs, Job(replace(bad, trainer=replace(bad.trainer, learning_rate=float("nan"))))]


events, told = Counter(), []
local, ray = jobs_in("local"), jobs_in("ray")
in_turn = run(local, LocalEngine(Store(Path(local[0].config.store.root))))
watch = lambda stage, event: events.update([f"{stage.kind} {event}"])
with redirect_stdout(sys.stderr), open_engine(ray, watch, told.append) as engine:
    at_once = run(ray, engine)
    address = ray_module.get_runtime_context().gcs_address
    strangers = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    join = f"import ray; ray.init(address='{address}', log_to_driver=False)"
    stranger = subprocess.run(
        [sys.executable, "-c", join], env={**strangers, "HOME": sys.argv[1]}, capture_output=True, text=True
    )
print(json.dumps({
    "events": events,
    "told": told,
    "messages": [[outcome.message for outcome in outcomes] for outcomes in (in_turn, at_once)],
    "address": address,
    "stranger": stranger.returncode,
}))
"""


def test_runs_on_workers_leave_what_runs_in_turn_leave_and_nothing_running(
    small, ray_folder, ray_processes, tmp_path
):
    overrides = [*small, "method=sequential", "policy=static,sapo", "engine=ray", "engine.workers=2"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["told"] == []
    # Both runs test the untouched model in the same way: computed for one, stored for the other.
    assert found["events"]["evaluate stored"] >= 2
    in_turn, at_once = found["messages"]
    assert at_once == in_turn
    assert [bool(message) for message in at_once] == [False, False, True]  # one that fails fails alone
    # It listens on this machine only, and turns away who has no token.
    assert found["address"].startswith("127.0.0.1:")
    assert found["stranger"] != 0
    assert not ray_processes()
    assert not list(ray_folder.iterdir())
    _assert_same(tmp_path / "ray", tmp_path / "local")


def _assert_same(store: Path, other: Path) -> None:
    keys, names = (
        [sorted(path.parent.name for path in root.glob(f"{part}/{MANIFEST}")) for root in (store, other)]
        for part in ("stages/*/*", "runs/*")
    )
    assert keys[0] == keys[1]
    assert len(names[0]) == 2
    assert names[0] == names[1]
    for name in names[0]:
        tables = (pd.read_parquet(root / "runs" / name / "predictions.parquet") for root in (store, other))
        pd.testing.assert_frame_equal(*tables)
