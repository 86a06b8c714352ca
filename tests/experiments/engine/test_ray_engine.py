"""Which stage is computed when and what happens when a worker dies, on workers without processes."""

import asyncio
import json
import logging
import os
import signal
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("ray", reason="Ray is not installed: pip install 'sapo-prompts[ray]'")
from ray.exceptions import RayError, RayTaskError

from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import Config, EngineConfig
from sapo.experiments import run as running
from sapo.experiments.engine import ray
from sapo.experiments.engine.local import TURN, LocalEngine, Turn
from sapo.experiments.engine.ray import Cluster, RayEngine, StageWorker, in_sight
from sapo.experiments.engine.store import Store, try_lock
from sapo.experiments.jobs import Job
from sapo.experiments.run import open_engine, run

pytestmark = pytest.mark.slow


class FakeStage(SimpleNamespace):
    """A stage whose key is its text."""

    kind, state, name = "evaluate", "base", "sums"
    key = property(lambda self: self.text)

    def identity(self):
        return {"model": {"dtype": "float32"}}


def stage(text: str) -> FakeStage:
    return FakeStage(text=text)


class MemoryStore:
    """Keys in place of folders."""

    root = Path("nowhere")

    def __init__(self) -> None:
        self.keys: set[str] = set()

    def find(self, kind, key, *_):
        return SimpleNamespace(key=key) if key in self.keys else None


class FakeCluster:
    """Workers that log what they compute, and do what `script(stage)` says: it may raise or wait.

    `starts` are what the first workers raise when they start.
    """

    def __init__(self, store, size=1, script=None, starts=(), retries=2) -> None:
        self.config = EngineConfig("ray", retries=retries)
        self.store, self.size, self.script, self.starts = store, size, script, list(starts)
        self.log: list[str] = []
        self.lost: set[int] = set()  # workers that die while they have nothing to do
        self.workers: list[FakeWorker] = []

    def start(self):
        return self.size

    def worker(self, root):
        self.workers.append(FakeWorker(self, len(self.workers), self.starts.pop(0) if self.starts else None))
        return self.workers[-1]

    def stop(self, worker):
        worker.is_stopped = True

    def keep_logs(self):
        return "kept"

    def close(self):
        pass


class FakeWorker:
    """The driver's handle of an actor."""

    def __init__(self, cluster, number, failure) -> None:
        self.cluster, self.number, self.failure = cluster, number, failure
        self.is_stopped = self.is_busy = False
        self.where, self.compute = (SimpleNamespace(remote=do) for do in (self._where, self._compute))

    async def _where(self):
        if self.failure:
            raise self.failure
        if self.number in self.cluster.lost:
            raise RayError("its machine is gone")
        return f"worker {self.number}"

    async def _compute(self, asked, key, again):
        assert not self.is_stopped, "given to a worker that is gone"
        assert not self.is_busy, "two stages at once"
        self.is_busy = True
        try:
            await asyncio.sleep(0)
            if self.cluster.script and (waiting := self.cluster.script(asked)):
                await waiting
        except RayError:
            raise
        except Exception as error:
            raise RayTaskError("compute", "Traceback", error) from error
        finally:
            self.is_busy = False
        if self.cluster.store.find(asked.kind, key) and not again:
            return False, []
        self.cluster.log.append(key)
        self.cluster.store.keys.add(key)
        return True, []


class Bench:
    """An engine on a fake cluster, with all that it says."""

    open: ClassVar[list[RayEngine]] = []

    def __init__(self, force=False, **cluster) -> None:
        self.store = MemoryStore()
        self.cluster = FakeCluster(self.store, **cluster)
        self.told: list[str] = []
        self.events: list[tuple[str, str]] = []
        watch = lambda stage, event: self.events.append((stage.text, event))  # noqa: E731
        self.engine = RayEngine(self.cluster, self.store, self.told.append, watch, force)
        self.open.append(self.engine)

    def ask(self, *texts, return_exceptions=False):
        async def everything():
            asked = (self.engine.run(stage(text)) for text in texts)
            return await asyncio.gather(*asked, return_exceptions=return_exceptions)

        return self.engine.complete([everything()])[0]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(ray, "_ASK", 0.0)
    yield
    while Bench.open:
        Bench.open.pop().__exit__()


# --- what is computed --------------------------------------------------------------------------------------


def test_a_stage_that_is_asked_for_is_computed_once_for_all_who_ask():
    bench = Bench(size=3)
    assert [stored.key for stored in bench.ask(*"xxxx")] == [*"xxxx"]
    assert bench.cluster.log == ["x"]
    assert Counter(bench.events) == {("x", "begin"): 1, ("x", "done"): 1, ("x", "stored"): 3}


def test_what_is_stored_starts_no_worker():
    bench = Bench()
    bench.store.keys.add("x")
    bench.ask("x")
    assert not bench.cluster.workers
    assert bench.events == [("x", "stored")]


def test_force_computes_what_is_stored_again_and_once():
    bench = Bench(force=True)
    bench.store.keys.add("x")
    bench.ask("x")
    bench.ask("x")
    assert bench.cluster.log == ["x"]
    assert [event for _, event in bench.events] == ["begin", "done", "stored"]


def test_earlier_runs_go_first(monkeypatch):
    """Their next stages too: so runs are whole one after another, and a worker keeps its model."""
    monkeypatch.setattr(ray, "_ASK", 0.01)

    async def asking(engine, number, *texts):
        TURN.set(Turn(number))
        for text in texts:
            await engine.run(stage(text))

    bench = Bench()
    bench.engine.complete([asking(bench.engine, turn, *texts) for turn, texts in enumerate(("abc", "xyz"))])
    assert bench.cluster.log == [*"abcxyz"]


def test_a_cancelled_asker_takes_nothing_from_the_others():
    async def cancelled(engine):
        first = asyncio.create_task(engine.run(stage("x")))
        second = asyncio.create_task(engine.run(stage("x")))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    bench = Bench()
    (stored,) = bench.engine.complete([cancelled(bench.engine)])
    assert stored.key == "x"


@given(
    asked=st.lists(st.integers(0, 5), max_size=25),
    size=st.integers(1, 4),
    deaths=st.lists(st.integers(0, 24), max_size=6),
)
def test_whoever_asks_and_whatever_dies_each_stage_is_computed_once(asked, size, deaths):
    left, attempts = Counter(deaths), Counter()

    def script(_):
        attempts["all"] += 1
        if left[attempts["all"]]:
            left[attempts["all"]] -= 1
            raise RayError("killed")

    bench = Bench(size=size, script=script, retries=len(deaths))
    texts = [str(number) for number in asked]
    assert [stored.key for stored in bench.ask(*texts)] == texts
    assert sorted(bench.cluster.log) == sorted(set(texts))
    ends = Counter(event for _, event in bench.events)
    assert (ends["done"], ends["done"] + ends["stored"]) == (len(set(texts)), len(texts))


# --- what goes wrong ---------------------------------------------------------------------------------------


def failing(times: int, error: Exception, text: str = "x"):
    left = [times]

    def script(stage):
        if stage.text == text and left[0]:
            left[0] -= 1
            raise error

    return script


def test_a_stage_whose_worker_died_is_done_by_another():
    bench = Bench(script=failing(2, RayError("killed")))
    bench.ask("x", "y")
    assert sorted(bench.cluster.log) == ["x", "y"]
    assert [worker.is_stopped for worker in bench.cluster.workers] == [True, True, False]
    lines = "The worker on worker {} died while evaluate of sums ran: killed (logs: kept)"
    assert bench.told == [lines.format(n) for n in (0, 1)]


def test_a_stage_that_kills_its_workers_is_given_up_and_others_go_on():
    bench = Bench(script=failing(9, RayError("killed")))
    failed, fine = bench.ask("x", "y", return_exceptions=True)
    assert isinstance(failed, WorkError)
    assert (
        "evaluate of sums (x) was given up: 3 workers died of it. The last one, on worker 2: killed"
        in str(failed)
    )
    assert fine.key == "y"
    assert bench.ask("x", return_exceptions=True) != [failed]  # it is tried again when it is asked for again


@pytest.mark.parametrize(("error", "workers"), [(WorkError("a loss is not finite"), 1), (KeyError("x"), 2)])
def test_a_stage_s_own_error_is_its_asker_s_and_a_worker_in_doubt_is_replaced(error, workers):
    bench = Bench(script=failing(9, error))
    failed, again, fine = bench.ask("x", "x", "y", return_exceptions=True)
    assert failed is again is error
    assert fine.key == "y"
    assert len(bench.cluster.workers) == workers
    assert not bench.told
    counts = {("x", "begin"): 1, ("x", "failed"): 1, ("y", "begin"): 1, ("y", "done"): 1}
    assert Counter(bench.events) == counts


def test_a_stage_is_not_given_up_for_workers_that_died_before_it():
    bench = Bench(size=4, retries=0)
    bench.ask(*"abcd")
    bench.cluster.lost = {0, 1, 2, 3}  # one machine with four workers
    bench.ask("x")
    assert sorted(bench.cluster.log) == [*"abcdx"]
    assert bench.told
    assert all("died while it had nothing to do: its machine is gone" in line for line in bench.told)


@pytest.mark.parametrize("error", [RayError("No module named 'sapo'"), ValueError("no such environment")])
def test_workers_that_cannot_start_end_in_one_error(error):
    bench = Bench(size=2, starts=[error] * 9, retries=1)
    failed = bench.ask("x", "y", return_exceptions=True)
    assert {str(one) for one in failed} == {f"No worker could be started: {error} (logs: kept)"}
    assert all(isinstance(one, WorkError) for one in failed)
    assert len(bench.cluster.workers) <= 4


def test_fewer_workers_than_asked_for_do_the_work():
    bench = Bench(size=3, starts=[None, RayError("no memory"), RayError("no memory")], retries=0)
    bench.ask(*"uvwxyz")
    assert sorted(bench.cluster.log) == [*"uvwxyz"]


def test_workers_that_do_not_come_are_waited_for_aloud(monkeypatch):
    monkeypatch.setattr(ray, "START_NOTICE", 0.0)
    bench = Bench(size=2)
    room, worker = asyncio.Event(), bench.cluster.worker

    def later(root):
        started = worker(root)

        async def when_there_is_room():
            await room.wait()
            return "a worker"

        started.where.remote = when_there_is_room
        return started

    bench.cluster.worker = later
    bench.engine.tell = lambda line: (bench.told.append(line), room.set())
    bench.ask("x")
    assert len(bench.told) == 1
    assert bench.told[0].startswith("Waiting for workers: 2 are asked for, and none has started yet.")


def test_a_store_that_machines_do_not_share_is_told(monkeypatch):
    monkeypatch.setattr(ray, "SIGHT", 0.0)
    with pytest.raises(WorkError, match=r"file system that all machines share. Set store\.root="):
        asyncio.run(in_sight(MemoryStore(), "train", "a" * 64))


# --- whole runs --------------------------------------------------------------------------------------------


class HereCluster(FakeCluster):
    """Workers that compute in this process, with the real tiny model."""

    def worker(self, root):
        async def here(stage, key, again):
            engine = LocalEngine(self.store, force=again)
            await engine.run(stage)
            return key in engine.computed, []

        worker = super().worker(root)
        worker.compute.remote = here
        return worker


def engine_here(store: Store) -> RayEngine:
    Bench.open.append(RayEngine(HereCluster(store, size=3), store, print))
    return Bench.open[-1]


def test_runs_at_once_leave_what_runs_in_turn_leave_and_one_that_fails_only_itself_out(tiny_config, tmp_path):
    short = ("sequence.tasks=[mini_city]", "policy=static", "method=sequential")
    good = [tiny_config(*short, f"seed={seed}") for seed in range(2)]
    bad = replace(good[0], trainer=replace(good[0].trainer, learning_rate=float("nan")))
    jobs = [Job(config) for config in (*good, bad)]
    stores = {name: Store(tmp_path / name) for name in ("turn", "once")}
    engines = LocalEngine(stores["turn"]), engine_here(stores["once"])
    in_turn, at_once = (run(jobs, engine, keep_going=True) for engine in engines)
    keys = {name: {stored.key for _, stored in store.stages()} for name, store in stores.items()}
    assert keys["once"] == keys["turn"]
    for once, turn in zip(at_once[:2], in_turn[:2], strict=True):
        assert once.folder.name == turn.folder.name
        assert json.loads((once.folder / "run.json").read_text())["id"] == once.folder.name
        tables = (pd.read_parquet(outcome.folder / "predictions.parquet") for outcome in (once, turn))
        pd.testing.assert_frame_equal(*tables)
    assert str(at_once[2].error) == str(in_turn[2].error)
    with pytest.raises(type(in_turn[2].error)):
        run(jobs[2:], engine_here(Store(tmp_path / "fast")), keep_going=False)


def opened(*names):
    return open_engine([Job(Config(engine=EngineConfig(name))) for name in names])


def test_one_engine_a_command_and_the_command_that_installs_ray(monkeypatch):
    with pytest.raises(UserError, match="share one engine"), opened("local", "ray"):
        pass
    monkeypatch.setattr(running, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'sapo-prompts\[ray\]'"), opened("ray"):
        pass
    with opened("local", "local") as engine:
        assert type(engine) is LocalEngine


# --- the cluster -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "there", "size", "gpus"),
    [
        ({}, {"GPU": 8, "CPU": 96}, 8, 1),
        ({"gpus": 0.5}, {"GPU": 8, "CPU": 96}, 16, 0.5),
        ({"gpus": 0.1}, {"GPU": 1, "CPU": 96}, 10, 0.1),
        ({"gpus": 2}, {"GPU": 7, "CPU": 96}, 3, 2),
        ({"cpus": 16}, {"GPU": 8, "CPU": 96}, 6, 1),
        ({}, {"CPU": 4}, 4, 0),
        ({"cpus": 0.5}, {"CPU": 4}, 8, 0),
        ({"device": "cpu"}, {"GPU": 8, "CPU": 4}, 4, 0),
        ({"workers": 3}, {"GPU": 8, "CPU": 96}, 3, 1),
        ({"workers": 3, "gpus": 1}, {"CPU": 1}, 3, 1),
    ],
)
def test_as_many_workers_as_there_is_room_for(setting, there, size, gpus):
    cluster = Cluster(EngineConfig("ray", **setting))
    assert cluster.plan(there) == size
    assert cluster.options == {"num_cpus": setting.get("cpus", 1.0), "num_gpus": gpus}


def test_no_room_for_a_worker_is_said():
    with pytest.raises(UserError, match="A worker of 4 GPUs and 1 cores finds no room: Ray has 2 GPUs"):
        Cluster(EngineConfig("ray", gpus=4)).plan({"GPU": 2, "CPU": 8})


@pytest.fixture
def local_cluster(tmp_path, monkeypatch):
    """A cluster of this machine's, and the calls of `ray.init`, which starts nothing."""
    calls = []
    monkeypatch.setattr(os, "environ", {**os.environ, "RAY_TMPDIR": str(tmp_path)})
    monkeypatch.setattr(ray.ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.setattr(ray.ray, "init", lambda **options: calls.append(options))
    monkeypatch.setattr(ray.ray, "shutdown", lambda: None)
    return Cluster(EngineConfig("ray", device="cpu", workers=1)), calls


def test_a_ray_that_cannot_start_is_one_error_said_once(local_cluster, monkeypatch, request):
    cluster, calls = local_cluster
    request.addfinalizer(partial(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM)))
    signal.signal(signal.SIGTERM, ours := lambda *_: None)

    def fails(**options):
        calls.append(options)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Exception("The current node timed out during startup.")  # of no better kind

    monkeypatch.setattr("ray.init", fails)
    with RayEngine(cluster, MemoryStore(), print) as engine:
        for _ in range(2):
            with pytest.raises(UserError, match=r"cannot start Ray .*timed out .*RAY_TMPDIR.*engine=local"):
                engine.complete([engine.run(stage("x"))])
    assert len(calls) == 1
    assert signal.getsignal(signal.SIGTERM) is ours
    assert not list(Path(calls[0]["_temp_dir"]).parent.iterdir())


def test_a_folder_for_ray_that_cannot_be_made_is_named(local_cluster, tmp_path):
    cluster, calls = local_cluster
    os.environ["RAY_TMPDIR"] = str(tmp_path / "absent")
    with pytest.raises(UserError, match=r"sockets and logs .*absent: .*Set RAY_TMPDIR"):
        cluster.start()
    cluster.close()
    assert not calls


def test_the_token_lies_in_a_folder_of_this_user_alone(local_cluster):
    cluster, calls = local_cluster
    cluster.start()
    folder = Path(calls[0]["_temp_dir"])
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert (token.parent, os.environ["RAY_AUTH_MODE"]) == (folder, "token")
    assert (folder.stat().st_mode & 0o777, token.stat().st_mode & 0o777) == (0o700, 0o600)
    assert len(token.read_text()) == 64
    cluster.keep_logs()
    cluster.close()
    assert folder.is_dir()
    assert not token.exists()


def test_the_folders_of_drivers_that_were_killed_are_swept(local_cluster, tmp_path):
    """Not those of drivers that live, nor those that are kept for the logs of a worker that died."""
    cluster, _ = local_cluster
    killed, alive, kept = (tmp_path / f"sapo-ray-{name}" for name in ("killed", "alive", "kept"))
    for folder in (killed, alive, kept):
        (folder / "session" / "logs").mkdir(parents=True)
    for folder in (killed, alive):
        (folder / "driver.lock").touch()
    with try_lock(alive / "driver.lock"):
        cluster.start()
        assert [folder.exists() for folder in (killed, alive, kept)] == [False, True, True]
    cluster.close()
    assert sorted(tmp_path.iterdir()) == [alive, kept]


# --- the worker --------------------------------------------------------------------------------------------


def test_what_workers_warn_of_is_told_once(tmp_path, monkeypatch):
    async def warns(engine, stage):
        logging.getLogger("sapo.experiments.model.forward").warning("A batch of %d examples does not fit.", 8)
        logging.getLogger("sapo.experiments.model.forward").info("nothing")
        engine.computed.add(stage.key)

    monkeypatch.setattr(LocalEngine, "run", warns)
    worker = StageWorker(str(tmp_path), str(tmp_path / "absent"))
    for _ in range(2):
        is_new, (warning,) = worker.compute(stage("x"), "x", False)
        assert is_new
        assert warning.endswith(f"(process {os.getpid()}): A batch of 8 examples does not fit.")


def test_a_worker_refuses_a_stage_that_means_something_else_there(tmp_path):
    with pytest.raises(WorkError, match=r"another key on .*precision \(here float32\).*model\.dtype"):
        StageWorker(str(tmp_path), str(tmp_path / "absent")).compute(stage("x"), "0" * 64, False)
    assert not list(tmp_path.iterdir())
