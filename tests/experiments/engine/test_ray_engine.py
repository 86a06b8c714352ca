"""Which stage is computed when and what happens when a worker dies, on workers without processes."""

import asyncio
import logging
import os
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("ray", reason="Ray is not installed: pip install 'sapo-prompts[ray]'")
from ray.exceptions import RayError, RayTaskError

from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import Config, EngineConfig
from sapo.experiments import run as running
from sapo.experiments.engine import ray
from sapo.experiments.engine.local import TURN, LocalEngine, Turn
from sapo.experiments.engine.ray import Cluster, RayEngine, StageWorker, in_sight
from sapo.experiments.engine.store import try_lock
from sapo.experiments.jobs import Job
from sapo.experiments.run import open_engine

pytestmark = pytest.mark.slow


def stage(text: str) -> SimpleNamespace:
    """A stage whose key is its text."""
    identity = lambda: {"model": {"dtype": "float32"}}  # noqa: E731
    return SimpleNamespace(kind="evaluate", state="base", name="sums", key=text, identity=identity)


class Bench:
    """An engine on workers without processes, all that it says, and a store without folders.

    Workers log what they compute; `script(stage)` may raise, and the first workers raise `starts`.
    """

    root = Path("nowhere")
    open: ClassVar[list[RayEngine]] = []

    def __init__(self, size=1, script=lambda _: None, starts=(), retries=2, force=False) -> None:
        self.config = EngineConfig("ray", retries=retries)
        self.start, self.keep_logs, self.close = (lambda: size), (lambda: "kept"), (lambda: None)
        self.script, self.starts = script, list(starts)
        self.stored: set[str] = set()
        self.lost: set[int] = set()  # workers that die while they have nothing to do
        self.workers: list[FakeWorker] = []
        self.log, self.told, self.events = [], [], []
        watch = lambda stage, event: self.events.append((stage.key, event))  # noqa: E731
        self.engine = RayEngine(self, self, self.told.append, watch, force)
        self.open.append(self.engine)

    def find(self, kind, key, *_):
        return SimpleNamespace(key=key) if key in self.stored else None

    def worker(self, root):
        self.workers.append(FakeWorker(self, len(self.workers), self.starts.pop(0) if self.starts else None))
        return self.workers[-1]

    def stop(self, worker):
        worker.is_stopped = True

    def ask(self, *texts, return_exceptions=False):
        async def everything():
            asked = (self.engine.run(stage(text)) for text in texts)
            return await asyncio.gather(*asked, return_exceptions=return_exceptions)

        return self.engine.complete([everything()])[0]


class FakeWorker:
    """The driver's handle of an actor."""

    def __init__(self, bench, number, failure) -> None:
        self.bench, self.number, self.failure = bench, number, failure
        self.is_stopped = self.is_busy = False
        self.where, self.compute = (SimpleNamespace(remote=do) for do in (self._where, self._compute))

    async def _where(self):
        if self.failure:
            raise self.failure
        if self.number in self.bench.lost:
            raise RayError("its machine is gone")
        return f"worker {self.number}"

    async def _compute(self, asked, key, again):
        assert not self.is_stopped, "given to a worker that is gone"
        assert not self.is_busy, "two stages at once"
        self.is_busy = True
        try:
            await asyncio.sleep(0)
            self.bench.script(asked)
        except RayError:
            raise
        except Exception as error:
            raise RayTaskError("compute", "Traceback", error) from error
        finally:
            self.is_busy = False
        if key in self.bench.stored and not again:
            return False, []
        self.bench.log.append(key)
        self.bench.stored.add(key)
        return True, []


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(ray, "_ASK", 0.0)
    yield
    while Bench.open:
        Bench.open.pop().__exit__()


# --- what is computed --------------------------------------------------------------------------------------


def test_what_is_stored_starts_no_worker_and_force_computes_it_again_and_once():
    bench, forced = Bench(), Bench(force=True)
    for each in (bench, forced):
        each.stored.add("x")
        each.ask("x")
        each.ask("x")
    assert not bench.workers
    assert [event for _, event in bench.events] == ["stored", "stored"]
    assert forced.log == ["x"]
    assert [event for _, event in forced.events] == ["begin", "done", "stored"]


def test_earlier_runs_go_first(monkeypatch):
    """Their next stages too: so runs are whole one after another, and a worker keeps its model."""
    monkeypatch.setattr(ray, "_ASK", 0.01)

    async def asking(engine, number, *texts):
        TURN.set(Turn(number))
        for text in texts:
            await engine.run(stage(text))

    bench = Bench()
    bench.engine.complete([asking(bench.engine, turn, *texts) for turn, texts in enumerate(("abc", "xyz"))])
    assert bench.log == [*"abcxyz"]


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


@settings(max_examples=30)
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
    assert sorted(bench.log) == sorted(set(texts))
    ends = Counter(event for _, event in bench.events)
    assert ends["begin"] - ends["done"] == len(bench.told)
    assert (ends["done"], ends["done"] + ends["stored"]) == (len(set(texts)), len(texts))


# --- what goes wrong ---------------------------------------------------------------------------------------


def failing(times: int, error: Exception, text: str = "x"):
    left = [times]

    def script(stage):
        if stage.key == text and left[0]:
            left[0] -= 1
            raise error

    return script


def test_a_stage_that_kills_its_workers_is_done_by_others_or_given_up_and_the_rest_goes_on():
    bench = Bench(script=failing(2, RayError("killed")))
    bench.ask("x", "y")
    assert sorted(bench.log) == ["x", "y"]
    assert [worker.is_stopped for worker in bench.workers] == [True, True, False]
    lines = "The worker on worker {} died while evaluate of sums ran: killed (logs: kept)"
    assert bench.told == [lines.format(n) for n in (0, 1)]
    bench = Bench(script=failing(9, RayError("killed")))
    failed, fine = bench.ask("x", "y", return_exceptions=True)
    given_up = "evaluate of sums (x) was given up: 3 workers died of it. The last one, on worker 2: killed"
    assert isinstance(failed, WorkError)
    assert given_up in str(failed)
    assert fine.key == "y"


@pytest.mark.parametrize(("error", "workers"), [(WorkError("a loss is not finite"), 1), (KeyError("x"), 2)])
def test_a_stage_s_own_error_is_its_asker_s_and_a_worker_in_doubt_is_replaced(error, workers):
    bench = Bench(script=failing(9, error))
    failed, again, fine = bench.ask("x", "x", "y", return_exceptions=True)
    assert failed is again is error
    assert fine.key == "y"
    assert len(bench.workers) == workers
    assert not bench.told
    counts = {("x", "begin"): 1, ("x", "failed"): 1, ("y", "begin"): 1, ("y", "done"): 1}
    assert Counter(bench.events) == counts


def test_a_stage_is_not_given_up_for_workers_that_died_before_it():
    bench = Bench(size=4, retries=0)
    bench.ask(*"abcd")
    bench.lost = {0, 1, 2, 3}  # one machine with four workers
    bench.ask("x")
    assert sorted(bench.log) == [*"abcdx"]
    assert bench.told
    assert all("died while it had nothing to do: its machine is gone" in line for line in bench.told)


@pytest.mark.parametrize("error", [RayError("No module named 'sapo'"), ValueError("no such environment")])
def test_workers_that_cannot_start_end_in_one_error_and_one_that_does_works_for_all(error):
    bench = Bench(size=2, starts=[error] * 9, retries=1)
    failed = bench.ask("x", "y", return_exceptions=True)
    assert {str(one) for one in failed} == {f"No worker could be started: {error} (logs: kept)"}
    assert len(bench.workers) <= 4
    fewer = Bench(size=3, starts=[None, error, error], retries=0)
    fewer.ask(*"uvwxyz")
    assert sorted(fewer.log) == [*"uvwxyz"]


def test_workers_that_do_not_come_are_waited_for_aloud(monkeypatch):
    monkeypatch.setattr(ray, "START_NOTICE", 0.0)
    monkeypatch.setattr(FakeWorker, "_where", lambda _: asyncio.sleep(0.05, "a worker"))
    bench = Bench(size=2)
    bench.ask("x")
    (line,) = bench.told
    assert line.startswith("Waiting for workers: 2 are asked for, and none has started yet.")


def test_a_store_that_machines_do_not_share_is_told(monkeypatch):
    monkeypatch.setattr(ray, "SIGHT", 0.0)
    with pytest.raises(WorkError, match=r"file system that all machines share. Set store\.root="):
        asyncio.run(in_sight(Bench(), "train", "a" * 64))


def test_one_engine_a_command_and_the_command_that_installs_ray(monkeypatch):
    def opened(*names):
        return open_engine([Job(Config(engine=EngineConfig(name))) for name in names])

    with pytest.raises(UserError, match="share one engine"), opened("local", "ray"):
        pass
    monkeypatch.setattr(running, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'sapo-prompts\[ray\]'"), opened("ray"):
        pass
    with opened("local", "local") as engine:
        assert type(engine) is LocalEngine


# --- the cluster -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "machines", "size", "asked"),
    [
        # GPUs and cores of each machine; how many workers, and what each of them asks for
        ({}, [(8, 96)], 8, (1, 1)),
        ({"gpus": 0.5}, [(8, 96)], 16, (0.5, 1)),
        ({"gpus": 0.1}, [(1, 96)], 10, (0.1, 1)),
        ({"cpus": 16}, [(8, 96)], 6, (1, 16)),
        ({}, [(0, 4)], 4, (0, 1)),
        ({"device": "cpu"}, [(8, 4)], 4, (0, 1)),
        ({"workers": 3}, [(8, 96)], 3, (1, 1)),
        ({"workers": 3, "gpus": 1}, [(0, 1)], 3, (1, 1)),
        ({"devices": 4, "cpus": 2}, [(8, 96), (6, 96), (3, 8)], 3, (4, 8)),
        ({"devices": 4, "cpus": 2}, [(3, 96)] * 2, "1 workers of 4 GPUs and 8 cores: Ray has 6", None),
        ({"gpus": 4, "address": None}, [(2, 8)], "1 workers of 4 GPUs and 1 cores: Ray has 2", None),
        ({"gpus": 1, "workers": 3, "address": None}, [(2, 8)], "3 workers of 1 GPUs and 1 cores", None),
    ],
)
def test_as_many_workers_as_there_is_room_for(setting, machines, size, asked):
    cluster = Cluster(EngineConfig("ray", **{"address": "auto"} | setting))
    there = [{"CPU": cpus} | ({"GPU": gpus} if gpus else {}) for gpus, cpus in machines]
    if asked is None:
        with pytest.raises(UserError, match=f"No room for {size}"):
            cluster.plan(*there)
    else:
        assert cluster.plan(*there) == size
        assert cluster.options == {"num_gpus": asked[0], "num_cpus": asked[1]}


@pytest.fixture
def local_cluster(tmp_path, monkeypatch):
    """A cluster of this machine's, and the calls of `ray.init`, which starts nothing."""
    calls = []
    monkeypatch.setattr(os, "environ", {**os.environ, "RAY_TMPDIR": str(tmp_path)})
    monkeypatch.setattr(ray.ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.setattr(ray.ray, "init", lambda **options: calls.append(options))
    monkeypatch.setattr(ray.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1}}])
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
    with RayEngine(cluster, Bench(), print) as engine:
        for _ in range(2):
            with pytest.raises(UserError, match=r"cannot start Ray .*timed out .*RAY_TMPDIR.*engine=local"):
                engine.complete([engine.run(stage("x"))])
    assert len(calls) == 1
    assert signal.getsignal(signal.SIGTERM) is ours
    assert not list(Path(calls[0]["_temp_dir"]).parent.iterdir())


def test_ray_has_a_folder_of_this_user_alone_and_those_of_killed_drivers_are_swept(local_cluster, tmp_path):
    """Not those of drivers that live, nor those that are kept for the logs of a worker that died."""
    cluster, calls = local_cluster
    killed, alive, kept = (tmp_path / f"sapo-ray-{name}" for name in ("killed", "alive", "kept"))
    for folder in (killed, alive, kept):
        (folder / "session" / "logs").mkdir(parents=True)
    for folder in (killed, alive):
        (folder / "driver.lock").touch()
    with try_lock(alive / "driver.lock"):
        assert cluster.start() == 1
        assert [folder.exists() for folder in (killed, alive, kept)] == [False, True, True]
    own = Path(calls[0]["_temp_dir"])
    assert own.stat().st_mode & 0o777 == 0o700
    assert (os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"])) == ("token", 64)
    assert cluster.keep_logs() == str(own)
    cluster.close()
    assert sorted(tmp_path.iterdir()) == sorted([alive, kept, own])
    os.environ["RAY_TMPDIR"] = str(tmp_path / "absent")
    with pytest.raises(UserError, match=r"sockets and logs .*absent: .*Set RAY_TMPDIR"):
        cluster.start()


# --- the worker --------------------------------------------------------------------------------------------


def test_what_workers_warn_of_is_told_and_what_means_something_else_there_is_refused(tmp_path, monkeypatch):
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
    with pytest.raises(WorkError, match=r"another key on .*precision \(here float32\).*model\.dtype"):
        worker.compute(stage("x"), "0" * 64, False)
    assert not list(tmp_path.iterdir())
