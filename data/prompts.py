"""Prompts and prompt pools: the original instruction of a task and its paraphrases."""

from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from sapo.conf.errors import UserError
from sapo.data.files import is_text, read_text, read_yaml
from sapo.data.tasks import Task, digest

ORIGINAL = -1
BANK = Path(__file__).parent / "bank"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One wording of an instruction; `index` is its place in the pool, -1 for the original, or less."""

    text: str
    index: int = ORIGINAL

    @property
    def name(self) -> str:
        """`original prompt`, `prompt 3`; for a text that is in no pool, what it is."""
        if self.index >= 0:
            return f"prompt {self.index}"
        if self.index == ORIGINAL:
            return "original prompt"
        return "own prompt" if self.text else "no instruction"


@dataclass(frozen=True)
class PromptPool:
    """The original instruction of a task and its paraphrases, with where they come from."""

    task: str
    original: Prompt
    paraphrases: tuple[Prompt, ...]
    language: str = "en"
    source: str = ""
    left_out: int = 0  # paraphrases of the file beyond the number that is used

    def candidates(self, include_original: bool) -> tuple[Prompt, ...]:
        """What a policy chooses from: the paraphrases, after the original if asked, or if there are none."""
        if include_original or not self.paraphrases:
            return (self.original, *self.paraphrases)
        return self.paraphrases

    def at(self, index: int) -> Prompt:
        """The paraphrase of that index, or the original for -1; UserError naming the range."""
        if index == ORIGINAL:
            return self.original
        if 0 <= index < len(self.paraphrases):
            return self.paraphrases[index]
        has = f"paraphrases 0 to {len(self.paraphrases) - 1}" if self.paraphrases else "no paraphrases"
        raise UserError(f"No prompt {index}: the pool of {self.task} has {has}; -1 is the original.")

    def first(self, count: int) -> "PromptPool":
        """The same pool with its first `count` paraphrases only: pools of different sizes nest."""
        left_out = self.left_out + max(0, len(self.paraphrases) - count)
        return replace(self, paraphrases=self.paraphrases[:count], left_out=left_out)


def pool_of(task: Task, texts: list[str], source: str) -> PromptPool:
    """A pool for `task` of paraphrase texts in order."""
    paraphrases = tuple(Prompt(text, index) for index, text in enumerate(texts))
    return PromptPool(task.name, Prompt(task.instruction), paraphrases, task.language, source)


def read_pool(path: Path, task: Task) -> PromptPool:
    """The pool in a YAML file: `prompts` (texts) and optionally `original`, `task`, `language`, `source`.

    A plain list of texts is one, too, as YAML or JSON, or as a `.txt` file with a prompt a line. Blanks
    around a text are dropped: a block scalar ends in a line break. Raises UserError if the file is none of
    these, or was written for another instruction.
    """
    content = pool_content(path)
    texts = content.get("prompts")
    if not isinstance(texts, list) or not all(map(is_text, texts)):
        known = "YAML with `prompts:`, a list of texts, or such a list; or a .txt file with a prompt a line"
        raise UserError(f"{path}: a prompt pool is {known}.")
    original, source = content.get("original"), content.get("source") or path.name
    if not isinstance(original, str | None) or not isinstance(source, str | dict):
        raise UserError(f"{path}: `original:` must be a text, and `source:` a text or names with values.")
    if original is not None and original.strip() != task.instruction.strip():
        both = f"  pool: {original}\n  task: {task.instruction}"
        raise UserError(f"{path} holds paraphrases of another instruction than {task.name} has now:\n{both}")
    texts = [text.strip() for text in texts]
    if isinstance(source, dict):  # of a recorded source: who wrote the pool, when, and whether it was edited
        said = [source.get(name) for name in ("paraphraser", "model", "date")]
        names = [str(value) for value in said if value and isinstance(value, str | int | float | date)]
        is_edited = source.get("prompts_sha256") not in (None, digest(texts))
        source = ", ".join([*names, "edited since"] if is_edited else names) or "a recorded source"
    return pool_of(task, texts, source)


def pool_content(path: Path) -> dict[str, Any]:
    """What a pool file says by name; a plain list of texts, or a text file's lines, are its `prompts`."""
    if path.suffix.lower() == ".txt":
        lines = (line.strip() for line in read_text(path).removeprefix("\ufeff").splitlines())
        return {"prompts": [line for line in lines if line]}
    content = read_yaml(path, "prompt pool")
    if isinstance(content, list) and content:
        return {"prompts": content}
    return content if isinstance(content, dict) else {}
