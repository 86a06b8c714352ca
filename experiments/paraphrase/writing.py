"""Writing a task's prompt pool: paraphrases that a model was asked for, with where they come from."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import Config
from sapo.data.files import read_yaml
from sapo.data.pools import load_pool, write_pool
from sapo.data.prompts import pool_of, read_pool
from sapo.data.tasks import Task, digest
from sapo.experiments.model.fetch import model_folder
from sapo.experiments.paraphrase import chat_of
from sapo.experiments.paraphrase.chat import Chat
from sapo.experiments.paraphrase.expand import Answer, Expansion, Journal, expand
from sapo.experiments.paraphrase.meta_prompts import meta_prompt
from sapo.experiments.paraphrase.openai import address, key_variable, request_body


@dataclass(frozen=True)
class Pool:
    """What `sapo paraphrase` has made: all paraphrases of the pool, and what was asked for them now."""

    path: Path | None  # None where there was nothing to write
    model: str
    prompts: list[str]
    expansion: Expansion
    seconds: float
    cost: float | None  # US dollars; None where prices or tokens are not known


def write_paraphrases(
    task: Task,
    config: Config,
    path: Path,
    force: bool,
    on_answer: Callable[[Answer, Expansion], None],
    on_wait: Callable[[], None],
) -> Pool:
    """Asks for what the pool lacks and writes it to `path`; with `force`, all anew.

    A pool that the same request has written already is added to. `on_wait` is called if another process is
    writing the pool. UserError if another pool stands there; WorkError if nobody answers: what was accepted
    before stays in a file beside `path`, and the same call goes on from there.
    """
    if not task.instruction.strip():
        raise UserError(f"Task {task.name} has an empty instruction: there is nothing to paraphrase.")
    folder = next(parent for parent in path.resolve().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"Cannot write a prompt pool to {path}. Name another file: --write POOL.yaml")
    begun, settings = time.monotonic(), config.paraphrases
    if settings.source == "local":
        model_folder(config.model)  # one that is not there is named before anything is written
    chat = chat_of(config)
    request = _request_digest(task, chat)
    with Journal.open(path.with_name(f"{path.name}.partial"), request, on_wait) as journal:
        if force:
            journal.clear()
        earlier, source = ([], {}) if force else _earlier(path, request, task)
        expansion = journal.read()
        # A process killed after it wrote the pool has left its journal, whose paraphrases stand in the pool.
        expansion.accepted = [*earlier, *(text for text in expansion.accepted if text not in earlier)]

        def keep(answer: Answer) -> None:
            if answer.error is None:  # what was not answered is asked again, and was not paid for
                journal.append(answer)
            on_answer(answer, expansion)

        error = expand(task, chat, settings.count, settings.rounds, config.seed, expansion, keep)
        if error is not None and not expansion.accepted:
            journal.clear()
            raise WorkError(f"No paraphrase: {error}")
        if error is not None:
            kept = journal.path if journal.path.stat().st_size else path
            raise WorkError(
                f"{error}\n{len(expansion.accepted)} of {settings.count} paraphrases are accepted and kept "
                f"in {kept}; the same command goes on from there."
            )
        if len(expansion.accepted) > len(earlier):
            source = _source(task, config, chat, request, expansion, source)
            write_pool(path, pool_of(task, expansion.accepted, settings.name), source)
        journal.clear()
    return Pool(
        path if expansion.accepted else None,
        chat.name,
        expansion.accepted,
        expansion,
        time.monotonic() - begun,
        _cost(expansion, settings.prices),
    )


def copy_pool(task: Task, config: Config, path: Path, force: bool) -> Pool:
    """Writes the pool that the bank or a file has, validated; UserError if a file stands at `path`."""
    pool = load_pool(task, config.paraphrases)
    if path.exists() and not force:
        raise UserError(f"{path} is there already. Pass --write OTHER.yaml, or --force.")
    texts = [prompt.text for prompt in pool.paraphrases]
    source = {"paraphraser": f"{config.paraphrases.name} ({pool.source})", "prompts_sha256": digest(texts)}
    write_pool(path, pool, source)
    return Pool(path, pool.source, texts, Expansion(texts), 0.0, None)


def dry_request(task: Task, config: Config) -> dict[str, Any]:
    """The request that would be sent, without the key; sends nothing and needs no key."""
    settings, message = config.paraphrases, meta_prompt(task)
    if settings.source == "openai":
        variable = key_variable(settings)
        return {
            "url": f"{address(settings)}/chat/completions",
            "key": f"Authorization: Bearer (the value of {variable})" if variable else None,
            "body": request_body(settings, message),
            "requests": settings.count,
            "most_requests": settings.count * (settings.rounds + 1),
        }
    parameters = chat_of(config).parameters
    return {"message": message, "parameters": parameters, "requests": settings.count}


def _earlier(path: Path, request: str, task: Task) -> tuple[list[str], dict[str, Any]]:
    """Prompts and source of the pool that the same request has written; empty if there is none."""
    if not path.is_file():
        return [], {}
    prompts = [prompt.text for prompt in read_pool(path, task).paraphrases]
    source = read_yaml(path).get("source")
    if not isinstance(source, dict) or source.get("request_sha256") != request:
        raise UserError(
            f"{path} holds a pool that another request has written (other instruction, model or parameters). "
            "Pass --write OTHER.yaml, or --force to replace it."
        )
    return prompts, source


def _source(
    task: Task, config: Config, chat: Chat, request: str, expansion: Expansion, earlier: dict[str, Any]
) -> dict[str, Any]:
    """Where a pool comes from; counts include those of the pool that was added to."""
    is_endpoint = config.paraphrases.source == "openai"
    before = earlier.get("tokens") or {}
    tokens = {
        name: None if n is None and before.get(name) is None else (n or 0) + (before.get(name) or 0)
        for name, n in expansion.tokens().items()
    }
    return {
        "paraphraser": config.paraphrases.name,
        "model": chat.name,
        **({"base_url": config.paraphrases.base_url} if is_endpoint else {}),
        "parameters": {name: value for name, value in chat.parameters.items() if name != "model"},
        "date": datetime.now(UTC).date().isoformat(),
        "request_sha256": request,
        "instruction_sha256": digest(task.instruction),
        "prompts_sha256": digest(expansion.accepted),
        "requests": earlier.get("requests", 0) + len(expansion.answers),
        "rejected": earlier.get("rejected", 0) + sum(row["count"] for row in expansion.rejected()),
        "tokens": tokens,
    }


def _request_digest(task: Task, chat: Chat) -> str:
    """SHA-256 of what decides which answers can come and be accepted: message, labels, model, sampling."""
    parts = {"message": meta_prompt(task), "instruction": task.instruction, "labels": list(task.labels)}
    return digest({**parts, "language": task.language, "parameters": chat.parameters})


def _cost(expansion: Expansion, prices: list[float]) -> float | None:
    """US dollars for the tokens, at prices a million [IN, OUT]; None where one of them is not known."""
    tokens = expansion.tokens()
    if not prices or None in tokens.values():
        return None
    return ((tokens["in"] or 0) * prices[0] + (tokens["out"] or 0) * prices[1]) / 1e6
