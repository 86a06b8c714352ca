"""Which worker computes what, and what happens when one dies: tried on workers without processes."""

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

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import Config, EngineConfig, MethodConfig, ModelConfig, StoreConfig, TrainerConfig
from sapo.data.prompts import Prompt
from sapo.data.tasks import Example, Task
from sapo.experiments import run as running
from sapo.experiments.engine import concurrent, pace
from sapo.experiments.engine.concurrent import ConcurrentEngine, WorkerDied, in_sight
from sapo.experiments.engine.local import LocalEngine, compute
from sapo.experiments.engine.store import Store, try_lock
from sapo.experiments.jobs import Job
from sapo.experiments.model.rows import TrainingTask
from sapo.experiments.run import open_engine, run
from sapo.experiments.stages import BASE, Evaluate, Score, Train

ROWS = (Example("two and two", "four"),)
TASK = Task("sums", "Add.", "Answer:", ROWS, ROWS)


def config(model: str = "a") -> Config:
    tiny = ModelConfig(model, "tiny:llama", dtype="float32")
    return Config(model=tiny, method=MethodConfig("lorainc"), trainer=TrainerConfig("golden"))


def evaluate(text: str, state: str = BASE, run: Config | None = None) -> Evaluate:
    return Evaluate(run or CONFIG, state, TASK, Prompt(text))


CONFIG = config()


class MemoryStore:
    """Keys in place of folders."""

    root = Path("nowhere")

    def __init__(self) -> None:
        self.keys: set[str] = set()

    def find(self, kind, key, *_):
        return SimpleNamespace(key=key) if key in self.keys else None


class FakeCluster:
    """Workers that log what they compute, and that do what `script` says: `script(stage)` may raise or wait.

    `starts` are what the first workers raise when they start.
    """

    def __init__(self, store, size=1, script=None, starts=()) -> None:
        self.store, self.n, self.script, self.starts = store, size, script, list(starts)
        self.log: list[tuple[int, str]] = []
        self.lost: set[int] = set()  # workers that die while they have nothing to do
        self.workers: list[FakeWorker] = []

    def size(self):
        return self.n

    def start(self):
        worker = FakeWorker(self, len(self.workers), self.starts.pop(0) if self.starts else None)
        self.workers.append(worker)
        return worker


class FakeWorker:
    def __init__(self, cluster, number, failure) -> None:
        self.cluster, self.number, self.failure = cluster, number, failure
        self.is_stopped = self.is_busy = False

    async def ready(self):
        if self.failure:
            raise self.failure
        if self.number in self.cluster.lost:
            raise WorkerDied("its machine is gone")
        return f"worker {self.number}"

    async def compute(self, stage, key, again):
        assert not self.is_stopped, "given to a worker that is gone"
        assert not self.is_busy, "two stages at once"
        self.is_busy = True
        try:
            await asyncio.sleep(0)
            if self.cluster.script and (waiting := self.cluster.script(stage)):
                await waiting
        finally:
            self.is_busy = False
        if self.cluster.store.find(stage.kind, key) and not again:
            return False
        self.cluster.log.append((self.number, text_of(stage)))
        self.cluster.store.keys.add(key)
        return True

    def stop(self):
        self.is_stopped = True


def text_of(stage) -> str:
    return stage.tasks[0].prompts[0].text if isinstance(stage, Train) else stage.prompt.text


class Bench:
    """An engine on a fake cluster, with all that it says."""

    def __init__(self, size=1, script=None, starts=(), retries=2, force=False) -> None:
        self.store = MemoryStore()
        self.cluster = FakeCluster(self.store, size, script, starts)
        self.told: list[str] = []
        self.events: list[tuple[str, str]] = []
        self.engine = ConcurrentEngine(
            self.store,
            self.cluster,
            retries=retries,
            tell=self.told.append,
            watch=lambda stage, event: self.events.append((text_of(stage), event)),
            force=force,
        )

    def ask(self, *stages, return_exceptions=False):
        async def everything():
            asked = (self.engine.run(stage) for stage in stages)
            return await asyncio.gather(*asked, return_exceptions=return_exceptions)

        return asyncio.run(everything())

    @property
    def order(self) -> list[str]:
        return [text for _, text in self.cluster.log]


# --- who computes what -------------------------------------------------------------------------------------


def test_a_stage_in_flight_is_computed_once_for_all_who_ask():
    bench = Bench(size=3)
    answers = bench.ask(*(evaluate("x") for _ in range(4)))
    assert {stored.key for stored in answers} == {evaluate("x").key}
    assert bench.order == ["x"]
    assert Counter(bench.events) == {("x", "begin"): 1, ("x", "done"): 1, ("x", "stored"): 3}


def test_what_is_stored_starts_no_worker():
    bench = Bench()
    bench.store.keys.add(evaluate("x").key)
    bench.ask(evaluate("x"))
    assert not bench.cluster.workers
    assert bench.events == [("x", "stored")]


def test_force_computes_what_is_stored_again_and_once():
    bench = Bench(force=True)
    bench.store.keys.add(evaluate("x").key)
    bench.ask(evaluate("x"))
    bench.ask(evaluate("x"))
    assert bench.order == ["x"]
    assert [event for _, event in bench.events] == ["begin", "done", "stored"]


def test_a_worker_goes_on_with_the_model_that_it_holds():
    a, b = config("a"), config("b")
    bench = Bench(size=1)
    bench.ask(*(evaluate(text, run={"a": a, "b": b}[text[0]]) for text in ("a1", "b1", "a2", "b2")))
    assert bench.order == ["a1", "a2", "b1", "b2"]


def test_of_two_free_workers_the_one_with_the_model_and_the_state_is_try_lock():
    a, b = config("a"), config("b")
    bench = Bench(size=2)
    bench.ask(evaluate("a1", "1" * 64, a), evaluate("b1", "2" * 64, b))
    bench.ask(evaluate("b2", "1" * 64, b))
    bench.ask(evaluate("a2", "2" * 64, a))
    assert bench.cluster.log == [(0, "a1"), (1, "b1"), (1, "b2"), (0, "a2")]
    same = Bench(size=2)
    same.ask(evaluate("x1", "1" * 64), evaluate("y1", "2" * 64))
    same.ask(evaluate("y2", "2" * 64))
    assert same.cluster.log == [(0, "x1"), (1, "y1"), (1, "y2")]


def test_a_run_stays_in_its_last_state_and_a_training_makes_one():
    train = Train(CONFIG, BASE, 0, (TrainingTask(TASK, (Prompt("train"),)),))
    made = train.key
    bench = Bench()
    bench.ask(train, evaluate("base"), evaluate("other", "f" * 64), evaluate("made", made))
    assert bench.order == ["train", "made", "base", "other"]


def test_earlier_runs_go_first():
    async def both(engine):
        async def run(turn, *texts):
            for text in texts:
                await engine.ask(evaluate(text), turn)

        await asyncio.gather(run(0, "1a", "1b", "1c"), run(1, "2a", "2b", "2c"))

    bench = Bench()
    asyncio.run(both(bench.engine))
    assert bench.order == ["1a", "1b", "1c", "2a", "2b", "2c"]


@given(
    asked=st.lists(st.tuples(st.integers(0, 5), st.sampled_from("ab"), st.sampled_from("01")), max_size=25),
    size=st.integers(1, 4),
    deaths=st.lists(st.integers(0, 24), max_size=6),
)
def test_whoever_asks_and_whatever_dies_each_stage_is_computed_once(asked, size, deaths):
    left = Counter(deaths)
    done = Counter()

    def script(stage):
        done["attempts"] += 1
        if left[done["attempts"]]:
            left[done["attempts"]] -= 1
            raise WorkerDied("killed")

    bench = Bench(size, script, retries=len(deaths))
    runs = {"a": config("a"), "b": config("b")}
    stages = [evaluate(str(number), state * 64, runs[model]) for number, model, state in asked]
    answers = bench.ask(*stages)
    assert [stored.key for stored in answers] == [stage.key for stage in stages]
    assert len(bench.cluster.log) == len(bench.store.keys) == len({stage.key for stage in stages})
    ends = Counter(event for _, event in bench.events)
    assert ends["done"] == len(bench.store.keys)
    assert ends["done"] + ends["stored"] == len(stages)


# --- what goes wrong ---------------------------------------------------------------------------------------


def dying(times: int, text: str = "x"):
    left = [times]

    def script(stage):
        if text_of(stage) == text and left[0]:
            left[0] -= 1
            raise WorkerDied("killed")

    return script


def test_a_stage_whose_worker_died_is_done_by_another():
    bench = Bench(script=dying(2))
    bench.ask(evaluate("x"), evaluate("y"))
    assert sorted(bench.order) == ["x", "y"]
    assert [worker.is_stopped for worker in bench.cluster.workers] == [True, True, False]
    assert bench.told == [f"The worker on worker {n} died while evaluate of sums ran: killed" for n in (0, 1)]


def test_a_stage_that_kills_its_workers_is_given_up_and_others_go_on():
    bench = Bench(script=dying(9), retries=2)
    failed, fine = bench.ask(evaluate("x"), evaluate("y"), return_exceptions=True)
    assert isinstance(failed, WorkError)
    key = evaluate("x").key[:12]
    assert f"evaluate of sums ({key}) was given up: 3 workers died" in str(failed)
    assert "worker 2: killed" in str(failed)
    assert fine.key == evaluate("y").key


@pytest.mark.parametrize(("error", "workers"), [(WorkError("a loss is not finite"), 1), (KeyError("x"), 2)])
def test_a_stage_s_own_error_is_its_asker_s_and_a_worker_in_doubt_is_replaced(error, workers):
    def script(stage):
        if text_of(stage) == "x":
            raise error

    bench = Bench(script=script)
    failed, again, fine = bench.ask(evaluate("x"), evaluate("x"), evaluate("y"), return_exceptions=True)
    assert failed is again is error
    assert fine.key == evaluate("y").key
    assert len(bench.cluster.workers) == workers
    assert not bench.told
    assert Counter(bench.events) == {
        ("x", "begin"): 1, ("x", "failed"): 1, ("y", "begin"): 1, ("y", "done"): 1
    }  # fmt: skip


def test_a_stage_is_not_given_up_for_workers_that_died_before_it():
    bench = Bench(size=4, retries=0)
    bench.ask(*(evaluate(text) for text in "abcd"))
    bench.cluster.lost = {0, 1, 2, 3}  # one machine with four workers
    bench.ask(evaluate("x"))
    assert bench.order == ["a", "b", "c", "d", "x"]
    assert bench.cluster.log[-1][0] > 3
    line = "The worker on worker {} died while it had nothing to do: its machine is gone"
    assert bench.told == [line.format(number) for number in range(4)]
    assert [worker.is_stopped for worker in bench.cluster.workers] == [True] * 4 + [False] * 4


def test_a_failed_stage_is_tried_again_when_it_is_asked_for_again():
    bench = Bench(script=dying(3), retries=0)
    for _ in range(3):
        with pytest.raises(WorkError, match="given up"):
            bench.ask(evaluate("x"))
    bench.ask(evaluate("x"))
    assert bench.order == ["x"]


def test_workers_that_cannot_start_end_in_one_error():
    bench = Bench(size=2, starts=[WorkerDied("No module named 'sapo'")] * 9, retries=1)
    failed = bench.ask(evaluate("x"), evaluate("y"), return_exceptions=True)
    assert [str(error) for error in failed] == ["No worker could be started: No module named 'sapo'"] * 2
    assert all(isinstance(error, WorkError) for error in failed)
    assert len(bench.cluster.workers) <= 4


def test_a_worker_whose_start_fails_in_any_other_way_keeps_nobody_waiting():
    bench = Bench(starts=[ValueError("no such environment")] * 9, retries=1)
    with pytest.raises(WorkError, match="No worker could be started: no such environment"):
        bench.ask(evaluate("x"))


def test_an_asker_that_is_gone_is_given_no_worker():
    async def cancelled(engine):
        first = asyncio.create_task(engine._take(evaluate("x")))
        await asyncio.sleep(0)
        first.cancel()
        engine._match()
        assert not engine._waiting
        return await engine.run(evaluate("y"))

    bench = Bench()
    assert asyncio.run(cancelled(bench.engine)).key == evaluate("y").key


def test_fewer_workers_than_asked_for_do_the_work():
    bench = Bench(size=3, starts=[None, WorkerDied("no memory"), WorkerDied("no memory")], retries=1)
    bench.ask(*(evaluate(text) for text in "uvwxyz"))
    assert sorted(bench.order) == list("uvwxyz")


def test_a_cancelled_asker_takes_nothing_from_the_others():
    async def cancelled(engine):
        first = asyncio.create_task(engine.run(evaluate("x")))
        second = asyncio.create_task(engine.run(evaluate("x")))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    bench = Bench()
    assert asyncio.run(cancelled(bench.engine)).key == evaluate("x").key


def test_a_straggler_is_told_of_while_it_runs(monkeypatch):
    monkeypatch.setattr(pace, "LEAST", 0.0)
    told = asyncio.Event()

    def script(stage):
        return told.wait() if text_of(stage) == "slow" else None

    bench = Bench(size=2, script=script)
    lines = []
    bench.engine.pace.tell = lambda line: (lines.append(line), told.set())
    # The slow one begins before anything is known of its kind.
    bench.ask(evaluate("slow"), *(evaluate(str(n)) for n in range(pace.KNOWN)))
    assert len(lines) == 1
    assert lines[0].startswith("evaluate of sums on worker 0 runs for ")


def test_expected_times_grow_with_rows_prompts_and_epochs():
    rows = ROWS * 7
    task = replace(TASK, train=rows, test=rows)
    assert pace.size(Evaluate(CONFIG, BASE, task, Prompt("x"))) == 7
    train = Train(CONFIG, BASE, 0, (TrainingTask(task, (Prompt("x"),)),))
    assert pace.size(train) == 7 * CONFIG.trainer.epochs
    assert pace.size(Score(CONFIG, BASE, task, rows[:4], (Prompt("x"), Prompt("y", 1)))) == 8


def test_a_cluster_that_cannot_replace_its_workers_is_waited_for_aloud(monkeypatch):
    """Workers were there, so that none was missing when the last ones were asked for."""
    monkeypatch.setattr(concurrent, "START_NOTICE", 0.0)
    bench = Bench(size=2)
    bench.ask(evaluate("a"), evaluate("b"))
    bench.cluster.lost = {0, 1}
    room, start = asyncio.Event(), bench.cluster.start

    def start_later():
        worker = start()
        ready = worker.ready

        async def when_there_is_room():
            await room.wait()
            return await ready()

        worker.ready = when_there_is_room
        return worker

    bench.cluster.start = start_later
    lines = []
    bench.engine.tell = lambda line: (lines.append(line), line.startswith("Waiting") and room.set())
    bench.ask(evaluate("x"))
    assert [line for line in lines if line.startswith("Waiting")] == [
        "Waiting for workers: 2 are asked for, and none has started yet. They start when the cluster has the "
        "GPUs and cores free (`ray status`)."
    ]


def test_a_store_that_machines_do_not_share_is_told(monkeypatch):
    monkeypatch.setattr(concurrent, "SIGHT", 0.0)
    with pytest.raises(WorkError, match=r"file system that all machines share. Set store\.root="):
        asyncio.run(in_sight(MemoryStore(), "train", "a" * 64))


# --- whole runs --------------------------------------------------------------------------------------------


class HereCluster(FakeCluster):
    """Workers that compute in this process, with the real tiny model."""

    def start(self):
        worker = super().start()
        worker.compute = lambda stage, key, again: self.compute(stage, key, again)
        return worker

    async def compute(self, stage, key, again):
        await asyncio.sleep(0)
        return compute(stage, key, self.store, again, lambda: None)


def engine_here(store: Store) -> ConcurrentEngine:
    return ConcurrentEngine(store, HereCluster(store, size=3), retries=0, tell=print)


def test_runs_at_once_leave_what_runs_in_turn_leave(tiny_config, tmp_path):
    short = ("sequence.tasks=[mini_city]", "policy=static", "method=sequential")
    configs = [tiny_config(*short, f"seed={seed}") for seed in range(2)]
    stores = {name: Store(tmp_path / name) for name in ("turn", "once")}
    jobs = [Job(config) for config in configs]
    in_turn = [done.folder for done in run(jobs, LocalEngine(stores["turn"]), keep_going=True)]
    at_once = [done.folder for done in run(jobs, engine_here(stores["once"]), keep_going=False)]
    assert [path.name for path in at_once] == [path.name for path in in_turn]
    keys = {name: {stored.key for _, stored in store.stages()} for name, store in stores.items()}
    assert keys["once"] == keys["turn"]
    for once, turn in zip(at_once, in_turn, strict=True):
        pd.testing.assert_frame_equal(
            pd.read_parquet(once / "predictions.parquet"), pd.read_parquet(turn / "predictions.parquet")
        )


def test_a_run_that_fails_does_not_keep_others_from_being_written(tiny_config, tmp_path):
    store = Store(tmp_path / "kept")
    good = tiny_config("sequence.tasks=[mini_city]", "policy=static", "method=sequential")
    bad = replace(good, trainer=replace(good.trainer, learning_rate=float("nan")))
    both = [Job(bad), Job(good)]
    failed, written = (done.result for done in run(both, engine_here(store), keep_going=True))
    assert isinstance(failed, Exception)
    assert json.loads((written / "run.json").read_text())["id"] == written.name
    with pytest.raises(type(failed)):
        run([Job(bad)], engine_here(Store(tmp_path / "fast")), keep_going=False)


# --- the choice of an engine -------------------------------------------------------------------------------


def opened(*names):
    return open_engine([Job(Config(engine=EngineConfig(name))) for name in names])


def test_without_ray_the_mend_is_named(monkeypatch):
    monkeypatch.setattr(running, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'sapo-prompts\[ray\]'"), opened("ray"):
        pass
    with opened("local"):
        pass


def test_runs_of_one_command_share_an_engine():
    with pytest.raises(UserError, match="share one engine"), opened("local", "ray"):
        pass
    with opened("local", "local"):
        pass


def test_stored_runs_need_no_ray_to_be_started(tiny_config, tmp_path):
    pytest.importorskip("ray")
    asked = tiny_config("sequence.tasks=[mini_city]", "policy=static", "method=sequential")
    store = Store(Path(asked.store.root))
    written = run([Job(asked)], LocalEngine(store), keep_going=False)[0].folder
    events = []
    jobs = [Job(replace(asked, engine=EngineConfig("ray")))]
    with open_engine(jobs, lambda stage, event: events.append(event), print) as engine:
        assert [done.folder for done in run(jobs, engine, keep_going=False)] == [written]
        assert not engine._seats
    assert set(events) == {"stored"}


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
    pytest.importorskip("ray")
    from sapo.experiments.engine.ray import RayCluster

    cluster = RayCluster(EngineConfig("ray", **setting), Path("store"), print)
    assert cluster._plan(there) == size
    assert cluster._options == {"num_cpus": setting.get("cpus", 1.0), "num_gpus": gpus}


def test_no_room_for_a_worker_is_said():
    pytest.importorskip("ray")
    from sapo.experiments.engine.ray import RayCluster

    with pytest.raises(UserError, match="A worker of 4 GPUs and 1 cores finds no room: Ray has 2 GPUs"):
        RayCluster(EngineConfig("ray", gpus=4), Path("store"), print)._plan({"GPU": 2, "CPU": 8})


@pytest.fixture
def local_cluster(tmp_path, monkeypatch):
    """A cluster of this machine's, and the calls of `ray.init`, which starts nothing."""
    pytest.importorskip("ray")
    from sapo.experiments.engine import ray

    calls = []
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(ray.ray, "init", lambda **options: calls.append(options))
    monkeypatch.setattr(ray.ray, "shutdown", lambda: None)
    return ray.RayCluster(EngineConfig("ray", device="cpu", workers=1), Path("store"), print), calls


def test_a_ray_that_cannot_start_is_one_error_said_once(local_cluster, monkeypatch, request):
    cluster, calls = local_cluster
    request.addfinalizer(partial(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM)))
    signal.signal(signal.SIGTERM, ours := lambda *_: None)

    def fails(**options):
        calls.append(options)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Exception("The current node timed out during startup.")  # of no better kind

    monkeypatch.setattr("ray.init", fails)
    for _ in range(2):
        with pytest.raises(UserError, match=r"cannot start Ray .*timed out .*RAY_TMPDIR.*engine=local"):
            cluster.size()
    assert len(calls) == 1
    assert signal.getsignal(signal.SIGTERM) is ours
    cluster.close()
    assert not list(Path(calls[0]["_temp_dir"]).parent.iterdir())


def test_a_folder_for_ray_that_cannot_be_made_is_named(local_cluster, monkeypatch, tmp_path):
    cluster, calls = local_cluster
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"sockets and logs .*absent: .*Set RAY_TMPDIR"):
        cluster.size()
    cluster.close()
    assert not calls


def test_the_folders_of_drivers_that_were_killed_are_swept(local_cluster, tmp_path):
    """Not those of drivers that live, nor those that are kept for the logs of a worker that died."""
    cluster, _ = local_cluster
    killed, alive, kept = (tmp_path / f"sapo-ray-{name}" for name in ("killed", "alive", "kept"))
    for folder in (killed, alive, kept):
        (folder / "session" / "logs").mkdir(parents=True)
    for folder in (killed, alive):
        (folder / "driver.lock").touch()
    with try_lock(alive / "driver.lock"):
        cluster.size()
        assert not killed.exists()
        assert alive.is_dir()
        assert kept.is_dir()
    cluster.close()
    assert sorted(tmp_path.iterdir()) == [alive, kept]


def test_a_method_keeps_what_it_keeps_in_the_worker_s_store(tiny_config, tmp_path, monkeypatch):
    """The config's own root may be relative to a folder that the worker's machine does not have."""
    asked = tiny_config("method=sequential", "policy=static", "store.root=runs")
    contexts = []

    def stop(context):
        contexts.append(context)
        raise KeyboardInterrupt

    monkeypatch.setattr("sapo.experiments.stages.method_of", stop)
    train = Train(asked, BASE, 0, (TrainingTask(TASK, (Prompt("Add."),)),))
    with pytest.raises(KeyboardInterrupt):
        compute(train, train.key, Store(tmp_path / "shared"), False, lambda: None)
    assert contexts[0].config.store == StoreConfig(str(tmp_path / "shared"))


def test_what_workers_warn_of_is_told(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    from sapo.experiments.engine import ray

    def warns(stage, key, *_, **__):
        logging.getLogger("sapo.experiments.model.forward").warning("A batch of %d examples does not fit.", 8)
        logging.getLogger("sapo.experiments.model.forward").info("nothing")
        return True

    class Remote:
        @staticmethod
        async def remote(*arguments):
            return ray.StageWorker(str(tmp_path), str(tmp_path / "absent")).compute(*arguments)

    monkeypatch.setattr(ray, "compute", warns)
    told = []
    worker = ray.RayWorker(SimpleNamespace(compute=Remote), told.append, WorkerDied)
    stage = evaluate("x")
    for n in (1, 2):
        assert asyncio.run(worker.compute(stage, stage.key, False)) is True
        assert len(told) == n
    assert told[0].endswith(f"(process {os.getpid()}): A batch of 8 examples does not fit.")


def test_a_worker_refuses_a_stage_that_means_something_else_there(tmp_path):
    pytest.importorskip("ray")
    from sapo.experiments.engine.ray import StageWorker

    worker = StageWorker(str(tmp_path), str(tmp_path / "absent"))
    with pytest.raises(WorkError, match=r"another key on .*precision \(here float32\).*model\.dtype"):
        worker.compute(evaluate("x"), "0" * 64, False)
    assert not list(tmp_path.iterdir())
