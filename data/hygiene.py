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
    inputs = {example.input for example in whole.train}
    in_words = {tuple(words(text)) for text in inputs}
    new = [example.input for example in whole.test if example.input not in inputs]
    near = sum(tuple(words(text)) in in_words for text in new)
    n, n_test = len(inputs), len(whole.test)
    found = row_findings(whole.train, control) + _counted(
        ("near_duplicates", n - len(in_words), n, "distinct training inputs are an earlier one in its words"),
        ("test_in_train", n_test - len(new), n_test, "test rows have an input that stands in training"),
        ("near_test_in_train", near, n_test, "test rows have a training input's words, not to the letter"),
    )
    others = {"the rest of the file": whole.train[len(used.train) :], "the test rows": whole.test}
    for name, other in others.items():
        found += _order(used, name, other)
    if (n := len(used.test)) < SMALL_TEST:
        error = 50 / math.sqrt(n)  # points: half the scores are 0, and half 100
        message = f"{n} test rows used: the standard error of a score is up to {error:.1f} points"
        found.append(Finding("small_test", n, n, message))
    return found


def _counted(*checks: tuple[str, int, int, str]) -> list[Finding]:
    return [Finding(check, n, of, f"{n} of {of} {what}") for check, n, of, what in checks if n]


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
    n_contrary = sum(count for (text, _), count in times.items() if targets[text] > 1)
    marks = ", ".join(list(held)[:5])
    repeated = f"training rows repeat an earlier row; {len(times)} are distinct"
    contrary = "training rows have an input that also stands there with another target"
    controls = f"training rows hold control tokens of the model ({marks}): it takes them for the template's"
    return _counted(
        ("duplicates", n - len(times), n, repeated),
        ("contradictions", n_contrary, n, contrary),
        ("empty_inputs", n_empty, n, "training rows have an empty input"),
        ("control_tokens", n_held, n, controls),
    )


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
