"""What a reader must know of a task's rows: duplicates, test rows in training, ordered files, small tests."""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance

from sapo.data.tasks import Example, Task

# A file counts as ordered where a difference is neither chance (standard errors) nor too small to matter.
STANDARD_ERRORS = 4.0
LENGTH_RATIO = 1.25
SHARE_POINTS = 5.0
FEWEST_COMPARED = 30  # rows on either side
SMALL_TEST = 250  # rows
_WORDS = re.compile(r"[一-鿿]|[^\W一-鿿]+")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something worth knowing: which check found it, in how many of how many rows, and one line on it."""

    check: str
    rows: int
    of: int
    message: str


def findings(whole: Task, used: Task, control: Collection[str] = ()) -> list[Finding]:
    """What the checks find in all rows of a task, and in the rows that are used of them (the first of each).

    Faults of rows and test rows in training are looked for in all rows; the rows used tell whether the file
    is ordered, and how sure a score can be. `control` are the model's control tokens.
    """
    found = row_findings(whole.train, control)

    def note(check: str, rows: int, of: int, message: str) -> None:
        if rows:
            found.append(Finding(check, rows, of, f"{rows} of {of} {message}"))

    inputs = dict.fromkeys(example.input for example in whole.train)
    in_words = {tuple(words(text)) for text in inputs}
    near = len(inputs) - len(in_words)
    note("near_duplicates", near, len(inputs), "distinct training inputs are an earlier one in its words")
    n, new = len(whole.test), [example.input for example in whole.test if example.input not in inputs]
    note("test_in_train", n - len(new), n, "test rows have an input that stands in training")
    near = sum(tuple(words(text)) in in_words for text in new)
    note("near_test_in_train", near, n, "test rows have a training input's words, but not to the letter")
    rest = whole.train[len(used.train) :]
    for name, other in (("the rest of the file", rest), ("the test rows", whole.test)):
        found += _order(used, name, other)
    if (n := len(used.test)) < SMALL_TEST:
        error = 50 / math.sqrt(n)  # points: half the scores are 0, and half 100
        message = f"{n} test rows used: the standard error of a score is up to {error:.1f} points"
        found.append(Finding("small_test", n, n, message))
    return found


def row_findings(rows: Iterable[Example], control: Collection[str] = ()) -> list[Finding]:
    """What is amiss in training rows, read once and one at a time: of each, numbers alone are held.

    Rows that repeat an earlier one, inputs that also stand there with another target, empty inputs, and texts
    that hold one of the model's control tokens, which a chat template would take for its own.
    """
    n_empty = n_held = 0
    times: Counter[tuple[int, int]] = Counter()  # of an input with a target
    held: dict[str, None] = {}
    tokens = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or "$^")
    for example in rows:
        times[hash(example.input), hash(example.target)] += 1
        n_empty += not example.input.strip()
        found = tokens.findall(f"{example.input}\n{example.target}")
        held.update(dict.fromkeys(found))
        n_held += bool(found)
    n, targets = times.total(), Counter(text for text, _ in times)
    checks = {
        "duplicates": (n - len(times), f"repeat an earlier row; {len(times)} are distinct"),
        "contradictions": (
            sum(count for (text, _), count in times.items() if targets[text] > 1),
            "have an input that also stands there with another target",
        ),
        "empty_inputs": (n_empty, "have an empty input"),
        "control_tokens": (
            n_held,
            f"hold control tokens of the model ({', '.join(list(held)[:5])}): it takes them for the "
            "template's",
        ),
    }
    return [
        Finding(check, count, n, f"{count} of {n} training rows {what}")
        for check, (count, what) in checks.items()
        if count
    ]


def distinct_rows(examples: Sequence[Example]) -> list[int]:
    """For each row the index of the first that equals it (input and target, to the letter).

    It names a row's group: `sorted(set(…))` are the distinct rows. Rows of a group say the same thing again,
    so intervals and tests count groups, not rows.
    """
    first: dict[Example, int] = {}
    return [first.setdefault(example, index) for index, example in enumerate(examples)]


def words(text: str) -> list[str]:
    """Words in lower case without punctuation; every Chinese character is one."""
    return _WORDS.findall(text.casefold())


def _order(used: Task, name: str, other: Sequence[Example]) -> Iterator[Finding]:
    """Whether the training rows differ from others in length, or in the share of the label that differs most.

    A difference counts from STANDARD_ERRORS of it on, and if it is a LENGTH_RATIO, or SHARE_POINTS of share.
    """
    sides = (used.train, other)
    n_here, n_there = map(len, sides)
    if min(n_here, n_there) < FEWEST_COMPARED:
        return
    parts = []
    is_chinese = used.language == "zh"
    lengths = [[float(len(e.input if is_chinese else e.input.split())) for e in rows] for rows in sides]
    here, there = map(fmean, lengths)
    error = math.sqrt(sum(pvariance(values) / len(values) for values in lengths))
    if abs(here - there) > STANDARD_ERRORS * error and max(here, there) >= LENGTH_RATIO * min(here, there):
        unit = "characters" if is_chinese else "words"
        parts.append(f"{here:.1f} {unit} on average against {there:.1f}")
    shares = {label: [fmean(e.target == label for e in rows) for rows in sides] for label in used.labels}
    if shares:
        label = max(shares, key=lambda name: (round(abs(shares[name][0] - shares[name][1]), 9), shares[name]))
        here, there = shares[label]
        pooled = (here * n_here + there * n_there) / (n_here + n_there)
        error = math.sqrt(pooled * (1 - pooled) * (1 / n_here + 1 / n_there))
        if abs(here - there) > max(STANDARD_ERRORS * error, SHARE_POINTS / 100):
            parts.append(f"{here:.0%} are {label!r} against {there:.0%}")
    if parts:
        message = f"the {n_here} training rows used are not like {name} ({n_there}): {'; '.join(parts)}"
        yield Finding("order", n_here, n_here + n_there, message)
