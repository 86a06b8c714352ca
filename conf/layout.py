"""How a task's parts become the turns that a model is sent: what `data.layout` and `data.separator` mean."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import yaml

from sapo.conf.errors import UserError

PARTS = ("instruction", "input", "suffix", "separator")
PUBLISHED = "{instruction}\n\n{separator}\n{input}\n\n{suffix}"  # of the paper and its code
NAMED: dict[str | None, dict[str, str]] = {
    None: {"user": PUBLISHED},
    "plain": {"user": "{instruction}\n\n{input}\n\n{suffix}"},
    "system": {"system": "{instruction}", "user": "{input}\n\n{suffix}"},
}
_PART = re.compile(r"\{(\w+)\}")
_HOW = (
    "Say plain, system, a text with {instruction}, {input} and where wanted {suffix} and {separator}, the "
    "same as Jinja ({{ input }}), or turns: {system: '{instruction}', user: '{input}'}"
)


@dataclass(frozen=True)
class Layout:
    """The turns of a row before the answer: roles and texts with `{part}`, or Jinja with `{{ part }}`."""

    turns: tuple[tuple[str, str], ...]

    def messages(self, **parts: str) -> list[dict[str, str]]:
        """The turns with the parts in place; what a part holds is not looked at again.

        Without a suffix the blanks before it go too. A system turn that says nothing is left out.
        """
        turns = [(role, _filled(text, parts)) for role, text in self.turns]
        last = len(turns) - 1
        return [
            {"role": role, "content": text}
            for place, (role, text) in enumerate(turns)
            if place == last or text.strip()
        ]

    def reads(self, part: str) -> bool:
        """Whether any turn has the part."""
        return any(part in _parts_of(text) for _, text in self.turns)

    @property
    def begins_with_input(self) -> bool:
        """Whether the input stands before the instruction, so that rows share no beginning with it."""
        sent = self.messages(instruction="\0instruction", input="\0input", suffix="", separator="")
        text = "".join(turn["content"] for turn in sent)
        return text.find("\0input") < text.find("\0instruction")


@lru_cache(64)
def layout_of(setting: str | None) -> Layout:
    """The layout that `data.layout` means; UserError says what is wrong with it."""
    turns: Any = NAMED.get(setting)
    if turns is None:
        text = str(setting)
        is_turns = re.match(r"\{\s*['\"]?(?:system|user)['\"]?\s*:", text)
        turns = _mapping("data.layout", text) if is_turns else {"user": text}
    if list(turns) not in (["user"], ["system", "user"]):
        raise UserError(f"data.layout has the turns {', '.join(turns)}: it takes system, then user, or user.")
    found = tuple((role, text.replace("\\n", "\n").replace("\\t", "\t")) for role, text in turns.items())
    named = {part for _, text in found for part in _parts_of(text)}
    if unknown := sorted(named - {*PARTS}):
        raise UserError(f"data.layout: there is no part {unknown[0]!r}. {_HOW}.")
    for part in ("input", "instruction"):
        if part not in named:
            raise UserError(f"data.layout={setting}: it does not hold the {part}. {_HOW}.")
    return Layout(found)


def separators_of(setting: str) -> Mapping[str, str]:
    """The line before an input by the language of an instruction: zh, or en, which is every other one.

    Empty for `task` and `prompt`, which have rules of their own.
    """
    if setting in ("task", "prompt"):
        return {}
    if not setting.startswith("{"):
        return dict.fromkeys(("en", "zh"), setting)
    lines = _mapping("data.separator", setting)
    if other := sorted(lines.keys() - {"en", "zh"}):
        raise UserError(f"data.separator: {other[0]!r} is not en (all languages but Chinese) or zh.")
    return lines


def _mapping(name: str, text: str) -> dict[str, str]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict) or not all(
        isinstance(item, str) for pair in found.items() for item in pair
    ):
        raise UserError(f"{name}={text}: cannot be read. Put each text in quotes: {{user: 'TEXT', …}}.")
    return found


def _is_jinja(text: str) -> bool:
    return "{{" in text or "{%" in text


@lru_cache(64)
def _jinja(text: str) -> Any:
    """A template in a sandbox, in which a part that does not exist is an error."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    return environment.from_string(text)


def _parts_of(text: str) -> set[str]:
    if not _is_jinja(text):
        return set(_PART.findall(text))
    from jinja2 import Environment, TemplateError
    from jinja2.meta import find_undeclared_variables

    try:
        return set(find_undeclared_variables(Environment(autoescape=False).parse(text)))  # noqa: S701
    except TemplateError as error:
        raise UserError(f"data.layout: {error} (Jinja). {_HOW}.") from error


def _filled(text: str, parts: Mapping[str, str]) -> str:
    if not _is_jinja(text):
        if not parts["suffix"]:
            text = re.sub(r"\s*\{suffix\}", "", text)
        return _PART.sub(lambda found: parts[found[1]], text)
    from jinja2 import TemplateError

    try:
        return str(_jinja(text).render(parts))
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"data.layout: {error} (Jinja).") from error
