"""A training goes on from its checkpoint as if nothing had happened, and no checkpoint runs code."""

import asyncio
import json
import pickle
import random
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from trainings import learn, price_method, same

from sapo.conf.errors import WorkError
from sapo.data.files import write_json
from sapo.data.prompts import Prompt
from sapo.experiments.engine import devices
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store
from sapo.experiments.model import checkpoints, training

HARD = (  # everything that draws: dropout, the order of the rows, a prompt for every second example
    "method.dropout=0.3", "trainer.epochs=2", "trainer.global_batch=4", "trainer.checkpoint_steps=1",
    "trainer.schedule=cosine",
)  # fmt: skip
PROMPTS = (Prompt("Name the price.", 0), Prompt("Cost:", 1))


def hard(tiny_config):
    return price_method(tiny_config(*HARD), prompts=PROMPTS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """`undisturbed(method)`: what a training leaves that nothing disturbs, made once; and its scratch."""
    found = []

    def run(method):
        if not found:
            scratch = tmp_path_factory.mktemp("undisturbed")
            found.extend((*learn(method, scratch, 2), scratch))
        return found

    return run


@pytest.mark.parametrize("step", [2, 3, 5, None])
def test_the_resumed_training_is_the_undisturbed_one_to_the_bit(
    tiny_config, tmp_path, killed, undisturbed, step
):
    """Killed within an epoch, between epochs (three steps each), before the last step and after it."""
    facts, weights, scratch = undisturbed(hard(tiny_config))
    assert facts["steps"] == 6
    if step:
        scratch = tmp_path
        killed(step, hard(tiny_config), scratch, 2)
    assert [path.name for path in scratch.iterdir() if path.is_dir()] == [f"checkpoint-{step or 6}"]
    resumed, others = learn(hard(tiny_config), scratch, 2)
    assert resumed.pop("earlier_seconds") > 0
    assert resumed == facts
    assert same(others, weights)


def test_the_seconds_of_earlier_parts_count_up_to_their_last_checkpoint(
    tiny_config, tmp_path, monkeypatch, killed
):
    """A second passes in each step."""
    now, step = [100.0], training.AdamW.step

    def a_second(*arguments, **settings):
        now[0] += 1
        return step(*arguments, **settings)

    monkeypatch.setattr(training.AdamW, "step", a_second)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: now[0]))
    killed(2, hard(tiny_config), tmp_path)
    killed(3, hard(tiny_config), tmp_path)
    facts, _ = learn(hard(tiny_config), tmp_path)
    assert facts["earlier_seconds"] == 2 + 1


def test_checkpoints_are_kept_until_the_stage_is_in_its_place(tmp_path, monkeypatch):
    store, key = Store(tmp_path), "a" * 64
    stage = SimpleNamespace(
        kind="train",
        key=key,
        name="a task",
        config=SimpleNamespace(engine=SimpleNamespace(devices=1)),
        identity=dict,
        compute=lambda *_: store.checkpoints(key).mkdir(parents=True) or {},
    )

    @contextmanager
    def described(_, folder):
        yield None, {}
        write_json(folder / "identity.json", {})

    monkeypatch.setattr(devices, "described", described)
    engine = LocalEngine(store)

    def refuse(*_, **__):
        raise OSError("no rename")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(OSError, match="no rename"):
            asyncio.run(engine.run(stage))
    assert store.checkpoints(key).is_dir()
    store.checkpoints(key).rmdir()
    assert asyncio.run(engine.run(stage)).key == key
    assert not store.checkpoints(key).exists()


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return print, ("run",)


def test_a_checkpoint_runs_no_code_and_holds_these_files(tiny_config, tmp_path, killed, capsys):
    killed(1, hard(tiny_config), tmp_path)
    folder = tmp_path / "checkpoint-1"
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "trainable.safetensors", "state.pt"}
    torch.save({"optimizer": Evil()}, folder / "state.pt")
    (folder / "manifest.json").write_text(json.dumps(checkpoints.manifest_of(folder)))
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
        learn(hard(tiny_config), tmp_path)
    assert "run" not in capsys.readouterr().out


def folder_of(scratch: Path, step: int) -> Path:
    folder = scratch / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"step": step}))
    return folder


def test_the_latest_is_told_by_its_number_and_only_whole_ones_count(tmp_path, caplog):
    assert checkpoints.newest(tmp_path / "none") is None
    ninth, tenth = folder_of(tmp_path, 9), folder_of(tmp_path, 10)
    assert checkpoints.newest(tmp_path) is None  # neither is sealed: a kill left them
    assert not list(tmp_path.iterdir())
    for step in (10, 9):  # a clock that jumps would call 9 the later one
        folder = folder_of(tmp_path, step)
        (folder / "manifest.json").write_text(json.dumps(checkpoints.manifest_of(folder)))
    (other := tmp_path / "checkpoint-9 (copy)").mkdir()
    assert checkpoints.newest(tmp_path) == tenth
    assert other.is_dir()  # somebody else's
    assert not caplog.records
    (tenth / "state.json").write_text("{}")
    assert checkpoints.newest(tmp_path) == ninth
    assert "Damaged: " in caplog.text
    assert not tenth.exists()


def step(weight, optimizer, schedule):
    optimizer.zero_grad()
    (weight**3).sum().backward()
    optimizer.step()
    schedule.step()


def new():
    weight = torch.arange(1.0, 4).requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.01)
    return weight, optimizer, LambdaLR(optimizer, lambda n: 1 / (n + 1))


@pytest.mark.parametrize("other", ["name", "shape"])
def test_a_checkpoint_of_other_weights_is_refused(tmp_path, other):
    weight, *rest = new()
    checkpoints.save(tmp_path, {"a": weight}, *rest, [{}], 1.0)
    weights = {"b": weight} if other == "name" else {"a": torch.zeros(2)}
    with pytest.raises(WorkError, match="of other weights"):
        checkpoints.resume(tmp_path, weights, *rest)


def test_optimizer_schedule_and_random_numbers_go_on(tmp_path):
    def draw():
        return random.gauss(0, 1), float(np.random.normal()), torch.rand(3).tolist()

    first = new()
    for _ in range(3):
        step(*first)
    draw()
    history = [{"loss": 0.1}] * 3
    checkpoints.save(tmp_path, {"a": first[0]}, *first[1:], history, 2.5)
    expected = [draw() for _ in range(3)]
    second = new()
    assert checkpoints.resume(tmp_path, {"a": second[0]}, *second[1:]) == (history, 2.5)
    assert [draw() for _ in range(3)] == expected
    for _ in range(3):
        step(*first)
        step(*second)
    assert torch.equal(first[0], second[0])
    assert first[2].get_last_lr() == second[2].get_last_lr()
