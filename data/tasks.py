"""What a task is: an instruction, a fixed output-format suffix, and its examples."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

from sapo.conf.errors import UserError
from sapo.conf.layout import separators_of
from sapo.data.remembering import remembered

SEPARATORS = {"zh": "文本:", "en": "Text:"}  # the line before the input, by the instruction's language


@dataclass(frozen=True, slots=True)
class Example:
    """One input text and the answer a model is trained to give."""

    input: str
    target: str


@dataclass(frozen=True)
class Task:
    """A task with its original instruction and all its examples.

    The user turn of an example is `instruction + "\\n\\n" + separator + "\\n" + input + "\\n\\n" + suffix`,
    without what follows the input where there is no suffix (paper, Section 4; official file
    `src/uie_dataset.py`, `load_task`), unless `data.layout` says otherwise. Policies replace the instruction
    only.
    """

    name: str
    instruction: str
    suffix: str
    train: tuple[Example, ...] = field(repr=False)
    test: tuple[Example, ...] = field(repr=False)
    labels: tuple[str, ...] = ()
    language: str = "en"
    separator: str = SEPARATORS["en"]
    notes: tuple[str, ...] = field(default=(), compare=False)  # on how a user's rows were read

    @property
    def kind(self) -> str:
        """`classification` where the label set is known, else `generation`."""
        return "classification" if self.labels else "generation"

    @cached_property
    def short_name(self) -> str:
        """`NI195` for `task195_…`, else the name."""
        return short_name(self.name)


def own_task(
    name: str,
    instruction: str,
    suffix: str = "",
    labels: tuple[str, ...] = (),
    train: Iterable[Example] = (),
    test: Iterable[Example] = (),
) -> Task:
    """A task whose language, and with it the line before the input, is told by its instruction."""
    language = "zh" if is_chinese(instruction) else "en"
    separator = SEPARATORS[language]
    return Task(name, instruction, suffix, tuple(train), tuple(test), labels, language, separator)


def with_separator(task: Task, setting: str) -> Task:
    """The task with the line that `data.separator` has for its language; UserError if it has none."""
    lines = separators_of(setting)
    if lines and task.language not in lines:
        of = f"{task.language}, the language of {task.name} (zh: Chinese, en: any other)"
        raise UserError(f"data.separator has no line for {of}.")
    return replace(task, separator=lines[task.language]) if lines else task


def is_chinese(text: str) -> bool:
    """Whether most letters are Chinese, and none Japanese or Korean, whose separator is the plain one."""
    if re.search("[\u1100-\u11ff\u3040-\u30ff\uac00-\ud7af]", text):
        return False
    letters = [character for character in text if character.isalpha()]
    return 2 * sum("一" <= character <= "鿿" for character in letters) > len(letters)


def short_name(task: str) -> str:
    """The paper's name for a task: `NI195` for `task195_sentiment140_classification`."""
    numbered = re.match(r"task(\d+)_", task)
    return f"NI{numbered[1]}" if numbered else task


def digest(items: object) -> str:
    """SHA-256 of the canonical JSON of strings, numbers, and lists and dicts of them."""
    text = json.dumps(items, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@remembered(1024)  # a run asks for the same few again and again
def examples_digest(examples: tuple[Example, ...]) -> str:
    """SHA-256 over inputs and targets in order: the identity of the very rows a stage reads."""
    return digest([[example.input, example.target] for example in examples])
