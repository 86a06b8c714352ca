"""Foreign text is shown and takes no effect: on a terminal, in JSON, in a spreadsheet, in Markdown."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapo.conf.text import csv_safe, json_safe, markdown_safe, printable

TEXTS = st.text(st.characters(codec=None))  # half surrogates too


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, süß, 第3页, नमस्ते, 👩‍👧\n\tnext", "plain, süß, 第3页, नमस्ते, 👩‍👧\n\tnext"),
        ("\x1b[31mred\x07\r\x00", "\\x1b[31mred\\x07\\x0d\\x00"),
        ("\x7f\x85\x9b", "\\x7f\\x85\\x9b"),
        ("a\u202eb\u2066c\u200f\u061c", "a\\u202eb\\u2066c\\u200f\\u061c"),
        ("\u2028\ud800", "\\u2028\\ud800"),
    ],
)
def test_what_would_act_is_shown(text, shown):
    assert printable(text) == shown


@given(TEXTS)
def test_nothing_is_left_that_acts(text):
    left = {unicodedata.category(c) for c in printable(text) if c not in "\n\t"}
    assert not left & {"Cc", "Cs", "Zl", "Zp"}
    assert not {unicodedata.bidirectional(c) for c in printable(text)} & {"RLO", "LRO", "RLE", "LRE", "RLI"}
    assert printable(printable(text)) == printable(text)


@given(st.recursive(TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=5))
def test_a_json_document_means_what_it_meant(document):
    text = json_safe(json.dumps(document, ensure_ascii=False))
    assert json.loads(text) == document
    assert printable(text) == text


@pytest.mark.parametrize("cell", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "-3.1 [-4, -2]"])
def test_a_formula_becomes_a_text(cell):
    assert csv_safe(cell) == f"'{cell}"


@pytest.mark.parametrize(
    "cell", ["", "-", "-3.1", "+0.5", "1e-3", "-inf", "a=b", "text", 3, -2.5, None, True]
)
def test_other_cells_stay(cell):
    assert csv_safe(cell) == cell


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb\r\n c", "a b c"),
        ("<img src=x onerror=f()>", "&lt;img src=x onerror=f()>"),
        ("&lt;b>, A & B, p < 0.05", "&amp;lt;b>, A & B, p < 0.05"),
        ("[x](javascript:f())", "\\[x\\](javascript:f())"),
        ("![x](u)", "!\\[x\\](u)"),
        ("see https://evil.org or www.evil.org", "see https\\://evil.org or www\\.evil.org"),
        ("a | b", "a \\| b"),
        ("*a* _b_ `c` mini_city \\", "\\*a\\* \\_b\\_ \\`c\\` mini_city \\\\"),
        ("\x1b[0m", "\\\\x1b\\[0m"),
    ],
)
def test_markdown_shows_the_text(text, line):
    assert markdown_safe(text) == line
