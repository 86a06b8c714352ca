"""What a paraphrase must keep and must not do: the checks on every prompt pool, whoever wrote it."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from sapo.conf.errors import UserError
from sapo.data.prompts import PromptPool
from sapo.data.tasks import Task

WHOLE_POOL = -1
MAX_SIMILARITY = 0.80
MAX_OVERLAP = 0.50
SHORT_ORIGINAL = 60  # characters; below it a paraphrase may differ more in length
LONG_RATIOS = (0.3, 3.0)
SHORT_RATIOS = (0.2, 6.0)

_CJK = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_LITERALS = tuple(
    re.compile(pattern)
    for pattern in (
        r'"([^"\n]+)"',
        r"“([^”\n]+)”",
        r"(?<!\w)'([^'\n]+)'(?!\w)",
        r"‘([^’\n]+)’(?!\w)",
        r"「([^」\n]+)」",
        r"(\[[^\]\n]+\])",
    )
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "「": "」", "`": "`"}
# What models add around an answer. A marker that stands in the original instruction too is no leak.
_MARKERS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(?:para|re)phras\w*",
        r"\bre-?word(?:ed|ing)\b",
        r"\brewrit(?:e|ing|ten)\b[^.]*\b(?:version|wording|instruction|prompt)s?\b",
        r"改写|重写|换句话说",
        r"^here(?: is|'s|’s| are)\b[^.:]*\b(?:version|wording|instruction|prompt|variation|variant)s?\b",
        r"^(?:(?:sure|certainly|of course|okay)[,!.]|i can't|i cannot)",
        r"^(?:好的|当然|没问题)[，,！!。]",
        r"^(?:version|variant|option|alternative|instruction|prompt|output|answer|original)\s*#?\d*\s*[:：]",
        r"^(?:\d{1,2}\s*[.):、](?=\D)|(?:[-*•]|#+)(?=\s))",
        r"</?[A-Za-z][\w-]*\s*/?>",
        r"\*\*|```",
    )
)
# After a lone "a" these words show that it is a label, any other word that it is the article.
_AFTER_LABEL = (
    r"(?:and|or|to|through|versus|vs|is|are|for|means|if|when|as|where|stands|denotes|indicates|marks)\b"
)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one paraphrase; `index` is its place in the pool, -1 for the pool as a whole."""

    index: int
    reason: str


def check_pool(pool: PromptPool, task: Task) -> list[Problem]:
    """Every problem of a pool for `task`; an empty list if it is valid."""
    problems = [Problem(WHOLE_POOL, reason) for reason in _pool_reasons(pool, task)]
    earlier: list[str] = []
    for prompt in pool.paraphrases:
        problems += [Problem(prompt.index, reason) for reason in _reasons(prompt.text, task, earlier)]
        earlier.append(prompt.text)
    return problems


def require_valid(pool: PromptPool, task: Task) -> None:
    """Raises one UserError that lists every problem of the pool, if there is any."""
    problems = check_pool(pool, task)
    if problems:
        lines = "\n".join(f"  {_place(problem.index)}: {problem.reason}" for problem in problems)
        raise UserError(
            f"The prompt pool of {task.name} ({pool.source or 'no source given'}) is not valid:\n{lines}\n"
            "Mend or drop these paraphrases (counted from 0)."
        )


def check_text(text: str, task: Task, accepted: Sequence[str]) -> str | None:
    """Why `text` cannot join the `accepted` paraphrases of the task, or None if it can."""
    return next(_reasons(text, task, accepted), None)


def cjk_share(text: str) -> float:
    """The share of Chinese, Japanese and Korean characters among all letters, 0 to 1; 0 without letters."""
    letters = [char for char in text if char.isalpha()]
    return sum(bool(re.match(f"[{_CJK}]", char)) for char in letters) / len(letters) if letters else 0.0


def similarity(first: str, second: str) -> float:
    """Normalised Levenshtein similarity of the lower-cased texts: 1 - distance / longer length."""
    first, second = first.lower(), second.lower()
    longest = max(len(first), len(second))
    return 1 - levenshtein(first, second) / longest if longest else 1.0


def levenshtein(first: str, second: str) -> int:
    """The least number of insertions, deletions and substitutions that turn one text into the other.

    Bit-parallel (Myers 1999, in Hyyrö's form): a column of the dynamic-programming table is held as two big
    integers, the cells where it rises and where it falls by one.
    """
    if not first or not second:
        return len(first) + len(second)
    places: dict[str, int] = {}
    for i, char in enumerate(first):
        places[char] = places.get(char, 0) | 1 << i
    full, top = (1 << len(first)) - 1, 1 << (len(first) - 1)
    rises, falls, distance = full, 0, len(first)
    for char in second:
        equal = places.get(char, 0)
        vertical = equal | falls
        horizontal = (((equal & rises) + rises) ^ rises) | equal
        up, down = falls | ~(horizontal | rises) & full, rises & horizontal
        distance += bool(up & top) - bool(down & top)
        up, down = up << 1 | 1, down << 1
        rises, falls = (down | ~(vertical | up)) & full, up & vertical
    return distance


def overlap(first: str, second: str) -> float:
    """Jaccard index of the texts' 4-grams of words, a CJK character counting as a word."""
    one, other = _four_grams(first), _four_grams(second)
    return len(one & other) / len(one | other) if one | other else 0.0


@lru_cache(maxsize=4096)
def _four_grams(text: str) -> frozenset[tuple[str, ...]]:
    """All 4-grams; a text of fewer than four words is one gram itself."""
    tokens = _TOKEN.findall(text.lower())
    return (
        frozenset(tuple(tokens[i : i + 4]) for i in range(max(1, len(tokens) - 3))) if tokens else frozenset()
    )


def _place(index: int) -> str:
    return "the pool" if index == WHOLE_POOL else f"paraphrase {index}"


def _pool_reasons(pool: PromptPool, task: Task) -> Iterator[str]:
    if pool.task != task.name:
        yield f"it belongs to the task {pool.task}"
    if pool.original.text != task.instruction:
        yield f"its original is not the task's instruction: {pool.original.text!r}"
    if task.instruction.strip() and not pool.paraphrases:
        yield "it holds no paraphrases"
    if not task.instruction.strip() and pool.paraphrases:
        yield "the task has no instruction that could be paraphrased"


def _reasons(text: str, task: Task, earlier: Sequence[str]) -> Iterator[str]:
    if not text.strip():
        yield "it is empty"
        return
    for check in _CHECKS:
        yield from check(text, task)
    yield from _nearness(text, task.instruction, earlier)


def _layout(text: str, task: Task) -> Iterator[str]:
    if text != text.strip():
        yield "it begins or ends with blanks"
    if len(text.splitlines()) > 1 and len(task.instruction.strip().splitlines()) < 2:
        yield "it has line breaks"
    if any(
        unicodedata.category(char) in ("Cc", "Cf", "Co", "Cn", "Cs") for char in text if char not in "\n\r\t"
    ):
        yield "it holds control, invisible or unassigned characters"
    closing = _QUOTES.get(text[0])
    if closing and len(text) > 1 and text.endswith(closing) and closing not in text[1:-1]:
        yield "it stands in quotes"
    if re.search(r"[{}]", text) and not re.search(r"[{}]", task.instruction):
        yield "it holds braces, as of a placeholder"


def kept_words(task: Task) -> tuple[str, ...]:
    """What a paraphrase must keep to the letter: labels that the instruction names, then what it quotes."""
    labels = [label for label in task.labels if _stands(label, task.instruction)]
    return tuple(dict.fromkeys((*labels, *quoted_literals(task.instruction))))


def _labels(text: str, task: Task) -> Iterator[str]:
    lost = [label for label in task.labels if _stands(label, task.instruction) and not _stands(label, text)]
    if lost:
        yield f"it lost {'the label' if len(lost) == 1 else 'the labels'} {', '.join(map(repr, lost))}"
    missing = [
        literal
        for literal in quoted_literals(task.instruction)
        if literal not in task.labels and not _contains(literal, text)
    ]
    if missing:
        yield f"it lost {', '.join(map(repr, missing))}, which the original quotes"


def quoted_literals(instruction: str) -> tuple[str, ...]:
    """What an instruction quotes or puts in square brackets, in order, without outer punctuation."""
    found = [match for pattern in _LITERALS for match in pattern.finditer(instruction)]
    texts = [match[1].strip().strip(".,;:!?…") for match in sorted(found, key=lambda match: match.start())]
    return tuple(dict.fromkeys(text for text in texts if text))


def _bounded(word: str) -> str:
    """A pattern for `word` not inside another word; Chinese neighbours do not belong to a Latin word."""
    left = r"(?<![A-Za-z0-9_])" if re.match(r"[A-Za-z0-9]", word) else ""
    right = r"(?![A-Za-z0-9_])" if re.search(r"[A-Za-z0-9]$", word) else ""
    return left + re.escape(word) + right


def _stands(label: str, text: str) -> bool:
    """Whether the label stands in the text as a word, to the letter, and is not the article "a"."""
    if label == "a":
        return bool(re.search(rf"{_bounded('a')}(?!\s+(?!{_AFTER_LABEL})[A-Za-z]{{2}})", text))
    if label == "A":
        article = rf"(?:^|[.!?]\s+)A\s+(?!{_AFTER_LABEL})[A-Za-z]{{2}}"
        text = re.sub(article, " ", text)
    return bool(re.search(_bounded(label), text))


def _contains(literal: str, text: str) -> bool:
    return bool(re.search(_bounded(literal), text, re.IGNORECASE))


def _markers(text: str, task: Task) -> Iterator[str]:
    for marker in _MARKERS:
        found = marker.search(text)
        if found and not marker.search(task.instruction):
            yield f"it says {found[0].strip()!r}, which belongs to the work of paraphrasing, not to the task"


def _suffix(text: str, task: Task) -> Iterator[str]:
    """The suffix follows every prompt anyway. A suffix of one or two words counts only at the very end."""
    words = _TOKEN.findall(task.suffix.lower())
    if len(words) < 3:
        repeated = bool(words) and text.lower().endswith(task.suffix.strip().lower())
    else:
        repeated = f" {' '.join(words)} " in f" {' '.join(_TOKEN.findall(text.lower()))} "
    if repeated:
        yield f"it repeats the suffix {task.suffix!r}"


def _language(text: str, task: Task) -> Iterator[str]:
    share = cjk_share(text)
    if task.language == "zh" and share < 0.5:
        yield f"it is not Chinese: {share:.0%} of its letters are Chinese characters"
    letters = [char for char in text if char.isalpha()]
    latin = sum("LATIN" in unicodedata.name(char, "") for char in letters) / len(letters) if letters else 0.0
    if task.language == "en" and latin < 0.8:
        yield f"it is not English: {latin:.0%} of its letters are Latin"


def _length(text: str, task: Task) -> Iterator[str]:
    original = len(task.instruction.strip())
    low, high = LONG_RATIOS if original > SHORT_ORIGINAL else SHORT_RATIOS
    if original and not low <= len(text) / original <= high:
        yield f"it is {len(text) / original:.2f} times as long as the original (allowed: {low} to {high})"


_CHECKS: tuple[Callable[[str, Task], Iterator[str]], ...] = (
    _layout,
    _labels,
    _markers,
    _suffix,
    _language,
    _length,
)


def _nearness(text: str, original: str, earlier: Sequence[str]) -> Iterator[str]:
    named = [("the original", original), *((f"paraphrase {i}", other) for i, other in enumerate(earlier))]
    for name, other in named:
        if not other:
            continue
        if text == other:
            yield f"it is the same as {name}"
        elif _can_be_near(text, other) and (near := similarity(text, other)) >= MAX_SIMILARITY:
            yield f"it is nearly {name}: edit similarity {near:.2f}, allowed below {MAX_SIMILARITY:.2f}"
        elif (shared := overlap(text, other)) >= MAX_OVERLAP:
            yield f"it is nearly {name}: 4-gram overlap {shared:.2f}, allowed below {MAX_OVERLAP:.2f}"


def _can_be_near(first: str, second: str) -> bool:
    """Whether the lengths alone leave room for a similarity that is too high."""
    shorter, longer = sorted((len(first), len(second)))
    return shorter >= MAX_SIMILARITY * longer
