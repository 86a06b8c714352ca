"""A training goes on from its checkpoint as if nothing had happened, and no checkpoint runs code."""

import asyncio
import json
import pickle
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from trainings import learn, price_method, same

from sapo.conf.errors import WorkError
from sapo.data.benchmarks import load_tasks
from sapo.data.prompts import Prompt
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store
from sapo.experiments.model import checkpoints, training
from sapo.experiments.model.rows import TrainingTask
from sapo.experiments.stages import Train

HARD = (  # everything that draws: dropout, the order of the rows, a prompt for every second example
    "method.dropout=0.3", "trainer.epochs=2", "trainer.global_batch=4", "trainer.checkpoint_steps=1",
    "trainer.schedule=cosine",
)  # fmt: skip
PROMPTS = (Prompt("Name the price.", 0), Prompt("Cost:", 1))


def hard(tiny_config):
    return price_method(tiny_config(*HARD), prompts=PROMPTS)


def test_the_resumed_training_is_the_undisturbed_one_to_the_bit(tiny_config, tmp_path, killed):
    """Killed within an epoch, between epochs (three steps each), before the last step and after it."""
    facts, weights = learn(hard(tiny_config), tmp_path / "6", 2)
    assert facts["steps"] == 6
    for step in (2, 3, 5, 6):
        scratch = tmp_path / str(step)
        if step < 6:
            killed(step, hard(tiny_config), scratch, 2)
        assert [path.name for path in scratch.iterdir() if path.is_dir()] == [f"checkpoint-{step}"]
        resumed, others = learn(hard(tiny_config), scratch, 2)
        assert resumed.pop("earlier_seconds") > 0
        assert resumed == facts
        assert same(others, weights)


def test_the_seconds_of_earlier_parts_count_up_to_their_last_checkpoint(
    tiny_config, tmp_path, monkeypatch, killed
):
    """A second passes in each step."""
    steps, batch = [], training.global_batch
    monkeypatch.setattr(training, "global_batch", lambda *given: steps.append(given) or batch(*given))
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: float(len(steps))))
    killed(2, hard(tiny_config), tmp_path)
    killed(3, hard(tiny_config), tmp_path)
    facts, _ = learn(hard(tiny_config), tmp_path)
    assert facts["earlier_seconds"] == 2 + 1


def test_checkpoints_are_kept_until_the_stage_is_in_its_place(tiny_config, tmp_path, monkeypatch):
    config, store = tiny_config("trainer.checkpoint_steps=1"), Store(tmp_path)
    task = load_tasks(config)[0][0]
    stage = Train(config, "base", 0, (TrainingTask(task, PROMPTS[:1]),))

    def refuse(*_, **__):
        raise OSError("no rename")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(OSError, match="no rename"):
            asyncio.run(LocalEngine(store).run(stage))
    assert store.checkpoints(stage.key).is_dir()
    assert asyncio.run(LocalEngine(store).run(stage)).result.earlier_seconds > 0
    assert not store.checkpoints(stage.key).exists()


def test_a_checkpoint_runs_no_code_and_holds_these_files(tiny_config, tmp_path, killed):
    killed(1, hard(tiny_config), tmp_path)
    folder = tmp_path / "checkpoint-1"
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "trainable.safetensors", "state.pt"}
    torch.save({"optimizer": print}, folder / "state.pt")  # code, even if it is not run yet
    (folder / "manifest.json").write_text(json.dumps(checkpoints.manifest_of(folder)))
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
        learn(hard(tiny_config), tmp_path)


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


def new(value):
    weight = torch.full((3,), value).requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    return weight, optimizer, LambdaLR(optimizer, lambda n: 1 / (n + 1))


def test_weights_and_random_numbers_go_on_and_other_weights_are_refused(tmp_path):
    def draw():
        return random.gauss(0, 1), float(np.random.normal()), torch.rand(3).tolist()

    weight, *rest = new(1.0)
    draw()
    checkpoints.save(tmp_path, {"a": weight}, *rest, [{"loss": 0.1}] * 3, 2.5)
    expected = [draw() for _ in range(3)]
    other, *rest = new(2.0)
    assert checkpoints.resume(tmp_path, {"a": other}, *rest) == ([{"loss": 0.1}] * 3, 2.5)
    assert [draw() for _ in range(3)] == expected
    assert torch.equal(other, weight)
    for weights in ({"b": torch.zeros(3)}, {"a": torch.zeros(2)}):
        with pytest.raises(WorkError, match="of other weights"):
            checkpoints.resume(tmp_path, weights, *rest)


def test_a_checkpoint_of_an_earlier_version_is_not_gone_on_from(tmp_path, caplog):
    weight, *rest = new(1.0)
    checkpoints.save(tmp_path, {"a": weight}, *rest, [{"loss": 0.1}], 2.5)
    folder = tmp_path / "checkpoint-1"
    state = torch.load(folder / "state.pt", weights_only=True)
    torch.save(state | state.pop("random")[0], folder / "state.pt")
    (folder / "manifest.json").write_text(json.dumps(checkpoints.manifest_of(folder)))
    other, *rest = new(2.0)
    assert checkpoints.resume(tmp_path, {"a": other}, *rest) == ([], 0.0)
    assert other.tolist() == [2.0] * 3
    assert "is of an earlier version of sapo. The training begins anew." in caplog.text
