"""What a paraphrase must keep and must not do: the checks on every prompt pool, whoever wrote it."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from sapo.conf.errors import UserError
from sapo.data.prompts import PromptPool
from sapo.data.tasks import Task

WHOLE_POOL = -1
MAX_SIMILARITY = 0.80
MAX_OVERLAP = 0.50
LONGEST = 100_000  # characters of a prompt: some 25,000 tokens, more than any prompt budget here
MAX_FOREIGN = 0.2  # share of letters in scripts that the original has none of; quoted names are some
SHORT_ORIGINAL = 60  # characters; below it a paraphrase may differ more in length
LONG_RATIOS = (0.3, 3.0)
SHORT_RATIOS = (0.2, 6.0)

_CJK = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af"
# Letters of alphabets whose words are set apart; to others (한국어로, 中文, الكلمة) particles are joined.
_ALPHABET = r"0-9A-Za-z_\u00c0-\u024f\u0370-\u03ff\u0400-\u052f"
_JOINED = "ARABIC", "DEVANAGARI", "BENGALI", "SYRIAC", "MALAYALAM", "SINHALA", "KANNADA", "MONGOLIAN"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_LITERALS = tuple(
    re.compile(pattern)
    for pattern in (
        r'"([^"\n]+)"',
        r"“([^”\n]+)”",
        r"(?<!\w)'([^'\n]+)'(?!\w)",
        r"‘([^’\n]+)’(?!\w)",
        r"「([^」\n]+)」",
        r"«([^»\n]+)»",
        r"„([^“”\n]+)[“”]",
        r"(\[[^\]\n]+\])",
    )
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "「": "」", "«": "»", "„": "“", "`": "`"}
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
    """Every problem of a pool for `task`; none if it is valid."""
    problems = []
    if len(task.instruction) > LONGEST:
        size = f"{len(task.instruction):,}"
        reason = f"the task's instruction has {size} characters; one may have {LONGEST:,}"
        problems.append(Problem(WHOLE_POOL, reason))
    if task.instruction.strip() and not pool.paraphrases:
        problems.append(Problem(WHOLE_POOL, "it holds no paraphrases"))
    if pool.paraphrases and not task.instruction.strip():
        problems.append(Problem(WHOLE_POOL, "the task has no instruction that could be paraphrased"))
    earlier = Earlier(task.instruction)
    for prompt in pool.paraphrases:
        problems += [Problem(prompt.index, reason) for reason in _reasons(prompt.text, task, earlier)]
        earlier.add(prompt.text)
    return problems


def require_valid(pool: PromptPool, task: Task) -> None:
    """Raises one UserError that lists every problem of the pool, if there is any."""
    problems = check_pool(pool, task)
    if problems:
        places = ("the pool" if p.index == WHOLE_POOL else f"paraphrase {p.index}" for p in problems)
        lines = "\n".join(f"  {place}: {p.reason}" for place, p in zip(places, problems, strict=True))
        raise UserError(
            f"The prompt pool of {task.name} ({pool.source or 'no source given'}) is not valid:\n{lines}\n"
            "Mend or drop these paraphrases (counted from 0)."
        )


def check_text(text: str, task: Task, accepted: Sequence[str]) -> str | None:
    """Why `text` cannot join the `accepted` paraphrases of the task, or None if it can."""
    return next(_reasons(text, task, Earlier(task.instruction, accepted)), None)


@lru_cache(maxsize=256)
def scripts(text: str) -> dict[str, float]:
    """Each script's share of a text's letters, the commonest first: `{"LATIN": 0.9, "GREEK": 0.1}`."""
    names = (unicodedata.name(char, "").removeprefix("FULLWIDTH ") for char in text if char.isalpha())
    counts = Counter("KANA" if re.search("HIRA|KATA", name) else name.split(" ")[0] for name in names)
    return {name: n / counts.total() for name, n in counts.most_common()}


def similarity(first: str, second: str) -> float:
    """Normalised Levenshtein similarity of the lower-cased texts: 1 - distance / longer length."""
    return Levenshtein.normalized_similarity(first.lower(), second.lower())


def overlap(first: str, second: str) -> float:
    """Jaccard index of the texts' 4-grams of words, a CJK character counting as a word."""
    one, other = _four_grams(first), _four_grams(second)
    return len(one & other) / len(one | other) if one | other else 0.0


@lru_cache(maxsize=4096)
def _four_grams(text: str) -> frozenset[tuple[str, ...]]:
    """All 4-grams; a text of fewer than four words is one gram itself."""
    tokens = words_of(text)
    return (
        frozenset(tuple(tokens[i : i + 4]) for i in range(max(1, len(tokens) - 3))) if tokens else frozenset()
    )


def words_of(text: str) -> list[str]:
    """The lower-cased words without vowel signs and accents that stand alone; a CJK character is a word."""
    return _TOKEN.findall("".join(char for char in text.lower() if unicodedata.category(char)[0] != "M"))


class Earlier:
    """The texts that another must not be near: the original, then paraphrases, by place."""

    def __init__(self, original: str, paraphrases: Iterable[str] = ()) -> None:
        self._texts: list[str] = []
        self._lower: list[str] = []
        self._places: dict[tuple[str, ...], list[int]] = {}  # of texts that have a 4-gram
        for text in (original, *paraphrases):
            self.add(text)

    def add(self, text: str) -> None:
        """Adds the next text, or what a prompt may have of it."""
        text = text[:LONGEST]
        for gram in _four_grams(text):
            self._places.setdefault(gram, []).append(len(self._texts))
        self._texts.append(text)
        self._lower.append(text.lower())

    def near(self, text: str) -> str | None:
        """Which earlier text this one is near, the first of them, and by which measure; None if none is."""
        measure = Levenshtein.normalized_similarity
        similar = cdist([text.lower()], self._lower, scorer=measure, score_cutoff=MAX_SIMILARITY)[0]
        found = {
            int(place): f"edit similarity {similar[place]:.2f}, allowed below {MAX_SIMILARITY:.2f}"
            for place in similar.nonzero()[0][:1]
        }
        shared = {place for gram in _four_grams(text) for place in self._places.get(gram, ())}
        for place in sorted(shared):
            if (share := overlap(text, self._texts[place])) >= MAX_OVERLAP:
                found.setdefault(place, f"4-gram overlap {share:.2f}, allowed below {MAX_OVERLAP:.2f}")
                break
        if not found:
            return None
        place = min(found)
        name = f"paraphrase {place - 1}" if place else "the original"
        return f"the same as {name}" if text == self._texts[place] else f"nearly {name}: {found[place]}"


def _reasons(text: str, task: Task, earlier: Earlier) -> Iterator[str]:
    if not text.strip():
        yield "it is empty"
    elif len(text) > LONGEST:
        yield f"it has {len(text):,} characters; a prompt may have {LONGEST:,}"
    else:
        for check in (_layout, _what_is_lost, _what_is_added, _likeness):
            yield from check(text, task)
        if near := earlier.near(text):
            yield f"it is {near}"


def _layout(text: str, task: Task) -> Iterator[str]:
    if text != text.strip():
        yield "it begins or ends with blanks"
    if len(text.splitlines()) > 1 and len(task.instruction.strip().splitlines()) < 2:
        yield "it has line breaks"
    # Arabic and Indian scripts are written with joiners, which cannot be seen.
    allowed = "\n\r\t\u200c\u200d" if any(script in _JOINED for script in scripts(text)) else "\n\r\t"
    if any(
        unicodedata.category(char) in ("Cc", "Cf", "Co", "Cn", "Cs") for char in text if char not in allowed
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


def _what_is_lost(text: str, task: Task) -> Iterator[str]:
    """Labels that the original names must stand as they are, what it quotes in any case."""
    lost = [label for label in task.labels if _stands(label, task.instruction) and not _stands(label, text)]
    if lost:
        yield f"it lost {'the label' if len(lost) == 1 else 'the labels'} {', '.join(map(repr, lost))}"
    quoted = (literal for literal in quoted_literals(task.instruction) if literal not in task.labels)
    missing = [each for each in quoted if not re.search(_bounded(each), text, re.IGNORECASE)]
    if missing:
        yield f"it lost {', '.join(map(repr, missing))}, which the original quotes"


def quoted_literals(instruction: str) -> tuple[str, ...]:
    """What an instruction quotes or puts in square brackets, in order, without outer punctuation."""
    found = [match for pattern in _LITERALS for match in pattern.finditer(instruction)]
    texts = [match[1].strip().strip(".,;:!?…") for match in sorted(found, key=lambda match: match.start())]
    return tuple(dict.fromkeys(text for text in texts if text))


def _bounded(word: str) -> str:
    """A pattern for `word` not inside another word of an alphabet; Chinese neighbours do not belong to it."""
    left = rf"(?<![{_ALPHABET}])" if re.match(f"[{_ALPHABET}]", word) else ""
    right = rf"(?![{_ALPHABET}])" if re.search(f"[{_ALPHABET}]$", word) else ""
    return left + re.escape(word) + right


def _stands(label: str, text: str) -> bool:
    """Whether the label stands in the text as a word, to the letter, and is not the article "a"."""
    if label == "a":
        return bool(re.search(rf"{_bounded('a')}(?!\s+(?!{_AFTER_LABEL})[A-Za-z]{{2}})", text))
    if label == "A":
        article = rf"(?:^|[.!?]\s+)A\s+(?!{_AFTER_LABEL})[A-Za-z]{{2}}"
        text = re.sub(article, " ", text)
    return bool(re.search(_bounded(label), text))


def _what_is_added(text: str, task: Task) -> Iterator[str]:
    """Words of the paraphraser's own, and the suffix, which follows every prompt anyway.

    A suffix of one or two words counts only at the very end.
    """
    for marker in _MARKERS:
        found = marker.search(text)
        if found and not marker.search(task.instruction):
            yield f"it says {found[0].strip()!r}, which belongs to the work of paraphrasing, not to the task"
    words = words_of(task.suffix)
    if len(words) < 3:
        is_repeated = bool(words) and text.lower().endswith(task.suffix.strip().lower())
    else:
        is_repeated = f" {' '.join(words)} " in f" {' '.join(words_of(text))} "
    if is_repeated:
        yield f"it repeats the suffix {task.suffix!r}"


def _likeness(text: str, task: Task) -> Iterator[str]:
    """The commonest script of the original must be half as common here, others few, and the length alike."""
    original, here = scripts(task.instruction), scripts(text)
    main = next(iter(original), "")
    foreign = {name: share for name, share in here.items() if name not in original}
    if main and here and here.get(main, 0.0) < original[main] / 2:
        name = "Chinese" if main == "CJK" else main.title()
        yield f"it is not {name} as the original: {here.get(main, 0.0):.0%} of its letters are"
    elif main and (share := sum(foreign.values())) > MAX_FOREIGN:
        name = next(iter(foreign)).title()
        yield f"it has {share:.0%} of its letters in a script that the original has not: {name}"
    size = len(task.instruction.strip())
    low, high = LONG_RATIOS if size > SHORT_ORIGINAL else SHORT_RATIOS
    if size and not low <= len(text) / size <= high:
        yield f"it is {len(text) / size:.2f} times as long as the original (allowed: {low} to {high})"
