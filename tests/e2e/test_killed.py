"""A run that is killed again and again ends with the numbers of one that was left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

# Forks after the imports and before any tensor is touched: a process that dies costs nothing but its stage.
SCRIPT = """
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import peft  # noqa: F401 (imported late otherwise, in every fork)
import transformers.models.llama.modeling_llama  # noqa: F401

from sapo.conf.load import load_one
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store
from sapo.experiments.jobs import Job
from sapo.experiments.run import run

KILLED = 9
building = Store.building


@contextmanager
def die_inside(store, kind, key):
    with building(store, kind, key) as folder:
        yield folder
        os._exit(KILLED)


def die_after(stage, event):
    if event == "done":
        os._exit(KILLED)


def attempt(config, number):
    if number % 2:
        Store.building = die_inside
    run([Job(config)], LocalEngine(Store(Path(config.store.root)), die_after), keep_going=False)


def forked(number, function):
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED), code
    return code


def config_in(name):
    return load_one([*sys.argv[2:], f"store.root='{sys.argv[1]}/{name}'"])


whole, killed = config_in("whole"), config_in("killed")
forked(0, lambda: run([Job(whole)], LocalEngine(Store(Path(whole.store.root))), keep_going=False))
number = 0
while forked(number, lambda: attempt(killed, number)) == KILLED:
    number += 1
print(number)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_after_and_inside_each_stage(small, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), *small, "policy=sapo"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # 13 stages, each of them stored by one attempt, with one that dies inside a stage between every two.
    assert int(done.stdout) == 13 + 12
    killed, whole = (next((tmp_path / name / "runs").iterdir()) for name in ("killed", "whole"))
    assert killed.name == whole.name
    pd.testing.assert_frame_equal(
        pd.read_parquet(killed / "predictions.parquet"), pd.read_parquet(whole / "predictions.parquet")
    )
    assert facts(killed) == facts(whole)


def facts(folder: Path) -> dict:
    record = json.loads((folder / "run.json").read_text())
    stages = [{key: stage[key] for key in ("kind", "key", "task")} for stage in record["stages"]]
    return record | {"stages": stages}
