"""What a reader must know of a task's rows: duplicates, test rows in training, ordered files, small tests."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance
from zlib import crc32

import numpy as np

from sapo.data.tasks import Example, Task

# A file counts as ordered where a difference is neither chance (standard errors) nor too small to matter.
STANDARD_ERRORS = 4.0
LENGTH_RATIO = 1.25
SHARE_POINTS = 5.0
FEWEST_COMPARED = 30  # rows on either side
SMALL_TEST = 250  # rows
NEAR = 0.8  # share of three-word runs in common
SKETCH = 64  # hashes kept of a row; the share is exact up to that many runs, and +-0.05 beyond
SAME_HASH = 50  # rows remembered for one hash, so that boilerplate costs no more than linear time
COMPARED = 5  # earlier rows that share most hashes with a row: the only ones it is compared with
Sketch = tuple[int, ...]
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
    sketches = {text: sketch(text) for text in dict.fromkeys(example.input for example in whole.train)}
    found = row_findings(whole.train, control)
    found += [*_near_duplicates(list(sketches.values())), *_leaks(sketches, whole.test)]
    rest = whole.train[len(used.train) :]
    for name, other in (("the rest of the file", rest), ("the test rows", whole.test)):
        found += _order(used, name, other)
    return [*found, *_small_test(used.test)]


def row_findings(rows: Iterable[Example], control: Collection[str] = ()) -> list[Finding]:
    """What is amiss in training rows, read once and one at a time: of each, numbers alone are held.

    Rows that repeat an earlier one, inputs that also stand there with another target, empty inputs, and texts
    that hold one of the model's control tokens, which a chat template would take for its own.
    """
    n_empty = n_held = 0
    pairs: set[int] = set()
    target_of: dict[int, int] = {}
    times: Counter[int] = Counter()
    contrary: set[int] = set()
    held: dict[str, None] = {}
    tokens = re.compile(
        "|".join(re.escape(token) for token in sorted(control, key=len, reverse=True)) or "$^"
    )
    for example in rows:
        text, target = hash(example.input), hash(example.target)
        pairs.add(hash((text, target)))
        times[text] += 1
        if target_of.setdefault(text, target) != target:
            contrary.add(text)
        n_empty += not example.input.strip()
        found = tokens.findall(f"{example.input}\n{example.target}")
        held.update(dict.fromkeys(found))
        n_held += bool(found)
    n = times.total()
    n_contrary = sum(times[text] for text in contrary)
    shown = ", ".join(list(held)[:5])
    repeated = f"repeat an earlier row; {len(pairs)} are distinct"
    checks = {
        "duplicates": (n - len(pairs), repeated),
        "contradictions": (n_contrary, "have an input that also stands there with another target"),
        "empty_inputs": (n_empty, "have an empty input"),
        "control_tokens": (
            n_held,
            f"hold control tokens of the model ({shown}): it takes them for the template's",
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


def _near_duplicates(sketches: Sequence[Sketch]) -> Iterator[Finding]:
    """Distinct training inputs (their sketches) that nearly repeat an earlier one."""
    near = sum(near_duplicates(sketches))
    if near:
        message = (
            f"{near} of {len(sketches)} distinct training inputs nearly repeat an earlier one "
            f"(same words, or {NEAR:.0%} of their three-word runs in common)"
        )
        yield Finding("near_duplicates", near, len(sketches), message)


def _leaks(train: Mapping[str, Sketch], test: Sequence[Example]) -> Iterator[Finding]:
    """Test rows whose input is one of the training inputs (with their sketches), to the letter or nearly."""
    n = len(test)
    new = [example.input for example in test if example.input not in train]
    if len(new) < n:
        message = f"{n - len(new)} of {n} test rows have an input that stands in training"
        yield Finding("test_in_train", n - len(new), n, message)
    near = sum(near_duplicates([sketch(text) for text in new], list(train.values())))
    if near:
        message = f"{near} of {n} test rows nearly, but not exactly, repeat a training input"
        yield Finding("near_test_in_train", near, n, message)


def near_duplicates(rows: Sequence[Sketch], among: Sequence[Sketch] | None = None) -> list[bool]:
    """For each row, whether one of `among` (without: an earlier row) shares NEAR of its three-word runs.

    The share is |A and B| / |A or B| over the sets of runs, estimated from the smallest hashes of both
    (a bottom-k sketch; Broder 1997). Time is linear in the number of rows.
    """
    seen: list[Sketch] = []
    rows_of: dict[int, list[int]] = defaultdict(list)

    def remember(row: Sketch) -> None:
        for value in row:
            if len(rows_of[value]) < SAME_HASH:
                rows_of[value].append(len(seen))
        seen.append(row)

    for row in among or ():
        remember(row)
    flags = []
    for row in rows:
        shared = Counter(other for value in row for other in rows_of.get(value, ()))
        flags.append(any(_share(row, seen[other]) >= NEAR for other, _ in shared.most_common(COMPARED)))
        if among is None:
            remember(row)
    return flags


def sketch(text: str) -> Sketch:
    """The SKETCH smallest hashes of the text's three-word runs; one hash of a text of fewer words."""
    found = words(text)
    if len(found) < 3:
        return (crc32(" ".join(found).encode()),)
    hashes = np.array([crc32(word.encode()) for word in found], dtype=np.uint64)
    runs = hashes[:-2] * np.uint64(0x9E3779B97F4A7C15)
    for place, factor in ((hashes[1:-1], 0xC2B2AE3D27D4EB4F), (hashes[2:], 0x165667B19E3779F9)):
        runs = (runs ^ (runs >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) + place * np.uint64(factor)
    return tuple(np.unique(runs ^ (runs >> np.uint64(32)))[:SKETCH].tolist())


def _share(first: Sketch, second: Sketch) -> float:
    """Estimated |A and B| / |A or B|: the part of the smallest hashes of the union that both have."""
    both = {*first} & {*second}
    smallest = sorted({*first, *second})[:SKETCH]
    return sum(value in both for value in smallest) / len(smallest)


def _order(used: Task, name: str, other: Sequence[Example]) -> Iterator[Finding]:
    """Whether the training rows differ from others in length or in the share of a label.

    A difference counts from STANDARD_ERRORS of it on, and if it is a LENGTH_RATIO, or SHARE_POINTS of share.
    """
    train = used.train
    if min(len(train), len(other)) < FEWEST_COMPARED:
        return
    unit = "characters" if used.language == "zh" else "words"
    lengths = [
        [float(len(e.input) if used.language == "zh" else len(e.input.split())) for e in rows]
        for rows in (train, other)
    ]
    here, there = map(fmean, lengths)
    error = math.sqrt(sum(pvariance(values) / len(values) for values in lengths))
    parts = []
    if abs(here - there) > STANDARD_ERRORS * error and max(here, there) >= LENGTH_RATIO * min(here, there):
        parts.append(f"{here:.1f} {unit} on average against {there:.1f}")
    parts += _share_differences(used.labels, train, other)
    if parts:
        message = (
            f"the {len(train)} training rows used are not like {name} ({len(other)}): {'; '.join(parts)}"
        )
        yield Finding("order", len(train), len(train) + len(other), message)


def _share_differences(
    labels: Sequence[str], train: Sequence[Example], other: Sequence[Example]
) -> Iterator[str]:
    """The label whose share differs most, if it differs enough."""
    counts = [Counter(example.target for example in rows) for rows in (train, other)]
    sizes = (len(train), len(other))

    def difference(label: str) -> float:
        return abs(counts[0][label] / sizes[0] - counts[1][label] / sizes[1])

    label = max(labels, key=lambda label: (round(difference(label), 9), counts[0][label]), default=None)
    if label is None:
        return
    pooled = (counts[0][label] + counts[1][label]) / sum(sizes)
    error = math.sqrt(pooled * (1 - pooled) * (1 / sizes[0] + 1 / sizes[1]))
    if difference(label) > max(STANDARD_ERRORS * error, SHARE_POINTS / 100):
        here, there = (count[label] / size for count, size in zip(counts, sizes, strict=True))
        yield f"{here:.0%} are {label!r} against {there:.0%}"


def _small_test(test: Sequence[Example]) -> Iterator[Finding]:
    if len(test) < SMALL_TEST:
        message = (
            f"{len(test)} test rows used: the standard error of a score is up to "
            f"{standard_error(len(test)):.1f} points"
        )
        yield Finding("small_test", len(test), len(test), message)


def standard_error(rows: int) -> float:
    """Largest standard error, in points, of a mean of `rows` scores between 0 and 100 (half of them 100)."""
    return 50 / math.sqrt(rows)
