"""From one instruction to a pool of paraphrases: ask, read, check, ask again for what is missing.

Every answer goes into a journal beside the pool at once, so that a killed command pays for nothing twice.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sapo.conf.errors import UserError
from sapo.data.pool_checks import check_text, kept_words
from sapo.data.tasks import Task, digest
from sapo.experiments.paraphrase.chat import Chat, Reply
from sapo.experiments.paraphrase.meta_prompts import answer_in, meta_prompt

AVOIDED = 3  # accepted wordings that a repeated request names, so that the answer is not one of them again
LEAST_SHARED = 0.2  # of an instruction's words; a quarter is the least that any paraphrase of the bank keeps
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W\d_\u3400-\u9fff]{3,}")
_COMMON = {"the", "and", "for", "with", "that", "this", "its", "are", "from", "not", "your", "you", "which"}
_COMMON |= {"whether", "given", "following", "text", "task", "output", "answer", "into", "one"}
_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d.]*%?")


@dataclass(frozen=True, slots=True)
class Judged:
    """A reply after the checks: `reason` says why its text is no paraphrase, `error` why there is no text."""

    text: str
    reason: str | None
    error: str | None
    tokens_in: int | None
    tokens_out: int | None


@dataclass
class Expansion:
    """What has come of the requests so far."""

    accepted: list[str] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)

    def add(self, judged: Judged) -> None:
        """Takes one judged reply."""
        self.judged.append(judged)
        if judged.error is None and judged.reason is None:
            self.accepted.append(judged.text)

    @property
    def requests(self) -> int:
        """How many messages were asked, retries of one not counted."""
        return len(self.judged)

    @property
    def errors(self) -> Counter[str]:
        """Why requests had no answer, and how many."""
        return Counter(judged.error for judged in self.judged if judged.error is not None)

    def rejected(self) -> list[dict[str, Any]]:
        """Each kind of reason with its count, and one text with its very reason; the commonest first."""
        refused = [judged for judged in self.judged if judged.reason is not None]
        kinds = Counter(kind_of(str(judged.reason)) for judged in refused)
        first = {kind_of(str(judged.reason)): judged for judged in reversed(refused)}
        return [
            {"kind": kind, "count": count, "reason": first[kind].reason, "example": first[kind].text}
            for kind, count in kinds.most_common()
        ]

    def tokens(self) -> dict[str, int | None]:
        """Tokens read and written, as the model's server told them; None where it told none."""
        found = {name: [getattr(j, f"tokens_{name}") for j in self.judged] for name in ("in", "out")}
        told = {name: [n for n in counts if n is not None] for name, counts in found.items()}
        return {name: sum(counts) if counts else None for name, counts in told.items()}


def expand(
    task: Task,
    chat: Chat,
    count: int,
    rounds: int,
    seed: int,
    expansion: Expansion,
    on_judged: Callable[[Judged], None],
) -> str | None:
    """Adds paraphrases to `expansion` until there are `count`, asking again in at most `rounds` rounds.

    The first round's requests are one and the same; later ones name wordings to avoid. `on_judged` is told
    of every reply at once. A round in which no request is answered is the last: returns its error, else None.
    """

    def judge(_: int, reply: Reply) -> None:
        judged = judged_reply(reply, task, expansion.accepted)
        expansion.add(judged)
        on_judged(judged)

    for _ in range(rounds + 1):
        missing = count - len(expansion.accepted)
        if missing <= 0:
            break
        asked = expansion.requests
        avoid = expansion.accepted[-AVOIDED:]
        chat.ask([meta_prompt(task, avoid)] * missing, seed=seed + asked, on_reply=judge)
        if all(judged.error is not None for judged in expansion.judged[asked:]):
            return expansion.judged[-1].error
    return None


def judged_reply(reply: Reply, task: Task, accepted: list[str]) -> Judged:
    """The paraphrase in a reply and whether it may join the accepted ones."""
    tokens = (reply.tokens_in, reply.tokens_out)
    if reply.error is not None:
        return Judged("", None, reply.error, *tokens)
    text = None if reply.is_cut else answer_in(reply.text)
    if text is None:
        return Judged(reply.text.strip(), "it breaks off before its end", None, *tokens)
    return Judged(text, check_text(text, task, accepted) or unrelated(text, task), None, *tokens)


def unrelated(text: str, task: Task) -> str | None:
    """Why a text seems to ask for something else: it shares too few words, by their first five letters.

    What every paraphrase keeps to the letter does not count.
    """
    original = _stems(task.instruction) - _stems(" ".join(kept_words(task)))
    shared = len(original & _stems(text))
    if not original or shared / len(original) >= LEAST_SHARED:
        return None
    return (
        f"it shares only {shared} of {len(original)} words with the original, and may ask for another thing"
    )


def kind_of(reason: str) -> str:
    """A reason without what it quotes and counts, so that equal ones can be counted."""
    return _VARIABLE.sub("…", reason)


def _stems(text: str) -> set[str]:
    return {word[:5] for word in _WORD.findall(text.lower()) if word not in _COMMON}


def request_digest(task: Task, chat: Chat) -> str:
    """SHA-256 of what decides which answers can come and be accepted: message, labels, model, sampling."""
    return digest(
        {
            "message": meta_prompt(task),
            "instruction": task.instruction,
            "labels": list(task.labels),
            "language": task.language,
            "parameters": chat.parameters,
        }
    )


class Journal:
    """The replies to one request so far, a line each, beside the pool that they will become."""

    def __init__(self, path: Path, request: str) -> None:
        self.path = path
        self._request = request

    def read(self) -> Expansion:
        """What has been asked already; UserError if the file belongs to another request.

        A line that a killed process left half-written is forgotten.
        """
        expansion = Expansion()
        if not self.path.is_file():
            return expansion
        text = self.path.read_text(encoding="utf-8", errors="replace")
        records = [record for record in map(_record, text.split("\n")) if record is not None]
        if not records or records[0].get("request") != self._request:
            raise UserError(
                f"{self.path} holds answers to another request (other instruction, model or parameters). "
                "Finish that one, delete the file, or pass --write OTHER.yaml or --force."
            )
        for record in records[1:]:
            if record.keys() == set(Judged.__dataclass_fields__):
                expansion.add(Judged(**record))
        return expansion

    def append(self, judged: Judged) -> None:
        """Adds one reply; it is in the file when this returns. UserError if the file cannot be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not self.path.is_file()
            with self.path.open("a", encoding="utf-8") as file:
                if is_new:
                    file.write(_line({"request": self._request}))
                file.write(_line({name: getattr(judged, name) for name in Judged.__dataclass_fields__}))
        except OSError as error:
            raise UserError(f"Cannot write {self.path}: {error.strerror or error}.") from error

    def remove(self) -> None:
        """Deletes the journal, whose pool is written."""
        self.path.unlink(missing_ok=True)


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _line(record: dict[str, Any]) -> str:
    """A JSON line that begins anew, even after one that was left half-written."""
    return "\n" + json.dumps(record, ensure_ascii=False) + "\n"
