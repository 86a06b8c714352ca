"""Training one task: the loss of a step, its independence of the split, and what a training counts."""

import json
import math

import pytest
import torch
import yaml
from accelerate import tracking
from trainings import close, learn, plain_nll, price_method, rows_of

from sapo.conf.errors import UserError, WorkError
from sapo.conf.load import load_one
from sapo.conf.schema import TrainerConfig
from sapo.data.mini import generate
from sapo.data.prompts import Prompt
from sapo.data.records import PROGRESS
from sapo.data.render import Rendered
from sapo.experiments.model import forward, training
from sapo.experiments.model.adapters import adapter_tensors, plain
from sapo.experiments.model.forward import shared_prefix
from sapo.experiments.model.load import load_model
from sapo.experiments.model.rows import Row, TrainingTask, training_rows
from sapo.experiments.model.training import optimizer_steps, rate_schedule
from sapo.experiments.run import require_ready

SMALL = ("method.dropout=0.0", "trainer.epochs=2", "trainer.global_batch=4", "trainer.learning_rate=1e-2")
TWO = (Prompt("Name the price.", 0), Prompt("How much is it?", 1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What `SMALL` leaves."""
    config = load_one(["model=tiny_llama", "engine.device=cpu", *SMALL])
    return learn(price_method(config), tmp_path_factory.mktemp("whole"))


def test_a_plain_loop_over_single_rows_trains_the_same(tiny_config, whole):
    """What the figures mean, in plain PyTorch: no cache, no padding, no Accelerate.

    The loss of a step is the token mean of the whole global batch.
    """
    facts, weights = whole
    method = price_method(tiny_config(*SMALL))
    rows = [row.rendered[0] for row in rows_of(method)]
    losses = []
    with plain(method.context.language_model.base):
        torch.manual_seed(3)
        model = method.start().train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.0)
        for step in range(6):
            epoch, batch = divmod(step, 3)
            order = torch.randperm(10, generator=torch.Generator().manual_seed(3 + epoch)).tolist()
            chosen = [rows[index] for index in order[4 * batch : 4 * batch + 4]]
            n_tokens = sum(len(row.target_ids) for row in chosen)
            losses.append(0.0)
            for row in chosen:
                loss = plain_nll(model, row) / n_tokens
                loss.backward()
                losses[-1] += loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            # Cosine after one step of warm-up, which has rate 0.
            rate = 0.0 if step == 0 else 0.5 * (1 + math.cos(math.pi * (step - 1) / 5))
            optimizer.param_groups[0]["lr"] = 1e-2 * rate
            optimizer.step()
            optimizer.zero_grad()
        assert close(adapter_tensors(model, "current"), weights)
    assert facts["losses"] == pytest.approx(losses, rel=1e-5)
    assert facts["steps"] == 6
    assert facts["trainable_parameters"] == 2 * (8 * (32 + 32) + 8 * (32 + 16))  # two layers: q and v


@pytest.mark.parametrize(
    ("change", "times"),
    [
        ("trainer.micro_batch_tokens=1", 6),  # once a global batch, however many micro-batches it has
        ("trainer.micro_batch_tokens=90", 6),
        ("trainer.shared_prefix=false", 0),
        ("trainer.gradient_checkpointing=true", 0),
    ],
)
def test_split_prefix_and_checkpointing_do_not_change_the_result(
    tiny_config, tmp_path, monkeypatch, whole, change, times
):
    facts, weights = whole
    read = []

    def note(model, examples, wanted):
        prefix = shared_prefix(model, examples, wanted)
        read.append(prefix.length > 0)
        return prefix

    monkeypatch.setattr(forward, "shared_prefix", note)
    other_facts, other = learn(price_method(tiny_config(*SMALL, change)), tmp_path)
    assert other_facts["losses"] == pytest.approx(facts["losses"], rel=1e-4)
    assert close(other, weights)
    assert sum(read) == times
    base = load_model(tiny_config()).base
    assert not any(getattr(module, "gradient_checkpointing", False) for module in base.modules())


def test_prompts_are_drawn_anew_each_block_and_epoch():
    """By the place in training order: equal rows show which prompt stands where."""
    config = TrainerConfig("t", global_batch=4)
    rows = [Row(tuple(Rendered([prompt], 0) for prompt in range(3)), 0)] * 40
    batches = [training.global_batch(rows, config, 3, 4, step) for step in range(20)]
    assert [[len(group) for group in groups] for groups in batches] == [[4]] * 20  # a block has one prompt
    drawn = [groups[0][0].input_ids[0] for groups in batches]
    assert set(drawn) == {0, 1, 2}
    assert drawn[:10] != drawn[10:]
    assert max(len(training.global_batch(rows, config, 3, 1, step)) for step in range(10)) == 3


@pytest.mark.parametrize("layout", ["null", "system", "{input} {instruction}"])
def test_rows_under_several_prompts_train_as_the_plain_path_does(tiny_config, tmp_path, layout):
    ways = ((*SMALL, f"data.layout={layout}", f"trainer.shared_prefix={share}") for share in (True, False))
    methods = [price_method(tiny_config(*way), prompts=TWO) for way in ways]
    (facts, weights), (plainly, other) = (learn(each, tmp_path / str(i)) for i, each in enumerate(methods))
    assert plainly["losses"] == pytest.approx(facts["losses"], rel=1e-4)
    assert close(other, weights)


def test_replayed_rows_keep_their_own_frame_and_prompt(tiny_config):
    config = tiny_config()
    renderer = load_model(config).renderer(config.data)
    price, city = generate("mini_price", 3, 2, 0), generate("mini_city", 3, 2, 0)
    earlier = TrainingTask(city, (Prompt("Where is it?", 4),))
    rows = training_rows(renderer, (TrainingTask(price, (Prompt("How much?"),)),), [(earlier, city.train[2])])
    expected = renderer.render(price, "How much?", price.train)
    expected += renderer.render(city, "Where is it?", city.train[2:])
    assert rows == [Row((rendered,), group) for rendered, group in zip(expected, (0, 0, 0, 1), strict=True)]


def test_a_step_that_does_not_fit_starts_over_in_smaller_batches(tiny_config, tmp_path, monkeypatch, whole):
    expected, weights = whole
    target_logits = forward.target_logits

    def small_memory(model, batch, prefix):
        if len(batch) > 2:
            raise torch.OutOfMemoryError("too large")
        return target_logits(model, batch, prefix)

    monkeypatch.setattr(forward, "target_logits", small_memory)
    facts, other = learn(price_method(tiny_config(*SMALL)), tmp_path)
    assert facts["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert close(other, weights)


def test_a_loss_that_is_not_finite_stops_with_task_prompt_and_step(tiny_config, tmp_path):
    config = tiny_config(*SMALL, "trainer.learning_rate=1e30", "trainer.max_grad_norm=1e30")
    with pytest.raises(WorkError, match=r"Task t, prompt 2: the loss at step \d+ is (nan|inf)"):
        learn(price_method(config), tmp_path)


@pytest.mark.parametrize(
    ("n_rows", "global_batch", "ceil", "floor"),
    [(1000, 64, 160, 150), (3000, 64, 470, 460), (1020, 64, 160, 160), (48, 8, 60, 60), (10, 64, 10, 10)],
)
def test_steps_are_counted_as_the_paper_or_its_code_does(n_rows, global_batch, ceil, floor):
    """SuperNI, TRACE; and 1,020 rows are 128 batches of 8, so 16 whole accumulations."""
    for count, steps in (("ceil", ceil), ("floor", floor)):
        config = TrainerConfig("t", epochs=10, global_batch=global_batch, step_count=count)
        assert optimizer_steps(n_rows, config) == steps


def test_with_fewer_steps_the_last_pass_ends_early(tiny_config, tmp_path):
    """24 rows in steps of 16: 3 batches of 8 are one whole accumulation a pass: 2 steps in all."""
    small = (*SMALL, "trainer.global_batch=16", "trainer.schedule=constant")
    facts, _ = learn(price_method(tiny_config(*small), n=24), tmp_path / "a")
    fewer, _ = learn(price_method(tiny_config(*small, "trainer.step_count=floor"), n=24), tmp_path / "b")
    assert (facts["steps"], fewer["steps"]) == (4, 2)
    assert fewer["losses"] == facts["losses"][:2]
    assert fewer["tokens"] == facts["tokens"] / 2


def rates(steps, warmup_ratio, schedule):
    """The learning rate of every step, as a share of the peak."""
    config = TrainerConfig("t", learning_rate=0.5, schedule=schedule, warmup_ratio=warmup_ratio)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    schedule, found = rate_schedule(optimizer, config, steps), []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0] / config.learning_rate)
        optimizer.step()
        schedule.step()
    return found


def test_schedules():
    """20 steps, 4 of them warm-up."""
    cosine = rates(20, 0.2, "cosine")
    assert cosine[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])
    assert cosine[12] == pytest.approx(0.5)
    assert rates(20, 0.2, "linear")[3:6] == pytest.approx([0.75, 1.0, 15 / 16])
    assert rates(20, 0.2, "constant")[3:] == [0.75] + 16 * [1.0]
    # DeepSpeed's WarmupLR has rate 0 twice: ln(max(k, 1)) / ln(warm-up) at step k, from 0.
    logarithmic = rates(160, 0.05, "warmup_log_constant")
    ln = [0, 0, 1 / 3, 0.528321, 2 / 3, 0.773976, 0.861654, 0.935785]
    assert logarithmic[:8] == pytest.approx(ln, abs=1e-6)
    assert set(logarithmic[8:]) == {1.0}
    # No training has rate 0 throughout.
    assert rates(1, 0.05, "cosine") == [1.0]
    for few in ([1.0], [1.0, 1.0], [0.0, 0.0, 1.0]):
        assert rates(len(few), 0.05, "warmup_log_constant") == few


def test_a_training_leaves_how_far_it_is_for_those_who_watch(tiny_config, tmp_path, monkeypatch):
    """While it goes on: one that fails leaves nothing either."""
    monkeypatch.setattr(training, "SECONDS", 0.0)
    method, scratch, told = price_method(tiny_config(*SMALL)), tmp_path / "checkpoints", []

    def look(model):
        told.extend([json.loads(path.read_bytes()) for path in scratch.glob(PROGRESS)])
        if len(told) == 3:
            raise WorkError("stopped")

    monkeypatch.setattr(method, "penalty", look)
    with pytest.raises(WorkError, match="stopped"):
        learn(method, scratch)
    assert [(facts["step"], facts["steps"]) for facts in told] == [(1, 6), (2, 6), (3, 6)]
    assert all(facts["left"] > 0 and facts["loss"] > 0 for facts in told)
    assert not scratch.exists()


@pytest.mark.slow
def test_tensorboard_has_every_loss_and_the_settings(tiny_config, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = tiny_config(*SMALL, "trainer.report_to=[tensorboard]")
    facts, _ = learn(price_method(config), tmp_path / "checkpoints" / ("a" * 64))
    folder = tmp_path / "trackers" / ("a" * 12) / "sapo"
    events = reader.EventAccumulator(str(folder)).Reload().Scalars("loss")
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in events] == pytest.approx(facts["losses"])
    values = yaml.safe_load(next(folder.rglob("hparams.yml")).read_text())
    assert (values["learning_rate"], values["what"]) == (1e-2, "Task t, prompt 2")


@pytest.mark.slow
def test_trackio_itself_has_every_loss(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    config = tiny_config(*SMALL, "trainer.report_to=[trackio]")
    facts, _ = learn(price_method(config), tmp_path / "checkpoints" / ("a" * 64))
    (run,) = storage.get_runs("sapo")
    assert [row["loss"] for row in storage.get_logs("sapo", run)] == pytest.approx(facts["losses"])


def test_a_tracker_that_is_not_there_is_named(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_available_trackers", [])
    config = tiny_config(*SMALL, "trainer.report_to=[wandb]", "policy=static")
    for refuse in (lambda: learn(price_method(config), tmp_path), lambda: require_ready([config])):
        with pytest.raises(UserError, match=r"trainer\.report_to=wandb: not installed"):
            refuse()
