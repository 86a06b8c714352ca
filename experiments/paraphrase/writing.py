"""Writing a prompt pool: paraphrases that a model was asked for, checked, with where they come from."""

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from jinja2 import Template

from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import Config, ParaphrasesConfig
from sapo.data.files import read_yaml
from sapo.data.pool_checks import check_text, kept_words
from sapo.data.pools import load_pool, write_pool
from sapo.data.prompts import pool_of, read_pool
from sapo.data.tasks import Task, digest
from sapo.experiments.model.fetch import model_folder
from sapo.experiments.paraphrase import Chat, OnReply, Reply, chat_of
from sapo.experiments.paraphrase.openai import address, key_variable, request_body

AVOIDED = 3  # accepted paraphrases that a repeated request names, so that the answer is not one of them again
_MESSAGES = {
    language: Template(text, trim_blocks=True)
    for language, text in read_yaml(Path(__file__).with_name("messages.yaml")).items()
}
THOUGHTS = re.compile(r"^.*</think>|<think>.*\Z", re.DOTALL)  # before an answer, and no part of it
_ANSWER = re.compile(r"<instruction>(.*?)</instruction>", re.DOTALL | re.IGNORECASE)
_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d.]*%?")
_log = logging.getLogger(__name__)


@dataclass
class Expansion:
    """The paraphrases of a pool so far, and what was answered to the requests for them now.

    `model` wrote them; retries of a request do not count. `path` is None where there was nothing to write.
    """

    model: str
    accepted: list[str]
    answers: list[Reply] = field(default_factory=list)
    path: Path | None = None
    seconds: float = 0.0

    def rejected(self) -> list[dict[str, Any]]:
        """Each kind of reason with its count, and one text with its very reason; the commonest first.

        A kind is a reason without what it quotes and counts.
        """
        kinds: dict[str, dict[str, Any]] = {}
        for answer in self.answers:
            if answer.reason is not None:
                kind = _VARIABLE.sub("…", answer.reason)
                row = {"kind": kind, "count": 0, "reason": answer.reason, "example": answer.text}
                kinds.setdefault(kind, row)["count"] += 1
        return sorted(kinds.values(), key=lambda row: -row["count"])

    def tokens(self) -> dict[str, int | None]:
        """Tokens read and written, as the model's server counts them; None where it does not."""
        answers = self.answers
        return {"in": _total(a.tokens_in for a in answers), "out": _total(a.tokens_out for a in answers)}

    def as_json(self, task: Task, config: Config) -> dict[str, Any]:
        """What was accepted, rejected and spent, as JSON values."""
        settings, tokens = config.paraphrases, self.tokens()
        errors = Counter(answer.error for answer in self.answers if answer.error is not None)
        spent = [(n or 0) * price for n, price in zip(tokens.values(), settings.prices, strict=False)]
        return {
            "task": task.name,
            "original": task.instruction,
            "language": task.language,
            "paraphraser": settings.name,
            "model": self.model,
            "asked": settings.count,
            "accepted": self.accepted,
            "rejected": self.rejected(),
            "failed": [{"error": error, "count": count} for error, count in errors.most_common()],
            "requests": len(self.answers),
            "tokens": tokens,
            "cost_usd": sum(spent) / 1e6 if spent and None not in tokens.values() else None,
            "seconds": round(self.seconds, 3),
            "file": str(self.path) if self.path else None,
            "complete": len(self.accepted) >= settings.count,
        }


def _total(counts: Iterable[int | None]) -> int | None:
    """The sum of what is known; None where nothing is."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def meta_prompt(task: Task, avoid: Sequence[str] = ()) -> str:
    """The message that asks for one paraphrase of the task's instruction, unlike those to `avoid`."""
    original, suffix = task.instruction.strip(), task.suffix.strip()
    message = _MESSAGES["zh" if task.language == "zh" else "en"]
    return message.render(original=original, words=kept_words(task), suffix=suffix, avoid=avoid)


def answer_in(text: str) -> str | None:
    """The paraphrase in a model's answer: what stands in the tags, else all of it; None if it breaks off."""
    text = THOUGHTS.sub("", text)
    if found := _ANSWER.findall(text):
        return str(found[-1]).strip()
    return None if "<instruction>" in text.lower() else text.strip()


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
) -> Expansion:
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
        there = partial if partial.exists() else path
        earlier, source = ([], {}) if force else _earlier(there, request, task)
        expansion = Expansion(chat.name, earlier)

        def write(file: Path) -> None:
            pool = pool_of(task, expansion.accepted, settings.name)
            write_pool(file, pool, _source(task, config, chat, request, expansion, source))

        def take(_: int, reply: Reply) -> None:
            expansion.answers.append(answer := checked(reply, task, expansion.accepted, settings.allow))
            if answer.error is None and answer.reason is None:
                expansion.accepted.append(answer.text)
                write(partial)
            on_answer(answer, expansion)

        seed = config.seed + source.get("requests", 0)
        if error := _ask(task, settings, chat, expansion, take, seed):
            n, kept = len(expansion.accepted), partial if partial.exists() else path
            raise WorkError(
                f"{error}\n{n} of {settings.count} paraphrases are accepted and kept in {kept}; the same "
                "command goes on from there."
                if n
                else f"No paraphrase: {error}"
            )
        if partial.exists():
            write(path)
            partial.unlink()
    expansion.path = path if expansion.accepted else None
    expansion.model, expansion.seconds = chat.name, time.monotonic() - begun
    return expansion


def _ask(
    task: Task, settings: ParaphrasesConfig, chat: Chat, expansion: Expansion, take: OnReply, seed: int
) -> str | None:
    """Has `take` add paraphrases until there are enough; each request has the next seed.

    The first round's requests are one and the same; later ones name paraphrases to avoid. Returns the error
    of a round in which no request was answered, which is the last; else None.
    """
    for _ in range(settings.rounds + 1):
        missing, asked = settings.count - len(expansion.accepted), len(expansion.answers)
        if missing <= 0:
            break
        message = meta_prompt(task, expansion.accepted[-AVOIDED:])
        chat.ask([message] * missing, take, seed + asked)
        if all(answer.error is not None for answer in expansion.answers[asked:]):
            return expansion.answers[-1].error
    return None


def checked(reply: Reply, task: Task, accepted: list[str], allow: Collection[str] = ()) -> Reply:
    """The paraphrase in a reply, and why it may not join the accepted ones."""
    if reply.error is not None:
        return reply
    text = None if reply.is_cut else answer_in(reply.text)
    if text is None:
        return replace(reply, text=reply.text.strip(), reason="it breaks off before its end")
    problem = check_text(text, task, accepted, allow)
    return replace(reply, text=text, reason=str(problem) if problem else None)


def copy_pool(task: Task, config: Config, path: Path, force: bool) -> Expansion:
    """Writes the pool that the bank or a file has, validated; UserError if a file stands at `path`."""
    pool = load_pool(task, config.paraphrases)
    if path.exists() and not force:
        raise UserError(f"{path} is there already. Pass --write OTHER.yaml, or --force.")
    texts = [prompt.text for prompt in pool.paraphrases]
    source = {"paraphraser": f"{config.paraphrases.name} ({pool.source})", "prompts_sha256": digest(texts)}
    write_pool(path, pool, source)
    return Expansion(pool.source, texts, path=path)


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
        "tokens": {name: _total([before.get(name), n]) for name, n in expansion.tokens().items()},
    }
