"""What a model is asked for a paraphrase, in the instruction's language, and reading its answer."""

import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Template

from sapo.data.files import read_yaml
from sapo.data.pool_checks import kept_words
from sapo.data.tasks import Task

_TEMPLATES = {
    language: Template(text, trim_blocks=True)
    for language, text in read_yaml(Path(__file__).with_suffix(".yaml")).items()
}
THOUGHTS = re.compile(r"^.*</think>|<think>.*\Z", re.DOTALL)  # before an answer, and no part of it
_ANSWER = re.compile(r"<instruction>(.*?)</instruction>", re.DOTALL | re.IGNORECASE)


def meta_prompt(task: Task, avoid: Sequence[str] = ()) -> str:
    """The message that asks for one paraphrase of the task's instruction, unlike those to `avoid`."""
    original, suffix = task.instruction.strip(), task.suffix.strip()
    template = _TEMPLATES["zh" if task.language == "zh" else "en"]
    return template.render(original=original, words=kept_words(task), suffix=suffix, avoid=avoid)


def answer_in(text: str) -> str | None:
    """The paraphrase in a model's answer: what stands in the tags, else all of it; None if it breaks off."""
    text = THOUGHTS.sub("", text)
    found = _ANSWER.findall(text)
    if found:
        return str(found[-1]).strip()
    return None if "<instruction>" in text.lower() else text.strip()
