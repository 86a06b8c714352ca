"""A stage on two processes gives what one gives, and a process that dies leaves nothing behind."""

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from sapo.conf.errors import UserError, WorkError
from sapo.data.benchmarks import load_tasks
from sapo.data.prompts import Prompt
from sapo.experiments.engine import devices
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store, own_folder
from sapo.experiments.model.identity import require_devices
from sapo.experiments.model.rows import TrainingTask
from sapo.experiments.stages import Evaluate, Gradient, Score, Train

pytestmark = pytest.mark.slow

SMALL = (
    "sequence.tasks=[mini_price,mini_city]", "method=ewc", "method.dropout=0.0", "method.fisher_examples=5",
    "trainer.epochs=2", "trainer.global_batch=3", "trainer.learning_rate=1e-2", "data.test_examples=5",
    "data.train_examples=10", "engine.retries=1",
)  # fmt: skip
PROMPTS = tuple(Prompt(text, index) for index, text in enumerate(["Name it.", "What is it?", "Answer: "]))


@pytest.fixture(scope="module", autouse=True)
def _ended():
    yield
    devices.close()


def everything(config, root):
    """All kinds of stages as the store has them: two trainings of EWC, and the others in the last state."""
    first, second = load_tasks(config)[0]
    store = Store(root)

    def done(stage):
        return asyncio.run(LocalEngine(store).run(stage))

    state, found = "base", {}
    for position, (task, prompts) in enumerate([(first, PROMPTS[:1]), (second, PROMPTS[:2])]):
        stored = done(Train(config, state, position, (TrainingTask(task, prompts),)))
        state, found[f"train {position}"] = stored.key, stored
    found["score"] = done(Score(config, state, second, second.train, PROMPTS))
    found["evaluate"] = done(Evaluate(config, state, first, PROMPTS[0]))
    found["gradient"] = done(Gradient(config, state, first, first.train[:5], PROMPTS[0]))
    # Fewer rows than devices: one of them has nothing to do.
    found["evaluate 1"] = done(Evaluate(config, state, replace(first, test=first.test[:1]), PROMPTS[0]))
    return found


def test_two_processes_give_what_one_gives(tiny_config, tmp_path):
    """Rows of trainings, gradients and evaluations are dealt, and prompts of scorings."""
    config = tiny_config(*SMALL)
    one = everything(config, tmp_path / "one")
    two = everything(tiny_config(*SMALL, "engine.devices=2"), tmp_path / "two")
    assert {name: stored.key for name, stored in one.items()} == {n: stored.key for n, stored in two.items()}
    for name in ("train 0", "train 1"):
        first, second = one[name].result, two[name].result
        for facts in ("losses", "penalties", "gradient_norms"):
            assert getattr(second, facts) == pytest.approx(getattr(first, facts), rel=1e-5), facts
    for name, stored in one.items():
        for path in stored.folder.rglob("*.safetensors"):
            tensors, others = load_file(path), load_file(two[name].folder / path.relative_to(stored.folder))
            assert tensors.keys() == others.keys()
            for key, value in tensors.items():
                assert (value - others[key]).norm() <= 1e-5 * value.norm(), (name, path.name, key)
        for path in stored.folder.glob("*.parquet"):
            other = pd.read_parquet(two[name].folder / path.name)
            pd.testing.assert_frame_equal(pd.read_parquet(path), other, rtol=1e-5)


def first_training(config):
    return Train(config, "base", 0, (TrainingTask(load_tasks(config)[0][0], PROMPTS[:1]),))


def learn_and_kill(config, root, number=None):
    """A training of the config; one of its processes is killed where the checkpoint of a step is there."""
    store, stage, killed = Store(root), first_training(config), []

    def kill():
        manifests = lambda: store.checkpoints(stage.key).glob("checkpoint-*/manifest.json")  # noqa: E731
        while not any(int(path.parent.name[11:]) >= number for path in manifests()):
            time.sleep(0.002)
        (group,) = devices._groups.values()
        killed.extend(process.pid for process in group.processes.values())
        os.kill(killed[1], signal.SIGKILL)

    if number:
        threading.Thread(target=kill, daemon=True).start()
    return asyncio.run(LocalEngine(store).run(stage)), killed


def are_gone(pids):
    """Whether none of the processes is left; one that is still importing notices after that."""
    end = time.monotonic() + 120
    while any(
        Path(f"/proc/{pid}/cmdline").is_file() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids
    ):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


class OfTwoError(Exception):
    """What pickle writes, and cannot read again."""

    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


@pytest.mark.parametrize("known", [WorkError("no room"), OfTwoError("rows", "none"), RuntimeError(lambda: 0)])
def test_every_error_can_be_sent_and_says_where_it_was_raised(known):
    try:
        raise known
    except Exception as error:
        found = pickle.loads(pickle.dumps(devices.portable(error)))  # noqa: S301
    assert isinstance(found, WorkError) == isinstance(known, WorkError)
    assert str(known) in str(found)
    (note,) = found.__notes__
    assert "test_devices.py" in note


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes in /proc")
def test_a_training_whose_process_dies_goes_on_to_the_bit(tiny_config, tmp_path, caplog):
    """With dropout, which each process draws for itself."""
    long = ("engine.devices=2", "trainer.epochs=12", "method.dropout=0.3", "trainer.checkpoint_steps=1")
    config = tiny_config(*SMALL, *long)
    whole, _ = learn_and_kill(config, tmp_path / "whole")
    again, killed = learn_and_kill(config, tmp_path / "again", 3)
    assert are_gone(killed)
    assert "on 2 devices: process" in caplog.text
    assert "SIGKILL" in caplog.text
    assert again.result.losses == whole.result.losses
    assert again.result.earlier_seconds > 0
    adapters = [load_file(each.folder / "adapter" / "adapter_model.safetensors") for each in (whole, again)]
    assert all(torch.equal(value, adapters[1][key]) for key, value in adapters[0].items())


def test_a_stage_whose_processes_die_again_and_again_is_given_up(tiny_config, tmp_path, monkeypatch):
    folders = []

    def dies(stage, folder, root):
        folders.append(folder)
        (folder / "half").mkdir()
        raise devices._DiedError("process 7 ended by SIGKILL.")

    monkeypatch.setattr(devices, "_group", lambda stage: SimpleNamespace(compute=dies))
    config = tiny_config(*SMALL, "engine.devices=2")
    with pytest.raises(WorkError, match=r"train of mini_price on 2 devices: process 7 .* It was given up"):
        asyncio.run(LocalEngine(Store(tmp_path)).run(first_training(config)))
    assert len(folders) == 2
    assert not list(Store(tmp_path).stages())
    assert not list((tmp_path / "building").iterdir())


def test_an_error_of_one_process_is_the_stages_and_ends_the_others(tiny_config, tmp_path):
    config = tiny_config(*SMALL, "engine.devices=2")
    task = load_tasks(config)[0][0]
    with pytest.raises(WorkError, match=r"The training 0000.* is not in the store"):
        asyncio.run(LocalEngine(Store(tmp_path)).run(Evaluate(config, "0" * 64, task, PROMPTS[0])))
    assert not devices._groups


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes in /proc")
def test_processes_end_with_the_one_that_started_them(tmp_path):
    code = (
        "from sapo.experiments.engine import devices\n"
        "if __name__ == '__main__':\n"
        "    group = devices._Group(2, 'cpu')\n"
        "    print(*(process.pid for process in group.processes.values()), flush=True); input()"
    )
    (tmp_path / "start.py").write_text(code)
    (tmp_path / "temporary").mkdir()
    with subprocess.Popen(
        [sys.executable, tmp_path / "start.py"],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path / "temporary")},
    ) as process:
        pids = process.stdout.readline().split()
        process.kill()
    assert len(pids) == 2
    assert are_gone(pids)
    (left,) = (tmp_path / "temporary").iterdir()
    with own_folder("sapo-devices-", str(left.parent)):  # the next one sweeps
        assert not left.exists()


CARD, OTHER = "Some H100", "Some A100"


@pytest.mark.parametrize(
    ("device", "cards", "message"),
    [
        ("cuda", [CARD, CARD], r"engine\.devices=3: here are only 2 of kind cuda\. Set engine\.devices=2"),
        ("cuda", [CARD, OTHER, CARD], r"different kinds \(Some H100, Some A100\).*CUDA_VISIBLE_DEVICES"),
        ("cpu", [], r"engine\.devices=3: here are only 2 cores"),
    ],
)
def test_devices_that_are_not_there_or_of_different_kinds_are_refused(
    tiny_config, monkeypatch, device, cards, message
):
    config = tiny_config("engine.devices=3")
    config.engine.device = device
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: cards[number])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    with pytest.raises(UserError, match=message):
        require_devices(config)
