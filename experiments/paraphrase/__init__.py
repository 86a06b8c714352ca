"""Who is asked for paraphrases and tags: a chat model behind an endpoint, or one on this machine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sapo.conf.errors import UserError
from sapo.conf.schema import Config


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, or why there is none; tokens are None where the model's server does not tell them.

    `reason` says, after the checks, why the text is no paraphrase.
    """

    text: str = ""
    error: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    is_cut: bool = False  # the answer ended because it had reached its longest length
    reason: str | None = None


OnReply = Callable[[int, Reply], None]


class Chat(Protocol):
    """A chat model, wherever it runs. `parameters` are what can change an answer, and no secret."""

    name: str
    parameters: dict[str, Any]

    def ask(self, texts: Sequence[str], on_reply: OnReply, seed: int = 0) -> None:
        """Asks all texts, each a conversation of its own; `on_reply` gets its place and reply at once.

        A failure of one request is a Reply with an error; one that every request would share raises UserError
        or WorkError. `seed` is that of the first message, where a model's sampling can be seeded.
        """


def chat_of(config: Config) -> Chat:
    """The chat model that `paraphrases` names; UserError if it names none, or key or address is missing."""
    if config.paraphrases.source == "openai":
        from sapo.experiments.paraphrase.openai import OpenAIChat

        return OpenAIChat(config.paraphrases)
    if config.paraphrases.source == "local":
        from sapo.experiments.paraphrase.local import LocalChat

        return LocalChat(config)
    raise UserError(
        f"paraphrases={config.paraphrases.name} asks no model. Choose one that does: `sapo ls paraphrases`."
    )
