"""Writing a task's prompt pool: paraphrases that a model was asked for, with where they come from."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import Config
from sapo.data.pools import load_pool, write_pool
from sapo.data.prompts import pool_of, read_pool
from sapo.data.tasks import Task, digest
from sapo.experiments.paraphrase import chat_of
from sapo.experiments.paraphrase.chat import Chat
from sapo.experiments.paraphrase.expand import Expansion, Journal, Judged, expand, request_digest
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
    task: Task, config: Config, path: Path, force: bool, on_judged: Callable[[Judged, Expansion], None]
) -> Pool:
    """Asks for what the pool lacks and writes it to `path`; with `force`, all anew.

    A pool that the same request has written already is added to. UserError if another pool stands there;
    WorkError if nobody answers: what was accepted before stays in a file beside `path`, and the same call
    goes on from there.
    """
    if not task.instruction.strip():
        raise UserError(f"Task {task.name} has an empty instruction: there is nothing to paraphrase.")
    _require_writable(path)
    begun = time.monotonic()
    chat = chat_of(config)
    request = request_digest(task, chat)
    journal = Journal(path.with_name(f"{path.name}.partial"), request)
    earlier: dict[str, Any] = {} if force else _earlier(path, request, task)
    if force:
        journal.remove()
    expansion = journal.read()
    # A process killed after it wrote the pool has left its journal, whose paraphrases stand in the pool.
    written = earlier.get("prompts", [])
    expansion.accepted = [*written, *(text for text in expansion.accepted if text not in written)]

    def keep(judged: Judged) -> None:
        if judged.error is None:  # what was not answered is asked again, and was not paid for
            journal.append(judged)
        on_judged(judged, expansion)

    settings = config.paraphrases
    error = expand(task, chat, settings.count, settings.rounds, config.seed, expansion, keep)
    if error is not None:
        raise WorkError(_stopped(error, expansion, settings.count, journal, path))
    if len(expansion.accepted) > len(written):
        source = _source(task, config, chat, request, expansion, earlier.get("source", {}))
        write_pool(path, pool_of(task, expansion.accepted, config.paraphrases.name), source)
    journal.remove()
    kept = path if expansion.accepted else None
    cost = _cost(expansion.tokens(), list(settings.prices))
    return Pool(kept, chat.name, expansion.accepted, expansion, time.monotonic() - begun, cost)


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


def _earlier(path: Path, request: str, task: Task) -> dict[str, Any]:
    """Prompts and source of the pool that the same request has written; empty if there is none."""
    if not path.is_file():
        return {}
    prompts = [prompt.text for prompt in read_pool(path, task).paraphrases]
    source = yaml.safe_load(path.read_text(encoding="utf-8")).get("source")
    if not isinstance(source, dict) or source.get("request_sha256") != request:
        raise UserError(
            f"{path} holds a pool that another request has written (other instruction, model or parameters). "
            "Pass --write OTHER.yaml, or --force to replace it."
        )
    return {"prompts": prompts, "source": source}


def _source(
    task: Task, config: Config, chat: Chat, request: str, expansion: Expansion, earlier: dict[str, Any]
) -> dict[str, Any]:
    """Where a pool comes from; counts include those of the pool that was added to."""
    is_endpoint = config.paraphrases.source == "openai"
    counted = earlier.get("tokens") or {}
    return {
        "paraphraser": config.paraphrases.name,
        "model": chat.name,
        **({"base_url": config.paraphrases.base_url} if is_endpoint else {}),
        "parameters": {name: value for name, value in chat.parameters.items() if name != "model"},
        "date": datetime.now(UTC).date().isoformat(),
        "request_sha256": request,
        "instruction_sha256": digest(task.instruction),
        "prompts_sha256": digest(expansion.accepted),
        "requests": earlier.get("requests", 0) + expansion.requests,
        "rejected": earlier.get("rejected", 0) + sum(row["count"] for row in expansion.rejected()),
        "tokens": {name: _sum(counted.get(name), n) for name, n in expansion.tokens().items()},
    }


def _sum(first: int | None, second: int | None) -> int | None:
    return None if first is None and second is None else (first or 0) + (second or 0)


def _stopped(error: str, expansion: Expansion, count: int, journal: Journal, path: Path) -> str:
    if not expansion.accepted:
        journal.remove()
        return f"No paraphrase: {error}"
    kept = journal.path if journal.path.is_file() else path
    return (
        f"{error}\n{len(expansion.accepted)} of {count} paraphrases are accepted and kept in {kept}; "
        "the same command goes on from there."
    )


def _require_writable(path: Path) -> None:
    """UserError before anything is asked and paid for, if a file cannot be written at `path`."""
    folder = next(parent for parent in path.resolve().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"Cannot write a prompt pool to {path}. Name another file: --write POOL.yaml")


def _cost(tokens: dict[str, int | None], prices: list[float]) -> float | None:
    counts = [tokens["in"], tokens["out"]]
    if not prices or None in counts:
        return None
    return sum((count or 0) * price for count, price in zip(counts, prices, strict=True)) / 1e6
