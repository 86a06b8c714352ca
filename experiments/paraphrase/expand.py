"""From one instruction to paraphrases: ask, read, check, ask again for what is missing.

Every answer goes into a journal beside the pool at once, so that a killed command pays for nothing twice.
"""

import fcntl
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TextIO

from sapo.conf.errors import UserError
from sapo.data.pool_checks import check_text, kept_words, scripts, words_of
from sapo.data.tasks import Task
from sapo.experiments.paraphrase.chat import Chat, Reply
from sapo.experiments.paraphrase.meta_prompts import answer_in, meta_prompt

AVOIDED = 3  # accepted paraphrases that a repeated request names, so that the answer is not one of them again
LEAST_SHARED = 0.2  # of an instruction's words; a quarter is the least that any paraphrase of the bank keeps
_COMMON = {"the", "and", "for", "with", "that", "this", "its", "are", "from", "not", "your", "you", "which"}
_COMMON |= {"whether", "given", "following", "text", "task", "output", "answer", "into", "one"}
_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d.]*%?")


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply after the checks: `reason` says why its text is no paraphrase, `error` why there is no text."""

    text: str
    reason: str | None
    error: str | None
    tokens_in: int | None
    tokens_out: int | None


@dataclass
class Expansion:
    """What has come of the requests so far; retries of one are not counted."""

    accepted: list[str] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def add(self, answer: Answer) -> None:
        """Takes one more answer."""
        self.answers.append(answer)
        if answer.error is None and answer.reason is None:
            self.accepted.append(answer.text)

    @property
    def errors(self) -> Counter[str]:
        """Why requests had no answer, and how many."""
        return Counter(answer.error for answer in self.answers if answer.error is not None)

    def rejected(self) -> list[dict[str, Any]]:
        """Each kind of reason with its count, and one text with its very reason; the commonest first."""
        kinds: dict[str, dict[str, Any]] = {}
        for answer in self.answers:
            if answer.reason is not None:
                kind = kind_of(answer.reason)
                row = {"kind": kind, "count": 0, "reason": answer.reason, "example": answer.text}
                kinds.setdefault(kind, row)["count"] += 1
        return sorted(kinds.values(), key=lambda row: -row["count"])

    def tokens(self) -> dict[str, int | None]:
        """Tokens read and written, as the model's server counts them; None where it does not."""
        counts = {
            "in": [answer.tokens_in for answer in self.answers],
            "out": [answer.tokens_out for answer in self.answers],
        }
        known = {name: [n for n in numbers if n is not None] for name, numbers in counts.items()}
        return {name: sum(numbers) if numbers else None for name, numbers in known.items()}


def expand(
    task: Task,
    chat: Chat,
    count: int,
    rounds: int,
    seed: int,
    expansion: Expansion,
    on_answer: Callable[[Answer], None],
) -> str | None:
    """Adds paraphrases to an expansion until there are enough.

    The first round's requests are one and the same; later ones name paraphrases to avoid.

    Args:
        task: Whose instruction is paraphrased.
        chat: Who is asked.
        count: How many paraphrases there shall be in all.
        rounds: How many times what is missing is asked for again.
        seed: Seed of the first request; each further one has the next.
        expansion: What there is already; it grows.
        on_answer: Is given every answer at once.

    Returns:
        The error of a round in which no request was answered, which is the last; else None.
    """

    def take(_: int, reply: Reply) -> None:
        answer = checked(reply, task, expansion.accepted)
        expansion.add(answer)
        on_answer(answer)

    for _ in range(rounds + 1):
        missing = count - len(expansion.accepted)
        if missing <= 0:
            break
        asked = len(expansion.answers)
        message = meta_prompt(task, expansion.accepted[-AVOIDED:])
        chat.ask([message] * missing, seed=seed + asked, on_reply=take)
        if all(answer.error is not None for answer in expansion.answers[asked:]):
            return expansion.answers[-1].error
    return None


def checked(reply: Reply, task: Task, accepted: list[str]) -> Answer:
    """The paraphrase in a reply and whether it may join the accepted ones."""
    tokens = (reply.tokens_in, reply.tokens_out)
    if reply.error is not None:
        return Answer("", None, reply.error, *tokens)
    text = None if reply.is_cut else answer_in(reply.text)
    if text is None:
        return Answer(reply.text.strip(), "it breaks off before its end", None, *tokens)
    return Answer(text, check_text(text, task, accepted) or unrelated(text, task), None, *tokens)


def unrelated(text: str, task: Task) -> str | None:
    """Why a text seems to ask for something else: it shares too few words, by their first five letters.

    What every paraphrase keeps to the letter does not count. Scripts other than those of the bank, for which
    the bound was measured, are not judged.
    """

    def stems(text: str) -> set[str]:
        words = {word for word in words_of(text) if word not in _COMMON and not re.search(r"[\d_]", word)}
        return {word[:5] for word in words if len(word) > 2 or "\u3400" <= word <= "\u9fff"}

    original = stems(task.instruction) - stems(" ".join(kept_words(task)))
    shared = len(original & stems(text))
    is_measured = next(iter(scripts(task.instruction)), None) in ("LATIN", "CJK")
    if not original or not is_measured or shared / len(original) >= LEAST_SHARED:
        return None
    return (
        f"it shares only {shared} of {len(original)} words with the original, and may ask for another thing"
    )


def kind_of(reason: str) -> str:
    """A reason without what it quotes and counts, so that equal ones can be counted."""
    return _VARIABLE.sub("…", reason)


@contextmanager
def locked(path: Path, on_wait: Callable[[], None]) -> Iterator[TextIO]:
    """The file at `path`, open to be read and added to by this process alone; it is made if there is none.

    `on_wait` is called if another process has it. UserError if it cannot be written.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8", errors="replace")
        except OSError as error:
            raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            # Else who had it has removed it, and another file may stand there by now.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                yield file
                return


class Journal:
    """The answers to one request so far, a line each, beside the pool that they will become.

    Who has it open has it alone: another process waits until the pool is written, and finds it.
    """

    def __init__(self, path: Path, request: str, file: TextIO) -> None:
        self.path, self._request, self._file = path, request, file

    @classmethod
    @contextmanager
    def open(cls, path: Path, request: str, on_wait: Callable[[], None]) -> Iterator["Journal"]:
        """The journal at `path`, locked; `on_wait` is called if another process has it."""
        made = [folder for folder in path.absolute().parents if not folder.exists()]
        with locked(path, on_wait) as file:
            try:
                yield cls(path, request, file)
            finally:
                if path.exists() and not path.stat().st_size:
                    path.unlink()
                    with suppress(OSError):  # where a pool was written, they are not empty
                        for folder in made:
                            folder.rmdir()

    def read(self) -> Expansion:
        """What has been asked already; UserError if the file belongs to another request.

        A line that a killed process left half-written is forgotten.
        """
        expansion = Expansion()
        self._file.seek(0)
        records = [record for record in map(_record, self._file) if record is not None]
        if records and records[0].get("request") != self._request:
            raise UserError(
                f"{self.path} holds answers to another request (other instruction, model or parameters). "
                "Finish that one, delete the file, or pass --write OTHER.yaml or --force."
            )
        for record in records[1:]:
            if record.keys() == {f.name for f in fields(Answer)}:
                expansion.add(Answer(**record))
        return expansion

    def append(self, answer: Answer) -> None:
        """Adds one answer; it is on the disk when this returns. UserError if the file cannot be written."""
        try:
            records = [asdict(answer)]
            if not os.fstat(self._file.fileno()).st_size:
                records.insert(0, {"request": self._request})
            # A line begins anew, even after one that was left half-written.
            self._file.write("".join(f"\n{json.dumps(record)}\n" for record in records))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(f"Cannot write {self.path}: {error.strerror or error}.") from error

    def clear(self) -> None:
        """Empties the journal, whose pool is written or given up."""
        self._file.truncate(0)


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
