"""Trainings of the tiny model as a stage makes them."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from sapo.conf.load import load_one
from sapo.conf.schema import Config
from sapo.data.benchmarks import load_tasks
from sapo.data.mini import generate
from sapo.data.prompts import Prompt
from sapo.data.render import Rendered
from sapo.data.tasks import Task
from sapo.experiments.continual import run_sequence
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store
from sapo.experiments.methods import METHODS, Context, Method
from sapo.experiments.model import training
from sapo.experiments.model.adapters import adapter_tensors, plain
from sapo.experiments.model.load import LanguageModel, load_model
from sapo.experiments.model.rows import Row, TrainingTask, training_rows
from sapo.experiments.runs import write_run


def method_for(config: Config, position: int = 0, previous: Path | None = None, seed: int = 7) -> Method:
    """The config's method before it learns the task at `position` under its original prompt."""
    task = load_tasks(config)[0][position]
    learned = (TrainingTask(task, (Prompt(task.instruction),)),)
    return METHODS[config.method.name](Context(config, load_model(config), learned, previous, position, seed))


def price_method(config: Config, n: int = 10, prompts: tuple[Prompt, ...] = ()) -> Method:
    """The config's method before it learns `n` rows of mini_price from the untouched model."""
    task = generate("mini_price", n, 2, 0)
    learned = (TrainingTask(task, prompts or (Prompt(task.instruction),)),)
    return METHODS[config.method.name](Context(config, load_model(config), learned, None, 0, 3))


def read_task(config: Config, name: str, n: int) -> tuple[LanguageModel, Task, list[Rendered]]:
    """The config's model, a generated task with `n` test rows, and these as the model sees them."""
    model, task = load_model(config), generate(name, 2, n, 0)
    return model, task, model.renderer(config.data).render(task, task.instruction, task.test)


def plain_nll(model: Any, row: Rendered) -> torch.Tensor:
    """The target's summed NLL as anyone would write it: one unpadded sequence, full logits, shift by one."""
    ids = torch.tensor([row.input_ids])
    logits = model(input_ids=ids, use_cache=False).logits[0, row.target_start - 1 : -1]
    return functional.cross_entropy(logits, ids[0, row.target_start :], reduction="sum")


def rows_of(method: Method) -> list[Row]:
    """What the method's training learns."""
    context = method.context
    return training_rows(context.language_model.renderer(context.config.data), context.tasks)


def learn(method: Method, scratch: Path, redraw: int = 1) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Trains as a stage does: the facts, and the trained weights."""
    context = method.context
    with plain(context.language_model.base):
        rows = rows_of(method)
        torch.manual_seed(context.seed)
        model = method.start()
        facts = training.train(
            model,
            rows,
            context.config.trainer,
            seed=context.seed,
            redraw=redraw,
            scratch=scratch,
            what="Task t, prompt 2",
            penalty=method.penalty,
        )
        return facts, {key: value.clone() for key, value in adapter_tensors(model, "current").items()}


def run_folder(overrides: Sequence[str], root: Path) -> Path:
    """The folder of the run that the overrides describe; of a setting that is there twice the last counts."""
    last = {override.partition("=")[0]: override for override in (*overrides, f"store.root='{root}'")}
    store = Store(root)
    return write_run(asyncio.run(run_sequence(load_one([*last.values()]), LocalEngine(store))), store)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two states have equal weights, to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two states have the same weights but for rounding."""
    return all((first[key] - second[key]).norm() <= 1e-3 * second[key].norm() for key in second)
