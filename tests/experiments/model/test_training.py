"""Training one task: the loss of a step, its independence of the split, and going on after a kill."""

import math
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType

from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import TrainerConfig
from sapo.data.mini import generate
from sapo.data.prompts import Prompt
from sapo.experiments.methods import Context, method_of
from sapo.experiments.model import training
from sapo.experiments.model.adapters import adapter_tensors, plain
from sapo.experiments.model.forward import shared_prefix
from sapo.experiments.model.load import load_model
from sapo.experiments.model.rows import Draws, Row, TrainingTask, training_rows
from sapo.experiments.model.training import optimizer_steps, rate_schedule, train
from sapo.experiments.run import require_ready

SMALL = ("method.dropout=0.0", "trainer.epochs=2", "trainer.global_batch=4", "trainer.learning_rate=1e-2")


def run(config, scratch, n=10, seed=3, prompts=None, redraw=1):
    """Facts of a training from scratch, and the trained weights."""
    language_model = load_model(config)
    task = generate("mini_price", n, 2, 0)
    learned = TrainingTask(task, prompts or (Prompt(task.instruction),))
    context = Context(config, language_model, (learned,), None, 0, seed)
    rows = training_rows(context.renderer, (learned,))
    with plain(language_model.base):
        torch.manual_seed(seed)
        model = method_of(context).start()
        draws = Draws(seed, redraw)
        facts = train(model, rows, config.trainer, draws=draws, scratch=scratch, what="Task t, prompt 2")
        return facts, {key: value.clone() for key, value in adapter_tensors(model, "current").items()}


def test_the_first_loss_is_the_token_mean_of_the_whole_global_batch(tiny_config, tmp_path):
    config = tiny_config(*SMALL, "trainer.global_batch=10", "trainer.epochs=1")
    language_model = load_model(config)
    task = generate("mini_price", 10, 2, 0)
    total, tokens = 0.0, 0
    for example in language_model.renderer(512).render(task, task.instruction, task.train):
        ids = torch.tensor([example.input_ids])
        labels = ids.clone()
        labels[:, : example.target_start] = -100
        with torch.inference_mode():
            mean = language_model.base(input_ids=ids, labels=labels).loss.item()
        total += mean * len(example.target_ids)
        tokens += len(example.target_ids)
    facts, _ = run(config, tmp_path / "scratch")
    assert facts["losses"] == [pytest.approx(total / tokens, rel=1e-5)]


def test_a_plain_loop_over_single_rows_trains_the_same(tiny_config, tmp_path):
    """What the figures mean, in plain PyTorch: no cache, no padding, no Accelerate."""
    config = tiny_config(*SMALL)
    facts, weights = run(config, tmp_path)
    language_model = load_model(config)
    task = generate("mini_price", 10, 2, 0)
    rows = language_model.renderer(config.data.max_input_tokens).render(task, task.instruction, task.train)
    learned = (TrainingTask(task, (Prompt(task.instruction),)),)
    losses = []
    with plain(language_model.base):
        torch.manual_seed(3)
        model = method_of(Context(config, language_model, learned, None, 0, 3)).start().train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.0)
        for step in range(6):
            epoch, batch = divmod(step, 3)
            order = torch.randperm(10, generator=torch.Generator().manual_seed(3 + epoch)).tolist()
            chosen = [rows[index] for index in order[4 * batch : 4 * batch + 4]]
            n_tokens = sum(len(row.target_ids) for row in chosen)
            losses.append(0.0)
            for row in chosen:
                ids = torch.tensor([row.input_ids])
                labels = ids.clone()
                labels[:, : row.target_start] = -100
                loss = model(input_ids=ids, labels=labels).loss * len(row.target_ids) / n_tokens
                loss.backward()
                losses[-1] += loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            # Cosine after one step of warm-up, which has rate 0.
            rate = 0.0 if step == 0 else 0.5 * (1 + math.cos(math.pi * (step - 1) / 5))
            optimizer.param_groups[0]["lr"] = 1e-2 * rate
            optimizer.step()
            optimizer.zero_grad()
        others = {key: value.clone() for key, value in adapter_tensors(model, "current").items()}
    assert facts["losses"] == pytest.approx(losses, rel=1e-5)
    for key, value in weights.items():
        assert (others[key] - value).norm() <= 1e-3 * value.norm()


@pytest.mark.parametrize(
    "change",
    [
        "trainer.micro_batch_tokens=1",
        "trainer.micro_batch_tokens=90",
        "trainer.shared_prefix=false",
        "trainer.gradient_checkpointing=true",
    ],
)
def test_split_prefix_and_checkpointing_do_not_change_the_result(tiny_config, tmp_path, change):
    facts, weights = run(tiny_config(*SMALL), tmp_path / "a")
    other_facts, other = run(tiny_config(*SMALL, change), tmp_path / "b")
    assert other_facts["losses"] == pytest.approx(facts["losses"], rel=1e-4)
    again, _ = run(tiny_config(*SMALL), tmp_path / "c")  # on the same loaded model: nothing stays switched on
    assert again["losses"] == facts["losses"]
    for key, value in weights.items():
        assert (other[key] - value).norm() <= 1e-3 * value.norm()


@pytest.mark.parametrize(
    ("change", "times"),
    [
        ("trainer.micro_batch_tokens=90", 6),  # once a global batch, however many micro-batches it has
        ("trainer.shared_prefix=false", 0),
        ("trainer.gradient_checkpointing=true", 0),
    ],
)
def test_the_beginning_is_read_once_a_global_batch(tiny_config, tmp_path, monkeypatch, change, times):
    read = []

    def note(model, examples):
        prefix = shared_prefix(model, examples)
        read.append(prefix is not None)
        return prefix

    monkeypatch.setattr(training, "shared_prefix", note)
    run(tiny_config(*SMALL, change), tmp_path / "a", n=12)
    assert read == [True] * times


def test_a_training_of_one_step_is_not_all_warm_up(tiny_config, tmp_path):
    config = tiny_config(*SMALL, "trainer.global_batch=10", "trainer.epochs=1", "trainer.warmup_ratio=0.5")
    facts, weights = run(config, tmp_path / "scratch")
    assert facts["steps"] == 1
    assert any(value.any() for key, value in weights.items() if "lora_B" in key)


def test_training_lowers_the_loss_and_counts_its_work(tiny_config, tmp_path):
    facts, _ = run(tiny_config(*SMALL, "trainer.epochs=6"), tmp_path / "a")
    assert facts["steps"] == len(facts["losses"]) == 6 * 3
    assert sum(facts["losses"][-3:]) < 0.9 * sum(facts["losses"][:3])
    assert facts["trainable_parameters"] == 2 * (8 * (32 + 32) + 8 * (32 + 16))  # two layers: q and v


class KillError(Exception):
    """In the place of a kill."""


@pytest.fixture
def killed(monkeypatch):
    """`killed(step, …)`: a training that dies before a step."""

    def until(step, *args, **kwargs):
        def dies(rows, config, draws, number, batch=training.global_batch):
            if number == step:
                raise KillError
            return batch(rows, config, draws, number)

        with monkeypatch.context() as patch:
            patch.setattr(training, "global_batch", dies)
            with pytest.raises(KillError):
                run(*args, **kwargs)

    return until


def test_a_killed_training_goes_on_to_the_same_weights(tiny_config, tmp_path, killed):
    config = tiny_config(*SMALL, "method.dropout=0.3", "trainer.checkpoint_steps=2")
    expected, weights = run(config, tmp_path / "undisturbed")
    killed(3, config, tmp_path / "killed")
    assert (tmp_path / "killed" / "checkpoint-2").is_dir()
    # A second kill, while a later checkpoint was being written.
    (tmp_path / "killed" / "checkpoint-4").mkdir()
    (tmp_path / "killed" / "checkpoint-4" / "trainable.safetensors").write_bytes(b"")
    resumed, other = run(config, tmp_path / "killed")
    assert resumed["losses"] == expected["losses"]
    assert all(torch.equal(other[key], value) for key, value in weights.items())


def test_drawn_prompts_change_with_epoch_and_block_and_survive_a_kill(
    tiny_config, tmp_path, monkeypatch, killed
):
    config = tiny_config(*SMALL, "trainer.checkpoint_steps=2")
    prompts = tuple(Prompt(text, i) for i, text in enumerate(("Name the price.", "How much?", "Cost:")))
    seen: list[tuple[int, int, int]] = []
    drawn_prompt = Draws.prompt

    def note(self, row, epoch, place):
        seen.append((epoch, place, drawn_prompt(self, row, epoch, place)))
        return seen[-1][2]

    monkeypatch.setattr(Draws, "prompt", note)
    expected, weights = run(config, tmp_path / "a", prompts=prompts, redraw=2)
    assert [pair[:2] for pair in seen] == [(epoch, place) for epoch in range(2) for place in range(10)]
    drawn = {pair[:2]: pair[2] for pair in seen}
    assert all(
        drawn[epoch, place] == drawn[epoch, place + 1] for epoch in range(2) for place in range(0, 10, 2)
    )
    assert [drawn[0, place] for place in range(10)] != [drawn[1, place] for place in range(10)]
    assert set(drawn.values()) == {0, 1, 2}
    killed(4, config, tmp_path / "b", prompts=prompts, redraw=2)
    resumed, other = run(config, tmp_path / "b", prompts=prompts, redraw=2)
    assert resumed["losses"] == expected["losses"]
    assert all(torch.equal(other[key], value) for key, value in weights.items())


def test_rows_under_several_prompts_train_as_the_plain_path_does(tiny_config, tmp_path):
    prompts = tuple(Prompt(text, i) for i, text in enumerate(("Name the price.", "How much is it?")))
    facts, weights = run(tiny_config(*SMALL), tmp_path / "a", prompts=prompts)
    plainly, other = run(tiny_config(*SMALL, "trainer.shared_prefix=false"), tmp_path / "b", prompts=prompts)
    assert plainly["losses"] == pytest.approx(facts["losses"], rel=1e-4)
    for key, value in weights.items():
        assert (other[key] - value).norm() <= 1e-3 * value.norm()


def test_replayed_rows_keep_their_own_frame_and_prompt(tiny_config):
    config = tiny_config()
    renderer = load_model(config).renderer(512)
    price, city = generate("mini_price", 3, 2, 0), generate("mini_city", 3, 2, 0)
    earlier = TrainingTask(city, (Prompt("Where is it?", 4),))
    rows = training_rows(renderer, (TrainingTask(price, (Prompt("How much?"),)),), [(earlier, city.train[2])])
    expected = [
        *renderer.render(price, "How much?", price.train),
        *renderer.render(city, "Where is it?", city.train[2:]),
    ]
    assert rows == [Row((rendered,), group) for rendered, group in zip(expected, (0, 0, 0, 1), strict=True)]


def test_a_step_that_does_not_fit_starts_over_in_smaller_batches(tiny_config, tmp_path, monkeypatch):
    expected, weights = run(tiny_config(*SMALL), tmp_path / "a")
    whole = training.target_logits

    def small_memory(model, batch, prefix):
        if len(batch) > 2:
            raise torch.OutOfMemoryError("too large")
        return whole(model, batch, prefix)

    monkeypatch.setattr(training, "target_logits", small_memory)
    facts, other = run(tiny_config(*SMALL), tmp_path / "b")
    assert facts["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    for key, value in weights.items():
        assert (other[key] - value).norm() <= 1e-3 * value.norm()


def test_a_loss_that_is_not_finite_stops_with_task_prompt_and_step(tiny_config, tmp_path):
    config = tiny_config(*SMALL, "trainer.learning_rate=1e30", "trainer.max_grad_norm=1e30")
    with pytest.raises(WorkError, match=r"Task t, prompt 2: the loss at step \d+ is (nan|inf)"):
        run(config, tmp_path / "a")


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
    facts, _ = run(tiny_config(*small), tmp_path / "a", n=24)
    fewer, _ = run(tiny_config(*small, "trainer.step_count=floor"), tmp_path / "b", n=24)
    assert (facts["steps"], fewer["steps"]) == (4, 2)
    assert fewer["losses"] == facts["losses"][:2]
    assert fewer["tokens"] == facts["tokens"] / 2


def rates(steps, warmup_ratio, schedule):
    """The learning rate of every step, as a share of the peak."""
    config = TrainerConfig("t", learning_rate=0.5, schedule=schedule, warmup_ratio=warmup_ratio)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    schedule = rate_schedule(optimizer, config, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"] / config.learning_rate)
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


@pytest.mark.parametrize(
    ("schedule", "steps", "expected"),
    [
        ("cosine", 1, [1.0]),
        ("warmup_log_constant", 1, [1.0]),
        ("warmup_log_constant", 2, [1.0, 1.0]),
        ("warmup_log_constant", 3, [0.0, 0.0, 1.0]),
    ],
)
def test_no_training_has_rate_0_throughout(schedule, steps, expected):
    assert rates(steps, 0.05, schedule) == pytest.approx(expected)


class Tracker(GeneralTracker):
    """In the place of TensorBoard."""

    name = "tensorboard"
    requires_logging_directory = True
    seen: ClassVar[list] = []

    def __init__(self, run_name, logging_dir, **_):
        super().__init__()
        self.seen.append((run_name, Path(logging_dir)))

    tracker = None

    def start(self): ...

    def store_init_configuration(self, values):
        self.seen.append(values)

    def log(self, values, step, **_):
        self.seen.append((step, values))


def test_a_tracker_gets_every_step(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TENSORBOARD])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Tracker)
    monkeypatch.setattr(Tracker, "seen", [])
    config = tiny_config(*SMALL, "trainer.report_to=[tensorboard]")
    facts, _ = run(config, tmp_path / "checkpoints" / ("a" * 64))
    begun, values, *steps = Tracker.seen
    assert begun == ("sapo", tmp_path / "trackers" / ("a" * 12))
    assert (values["learning_rate"], values["what"]) == (1e-2, "Task t, prompt 2")
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5, 6]
    assert [values["loss"] for _, values in steps] == facts["losses"]


def test_a_tracker_that_is_not_there_is_named(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_available_trackers", [])
    config = tiny_config(*SMALL, "trainer.report_to=[wandb]", "policy=static")
    for refuse in (lambda: run(config, tmp_path), lambda: require_ready([config])):
        with pytest.raises(UserError, match=r"trainer\.report_to=wandb: not installed"):
            refuse()
