"""What a paraphrase must keep and must not do: rules by name, for replies of models and for written pools.

A model's reply that breaks a rule is asked for again. Of a pool that somebody has written what cannot work is
refused (`REFUSED`), the rest only said. `paraphrases.allow` leaves out rules by their names.
"""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from sapo.conf.errors import UserError
from sapo.data.prompts import PromptPool
from sapo.data.tasks import Task

WHOLE_POOL = -1
REFUSED = ("empty", "size", "labels", "same")  # in a pool that somebody has written
MAX_LIKENESS = 0.9  # of two prompts' words beside labels; of 20,010 pairs of the bank none has more than 0.86
LEAST_JUDGED = 5  # words of an instruction, beside labels, by which another one is told
LONGEST = 100_000  # characters of a prompt: some 25,000 tokens, more than any prompt budget here
MAX_FOREIGN = 0.2  # share of letters in scripts that the original has none of; quoted names are some
SHORT_ORIGINAL = 60  # characters; below it a paraphrase may be shorter still
ROOM = 300  # characters that any paraphrase may have

_CJK = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af"
# Letters of alphabets whose words are set apart; to others (한국어로, 中文, الكلمة) particles are joined.
_ALPHABET = r"0-9A-Za-z_\u00c0-\u024f\u0370-\u03ff\u0400-\u052f"
_JOINED = "ARABIC", "DEVANAGARI", "BENGALI", "SYRIAC", "MALAYALAM", "SINHALA", "KANNADA", "MONGOLIAN"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_QUOTED = r"""
"([^"\n]+)" “([^”\n]+)” (?<!\w)'([^'\n]+)'(?!\w) ‘([^’\n]+)’(?!\w)
「([^」\n]+)」 «([^»\n]+)» „([^“”\n]+)[“”] (\[[^\]\n]+\])"""
_LITERALS = [re.compile(pattern) for pattern in _QUOTED.split()]
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "「": "」", "«": "»", "„": "“", "`": "`"}
# What models add around an answer. A marker that stands in the original instruction too is no leak.
_SAID = r"""\b(?:para|re)phras\w*
\bre-?word(?:ed|ing)\b
\brewrit(?:e|ing|ten)\b[^.]*\b(?:version|wording|instruction|prompt)s?\b
\bthe original (?:text|instruction|wording|prompt)s?\b|\bexactly the same task\b
改写|重写|换句话说
^here(?: is|'s|’s| are)\b[^.:]*\b(?:version|wording|instruction|prompt|variation|variant)s?\b
^(?:(?:sure|certainly|of course|okay)[,!.]|i can't|i cannot)
^(?:好的|当然|没问题)[，,！!。]
^(?:version|variant|option|alternative|instruction|prompt|output|answer|original)\s*#?\d*\s*[:：]
^(?:\d{1,2}\s*[.):、](?=\D)|(?:[-*•]|#+)(?=\s))
</?[A-Za-z][\w-]*\s*/?>
\*\*|```"""
_MARKERS = [re.compile(pattern, re.IGNORECASE) for pattern in _SAID.splitlines()]
_COMMON = {"the", "and", "for", "with", "that", "this", "its", "are", "from", "not", "your", "you", "which"}
_COMMON |= {"whether", "given", "following", "text", "task", "output", "answer", "into", "one"}
# After a lone "a" these words show that it is a label, any other word that it is the article.
_AFTER_LABEL = (
    r"(?:and|or|to|through|versus|vs|is|are|for|means|if|when|as|where|stands|denotes|indicates|marks)\b"
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one paraphrase, by which rule; `index` is its place, -1 for the whole pool."""

    index: int
    rule: str
    reason: str

    def __str__(self) -> str:
        return f"{self.reason} [{self.rule}]"


def check_pool(pool: PromptPool, task: Task, allow: Collection[str] = ()) -> list[Problem]:
    """Every problem of a pool for `task`; none if it is valid."""
    problems, texts = [], [prompt.text for prompt in pool.paraphrases]
    if (size := len(task.instruction)) > LONGEST:
        reason = f"the task's instruction has {size:,} characters; one may have {LONGEST:,}"
        problems.append(Problem(WHOLE_POOL, "size", reason))
    if texts and not task.instruction.strip():
        reason = "the task has no instruction that could be paraphrased"
        problems.append(Problem(WHOLE_POOL, "empty", reason))
    if not texts and task.instruction.strip():
        problems.append(Problem(WHOLE_POOL, "empty", "it holds no paraphrases"))
    for place, text in enumerate(texts):
        found = _reasons(text, task, [task.instruction, *texts[:place]])
        problems += [Problem(place, rule, reason) for rule, reason in found if rule not in allow]
    return problems


def require_usable(pool: PromptPool, task: Task, allow: Collection[str] = ()) -> None:
    """One UserError with all problems of a written pool that are refused; the others go to the log."""
    problems = check_pool(pool, task, allow)
    refused = [problem for problem in problems if problem.rule in REFUSED]
    places = ("the pool" if p.index == WHOLE_POOL else f"paraphrase {p.index}" for p in refused or problems)
    listed = "\n".join(f"  {place}: {p}" for place, p in zip(places, refused or problems, strict=True))
    where = f"The prompt pool of {task.name} ({pool.source or 'no source given'})"
    if refused:
        raise UserError(
            f"{where} is not valid:\n{listed}\nMend or drop these paraphrases (counted from 0), or leave out "
            "the rule: paraphrases.allow=[RULE]."
        )
    if problems:
        rules = ",".join(dict.fromkeys(problem.rule for problem in problems))
        way = f"paraphrases.allow=[{rules}] says no more of it."
        _log.warning("%s is used as it is; worth a look:\n%s\n%s", where, listed, way)


def check_text(text: str, task: Task, accepted: Sequence[str], allow: Collection[str] = ()) -> Problem | None:
    """Why a model's `text` cannot join the `accepted` paraphrases of the task, or None if it can."""
    found = [*_reasons(text, task, [task.instruction, *accepted]), *_unrelated(text, task)]
    return next((Problem(len(accepted), rule, reason) for rule, reason in found if rule not in allow), None)


@lru_cache(maxsize=256)
def scripts(text: str) -> dict[str, float]:
    """Each script's share of a text's letters, the commonest first: `{"LATIN": 0.9, "GREEK": 0.1}`."""
    names = (unicodedata.name(char, "").removeprefix("FULLWIDTH ") for char in text if char.isalpha())
    counts = Counter("KANA" if re.search("HIRA|KATA", name) else name.split(" ")[0] for name in names)
    return {name: n / counts.total() for name, n in counts.most_common()}


def words_of(text: str) -> list[str]:
    """The lower-cased words without vowel signs and accents that stand alone; a CJK character is a word."""
    return _TOKEN.findall("".join(char for char in text.lower() if unicodedata.category(char)[0] != "M"))


def likeness(first: Sequence[str], second: Sequence[str]) -> float:
    """Which share of the longer one's words two texts have in common, in whatever order."""
    common = Counter(first) & Counter(second)
    return common.total() / max(len(first), len(second), 1) if first != second else 1.0


def kept_words(task: Task) -> tuple[str, ...]:
    """What a paraphrase must keep to the letter: labels that the instruction names, then what it quotes."""
    labels = [label for label in task.labels if _stands(label, task.instruction)]
    return tuple(dict.fromkeys((*labels, *quoted_literals(task.instruction))))


def quoted_literals(instruction: str) -> tuple[str, ...]:
    """What an instruction quotes or puts in square brackets, in order, without outer punctuation."""
    found = [match for pattern in _LITERALS for match in pattern.finditer(instruction)]
    texts = [match[1].strip().strip(".,;:!?…") for match in sorted(found, key=lambda match: match.start())]
    return tuple(dict.fromkeys(text for text in texts if text))


@lru_cache(maxsize=4096)
def own_words(text: str, kept: tuple[str, ...]) -> list[str]:
    """A text's words without those that every paraphrase keeps, of which nothing can be told."""
    for word in sorted(kept, key=len, reverse=True):
        text = re.sub(_bounded(word), " ", text, flags=re.IGNORECASE)
    return words_of(text)


def _reasons(text: str, task: Task, earlier: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Rule and reason of everything that is wrong with a text that stands after others."""
    if not text.strip():
        yield "empty", "it is empty"
    elif len(text) > LONGEST:
        yield "size", f"it has {len(text):,} characters; a prompt may have {LONGEST:,}"
    else:
        for check in (_form, _what_is_lost, _what_is_added, _likeness):
            yield from check(text, task)
        yield from islice(_near(text, earlier, kept_words(task)), 1)


def _near(text: str, earlier: Sequence[str], kept: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Each of the earlier texts, the original before all, that the text repeats."""
    words = own_words(text, kept)
    for place, other in enumerate(earlier):
        name = f"paraphrase {place - 1}" if place else "the original"
        if text == other:
            yield "same", f"it is the same as {name}"
        elif (share := likeness(words, own_words(other[:LONGEST], kept))) >= MAX_LIKENESS:
            what = "words are the same" if share == 1 else f"{share:.0%} of its words are the same"
            yield "near", f"it is nearly {name}: {what}, labels left out"


def _unrelated(text: str, task: Task) -> Iterator[tuple[str, str]]:
    """Whether a text seems to ask for something else: it has none of the original's words, or of their stems.

    Not judged are texts that keep several labels, which say what is asked for, originals of few words, and
    scripts other than those of the bank, on whose pools the rule was tried.
    """
    kept = kept_words(task)

    def stems(words: Sequence[str]) -> set[str]:
        found = {word for word in words if word not in _COMMON and not re.search(r"[\d_]", word)}
        return {word[:5] for word in found if len(word) > 2 or "\u3400" <= word <= "\u9fff"}

    original = stems(own_words(task.instruction, kept))
    is_judged = len(kept) < 2 and len(original) >= LEAST_JUDGED
    is_judged = is_judged and next(iter(scripts(task.instruction)), None) in ("LATIN", "CJK")
    if is_judged and not original & stems(words_of(text)):
        yield "words", f"it has none of the original's {len(original)} words, and may ask for another thing"


def _form(text: str, task: Task) -> Iterator[tuple[str, str]]:
    if text != text.strip():
        yield "blanks", "it begins or ends with blanks"
    if len(text.splitlines()) > 1 and len(task.instruction.strip().splitlines()) < 2:
        yield "lines", "it has line breaks"
    # Arabic and Indian scripts are written with joiners, which cannot be seen.
    allowed = "\n\r\t\u200c\u200d" if any(script in _JOINED for script in scripts(text)) else "\n\r\t"
    if any(unicodedata.category(c) in ("Cc", "Cf", "Co", "Cn", "Cs") for c in text if c not in allowed):
        yield "invisible", "it holds control, invisible or unassigned characters"
    closing = _QUOTES.get(text[0])
    if closing and len(text) > 1 and text.endswith(closing) and closing not in text[1:-1]:
        yield "quotes", "it stands in quotes"
    if re.search(r"[{}]", text) and not re.search(r"[{}]", task.instruction):
        yield "braces", "it holds braces, as of a placeholder"


def _what_is_lost(text: str, task: Task) -> Iterator[tuple[str, str]]:
    """Labels that the original names must stand as they are, what it quotes in any case."""
    lost = [label for label in task.labels if _stands(label, task.instruction) and not _stands(label, text)]
    if lost:
        yield "labels", f"it lost the label{'s' if len(lost) > 1 else ''} {', '.join(map(repr, lost))}"
    quoted = (literal for literal in quoted_literals(task.instruction) if literal not in task.labels)
    missing = [each for each in quoted if not re.search(_bounded(each), text, re.IGNORECASE)]
    if missing:
        yield "quoted", f"it lost {', '.join(map(repr, missing))}, which the original quotes"


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


def _what_is_added(text: str, task: Task) -> Iterator[tuple[str, str]]:
    """Words of the paraphraser's own, and the suffix; one of two words counts at the very end only."""
    for marker in _MARKERS:
        found = marker.search(text)
        if found and not marker.search(task.instruction):
            said = found[0].strip()
            yield "marks", f"it says {said!r}, which belongs to the work of paraphrasing, not to the task"
    words = words_of(task.suffix)
    if len(words) < 3:
        is_repeated = bool(words) and text.lower().endswith(task.suffix.strip().lower())
    else:
        is_repeated = f" {' '.join(words)} " in f" {' '.join(words_of(text))} "
    if is_repeated:
        yield "suffix", f"it repeats the suffix {task.suffix!r}"


def _likeness(text: str, task: Task) -> Iterator[tuple[str, str]]:
    """The commonest script of the original must be half as common here, others few, and the length alike."""
    original, here = scripts(task.instruction), scripts(text)
    main = next(iter(original), "")
    foreign = {name: share for name, share in here.items() if name not in original}
    if main and here and here.get(main, 0.0) < original[main] / 2:
        name = "Chinese" if main == "CJK" else main.title()
        yield "script", f"it is not {name} as the original: {here.get(main, 0.0):.0%} of its letters are"
    elif main and (share := sum(foreign.values())) > MAX_FOREIGN:
        name = next(iter(foreign)).title()
        yield "script", f"it has {share:.0%} of its letters in a script that the original has not: {name}"
    size = len(task.instruction.strip())
    low, high = size * (0.3 if size > SHORT_ORIGINAL else 0.2), max(3 * size, ROOM)
    if size and not low <= len(text) <= high:
        reason = f"it has {len(text)} characters and the original {size} (allowed: {low:.0f} to {high})"
        yield "length", reason
