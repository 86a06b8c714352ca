"""What stages take: their work in tokens, and the rates of a device, measured or stated.

Work is counted as the model room computes it: what all rows of a prompt begin with once, then each row's own
tokens, then the steps of generation. A forward pass costs as much as some more tokens (`pass_tokens`).
"""

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sapo.conf.errors import UserError
from sapo.conf.names import plain
from sapo.conf.schema import Config
from sapo.data.files import write_json
from sapo.data.remembering import remembered
from sapo.data.tasks import Example, Task, digest
from sapo.experiments.methods import METHODS
from sapo.experiments.model import budgets, preflight
from sapo.experiments.model.fetch import cache_folder, model_folder
from sapo.experiments.model.forward import prefix_length
from sapo.experiments.model.identity import device_of, model_identity
from sapo.experiments.model.memory import sizes_of
from sapo.experiments.model.scoring import FIRST_ROUND
from sapo.experiments.model.training import optimizer_steps
from sapo.experiments.stages import BASE, Evaluate, Score, Stage, Train

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
    frame = (task.name, task.instruction, task.suffix, task.separator, config.data.max_input_tokens)
    return _shape(rows, frame, key)


@remembered(4096)
def _shape(rows: tuple[Example, ...], frame: tuple[Any, ...], key: str) -> Shape:
    name, instruction, suffix, separator, longest = frame
    sample = [rows[i * len(rows) // _SAMPLE] for i in range(_SAMPLE)] if len(rows) > _SAMPLE else rows
    if not sample:
        return Shape(0, 0, 0, 0)
    if key:
        _, renderer = preflight.known[key]
        task = Task(name, instruction, suffix, (), (), separator=separator)
        rendered = renderer.render(task, instruction, sample)
        prefix = prefix_length(rendered)
        own = [len(row.input_ids) - prefix for row in rendered]
        targets = [len(row.target_ids) for row in rendered]
    else:
        prefix = round(len(instruction) / CHARACTERS_A_TOKEN + TEMPLATE_TOKENS / 2)
        texts = [(len(row.input) + len(suffix)) / CHARACTERS_A_TOKEN + TEMPLATE_TOKENS / 2 for row in sample]
        targets = [math.ceil(len(row.target) / CHARACTERS_A_TOKEN) + 1 for row in sample]
        own = [min(text, longest) + target for text, target in zip(texts, targets, strict=True)]
    return Shape(prefix, sum(own) / len(sample) * len(rows), len(rows), max(targets))


def pass_of(config: Config) -> int:
    """What a forward pass costs on the config's device, as a number of tokens."""
    sizes = sizes_of(config)
    return budgets.pass_tokens(device_of(config), sizes.met if sizes else _LAYER_WEIGHTS)


def devices_of(config: Config) -> int:
    """On how many devices a stage's time is shared out; a CPU's processes share its cores."""
    return 1 if device_of(config).type == "cpu" else config.engine.devices


@dataclass
class Estimate:
    """The work of stages that one process computes in turn: what the untouched model says is kept.

    It is that of each of the devices that compute a stage, of which every one reads what rows begin with.
    """

    untouched: set[tuple[str, str, str]] = field(default_factory=set)

    def work(self, stage: Stage) -> tuple[Work, Work]:
        """The least and the most that a stage is likely to have a device do."""
        config = stage.config
        shapes = [shape_of(task, rows, config) for task, rows, *_ in stage.readings]
        is_cpu, n_devices, a_pass = device_of(config).type == "cpu", devices_of(config), pass_of(config)
        reading = config.evaluator.batch_tokens or (budgets.CPU_READING if is_cpu else budgets.LARGEST)
        training = config.trainer.micro_batch_tokens or (budgets.CPU_TRAINING if is_cpu else budgets.LARGEST)
        if isinstance(stage, Train):
            work = Work(trained=_training(stage, shapes, a_pass, training))
            return work, work
        if isinstance(stage, Score):
            # All rows under each prompt; of a race at least its first round, and one prompt to the end.
            shapes = shapes[: math.ceil(len(shapes) / n_devices)]
            whole = [a_pass * (1 + s.own // reading) + s.prefix + s.own for s in shapes]
            most, rows = Work(read=sum(whole)), len(stage.examples)
            if config.scorer.name != "race" or rows <= FIRST_ROUND:
                return most, most
            first = [a_pass + s.prefix + s.own * FIRST_ROUND / rows for s in shapes]
            return Work(read=sum(first) + whole[0] - first[0]), most
        (whole_shape,) = shapes
        rows = math.ceil(whole_shape.rows / n_devices)
        shape = replace(whole_shape, rows=rows, own=whole_shape.own * rows / max(1, whole_shape.rows))
        if not isinstance(stage, Evaluate):  # a gradient
            work = Work(trained=a_pass * (1 + shape.own // training) + shape.prefix + shape.own)
            return work, work
        once = a_pass * (1 + shape.own // reading) + shape.prefix + shape.own
        answers, is_trained = config.evaluator.answers, stage.state != BASE
        row = config.model.name, stage.task.name, stage.prompt.text
        is_kept = row in self.untouched and is_cpu
        self.untouched.update([row] if is_trained else [])
        readings = (1 if answers else 0) + (not answers or is_trained) + (is_trained and not is_kept)
        if not answers:
            work = Work(read=readings * once)
            return work, work
        limit = config.evaluator.max_new_tokens
        batches = math.ceil((shape.own + limit * shape.rows) / reading) if shape.rows else 0
        # Answers end soon, row by row, or one of a batch runs on to the limit.
        few, many = min(shape.longest_target, limit) - 1, limit - 1
        return (
            Work(read=readings * once, generated=few * (batches * a_pass + shape.rows / 2)),
            Work(read=readings * once, generated=many * (batches * a_pass + shape.rows)),
        )


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


@dataclass(frozen=True)
class Rates:
    """What a device does a second with a model, measured through the stages, and where that holds.

    `training` and `reading` are tokens a second, `steps` those of generation with `rows` rows at once, all
    beside what a stage of a kind takes whatever its size, `beside` (seconds).
    """

    place: dict[str, str]
    training: float
    reading: float
    steps: float
    rows: int
    beside: dict[str, float]
    a_pass: int

    def seconds(self, stage: Stage, work: Work) -> float:
        """How long a stage takes with this work."""
        generating = self.steps * (self.a_pass + self.rows)
        return (
            self.beside["train" if stage.kind == "gradient" else stage.kind]
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
    write_json(path, asdict(rates))


def find_rates(config: Config) -> tuple[Rates | None, str]:
    """The rates that hold for a config, if there are, and a line on a file that says nothing here."""
    path, again = rates_file(config), "Measure here with: sapo plan --measure"
    try:
        found = Rates(**json.loads(path.read_bytes()))
        numbers = (found.training, found.reading, found.steps, *found.beside.values())
        if not (min(numbers[:3]) > 0 and all(map(math.isfinite, numbers))):
            raise ValueError("a rate is not above 0")
        kinds = set(found.beside) == {"score", "train", "evaluate"}
        if not (kinds and isinstance(found.place, dict) and found.rows > 0):
            raise ValueError("it is not whole")
        if found.a_pass != pass_of(config):
            raise ValueError("it counts a pass as another number of tokens")
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return None, f"{path} is not used: it is no file of rates ({error}). {again}"
    here = place_of(config)
    other = [f"{k} {found.place.get(k)}, here {v}" for k, v in here.items() if found.place.get(k) != v]
    if other:
        return None, f"{path} is not used: it was measured elsewhere ({'; '.join(other)}). {again}"
    return found, ""


# --- stated rates ------------------------------------------------------------------------------------------


def hours_of_paper(stage: Stage, tokens: float) -> float | None:
    """Hours of one H20 by the paper's Table 10, in proportion to the model's parameters, None if not known.

    `tokens` count prompts in every row. Evaluation is counted as scoring: the table has no time of it.
    """
    billions = stage.config.model.parameters
    if billions <= 0:
        return None
    if isinstance(stage, Train):
        hours = _PAPER_HOURS.get(stage.config.method.name, _PAPER_HOURS["lorainc"])
        rate = _PAPER_TRAIN_TOKENS / (hours * _PAPER_GPUS)
    else:
        rate = _PAPER_SCORE_TOKENS / (_PAPER_SCORE_HOURS * _PAPER_GPUS)
    return tokens / rate * billions / _PAPER_BILLIONS


def hours_of_peak(stage: Stage, work: Work) -> float | None:
    """Hours of one H100 at SHARE of its PEAK; None if the model's size is not known.

    A read token takes 2 operations a parameter, a trained one 4, as frozen weights get no gradients; those of
    embeddings and output layer are left out (Qwen3-8B: 13.9 and 27.8 billion operations).
    """
    model = stage.config.model
    parameters = (model.parameters - model.embeddings) * 1e9
    if parameters <= 0:
        return None
    operations = _READ * (work.read + work.generated) + _TRAINED * work.trained
    operations *= devices_of(stage.config)
    return operations * parameters / (PEAK * SHARE) / 3600
