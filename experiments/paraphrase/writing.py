"""Writing a task's prompt pool: paraphrases that a model was asked for, with where they come from."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import Config
from sapo.data.files import read_yaml
from sapo.data.pools import load_pool, write_pool
from sapo.data.prompts import pool_of, read_pool
from sapo.data.tasks import Task, digest
from sapo.experiments.model.fetch import model_folder
from sapo.experiments.paraphrase import chat_of
from sapo.experiments.paraphrase.chat import Chat, Reply
from sapo.experiments.paraphrase.expand import Expansion, expand
from sapo.experiments.paraphrase.meta_prompts import meta_prompt
from sapo.experiments.paraphrase.openai import address, key_variable, request_body

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pool:
    """What `sapo paraphrase` has made: all paraphrases of the pool, and what was asked for them now."""

    path: Path | None  # None where there was nothing to write
    model: str
    expansion: Expansion
    seconds: float

    def as_json(self, task: Task, config: Config) -> dict[str, Any]:
        """What was accepted, rejected and spent, as JSON values."""
        found, settings = self.expansion, config.paraphrases
        return {
            "task": task.name,
            "original": task.instruction,
            "language": task.language,
            "paraphraser": settings.name,
            "model": self.model,
            "asked": settings.count,
            "accepted": found.accepted,
            "rejected": found.rejected(),
            "failed": [{"error": error, "count": count} for error, count in found.errors.most_common()],
            "requests": len(found.answers),
            "tokens": found.tokens(),
            "cost_usd": found.cost(settings.prices),
            "seconds": round(self.seconds, 3),
            "file": str(self.path) if self.path else None,
            "complete": len(found.accepted) >= settings.count,
        }


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Held while this process writes a file: another one waits. UserError if it cannot be written."""
    # What it would fall back to outlives a process that is killed, and locks everybody out.
    lock = FileLock(path.with_name(f"{path.name}.lock"), fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            _log.warning("Another process writes %s; waiting for it.", path)
            lock.acquire()
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}. Name another file.") from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # who waits for it makes it anew
        lock.release()


def write_paraphrases(
    task: Task, config: Config, path: Path, force: bool, on_answer: Callable[[Reply, Expansion], None]
) -> Pool:
    """Asks for what the pool lacks and writes it to `path`; with `force`, all anew.

    A pool that the same request has written already is added to. What is accepted goes at once into a file
    beside it, from which the same call goes on. UserError if another request's pool stands there; WorkError
    if nobody answers.
    """
    if not task.instruction.strip():
        raise UserError(f"Task {task.name} has an empty instruction: there is nothing to paraphrase.")
    begun, settings = time.monotonic(), config.paraphrases
    if settings.source == "local":
        model_folder(config.model)  # one that is not there is named before anything is written
    chat = chat_of(config)
    # What decides which answers can come and be accepted.
    parts = {"message": meta_prompt(task), "instruction": task.instruction, "labels": list(task.labels)}
    request = digest({**parts, "language": task.language, "parameters": chat.parameters})
    partial = path.with_name(f"{path.name}.partial")
    with alone(path):
        if force:
            partial.unlink(missing_ok=True)
        earlier, source = (
            ([], {}) if force else _earlier(partial if partial.exists() else path, request, task)
        )
        expansion = Expansion(list(earlier))

        def write(file: Path) -> None:
            pool = pool_of(task, expansion.accepted, settings.name)
            write_pool(file, pool, _source(task, config, chat, request, expansion, source))

        def keep(answer: Reply) -> None:
            if answer.error is None and answer.reason is None:
                write(partial)
            on_answer(answer, expansion)

        seed = config.seed + source.get("requests", 0)
        error = expand(task, chat, settings.count, settings.rounds, seed, expansion, keep, settings.allow)
        if error is not None and not expansion.accepted:
            raise WorkError(f"No paraphrase: {error}")
        if error is not None:
            raise WorkError(
                f"{error}\n{len(expansion.accepted)} of {settings.count} paraphrases are accepted and kept "
                f"in {partial if partial.exists() else path}; the same command goes on from there."
            )
        if partial.exists():
            write(path)
            partial.unlink()
    seconds = time.monotonic() - begun
    return Pool(path if expansion.accepted else None, chat.name, expansion, seconds)


def copy_pool(task: Task, config: Config, path: Path, force: bool) -> Pool:
    """Writes the pool that the bank or a file has, validated; UserError if a file stands at `path`."""
    pool = load_pool(task, config.paraphrases)
    if path.exists() and not force:
        raise UserError(f"{path} is there already. Pass --write OTHER.yaml, or --force.")
    texts = [prompt.text for prompt in pool.paraphrases]
    source = {"paraphraser": f"{config.paraphrases.name} ({pool.source})", "prompts_sha256": digest(texts)}
    write_pool(path, pool, source)
    return Pool(path, pool.source, Expansion(texts), 0.0)


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
