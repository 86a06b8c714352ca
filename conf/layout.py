"""How a task's parts become the turns that a model is sent: what `data.layout` and `data.separator` mean."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import yaml

from sapo.conf.errors import UserError

NAMED: dict[str | None, dict[str, str]] = {
    None: {"user": "{instruction}\n\n{separator}\n{input}\n\n{suffix}"},  # of the paper and its code
    "plain": {"user": "{instruction}\n\n{input}\n\n{suffix}"},
    "system": {"system": "{instruction}", "user": "{input}\n\n{suffix}"},
}
PARTS = "instruction", "input", "suffix", "separator"
_HOW = (
    "Say plain, system, a text with {instruction}, {input} and where wanted {suffix} and {separator}, the "
    "same as Jinja ({{ input }}), or turns: {system: '{instruction}', user: '{input}'}"
)


@dataclass(frozen=True)
class Layout:
    """The turns of a row before the answer: roles and Jinja templates."""

    turns: tuple[tuple[str, str], ...]

    def messages(self, **parts: str) -> list[dict[str, str]]:
        """The turns with the parts, whatever these hold, in place; a system turn that says nothing goes."""
        from jinja2 import TemplateError

        try:
            turns = [{"role": role, "content": str(_jinja(text).render(parts))} for role, text in self.turns]
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise UserError(f"data.layout: {error} (Jinja).") from error
        return [turn for turn in turns[:-1] if turn["content"].strip()] + turns[-1:]

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
    found = tuple((role, _as_jinja(text)) for role, text in turns.items())
    named = {part for _, text in found for part in _parts_of(text)}
    if unknown := sorted(named.difference(PARTS)):
        raise UserError(f"data.layout: there is no part {unknown[0]!r}. {_HOW}.")
    for part in ("input", "instruction"):
        if part not in named:
            raise UserError(f"data.layout={setting}: it does not hold the {part}. {_HOW}.")
    return Layout(found)


def separators_of(setting: str) -> Mapping[str, str]:
    """The line before an input by language, zh or en (any other); empty for `task` and `prompt`."""
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
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in [*found, *found.values()]):
        raise UserError(f"{name}={text}: cannot be read. Put each text in quotes: {{user: 'TEXT', …}}.")
    return found


def _as_jinja(text: str) -> str:
    """A text with `{part}` as a template; without a suffix the blanks before it go too."""
    text = text.replace("\\n", "\n").replace("\\t", "\t")
    if "{{" in text or "{%" in text:
        return text
    # `{1}` or `{none}` would be no part, but a value of Jinja's.
    if unknown := sorted(set(re.findall(r"\{(\w+)\}", text)).difference(PARTS)):
        raise UserError(f"data.layout: there is no part {unknown[0]!r}. {_HOW}.")
    text = re.sub(r"(\s*)\{suffix\}", r"{% if suffix %}\1{{ suffix }}{% endif %}", text)
    text = re.sub(r"\{(\w+)\}", r"{{ \1 }}", text)
    # What begins a comment of Jinja's, and the line ends that it would rewrite, are texts here.
    return re.sub(r"\{#|\r", lambda found: f"{{{{ {found[0]!r} }}}}", text)


@lru_cache(64)
def _jinja(text: str) -> Any:
    """A template in a sandbox, in which a part that does not exist is an error."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    return SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(text)


def _parts_of(text: str) -> set[str]:
    from jinja2 import TemplateError
    from jinja2.meta import find_undeclared_variables

    try:
        return set(find_undeclared_variables(_jinja(text).environment.parse(text)))
    except TemplateError as error:
        raise UserError(f"data.layout: {error} (Jinja). {_HOW}.") from error
