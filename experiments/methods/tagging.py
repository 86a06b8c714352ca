"""Tags that a language model writes for a row: `method.tagger=local:MODEL` or `openai:MODEL`.

`local:MODEL` is a model of `sapo ls models` on this machine; `openai:MODEL` is MODEL at the endpoint of
`paraphrases.base_url`, with the key in `paraphrases.key_variable`. Models of one name are taken to be one
model wherever they are served. Every answer goes into a journal in the store at once, so that neither a
training that goes on after an interruption nor another run asks for it again.
"""

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sapo.conf.errors import UserError, WorkError
from sapo.conf.load import load_one
from sapo.conf.schema import Config
from sapo.data.files import stored_json, write_json
from sapo.data.tasks import digest
from sapo.experiments.methods.method import KEPT
from sapo.experiments.model.fetch import model_folder
from sapo.experiments.paraphrase.chat import Chat, Reply
from sapo.experiments.paraphrase.local import LocalChat
from sapo.experiments.paraphrase.openai import OpenAIChat

TAGS = "tags.json"
MOST_UNTAGGED = 0.2  # share of rows without tags above which the choice would not be one by tags
WITHOUT = "method=inscl needs no tagger with method.unit=lexical or method.unit=quota."

_QUESTION = """Below is a request to a language model: an instruction and the text that it is about. \
Describe what the request is after with short, general tags: the kind of task, the subject, what has to be \
known or done to answer it. One to eight tags, in English and lower case, of one to three words each.
Do not carry out the request. Answer with a JSON list of strings and nothing else.

<request>
{request}
</request>"""
_THOUGHTS = re.compile(r"^.*</think>|<think>.*\Z", re.DOTALL)
_LIST = re.compile(r"\[[^\[\]]*\]")
_QUOTED = re.compile(r"\"([^\"\n]+)\"")
_LETTERS = re.compile(r"[^\W\d_]+")


def question(document: str) -> str:
    """The message that asks for the tags of a document."""
    before, after = _QUESTION.split("{request}")
    return f"{before}{document}{after}"


def tags_in(answer: str) -> list[str] | None:
    """The tags in a model's answer, in lower case and of letters only, each once; None if it holds no list.

    Words around the list do not matter, nor thoughts before it, single quotes, or a list that breaks off.
    """
    text = _THOUGHTS.sub("", answer)
    for found in reversed(_LIST.findall(text)):
        for read in (json.loads, ast.literal_eval):
            try:
                items = read(found)
            except (ValueError, SyntaxError):
                continue
            if tags := _cleaned([item for item in items if isinstance(item, str)]):
                return tags
    _, opened, rest = text.rpartition("[")
    return _cleaned(_QUOTED.findall(rest)) or None if opened else None


def _cleaned(items: Sequence[str]) -> list[str]:
    tags = (" ".join(_LETTERS.findall(item.casefold())) for item in items)
    return list(dict.fromkeys(tag for tag in tags if tag))


def tagger_name(tagger: str | None) -> str:
    """The model's name in `local:MODEL` or `openai:MODEL`."""
    return (tagger or "").partition(":")[2]


def tagger_of(config: Config) -> Chat:
    """The model that `method.tagger` names, at temperature 0; UserError if it, key or address is missing."""
    settings = replace(config.paraphrases, temperature=0.0)
    kind, _, name = (config.method.tagger or "").partition(":")
    if kind == "openai":
        return OpenAIChat(replace(settings, model=name))
    model = config.model if name == config.model.name else load_one([f"model={name}"]).model
    model_folder(model)
    return LocalChat(replace(config, model=model, paraphrases=settings))


def require_tagger(config: Config) -> None:
    """UserError, naming the variants that need no tags, if the tagger is not there or does not answer."""
    settings = config.paraphrases
    quick = replace(config, paraphrases=replace(settings, retries=min(1, settings.retries)))
    try:
        chat = tagger_of(quick)
        if isinstance(chat, OpenAIChat):
            (reply,) = chat.ask([question("Say whether the word is an animal.\n\nfox")])
            if reply.error:
                raise UserError(reply.error)
    except (UserError, WorkError) as error:
        raise UserError(f"method.tagger={config.method.tagger}: {error}\n{WITHOUT}") from error


class Tags:
    """The tags of documents, by SHA-256 of the document; None for one whose answer had no list."""

    def __init__(self, config: Config, previous: Path | None) -> None:
        self._config = config
        tagger = str(config.method.tagger)
        # Another question would get other answers: what it is stands in the journal's name.
        self._asked = digest([tagger, _QUESTION])[:12]
        readable = re.sub(r"[^\w.-]+", "-", tagger)
        self._journal = Path(config.store.root) / "tags" / f"{readable}-{self._asked}.jsonl"
        self._known = self._read(previous)

    def of(self, documents: Sequence[str]) -> list[frozenset[str]]:
        """The tags of each document; the model is asked for those that are not known yet.

        WorkError if it cannot be asked, or if too many documents stay without tags.
        """
        missing = {_sha256(text): text for text in documents}
        missing = {key: text for key, text in missing.items() if key not in self._known}
        errors = self._ask(missing) if missing else {}
        untagged = sum(self._known.get(_sha256(text)) is None for text in documents)
        if untagged > MOST_UNTAGGED * len(documents):
            raise WorkError(
                f"{untagged} of {len(documents)} rows have no tags from {self._config.method.tagger}"
                + (f": {next(iter(errors.values()))}." if errors else ": its answers hold no list.")
                + f" What was answered is kept. {WITHOUT}"
            )
        for key in errors:  # few, and not asked again: a training that goes on must choose the same rows
            self._note(key, None)
        return [frozenset(self._known[_sha256(text)] or ()) for text in documents]

    def write(self, folder: Path, documents: Sequence[str]) -> None:
        """Writes the tags of these documents to `kept/` in the folder of a state."""
        tags = {_sha256(text): self._known[_sha256(text)] for text in documents}
        facts = {"tagger": self._config.method.tagger, "asked": self._asked}
        untagged = sum(found is None for found in tags.values())
        write_json(folder / KEPT / TAGS, {**facts, "untagged": untagged, "tags": tags})

    def _ask(self, missing: dict[str, str]) -> dict[str, str]:
        """Asks for the documents' tags; returns the errors of those that got no answer."""
        keys, errors = list(missing), {}

        def note(place: int, reply: Reply) -> None:
            if reply.error is not None:
                errors[keys[place]] = reply.error
            else:
                self._note(keys[place], tags_in(reply.text))

        try:
            tagger_of(self._config).ask([question(text) for text in missing.values()], on_reply=note)
        except (UserError, WorkError) as error:
            raise WorkError(f"method.tagger={self._config.method.tagger}: {error}\n{WITHOUT}") from error
        return errors

    def _note(self, key: str, tags: list[str] | None) -> None:
        self._known[key] = tags
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"document": key, "tags": tags}, ensure_ascii=False) + "\n"
        with self._journal.open("a+b") as file:
            file.seek(max(0, file.tell() - 1))
            # A line that a killed process left half-written would take this one with it.
            start = "" if file.read() in (b"", b"\n") else "\n"
            file.write(f"{start}{line}".encode())

    def _read(self, previous: Path | None) -> dict[str, list[str] | None]:
        known: dict[str, list[str] | None] = {}
        if previous is not None:
            kept = stored_json(previous / KEPT / TAGS)
            known |= kept["tags"] if kept["asked"] == self._asked else {}
        if self._journal.is_file():
            for line in self._journal.read_text(encoding="utf-8", errors="replace").split("\n"):
                if entry := _entry(line):
                    known.setdefault(*entry)
        return known


def _entry(line: str) -> tuple[str, list[str] | None] | None:
    """A document's SHA-256 and tags; None for a broken line, whose document is then asked for again."""
    try:
        entry = json.loads(line)
        key, tags = entry["document"], entry["tags"]
    except (ValueError, LookupError, TypeError):
        return None
    is_whole = tags is None or (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags))
    return (key, tags) if isinstance(key, str) and is_whole else None


def _sha256(document: str) -> str:
    return digest(document)
