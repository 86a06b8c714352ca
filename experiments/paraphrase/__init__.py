"""Who is asked for paraphrases: a model behind an endpoint, or one on this machine."""

from sapo.conf.errors import UserError
from sapo.conf.schema import Config
from sapo.experiments.paraphrase.chat import Chat


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
