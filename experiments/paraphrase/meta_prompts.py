"""What a model is asked for a paraphrase, in the instruction's language, and reading its answer."""

import re
from collections.abc import Sequence
from pathlib import Path

from sapo.data.files import read_yaml
from sapo.data.pool_checks import kept_words
from sapo.data.tasks import Task

_TEMPLATES = read_yaml(Path(__file__).with_suffix(".yaml"))
_THOUGHTS = re.compile(r"^.*</think>|<think>.*\Z", re.DOTALL)
_ANSWER = re.compile(r"<instruction>(.*?)</instruction>", re.DOTALL | re.IGNORECASE)


def meta_prompt(task: Task, avoid: Sequence[str] = ()) -> str:
    """The message that asks for one paraphrase of the task's instruction, unlike those to `avoid`."""
    said, details = _TEMPLATES["zh" if task.language == "zh" else "en"], ""
    if words := kept_words(task):
        details += said["keep"].replace("{words}", said["comma"].join(f"`{word}`" for word in words))
    if task.suffix.strip():
        details += said["suffix"].replace("{suffix}", task.suffix.strip())
    if avoid:
        details += said["avoid"].replace("{wordings}", "\n".join(f"  {text}" for text in avoid))
    # Not `str.format`: an instruction may hold braces.
    rules, _, rest = said["whole"].partition("{details}")
    more_rules, _, end = rest.partition("{original}")
    return f"{rules}{details}{more_rules}{task.instruction.strip()}{end}"


def answer_in(text: str) -> str | None:
    """The paraphrase in a model's answer: what stands in the tags, else all of it; None if it breaks off.

    Thoughts before the answer are no part of it.
    """
    text = _THOUGHTS.sub("", text)
    found = _ANSWER.findall(text)
    if found:
        return str(found[-1]).strip()
    return None if "<instruction>" in text.lower() else text.strip()
