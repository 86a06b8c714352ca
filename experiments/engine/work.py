"""Doing a stage: from what it is given to the files in its folder."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf

from sapo.data.tasks import digest
from sapo.experiments import evaluation, scoring, training
from sapo.experiments.adapters import FOLDER, load_adapter, plain
from sapo.experiments.engine.environment import environment
from sapo.experiments.engine.stages import BASE, Evaluate, Score, Stage, Train, stage_key
from sapo.experiments.engine.store import EXAMPLES, Store, write_json
from sapo.experiments.forward import can_share_prefix
from sapo.experiments.methods import method_of
from sapo.experiments.models import LanguageModel, load_model


def do(stage: Stage, store: Store, folder: Path) -> None:
    """Computes the stage and writes its files to `folder`."""
    language_model = load_model(stage.config)
    begun = time.monotonic()
    if isinstance(stage, Score):
        facts = _score(stage, store, language_model, folder)
    elif isinstance(stage, Train):
        facts = _train(stage, store, language_model, folder)
    else:
        facts = _evaluate(stage, store, language_model, folder)
    facts = {
        "task": stage.task.name,
        "model": stage.config.model.name,
        "seconds": round(time.monotonic() - begun, 3),
        **facts,
    }
    write_json(folder / "result.json", facts)
    write_json(folder / "identity.json", stage.identity())
    write_json(folder / "environment.json", environment(language_model.base.device))
    OmegaConf.save(OmegaConf.structured(stage.config), folder / "config.yaml")


def adapter_folder(store: Store, state: str) -> Path | None:
    """Where the adapter of a state lies; None for the untouched model."""
    return None if state == BASE else store.root / "stages" / "train" / state / FOLDER


@contextmanager
def in_state(language_model: LanguageModel, store: Store, state: str) -> Iterator[Any]:
    """The model as the state left it, ready for scoring and evaluation."""
    with plain(language_model.base) as base:
        folder = adapter_folder(store, state)
        yield base if folder is None else load_adapter(base, folder).eval()


def _score(stage: Score, store: Store, language_model: LanguageModel, folder: Path) -> dict[str, Any]:
    renderer = language_model.renderer(stage.config.data.max_input_tokens)
    share = stage.config.trainer.shared_prefix and can_share_prefix(language_model.base.config)
    tables = []
    n_tokens = 0
    with in_state(language_model, store, stage.state) as model:
        for prompt in stage.prompts:
            rendered = renderer.render(stage.task, prompt.text, stage.examples)
            losses = scoring.example_losses(model, rendered, stage.config.evaluator.batch_tokens, share)
            scoring.require_finite(losses, stage.task, prompt)
            tables.append(losses.assign(prompt=prompt.index))
            n_tokens += sum(len(r.input_ids) for r in rendered)
    table = pd.concat(tables, ignore_index=True)
    table.to_parquet(folder / EXAMPLES)
    return {"prompts": len(stage.prompts), "tokens": n_tokens, "shortened": int(table["is_shortened"].sum())}


def _train(stage: Train, store: Store, language_model: LanguageModel, folder: Path) -> dict[str, Any]:
    config = stage.config
    renderer = language_model.renderer(config.data.max_input_tokens)
    rendered = renderer.render(stage.task, stage.prompt.text, stage.task.train)
    seed = derived_seed(config.seed, stage.position)
    method = method_of(config)
    scratch = store.checkpoints(stage_key(stage))
    with plain(language_model.base) as base:
        torch.manual_seed(seed)
        model = method.start(base, adapter_folder(store, stage.state))
        facts = training.train(
            model,
            rendered,
            config.trainer,
            seed=seed,
            scratch=scratch,
            what=f"Task {stage.task.name}, prompt {stage.prompt.index}",
        )
        method.save(model, folder / FOLDER)
    shutil.rmtree(scratch, ignore_errors=True)
    return {**facts, "shortened": sum(r.is_shortened for r in rendered)}


def _evaluate(stage: Evaluate, store: Store, language_model: LanguageModel, folder: Path) -> dict[str, Any]:
    renderer = language_model.renderer(stage.config.data.max_input_tokens)
    rendered = renderer.render(stage.task, stage.prompt.text, stage.task.test)
    with in_state(language_model, store, stage.state) as model:
        table = evaluation.evaluate(language_model, model, stage.task.test, rendered, stage.config.evaluator)
    scoring.require_finite(table, stage.task, stage.prompt)
    table.to_parquet(folder / EXAMPLES)
    means = {name: float(table[name].mean()) for name in ("rougeL", "exact_match", "nll")}
    n_tokens = sum(len(r.input_ids) for r in rendered)
    return {
        **means,
        "examples": len(table),
        "tokens": n_tokens,
        "shortened": int(table["is_shortened"].sum()),
    }


def derived_seed(seed: int, position: int) -> int:
    """A seed for each task of a run: one seed for all would draw equal initial weights every time."""
    return int(digest(["task", seed, position])[:8], 16)
