"""Score, Train, Evaluate and Gradient: what each reads, the key of its result, and how it is computed.

A stage's key is the SHA-256 of everything that can change its result, and of nothing else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft.helpers import rescale_adapter_scale
from safetensors.torch import save_file

from sapo.conf.errors import WorkError
from sapo.conf.schema import identity_values
from sapo.data.prompts import Prompt
from sapo.data.records import BASE
from sapo.data.tasks import Example, Task, digest, examples_digest
from sapo.experiments.engine.stage import Reading, Stage
from sapo.experiments.engine.store import EXAMPLES, Store
from sapo.experiments.methods import METHODS, Context
from sapo.experiments.model import evaluation, gradients, ranks, scoring, training
from sapo.experiments.model.adapters import FOLDER, load_adapter, plain
from sapo.experiments.model.load import LanguageModel
from sapo.experiments.model.rows import TrainingTask, training_rows
from sapo.experiments.model.scoring import pool_losses


@dataclass(frozen=True)
class Score(Stage):
    """NLL of a task's scored examples under each prompt, in the state before training on it."""

    task: Task
    examples: tuple[Example, ...]
    prompts: tuple[Prompt, ...]

    kind = "score"
    verb = "scoring"
    settings = ("model", "data", "scorer", "method.rank", "seed")

    @property
    def readings(self) -> list[Reading]:
        """The examples once under each prompt."""
        return [(self.task, self.examples, prompt, 1) for prompt in self.prompts]

    def inputs(self) -> dict[str, Any]:
        """Rows, prompts, and what decides how far each is read and in which state."""
        scorer = self.config.scorer
        settings = identity_values(scorer)
        if scorer.name == "race":  # depends on its order and on the reduction, too
            settings |= {"reduction": scorer.reduction, "seed": self.config.seed}
        else:
            del settings["confidence"]
        if scorer.state == "shrunk":
            settings["rank"] = self.config.method.rank
        return {
            "task": _task_identity(self.task, self.examples),
            "prompts": [[prompt.index, prompt.text] for prompt in self.prompts],
            "scorer": settings,
        }

    def compute(self, store: Store, language_model: LanguageModel, folder: Path) -> dict[str, Any]:
        """A row a prompt and example."""
        renderer = language_model.renderer(self.config.data)
        shrunk = self.config.method.rank if self.config.scorer.state == "shrunk" else None
        rendered = {p.index: renderer.render(self.task, p.text, self.examples) for p in self.prompts}
        if not all(any(row.target_ids for row in rows) for rows in rendered.values()):
            raise WorkError(f"Every target of task {self.name} is cut off; raise data.max_input_tokens.")
        with in_state(language_model, store, self.state, shrunk) as model:
            table = pool_losses(model, self.task, self.prompts, list(rendered.values()), self.config)
        table.to_parquet(folder / EXAMPLES)
        read = zip(table["prompt"], table["example"], strict=True)
        return {
            "prompts": len(self.prompts),
            "tokens": sum(len(rendered[prompt][example].input_ids) for prompt, example in read),
            "full_tokens": sum(len(row.input_ids) for rows in rendered.values() for row in rows),
            "shortened": int(table["is_shortened"].sum()),
        }


@dataclass(frozen=True)
class Train(Stage):
    """A state and what is learned give the next state. `position` counts the run's trainings from 0.

    Nearly always one task under one prompt; several tasks are learned together by `multitask`, and of several
    prompts one is drawn for each example.
    """

    position: int
    tasks: tuple[TrainingTask, ...]

    kind = "train"
    verb = "training"
    settings = ("model", "data", "method", "trainer", "policy.redraw", "seed")

    @property
    def readings(self) -> list[Reading]:
        """Each task's examples in every epoch, under one of its prompts at a time."""
        return [
            (one.task, one.task.train, prompt, self.config.trainer.epochs / len(one.prompts))
            for one in self.tasks
            for prompt in one.prompts
        ]

    def inputs(self) -> dict[str, Any]:
        """What is learned, and how."""
        config = self.config
        draws = any(len(one.prompts) > 1 for one in self.tasks)
        return {
            "tasks": [
                {
                    "task": _task_identity(one.task, one.task.train),
                    "prompts": [prompt.text for prompt in one.prompts],
                }
                for one in self.tasks
            ],
            "position": self.position,
            "method": METHODS[config.method.name].identity(config.method, is_first=self.state == BASE),
            "trainer": identity_values(config.trainer),
            "seed": config.seed,
            **({"redraw": config.policy.redraw} if draws else {}),
        }

    def compute(self, store: Store, language_model: LanguageModel, folder: Path) -> dict[str, Any]:
        """The adapter, and what the method keeps beside it."""
        config = self.config
        # One seed for all tasks of a run would draw equal initial weights every time.
        position = self.position if config.trainer.seeding == "task" else 0
        seed = int(digest(["task", config.seed, position])[:8], 16)
        previous = state_folder(store, self.state)
        context = Context(config, language_model, self.tasks, previous, self.position, seed)
        method = METHODS[config.method.name](context)
        renderer = language_model.renderer(self.config.data)
        with plain(language_model.base):
            replayed = method.replayed()
            own = training_rows(renderer, self.tasks)
            if not own:
                raise WorkError(f"Every target of {self.name} is cut off; raise data.max_input_tokens.")
            rows = training_rows(renderer, self.tasks, replayed) if replayed else own
            torch.manual_seed(seed)
            facts = training.train(
                model := method.start(),
                rows,
                config.trainer,
                seed=seed,
                redraw=config.policy.redraw,
                scratch=store.checkpoints(self.key),
                what=f"Training of {self.name}",
                penalty=method.penalty,
            )
            method.save(model, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {
            **facts,
            "examples": len(rows),
            "replayed": len(rows) - len(own),
            "shortened": sum(any(rendered.is_shortened for rendered in row.rendered) for row in rows),
            "kept": {str(path.relative_to(folder)): path.stat().st_size for path in files},
        }


@dataclass(frozen=True)
class Evaluate(Stage):
    """Answers, NLL and KL to the untouched model of a task's test examples under one prompt, in a state."""

    task: Task
    prompt: Prompt

    kind = "evaluate"
    verb = "evaluating"
    settings = ("model", "data", "evaluator")

    @property
    def readings(self) -> list[Reading]:
        """The test examples once."""
        return [(self.task, self.task.test, self.prompt, 1)]

    def inputs(self) -> dict[str, Any]:
        """Rows, prompt, and how answers are generated."""
        return {
            "task": _task_identity(self.task, self.task.test),
            "prompt": self.prompt.text,
            "evaluator": identity_values(self.config.evaluator),
        }

    def compute(self, store: Store, language_model: LanguageModel, folder: Path) -> dict[str, Any]:
        """A row a test example."""
        renderer = language_model.renderer(self.config.data)
        rendered = renderer.render(self.task, self.prompt.text, self.task.test, for_test=True)
        with in_state(language_model, store, self.state) as model:
            own = ranks.share(range(len(rendered)))
            examples, rows = [self.task.test[i] for i in own], [rendered[i] for i in own]
            table = evaluation.evaluate(language_model, model, examples, rows, self.config)
        parts = [part for part in ranks.gathered(table.assign(example=own)) if len(part)]
        table = pd.concat(parts).sort_values("example", ignore_index=True)
        scoring.require_finite(table, self.task, self.prompt)
        if self.config.data.truncation == "end":
            # The published code finds no answer where a test prompt lost its end, and scores 0 (D17).
            table.loc[table["is_shortened"], "prediction"] = ""
            if self.config.evaluator.answers:
                table.loc[table["is_shortened"], ["rougeL", "exact_match"]] = 0.0
        table.to_parquet(folder / EXAMPLES)
        measures = ("rougeL", "exact_match", "nll", "kl")
        return {
            **{name: float(table[name].mean()) for name in measures if table[name].notna().all()},
            "examples": len(table),
            "tokens": sum(len(row.input_ids) for row in rendered),
            "shortened": int(table["is_shortened"].sum()),
            "unfinished": int(table["is_unfinished"].sum()),
        }


@dataclass(frozen=True)
class Gradient(Stage):
    """Gradient of a fresh adapter at a task's scored examples under one prompt, in a state."""

    task: Task
    examples: tuple[Example, ...]
    prompt: Prompt

    kind = "gradient"
    verb = "gradient of"
    settings = ("model", "data", "method.rank", "method.alpha", "seed")

    @property
    def readings(self) -> list[Reading]:
        """The examples once."""
        return [(self.task, self.examples, self.prompt, 1)]

    def inputs(self) -> dict[str, Any]:
        """Rows, prompt, and the adapter."""
        method = self.config.method
        return {
            "task": _task_identity(self.task, self.examples),
            "prompt": self.prompt.text,
            "adapter": {"rank": method.rank, "alpha": method.alpha},
            "seed": self.config.seed,
        }

    def compute(self, store: Store, language_model: LanguageModel, folder: Path) -> dict[str, Any]:
        """A tensor a module."""
        renderer = language_model.renderer(self.config.data)
        rendered = renderer.render(self.task, self.prompt.text, self.examples)
        rows = [row for row in rendered if row.target_ids]
        if not rows:
            raise WorkError(f"Every target of {self.name} is cut off; raise data.max_input_tokens.")
        with plain(language_model.base):
            previous = state_folder(store, self.state)
            earlier = previous and previous / FOLDER
            model = gradients.with_fresh_adapter(language_model.base, earlier, self.config)
            found = gradients.adapter_gradients(model, rows, self.config.trainer, self.name)
        save_file(found, folder / gradients.FILE)
        return {
            "examples": len(rendered),
            "tokens": sum(len(row.input_ids) for row in rendered),
            "shortened": sum(row.is_shortened for row in rendered),
        }


def state_folder(store: Store, state: str) -> Path | None:
    """What the training that made a state left; None for the untouched model.

    Raises WorkError if it is damaged, or not in the store any more.
    """
    if state == BASE:
        return None
    stored = store.find("train", state)
    if stored is None:
        raise WorkError(
            f"The training {state[:12]} is not in the store {store.root} any more: run the command again."
        )
    return stored.folder


@contextmanager
def in_state(
    language_model: LanguageModel, store: Store, state: str, shrunk_from_rank: int | None = None
) -> Iterator[Any]:
    """The model as the state left it, ready for scoring and evaluation.

    `shrunk_from_rank` is the rank of one task's adapter: earlier adapters then count 1 / (their number), as
    the published code scores them by keeping alpha while ranks add up (D1).
    """
    with plain(language_model.base) as base:
        folder = state_folder(store, state)
        if folder is None:
            yield base.eval()
            return
        model = load_adapter(base, folder / FOLDER).eval()
        if shrunk_from_rank is None:  # of an adapter from outside, which may have no rank
            yield model
            return
        rank = model.peft_config["default"].r  # type: ignore[attr-defined]
        with rescale_adapter_scale(model, shrunk_from_rank / rank):
            yield model


def _task_identity(task: Task, rows: tuple[Example, ...]) -> dict[str, str]:
    return {"suffix": task.suffix, "separator": task.separator, "examples": examples_digest(rows)}
