"""Doing a stage: from what it is given to the files in its folder."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf

from sapo.conf.errors import WorkError
from sapo.conf.schema import StoreConfig
from sapo.data.files import write_json
from sapo.data.records import StageResult, write_record
from sapo.data.render import Renderer
from sapo.data.tasks import digest
from sapo.experiments.engine.environment import environment
from sapo.experiments.engine.stages import BASE, Evaluate, Gradient, Score, Stage, Train, stage_key
from sapo.experiments.engine.store import EXAMPLES, Store
from sapo.experiments.methods import Context, method_of
from sapo.experiments.model import evaluation, gradients, scoring, training
from sapo.experiments.model.adapters import FOLDER, load_adapter, plain, scale_adapter
from sapo.experiments.model.budgets import DoesNotFitError
from sapo.experiments.model.lessons import Draws, lesson_rows
from sapo.experiments.model.load import LanguageModel, load_model
from sapo.experiments.model.racing import pool_losses


def do(stage: Stage, store: Store, folder: Path) -> None:
    """Computes the stage and writes its files to `folder`."""
    language_model = load_model(stage.config)
    begun = time.monotonic()
    try:
        if isinstance(stage, Score):
            facts = _score(stage, store, language_model, folder)
        elif isinstance(stage, Train):
            facts = _train(stage, store, language_model, folder)
        elif isinstance(stage, Evaluate):
            facts = _evaluate(stage, store, language_model, folder)
        else:
            facts = _gradient(stage, store, language_model, folder)
    except DoesNotFitError as error:
        raise WorkError(f"Task {stage.name} ({stage.kind}): {error}") from error
    facts = {
        "task": stage.name,
        "model": stage.config.model.name,
        "seconds": round(time.monotonic() - begun + facts.get("earlier_seconds", 0.0), 3),
        **facts,
    }
    write_record(folder / "result.json", StageResult.model_validate(facts, strict=False))
    write_json(folder / "identity.json", stage.identity())
    write_json(folder / "environment.json", environment(language_model.base.device))
    OmegaConf.save(OmegaConf.structured(stage.config), folder / "config.yaml")


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
        if shrunk_from_rank is not None:
            scale_adapter(model, shrunk_from_rank / model.peft_config["default"].r)  # type: ignore[attr-defined]
        yield model


def _score(stage: Score, store: Store, language_model: LanguageModel, folder: Path) -> dict[str, Any]:
    renderer = _renderer(stage, language_model)
    shrunk = stage.config.method.rank if stage.config.scorer.state == "shrunk" else None
    rendered = {p.index: renderer.render(stage.task, p.text, stage.examples) for p in stage.prompts}
    if not all(any(row.target_ids for row in rows) for rows in rendered.values()):
        raise WorkError(f"Every target of task {stage.name} is cut off; raise data.max_input_tokens.")
    with in_state(language_model, store, stage.state, shrunk) as model:
        table = pool_losses(model, stage.task, stage.prompts, list(rendered.values()), stage.config)
    table.to_parquet(folder / EXAMPLES)
    read = zip(table["prompt"], table["example"], strict=True)
    return {
        "prompts": len(stage.prompts),
        "tokens": sum(len(rendered[prompt][example].input_ids) for prompt, example in read),
        "full_tokens": sum(len(row.input_ids) for rows in rendered.values() for row in rows),
        "shortened": int(table["is_shortened"].sum()),
    }


def _train(stage: Train, store: Store, language_model: LanguageModel, folder: Path) -> dict[str, Any]:
    config = stage.config
    position = stage.position if config.trainer.seeding == "task" else 0
    seed = derived_seed(config.seed, position)
    previous = state_folder(store, stage.state)
    # What a method keeps beside its states goes where they go: on another machine, too.
    here = replace(config, store=StoreConfig(str(store.root)))
    method = method_of(Context(here, language_model, stage.lessons, previous, stage.position, seed))
    scratch = store.checkpoints(stage_key(stage))
    with plain(language_model.base):
        replayed = method.replayed()
        own = lesson_rows(_renderer(stage, language_model), stage.lessons)
        if not own:
            raise WorkError(f"Every target of {stage.name} is cut off; raise data.max_input_tokens.")
        rows = lesson_rows(_renderer(stage, language_model), stage.lessons, replayed) if replayed else own
        torch.manual_seed(seed)
        facts = training.train(
            model := method.start(),
            rows,
            config.trainer,
            draws=Draws(seed, config.policy.redraw),
            scratch=scratch,
            what=f"Training of {stage.name}",
            penalty=method.penalty,
        )
        method.save(model, folder)
    return {
        **facts,
        "examples": len(rows),
        "replayed": len(rows) - len(own),
        "shortened": sum(any(wording.is_shortened for wording in row.wordings) for row in rows),
        "kept": {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder)},
    }


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _evaluate(stage: Evaluate, store: Store, language_model: LanguageModel, folder: Path) -> dict[str, Any]:
    renderer = _renderer(stage, language_model)
    rendered = language_model.rendered_test(renderer, stage.task, stage.prompt.text)
    with in_state(language_model, store, stage.state) as model:
        table = evaluation.evaluate(language_model, model, stage.task.test, rendered, stage.config)
    scoring.require_finite(table, stage.task, stage.prompt)
    if stage.config.data.truncation == "end":
        _leave_cut_unanswered(table)
    table.to_parquet(folder / EXAMPLES)
    means = {name: float(table[name].mean()) for name in ("rougeL", "exact_match", "nll")}
    n_tokens = sum(len(r.input_ids) for r in rendered)
    return {
        **means,
        "examples": len(table),
        "tokens": n_tokens,
        "shortened": int(table["is_shortened"].sum()),
    }


def _gradient(stage: Gradient, store: Store, language_model: LanguageModel, folder: Path) -> dict[str, Any]:
    renderer = _renderer(stage, language_model)
    rendered = renderer.render(stage.task, stage.prompt.text, stage.examples)
    rows = [row for row in rendered if row.target_ids]
    if not rows:
        raise WorkError(f"Every target of {stage.name} is cut off; raise data.max_input_tokens.")
    with plain(language_model.base):
        previous = state_folder(store, stage.state)
        earlier = previous and previous / FOLDER
        model = gradients.with_fresh_adapter(language_model.base, earlier, stage.config)
        found = gradients.adapter_gradients(model, rows, stage.config.trainer, stage.name)
    gradients.save_gradients(found, folder)
    return {
        "examples": len(rendered),
        "tokens": sum(len(row.input_ids) for row in rendered),
        "shortened": sum(row.is_shortened for row in rendered),
    }


def _leave_cut_unanswered(table: pd.DataFrame) -> None:
    """The published code finds no answer where a test prompt lost its end, and scores 0 (D17)."""
    table.loc[table["is_shortened"], "prediction"] = ""
    table.loc[table["is_shortened"], ["rougeL", "exact_match"]] = 0.0


def _renderer(stage: Stage, language_model: LanguageModel) -> Renderer:
    data = stage.config.data
    return language_model.renderer(data.max_input_tokens, data.truncation)


def derived_seed(seed: int, position: int) -> int:
    """A seed for each task of a run: one seed for all would draw equal initial weights every time."""
    return int(digest(["task", seed, position])[:8], 16)
