"""From one instruction to paraphrases: ask, read, check, ask again for what is missing."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sapo.data.pool_checks import check_text
from sapo.data.tasks import Task
from sapo.experiments.paraphrase.chat import Chat, Reply
from sapo.experiments.paraphrase.meta_prompts import answer_in, meta_prompt

AVOIDED = 3  # accepted paraphrases that a repeated request names, so that the answer is not one of them again
_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d.]*%?")


@dataclass
class Expansion:
    """The paraphrases so far, and what was answered to the requests for them; retries of one do not count."""

    accepted: list[str] = field(default_factory=list)
    answers: list[Reply] = field(default_factory=list)

    @property
    def errors(self) -> Counter[str]:
        """Why requests had no answer, and how many."""
        return Counter(answer.error for answer in self.answers if answer.error is not None)

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
        read = [reply.tokens_in for reply in self.answers if reply.tokens_in is not None]
        written = [reply.tokens_out for reply in self.answers if reply.tokens_out is not None]
        return {"in": sum(read) if read else None, "out": sum(written) if written else None}

    def cost(self, prices: Sequence[float]) -> float | None:
        """US dollars at prices of a million tokens [IN, OUT]; None where one of these is not known."""
        counts = [n for n in self.tokens().values() if n is not None]
        if len(counts) < 2 or not prices:
            return None
        return sum(n * price for n, price in zip(counts, prices, strict=True)) / 1e6


def expand(
    task: Task,
    chat: Chat,
    count: int,
    rounds: int,
    seed: int,
    expansion: Expansion,
    on_answer: Callable[[Reply], None],
    allow: Collection[str] = (),
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
        allow: Rules of `pool_checks` that are left out.

    Returns:
        The error of a round in which no request was answered, which is the last; else None.
    """

    def take(_: int, reply: Reply) -> None:
        expansion.answers.append(answer := checked(reply, task, expansion.accepted, allow))
        if answer.error is None and answer.reason is None:
            expansion.accepted.append(answer.text)
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


def checked(reply: Reply, task: Task, accepted: list[str], allow: Collection[str] = ()) -> Reply:
    """The paraphrase in a reply, and why it may not join the accepted ones."""
    if reply.error is not None:
        return reply
    text = None if reply.is_cut else answer_in(reply.text)
    if text is None:
        return replace(reply, text=reply.text.strip(), reason="it breaks off before its end")
    problem = check_text(text, task, accepted, allow)
    return replace(reply, text=text, reason=str(problem) if problem else None)
