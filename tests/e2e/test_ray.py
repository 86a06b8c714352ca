"""`engine=ray` in earnest: worker processes on this machine. That it has local's numbers: tests/faults."""

import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest

from sapo.conf.load import load
from sapo.experiments.jobs import Job
from sapo.experiments.run import open_engine, run

pytest.importorskip("ray", reason="Ray is not installed: pip install 'sapo-prompts[ray]'")


def on_ray(overrides, home):
    """Two runs at once, and one that fails: what became of them, and of a stranger who joined meanwhile."""
    import ray

    jobs = [Job(config) for config in load(overrides)]
    trainer = replace(jobs[0].config.trainer, learning_rate=float("nan"))
    jobs.append(Job(replace(jobs[0].config, trainer=trainer)))
    events, told = Counter(), []
    with open_engine(
        jobs, lambda stage, event: events.update([f"{stage.kind} {event}"]), told.append
    ) as engine:
        messages = [outcome.message for outcome in run(jobs, engine)]
        address = ray.get_runtime_context().gcs_address
        join = f"import ray; ray.init(address='{address}', log_to_driver=False)"
        stranger = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
        joined = subprocess.run(
            [sys.executable, "-c", join], env={**stranger, "HOME": home}, capture_output=True
        )
    return events, told, messages, address, joined.returncode


def test_runs_on_workers_share_stages_keep_strangers_out_and_leave_nothing_running(
    small, ray_folder, ray_processes, tmp_path
):
    overrides = [*small, "method=sequential", "policy=static,sapo", "engine=ray", "engine.workers=2"]
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        events, told, messages, address, joined = process.submit(on_ray, overrides, str(tmp_path)).result()
    assert told == []
    # Both runs test the untouched model in the same way: computed for one, stored for the other.
    assert events["evaluate stored"] >= 2
    assert messages == ["", "", "ValueError: Invalid learning rate: nan"]  # one that fails fails alone
    # It listens on this machine only, and turns away who has no token.
    assert address.startswith("127.0.0.1:")
    assert joined != 0
    assert not ray_processes()
    assert not list(ray_folder.iterdir())
