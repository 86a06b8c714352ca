"""A training goes on from its checkpoint as if nothing had happened, and no checkpoint runs code."""

import asyncio
import itertools
import json
import pickle
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from sapo.conf.errors import WorkError
from sapo.data.files import write_json
from sapo.data.mini import generate
from sapo.data.prompts import Prompt
from sapo.experiments.engine import local
from sapo.experiments.engine.store import Store
from sapo.experiments.methods import Context, method_of
from sapo.experiments.model import checkpoints, training
from sapo.experiments.model.adapters import adapter_tensors, plain
from sapo.experiments.model.load import load_model
from sapo.experiments.model.rows import Draws, TrainingTask, training_rows
from sapo.experiments.model.training import train

HARD = (  # everything that draws: dropout, the order of the rows, a prompt for every example
    "method.dropout=0.3",
    "policy=paft",
    "trainer.epochs=2",
    "trainer.global_batch=4",
    "trainer.checkpoint_steps=1",
    "trainer.schedule=cosine",
)


class KillError(Exception):
    """In the place of a kill."""


def run(config, scratch):
    language_model = load_model(config)
    task = generate("mini_price", 10, 2, 0)
    learned = TrainingTask(
        task, tuple(Prompt(text, i) for i, text in enumerate(("Name the price.", "Cost:")))
    )
    context = Context(config, language_model, (learned,), None, 0, 3)
    rows = training_rows(context.renderer, (learned,))
    with plain(language_model.base):
        torch.manual_seed(3)
        model = method_of(context).start()
        facts = train(model, rows, config.trainer, draws=Draws(3, 2), scratch=scratch, what="Task t")
        return facts, {key: value.clone() for key, value in adapter_tensors(model, "current").items()}


def killed_at(config, scratch, step, monkeypatch):
    """Trains until a step, and dies before it."""

    def dies(rows, config, draws, number, batch=training.global_batch):
        if number == step:
            raise KillError
        return batch(rows, config, draws, number)

    with monkeypatch.context() as patch:
        patch.setattr(training, "global_batch", dies)
        with pytest.raises(KillError):
            run(config, scratch)


def refuse(*_, **__):
    raise OSError("no rename")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What a training that nothing disturbs leaves: made once, by the first test's config."""
    return {"scratch": tmp_path_factory.mktemp("undisturbed")}


def undisturbed(expected, config):
    if "facts" not in expected:
        expected["facts"], expected["weights"] = run(config, expected["scratch"])
    return expected["facts"], expected["weights"]


@pytest.mark.parametrize("step", [2, 3, 5])
def test_the_resumed_training_is_the_undisturbed_one_to_the_bit(
    tiny_config, tmp_path, monkeypatch, expected, step
):
    """Killed within an epoch, between epochs (three steps each) and before the last step."""
    config = tiny_config(*HARD)
    facts, weights = undisturbed(expected, config)
    assert facts["steps"] == 6
    killed_at(config, tmp_path, step, monkeypatch)
    assert [path.name for path in tmp_path.iterdir()] == [f"checkpoint-{step}"]
    resumed, others = run(config, tmp_path)
    assert resumed.pop("earlier_seconds") > 0
    assert resumed == facts
    assert all(torch.equal(others[key], value) for key, value in weights.items())


def test_a_training_that_was_killed_after_its_last_step_only_has_to_be_stored(tiny_config, expected):
    config = tiny_config(*HARD)
    facts, weights = undisturbed(expected, config)
    assert [path.name for path in expected["scratch"].iterdir()] == ["checkpoint-6"]
    resumed, others = run(config, expected["scratch"])
    assert resumed.pop("earlier_seconds") > 0
    assert resumed == facts
    assert all(torch.equal(others[key], value) for key, value in weights.items())


def test_the_seconds_of_earlier_parts_count_up_to_their_last_checkpoint(tiny_config, tmp_path, monkeypatch):
    """A second passes from one look at the clock to the next: at the start, and at each checkpoint."""
    clock = itertools.count(100.0)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    config = tiny_config(*HARD)
    killed_at(config, tmp_path, 2, monkeypatch)
    killed_at(config, tmp_path, 3, monkeypatch)
    facts, _ = run(config, tmp_path)
    assert facts["earlier_seconds"] == 2 + 1


def test_checkpoints_are_kept_until_the_stage_is_in_its_place(tmp_path, monkeypatch):
    store, key = Store(tmp_path), "a" * 64
    stage = SimpleNamespace(
        kind="train",
        key=key,
        name="a task",
        config=None,
        identity=dict,
        compute=lambda *_: store.checkpoints(key).mkdir(parents=True),
    )
    monkeypatch.setattr(local, "load_model", lambda config: None)
    monkeypatch.setattr(local, "_describe", lambda *facts: write_json(facts[-1] / "identity.json", {}))
    engine = local.LocalEngine(store)
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


def test_a_checkpoint_runs_no_code_and_holds_these_files(tiny_config, tmp_path, monkeypatch, capsys):
    killed_at(tiny_config(*HARD), tmp_path, 1, monkeypatch)
    folder = tmp_path / "checkpoint-1"
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "trainable.safetensors", "state.pt"}
    torch.save({"optimizer": Evil()}, folder / "state.pt")
    (folder / "manifest.json").write_text(json.dumps(checkpoints.manifest_of(folder)))
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
        run(tiny_config(*HARD), tmp_path)
    assert "run" not in capsys.readouterr().out


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_a_damaged_checkpoint_is_named_and_never_used(tiny_config, tmp_path, monkeypatch, expected, caplog):
    config = tiny_config(*HARD)
    facts, weights = undisturbed(expected, config)
    killed_at(config, tmp_path, 2, monkeypatch)
    flip(tmp_path / "checkpoint-2" / "state.pt")
    resumed, others = run(config, tmp_path)
    assert "state.pt is not what was stored" in caplog.text
    assert resumed == facts
    assert all(torch.equal(others[key], value) for key, value in weights.items())


def folder_of(scratch: Path, step: int) -> Path:
    folder = scratch / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"step": step}))
    return folder


def test_the_latest_is_told_by_its_number_and_only_whole_ones_count(tmp_path):
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
    (tenth / "state.json").write_text("{}")
    assert checkpoints.newest(tmp_path) == ninth


def step(weight, optimizer, schedule):
    optimizer.zero_grad()
    (weight**3).sum().backward()
    optimizer.step()
    schedule.step()


def new(kind=torch.optim.AdamW, size=3):
    weight = torch.arange(1.0, size + 1).requires_grad_()
    optimizer = kind([weight], lr=0.1, weight_decay=0.01)
    return weight, optimizer, LambdaLR(optimizer, lambda n: 1 / (n + 1))


@pytest.mark.parametrize("other", ["name", "shape"])
def test_a_checkpoint_of_other_weights_is_refused(tmp_path, other):
    weight, *rest = new()
    checkpoints.save(tmp_path, {"a": weight}, *rest, [{}], 1.0)
    weights = {"b": weight} if other == "name" else {"a": torch.zeros(2)}
    with pytest.raises(WorkError, match="of other weights"):
        checkpoints.resume(tmp_path, weights, *rest)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_optimizer_schedule_and_random_numbers_go_on(tmp_path, kind):
    def draw():
        return random.gauss(0, 1), float(np.random.normal()), torch.rand(3).tolist()

    first = new(kind)
    for _ in range(3):
        step(*first)
    draw()
    history = [{"loss": 0.1}] * 3
    checkpoints.save(tmp_path, {"a": first[0]}, *first[1:], history, 2.5)
    expected = [draw() for _ in range(3)]
    second = new(kind)
    assert checkpoints.resume(tmp_path, {"a": second[0]}, *second[1:]) == (history, 2.5)
    assert [draw() for _ in range(3)] == expected
    for _ in range(3):
        step(*first)
        step(*second)
    assert torch.equal(first[0], second[0])
    assert first[2].get_last_lr() == second[2].get_last_lr()
