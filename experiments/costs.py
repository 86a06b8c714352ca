"""What stages take: their work in tokens, and the rates of a device, measured or stated.

Work is counted as the model room computes it: what all rows of a prompt begin with once, then each row's own
tokens, then the steps of generation. A forward pass costs as much as some more tokens (`pass_tokens`).

Rates are measured in a minute through the stages themselves. Each kind is run with 1, 4, 16, … rows of a
task, and last with as many as its share of the time is enough for: the first says what a stage takes whatever
its size, the last what its rows take. The state is one that training has left, so that adapters of earlier
tasks, the method's penalty and the comparison with the untouched model are in it.
"""

import asyncio
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from sapo.conf.errors import UserError
from sapo.conf.names import plain
from sapo.conf.schema import Config
from sapo.data.benchmarks import load_tasks
from sapo.data.files import write_json
from sapo.data.prompts import Prompt
from sapo.data.remembering import remembered
from sapo.data.tasks import Example, Task, digest
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store
from sapo.experiments.methods import METHODS
from sapo.experiments.model import budgets, preflight
from sapo.experiments.model.fetch import cache_folder, model_folder
from sapo.experiments.model.forward import pass_tokens, prefix_length
from sapo.experiments.model.identity import device_of, looked_at_once, model_identity
from sapo.experiments.model.load import load_model
from sapo.experiments.model.memory import adapter_bytes, sizes_of
from sapo.experiments.model.rows import TrainingTask
from sapo.experiments.model.scoring import FIRST_ROUND
from sapo.experiments.model.training import optimizer_steps
from sapo.experiments.stages import BASE, Evaluate, Gradient, Score, Stage, Train

# Rules of thumb where a model is not here: English text in subword tokens, and the template's part of a turn.
CHARACTERS_A_TOKEN, TEMPLATE_TOKENS = 4.0, 40
_SAMPLE = 64  # rows of a task that are tokenized to count its tokens
# Rates hold for the load under which they were measured, and work is an estimate: what a range adds to both.
MARGIN = 0.2

# Paper, Table 10: hours of Qwen3-8B on NI-Seq-M1 with 8 H20 by method, and what 20 paraphrases add. A plan of
# that sequence estimates 18.5 million tokens of training and 9.5 million of scoring, prompts in every row.
_PAPER_HOURS = {"lorainc": 2.0, "olora": 2.2, "inscl": 2.5, "ewc": 3.0}
_PAPER_TRAIN_TOKENS, _PAPER_SCORE_TOKENS, _PAPER_SCORE_HOURS = 18.5e6, 9.5e6, 0.25
_PAPER_GPUS, _PAPER_BILLIONS = 8, 8.2
_LAYER_WEIGHTS = 2e8  # of a model of which nothing is known: about Qwen3-8B's
# Operations that a device does a second: dense bfloat16 of one H100, and a share of it that is within reach.
PEAK, SHARE = 989e12, 0.4
_READ, _TRAINED = 2, 4  # operations a parameter and token: forward; and back through frozen weights

SECONDS = 60.0  # of a measurement, after the model is loaded
_SHARES = {"train": 0.45, "score": 0.2, "evaluate": 0.35}
_GROWTH = 4

# In the store of the mini Table 1 a scoring's folder has 15 kB, an evaluation's 10 kB, a training's 5 kB
# beside its adapter: config, identity, environment, result and manifest of a stage, and a table's frame.
_FILES = 12_000

Range = tuple[float, float]


@dataclass(frozen=True)
class Work:
    """Tokens that go forward and back, forward, and through steps of generation; a pass counts as some."""

    trained: float = 0.0
    read: float = 0.0
    generated: float = 0.0


@dataclass(frozen=True)
class Shape:
    """Tokens of rows under a task's instruction: what they share, what they have of their own, targets."""

    prefix: int
    own: float
    rows: int
    longest_target: int


def shape_of(task: Task, rows: tuple[Example, ...], config: Config) -> Shape:
    """The shape of rows of a task; by the model's tokenizer where the model is here, else by characters."""
    try:
        model_folder(config.model)
        key = preflight.read_once(config)
    except UserError:
        key = ""
    return _shape(rows, replace(task, train=(), test=()), config.data.max_input_tokens, key)


@remembered(4096)
def _shape(rows: tuple[Example, ...], frame: Task, longest: int, key: str) -> Shape:
    sample = [rows[i * len(rows) // _SAMPLE] for i in range(_SAMPLE)] if len(rows) > _SAMPLE else rows
    if not sample:
        return Shape(0, 0, 0, 0)
    if key:
        _, renderer = preflight.known[key]
        rendered = renderer.render(frame, frame.instruction, sample)
        prefix = prefix_length(rendered)
        own = [float(len(row.input_ids) - prefix) for row in rendered]
        targets = [len(row.target_ids) for row in rendered]
    else:
        around, suffix = TEMPLATE_TOKENS / 2, len(frame.suffix)
        prefix = round(len(frame.instruction) / CHARACTERS_A_TOKEN + around)
        texts = [min((len(row.input) + suffix) / CHARACTERS_A_TOKEN + around, longest) for row in sample]
        targets = [math.ceil(len(row.target) / CHARACTERS_A_TOKEN) + 1 for row in sample]
        own = [text + target for text, target in zip(texts, targets, strict=True)]
    return Shape(prefix, sum(own) / len(sample) * len(rows), len(rows), max(targets))


def pass_of(config: Config) -> int:
    """What a forward pass costs on the config's device, as a number of tokens."""
    sizes = sizes_of(config)
    return budgets.pass_tokens(device_of(config), sizes.met if sizes else _LAYER_WEIGHTS)


def devices_of(config: Config) -> int:
    """On how many devices a stage's time is shared out; a CPU's processes share its cores."""
    return 1 if device_of(config).type == "cpu" else config.engine.devices


Untouched = set[tuple[str, str, str]]


def work_of(stage: Stage, untouched: Untouched) -> tuple[Work, Work]:
    """The least and the most that a stage is likely to have a device do.

    Each of the devices that compute a stage reads what rows begin with. `untouched` grows by what the
    untouched model says, which one process that computes stages in turn keeps.
    """
    config = stage.config
    shapes = [shape_of(task, rows, config) for task, rows, *_ in stage.readings]
    is_cpu, n_devices, a_pass = device_of(config).type == "cpu", devices_of(config), pass_of(config)
    reading = config.evaluator.batch_tokens or (budgets.CPU_READING if is_cpu else budgets.LARGEST)
    training = config.trainer.micro_batch_tokens or (budgets.CPU_TRAINING if is_cpu else budgets.LARGEST)

    def once(shape: Shape, batch: int) -> float:
        return a_pass * (1 + shape.own // batch) + shape.prefix + shape.own

    if isinstance(stage, Train):
        least = most = Work(trained=_training(stage, shapes, a_pass, training))
    elif isinstance(stage, Score):
        # All rows under each prompt; of a race at least its first round, and one prompt to the end.
        shapes, rows = shapes[: math.ceil(len(shapes) / n_devices)], len(stage.examples)
        whole = [once(shape, reading) for shape in shapes]
        least = most = Work(read=sum(whole))
        if config.scorer.name == "race" and rows > FIRST_ROUND:
            first = [a_pass + s.prefix + s.own * FIRST_ROUND / rows for s in shapes]
            least = Work(read=sum(first) + whole[0] - first[0])
    else:
        (shape,) = shapes
        rows = math.ceil(shape.rows / n_devices)
        shape = replace(shape, rows=rows, own=shape.own * rows / max(1, shape.rows))
        if isinstance(stage, Evaluate):
            limit = config.evaluator.max_new_tokens if config.evaluator.answers else 1
            read = _readings(stage, untouched) * once(shape, reading)
            batches = math.ceil((shape.own + limit * rows) / reading) if rows else 0
            # Answers end soon, row by row, or one of a batch runs on to the limit.
            few, many = min(shape.longest_target, limit) - 1, limit - 1
            least = Work(read=read, generated=few * (batches * a_pass + rows / 2))
            most = Work(read=read, generated=many * (batches * a_pass + rows))
        else:  # a gradient
            least = most = Work(trained=once(shape, training))
    return least, most


def _readings(stage: Evaluate, untouched: Untouched) -> int:
    """How often an evaluation reads its rows: for answers, for losses, and by the untouched model."""
    answers, is_trained = stage.config.evaluator.answers, stage.state != BASE
    row = stage.config.model.name, stage.task.name, stage.prompt.text
    is_kept = row in untouched and device_of(stage.config).type == "cpu"
    untouched.update([row] if is_trained else [])
    return answers + (not answers or is_trained) + (is_trained and not is_kept)


def _training(stage: Train, shapes: Sequence[Shape], a_pass: int, micro_batch: int) -> float:
    """Each epoch's own tokens, and in every step what the rows share; rows replayed, Fisher information."""
    config, trainer = stage.config, stage.config.trainer
    kind = METHODS[config.method.name]
    by_task = dict(zip((task.name for task, *_ in stage.readings), shapes, strict=True)).values()
    rows, own = sum(shape.rows for shape in by_task), sum(shape.own for shape in by_task)
    prefix = max((shape.prefix for shape in by_task), default=0)
    fisher = min(config.method.fisher_examples, rows) if config.method.name == "ewc" else 0
    mean = own / max(1, rows)
    if kind.replays and stage.position:
        rows, own = rows + config.method.buffer, own + config.method.buffer * (mean + prefix)
    if not trainer.shared_prefix or trainer.gradient_checkpointing:
        own, prefix = own + rows * prefix, 0
    steps = optimizer_steps(rows, trainer)
    prompts = min(trainer.global_batch, sum(len(one.prompts) for one in stage.tasks))
    n_devices = devices_of(config)
    passes = prompts + trainer.global_batch * mean / n_devices // micro_batch
    epochs = steps / math.ceil(max(1, rows) / trainer.global_batch)
    every_step = prompts * prefix + passes * a_pass
    return epochs * own / n_devices + steps * every_step + fisher * (mean + prefix + a_pass)


# --- measured rates ----------------------------------------------------------------------------------------


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Rates(BaseModel):
    """What a device does a second with a model, measured through the stages, and where that holds.

    `training` and `reading` are tokens a second, `steps` those of generation with `rows` rows at once, all
    beside what a stage of a kind takes whatever its size, `beside` (seconds).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    place: dict[str, str]
    training: Positive
    reading: Positive
    steps: Positive
    rows: Annotated[int, Field(gt=0)]
    beside: Annotated[dict[Literal["score", "train", "evaluate"], Seconds], Field(min_length=3)]
    a_pass: int

    def seconds(self, stage: Stage, work: Work) -> float:
        """How long a stage takes with this work."""
        generating = self.steps * (self.a_pass + self.rows)
        kind: Any = "train" if stage.kind == "gradient" else stage.kind
        return (
            self.beside[kind]
            + work.trained / self.training
            + work.read / self.reading
            + work.generated / generating
        )


def place_of(config: Config) -> dict[str, str]:
    """Where rates hold: the machine (of a GPU, the card), its threads, PyTorch, and the model's identity."""
    device = device_of(config)
    on_cpu = f"{platform.node()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else on_cpu
    return {
        "machine": f"{device.type}: {machine}",
        "torch": torch.__version__,
        "model": digest(model_identity(config)),
    }


def rates_file(config: Config) -> Path:
    """Where the rates of a config's model on its device are kept."""
    return cache_folder() / "rates" / f"{plain(config.model.name)}-{device_of(config).type}.json"


def save_rates(config: Config, rates: Rates) -> None:
    """Keeps rates for later plans."""
    path = rates_file(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, rates.model_dump())


def find_rates(config: Config) -> tuple[Rates | None, str]:
    """The rates that hold for a config, if there are, and a line on a file that says nothing here."""
    path, again = rates_file(config), "Measure here with: sapo plan --measure"
    try:
        found = Rates.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError) as error:
        reason: object = error
        if isinstance(error, ValidationError):
            reason = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return None, f"{path} is not used: it is no file of rates ({reason}). {again}"
    there = {**found.place, "tokens a pass": str(found.a_pass)}
    here = {**place_of(config), "tokens a pass": str(pass_of(config))}
    other = [
        f"{name} {there.get(name)}, here {value}" for name, value in here.items() if there.get(name) != value
    ]
    if other:
        return None, f"{path} is not used: it was measured elsewhere ({'; '.join(other)}). {again}"
    return found, ""


# --- stated rates ------------------------------------------------------------------------------------------


def stated_hours(stage: Stage, tokens: float, work: Work) -> dict[str, float | None]:
    """Hours of one GPU, None where the model's size is not known.

    `paper`: of an H20 by the paper's Table 10, in proportion to the model's parameters and to `tokens`, which
    count prompts in every row. Evaluation is counted as scoring: the table has no time of it. `peak`: of an
    H100 at SHARE of its PEAK. A read token takes 2 operations a parameter, a trained one 4, as frozen weights
    get no gradients; those of embeddings and output layer are left out (Qwen3-8B: 13.9 and 27.8 billion).
    """
    billions, inner = stage.config.model.parameters, stage.config.model.embeddings
    in_table, hours = _PAPER_SCORE_TOKENS, _PAPER_SCORE_HOURS
    if isinstance(stage, Train):
        method = stage.config.method.name
        in_table, hours = _PAPER_TRAIN_TOKENS, _PAPER_HOURS.get(method, _PAPER_HOURS["lorainc"])
    paper = tokens / in_table * hours * _PAPER_GPUS * billions / _PAPER_BILLIONS
    operations = _READ * (work.read + work.generated) + _TRAINED * work.trained
    operations *= devices_of(stage.config) * (billions - inner) * 1e9
    peak = operations / (PEAK * SHARE) / 3600
    return {"paper": paper if billions > 0 else None, "peak": peak if billions > inner else None}


# --- what stages cost ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a stage that is to do takes and leaves: tokens, seconds at measured rates, hours at stated ones.

    Seconds are the least and the most, `hours` those of one GPU: `paper` at the paper's rates, `peak` at a
    share of a card's peak. None for what is not known: nothing measured here, the model's size.
    """

    stage: Stage
    tokens: int
    seconds: Range | None
    hours: dict[str, float | None]
    disk_bytes: int


def priced(stages: Iterable[Stage]) -> tuple[list[Cost], list[str]]:
    """What stages cost that come one after another, by the rates measured here; and lines for people."""
    found: list[Cost] = []
    known: dict[str, tuple[Rates | None, str]] = {}
    untouched: Untouched = set()
    with looked_at_once():
        for stage in stages:
            key = repr((stage.config.model, stage.config.engine))
            if key not in known:
                known[key] = find_rates(stage.config)
            rates, tokens, (least, most) = known[key][0], estimated_tokens(stage), work_of(stage, untouched)
            low, high = (rates.seconds(stage, work) if rates else 0.0 for work in (least, most))
            seconds = (low * (1 - MARGIN), high * (1 + MARGIN)) if rates else None
            hours = stated_hours(stage, tokens, most)
            found.append(Cost(stage, tokens, seconds, hours, stage_bytes(stage)))
    return found, list(dict.fromkeys(note for _, note in known.values() if note))


def estimated_tokens(stage: Stage) -> int:
    """Tokens of all that a stage reads, prompts in every row, from the characters of its texts."""
    tokens = 0.0
    for task, rows, prompt, times in stage.readings:
        characters = _characters(rows) + (len(prompt.text) + len(task.suffix)) * len(rows)
        tokens += times * int(characters / CHARACTERS_A_TOKEN + TEMPLATE_TOKENS * len(rows))
    return round(tokens)


@remembered(1024)
def _characters(rows: tuple[Example, ...]) -> int:
    return sum(len(example.input) + len(example.target) for example in rows)


def stage_bytes(stage: Stage) -> int:
    """Bytes that a stage leaves: its table, or its adapter or gradient and what the method keeps."""
    if isinstance(stage, Score):
        return _FILES + 20 * len(stage.prompts) * len(stage.examples)
    if isinstance(stage, Evaluate):
        return _FILES + table_bytes(stage.task.test)
    if isinstance(stage, Gradient):
        return _FILES + round(adapter_bytes(stage.config))
    assert isinstance(stage, Train)  # noqa: S101 (the one kind that is left)
    adapters = METHODS[stage.config.method.name].stored_adapters(stage.position)
    return _FILES + round(adapter_bytes(stage.config)) * adapters


@remembered(1024)
def table_bytes(rows: tuple[Example, ...]) -> int:
    """Answers about as long as the targets, and five numbers a row."""
    return 2 * sum(len(example.target.encode()) for example in rows) + 40 * len(rows)


def total_range(ranges: Iterable[Range | None]) -> Range | None:
    """The sums of the least and of the most, None if one of the ranges is not known."""
    found = list(ranges)
    known = [each for each in found if each is not None]
    return (sum(low for low, _ in known), sum(high for _, high in known)) if found == known else None


# --- measuring ---------------------------------------------------------------------------------------------


Steps = list[tuple[int, float]]  # rows and seconds of each step of generation


@contextmanager
def _counted(embedding: nn.Module) -> Iterator[Steps]:
    """Inside, passes of a model that read one token a row after another such pass are noted as steps."""
    found: Steps = []
    last: float | None = None

    def note(_: nn.Module, given: tuple[Any, ...]) -> None:
        nonlocal last
        now, is_step = time.monotonic(), given[0].shape[-1] == 1
        if is_step and last is not None:
            found.append((given[0].numel(), now - last))
        last = now if is_step else None

    handle = embedding.register_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


@dataclass
class _Growing:
    """Runs stages of one kind with ever more rows of a task."""

    engine: LocalEngine
    task: Task
    embedding: nn.Module
    tell: Callable[[str], object]

    def some(self, count: int) -> Task:
        """The task with so many rows."""
        return replace(self.task, train=self.task.train[:count], test=self.task.test[:count])

    def __call__(
        self, kind: str, made: Callable[[Task], Stage], rows: int
    ) -> list[tuple[float, Work, Steps]]:
        """Seconds, work and steps of stages with 1, 4, 16, … rows, and as many as the share has time for."""
        found: list[tuple[float, Work, Steps]] = []
        untouched: Untouched = set()
        left, count, largest = _SHARES[kind] * SECONDS, 1, 0
        while count > largest:
            stage, begun = made(self.some(count)), time.monotonic()
            with _counted(self.embedding) as steps:
                asyncio.run(self.engine.run(stage))
            took = time.monotonic() - begun
            found.append((took, work_of(stage, untouched)[1], steps))
            self.tell(f"{kind}, {count} rows: {took:.2f} s")
            left, largest = left - took, count
            count = min(rows, _GROWTH * count, int(0.9 * left / took * count))
        return found


def measured(config: Config, tell: Callable[[str], object]) -> Rates:
    """Measures the rates of the config's model on its device, with rows of its sequence's first task.

    `tell` gets a line a measurement. UserError if the task has no training rows.
    """
    task = load_tasks(config)[0][0]
    if not task.train:
        raise UserError(f"Task {task.name} has no training rows to measure with.")
    is_bound = config.method.name in ("zero_shot", "multitask", "single")
    config = replace(
        config,
        engine=replace(config.engine, devices=1),
        trainer=replace(config.trainer, epochs=1, report_to=[]),
        evaluator=replace(config.evaluator, answers=True),
        scorer=replace(config.scorer, name="full"),
        # One that trains one task after another: bounds that do not are as fast.
        method=replace(config.method, name="lorainc" if is_bound else config.method.name),
    )
    base = load_model(config).base
    prompt, a_pass, embedding = Prompt(task.instruction), pass_tokens(base), base.get_input_embeddings()
    with TemporaryDirectory(prefix="sapo-measure-") as scratch:
        engine = LocalEngine(Store(Path(scratch)))
        grow = _Growing(engine, replace(task, test=(*task.test, *task.train)), embedding, tell)
        first = Train(config, BASE, 0, (TrainingTask(grow.some(1), (prompt,)),))
        state = asyncio.run(engine.run(first)).key  # not measured: the first pass of all takes longer
        train = grow(
            "train", lambda some: Train(config, state, 1, (TrainingTask(some, (prompt,)),)), len(task.train)
        )
        score = grow("score", lambda some: Score(config, state, some, some.train, (prompt,)), len(task.train))
        evaluate = grow("evaluate", lambda some: Evaluate(config, state, some, prompt), len(grow.task.test))
    beside_training, training = _line([(took, work.trained) for took, work, _ in train])
    beside_scoring, reading = _line([(took, work.read) for took, work, _ in score])
    beside_evaluating = min(
        took - work.read / reading - sum(seconds for _, seconds in steps) for took, work, steps in evaluate
    )
    steps = [step for *_, steps in evaluate for step in steps]
    tokens, generating = sum(rows for rows, _ in steps), sum(seconds for _, seconds in steps)
    # Where all answers were right at once, a step is taken for a pass that reads.
    generation = (len(steps) * a_pass + tokens) / generating if steps else reading
    rows = max(1, round(tokens / max(1, len(steps))))
    return Rates(
        place=place_of(config),
        training=training,
        reading=reading,
        steps=generation / (a_pass + rows),
        rows=rows,
        beside={"train": beside_training, "score": beside_scoring, "evaluate": max(0.0, beside_evaluating)},
        a_pass=a_pass,
    )


def _line(found: list[tuple[float, float]]) -> tuple[float, float]:
    """Seconds at no work, and work a second, of seconds and work of several sizes."""
    seconds, work = zip(*found, strict=True)
    slope = float(np.polyfit(work, seconds, 1)[0]) if len(set(work)) > 1 else 0.0
    rate = 1 / slope if slope > 0 else work[-1] / seconds[-1]  # disturbed, or one size alone
    return max(0.0, min(took - done / rate for took, done in found)), rate
