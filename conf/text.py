"""Foreign text on its way out: what data, files, templates and servers say is shown and takes no effect."""

import re
from typing import Any

# Control codes but line feed and tab, C1 codes, marks of writing direction, line separators, half surrogates.
_ACTIVE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_FORMULA = re.compile(r"[=+\-@\t\r].+", re.DOTALL)
_MARKDOWN = re.compile(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.")
_HTML = re.compile(r"<(?=[A-Za-z/!?])|&(?=#?\w+;)")


def printable(text: str) -> str:
    r"""The text with what would act on a terminal, or turn its line around, as an escape such as `\x1b`."""

    def escape(found: re.Match[str]) -> str:
        code = ord(found[0])
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

    return _ACTIVE.sub(escape, text)


def json_safe(document: str) -> str:
    """A JSON document with the same characters as JSON's own escapes: it means what it meant."""
    return _ACTIVE.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def csv_safe(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: a text like one gets a `'` before it; numbers stay."""
    if not isinstance(value, str) or not _FORMULA.fullmatch(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def markdown_safe(text: str) -> str:
    """A text in one line of Markdown, also in a table's cell: no HTML, link or emphasis comes of it."""
    line = _MARKDOWN.sub(lambda found: f"\\{found[0]}", printable(" ".join(text.split())))
    return _HTML.sub(lambda found: "&lt;" if found[0] == "<" else "&amp;", line)
