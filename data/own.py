"""A user's own rows as examples, from files, datasets or objects: checked one by one, drawn, and split."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from sapo.conf.errors import UserError
from sapo.data.files import is_text
from sapo.data.own_files import Row, Rows, dataset_rows, kind_of, read_splits
from sapo.data.pool_checks import cjk_share
from sapo.data.tasks import Example, Task

log = logging.getLogger(__name__)

# Pairs of column names that are understood without being told, the first that is there wins.
KNOWN_COLUMNS = (
    ("input", "output"),
    ("input", "target"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("sentence", "label"),
    ("text", "label"),
    ("text", "summary"),
)
MESSAGES = "messages"
SHOWN = 5  # rows named in one message
LOOKED_AT = 1000  # rows whose columns are looked at before any row is turned into an example


def load_own(
    path_or_name: str,
    instruction: str,
    *,
    suffix: str = "",
    labels: tuple[str, ...] = (),
    columns: tuple[str, str] | None = None,
    test_share: float = 0.2,
    seed: int = 0,
    name: str | None = None,
) -> Task:
    """A task from a JSONL, JSON, CSV, TSV or parquet file, a folder with train and test files, or a dataset.

    A Hugging Face dataset is taken from the disk if it was saved there, else by its name. `columns` names the
    columns of input and target; without it `guess_columns` decides. Without a test split, a share of
    `test_share` of the rows, drawn with `seed`, becomes the test set. Raises UserError for what is wrong with
    the data, naming file and row.
    """
    if not 0 < test_share < 1:
        raise UserError(f"test_share is {test_share}; it must lie between 0 and 1, such as 0.2.")
    splits = read_splits(Path(path_or_name).expanduser(), path_or_name)
    train = list(OwnExamples.of(splits["train"], columns, labels))
    if "test" in splits:
        test = list(OwnExamples.of(splits["test"], columns, labels))
    else:
        train, test = _split(splits["train"].source, train, test_share, seed)
    if not train or not test:
        raise UserError(f"{path_or_name}: the {'test' if train else 'train'} split is empty.")
    return own_task(name or own_name(path_or_name), instruction, suffix, labels, train, test)


def own_task(
    name: str,
    instruction: str,
    suffix: str = "",
    labels: tuple[str, ...] = (),
    train: Iterable[Example] = (),
    test: Iterable[Example] = (),
) -> Task:
    """A task whose language, and with it the word before the input, is told by its instruction."""
    chinese = cjk_share(instruction) > 0.5
    return Task(
        name=name,
        instruction=instruction,
        suffix=suffix,
        train=tuple(train),
        test=tuple(test),
        labels=labels,
        language="zh" if chinese else "en",
        separator="文本:" if chinese else "Text:",
    )


def own_name(path_or_name: str) -> str:
    """What a task is called after its data: the file's or folder's name, or the dataset's."""
    path = Path(path_or_name).expanduser()
    if path.exists():
        return path.stem if path.is_file() else path.resolve().name
    return path_or_name.replace("/", "_")


def guess_columns(names: Iterable[str], source: str) -> tuple[str, str]:
    """The input's and the target's column among `names`; ("messages", "messages") for chats.

    Raises UserError, listing the columns, if none of the known pairs is there.
    """
    names = list(names)
    by_lower = {name.lower(): name for name in names}
    if MESSAGES in by_lower:
        return by_lower[MESSAGES], by_lower[MESSAGES]
    for first, second in KNOWN_COLUMNS:
        if first in by_lower and second in by_lower:
            return by_lower[first], by_lower[second]
    known = ", ".join("/".join(pair) for pair in KNOWN_COLUMNS)
    raise UserError(
        f"{source}: no known pair of columns among {', '.join(names) or 'none'}. "
        f"Name yours with columns=[INPUT,TARGET]; known without: {known}, messages."
    )


# --- from rows to examples ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnExamples:
    """A user's rows as examples: read anew by each iteration, one at a time, never held whole.

    An iteration passes over rows that cannot be used, and at its end raises one UserError that names them.
    """

    rows: Rows
    columns: tuple[str, str]  # of input and target
    labels: tuple[str, ...] = ()
    is_chat: bool = False  # the one column holds turns with role and content

    @classmethod
    def of(
        cls, rows: Rows, columns: tuple[str, str] | None = None, labels: tuple[str, ...] = ()
    ) -> "OwnExamples":
        """The examples in `rows`, whose columns are guessed if not given; UserError if they are not there."""
        seen = [list(row.values) for row in islice(rows.read(), LOOKED_AT)]
        if not seen:
            raise UserError(f"{rows.source}: no rows.")
        names = list(dict.fromkeys(name for row in seen for name in row))
        pair = columns or guess_columns(names, rows.source)
        missing = [column for column in dict.fromkeys(pair) if column not in names]
        if missing:
            raise UserError(
                f"{rows.source}: no column {' and '.join(map(repr, missing))}; there are {', '.join(names)}."
            )
        log.info("%s: input from column %r, target from column %r", rows.source, *pair)
        return cls(rows, pair, labels, is_chat=columns is None and pair[0] == pair[1])

    def __iter__(self) -> Iterator[Example]:
        source = self.rows.source
        inputs, targets = (_Column(source, name) for name in self.columns)
        empty, strange = _Places(), _Places()
        text: str | None
        target: str | None
        for row in self.rows.read():
            if self.is_chat:
                text, target = _last_exchange(source, row, self.columns[0])
            else:
                text, target = inputs.text(row), targets.text(row)
            if target is not None and not target.strip():
                empty.add(row.where)
            elif target is not None and self.labels and target not in self.labels:
                strange.add(f"{row.where} ({target!r})")
            elif text is not None and target is not None:
                yield Example(text, target)
        inputs.require_sound()
        targets.require_sound()
        if empty.count:
            raise UserError(f"{source}: empty target in {empty}. Fill or drop these rows.")
        if strange.count:
            labels = ", ".join(self.labels)
            raise UserError(f"{source}: target is none of the labels {labels} in {strange}.")


def examples_of(
    items: Iterable[Any], columns: tuple[str, str] | None = None, labels: tuple[str, ...] = ()
) -> OwnExamples:
    """Objects that a caller has as examples: (input, target) pairs, Examples, dicts, or a dataset's split."""
    if hasattr(items, "features") and hasattr(items, "__len__"):
        return OwnExamples.of(Rows("examples", lambda: dataset_rows(items)), columns, labels)
    held = list(items)
    rows = Rows("examples", lambda: (Row(f"row {i}", _values(i, item)) for i, item in enumerate(held)))
    return OwnExamples.of(rows, columns, labels)


def _values(number: int, item: Any) -> Mapping[str, Any]:
    if isinstance(item, Mapping):
        return item
    if isinstance(item, Example):
        return {"input": item.input, "target": item.target}
    if isinstance(item, tuple | list) and len(item) == 2:
        return {"input": item[0], "target": item[1]}
    raise UserError(
        f"examples, row {number}: expected (input, target) or a dict of columns, found {kind_of(item)}."
    )


def require_enough(n_drawn: int, n_rows: int) -> None:
    """UserError if too few examples would be scored to compare wordings at all."""
    if n_drawn < 2:
        raise UserError(
            f"{n_drawn} of {n_rows} examples would be scored, repetitions counted once; it takes 2 to tell a "
            "difference from noise, and some dozens to find a small one."
        )


@dataclass
class _Places:
    """Where something was found: the first few places, and how many there are."""

    first: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, where: str) -> None:
        self.count += 1
        if self.count <= SHOWN:
            self.first.append(where)

    def __str__(self) -> str:
        rest = self.count - len(self.first)
        return ", ".join(self.first) + (f" and {rest} more" if rest else "")


class _Column:
    """The values of a column as texts, and what was wrong with them."""

    def __init__(self, source: str, name: str) -> None:
        self.source, self.name = source, name
        self.kinds: dict[str, _Places] = {}
        self.strange: str | None = None

    def text(self, row: Row) -> str | None:
        """The row's value as a text; None if it is missing or neither text nor number."""
        value = row.values.get(self.name)
        kind = kind_of(value)
        self.kinds.setdefault(kind, _Places()).add(row.where)
        if kind == "nothing":
            return None
        if not isinstance(value, str | int | float):
            self.strange = self.strange or kind
            return None
        if not isinstance(value, str):
            return json.dumps(value)
        if not is_text(value):
            raise UserError(f"{self.source}, {row.where}: column '{self.name}' holds half a surrogate pair.")
        return value

    def require_sound(self) -> None:
        """UserError unless all values were of one kind, texts or numbers, none missing."""
        if "nothing" in self.kinds:
            raise UserError(
                f"{self.source}: column '{self.name}' is empty or absent in {self.kinds['nothing']}."
            )
        if len(self.kinds) > 1:
            kinds = ", ".join(f"{kind} ({places.first[0]})" for kind, places in self.kinds.items())
            raise UserError(f"{self.source}: column '{self.name}' mixes types: {kinds}. Make them all texts.")
        if self.strange:
            raise UserError(
                f"{self.source}: column '{self.name}' holds {self.strange}, not texts or numbers."
            )


def _last_exchange(source: str, row: Row, column: str) -> tuple[str, str]:
    """The last assistant turn of a chat as target, and the user turn before it as input."""
    turns = row.values.get(column)
    try:
        spoken = [(turn["role"], turn["content"]) for turn in turns or ()]
    except (TypeError, KeyError):
        spoken = []
    roles = [role for role, content in spoken if is_text(content)]
    if len(roles) < len(spoken) or "assistant" not in roles:
        raise UserError(
            f"{source}, {row.where}: '{column}' is not a list of turns with role and content (texts) "
            "that has an assistant turn."
        )
    last = len(roles) - 1 - roles[::-1].index("assistant")
    asked = [content for role, content in spoken[:last] if role == "user"]
    if not asked:
        raise UserError(f"{source}, {row.where}: no user turn comes before the last assistant turn.")
    return asked[-1], spoken[last][1]


def _split(source: str, rows: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Train and test by a seeded shuffle, at least one row each."""
    if len(rows) < 2:
        raise UserError(
            f"{source}: {len(rows)} row; at least 2 are needed, one to train with and one to test."
        )
    shuffled = list(rows)
    Random(seed).shuffle(shuffled)  # noqa: S311
    size = min(max(1, round(share * len(rows))), len(rows) - 1)
    test, train = shuffled[:size], shuffled[size:]
    shared = len({example.input for example in train} & {example.input for example in test})
    if shared:
        log.warning("%s: %d inputs occur in train and in test; drop duplicate rows", source, shared)
    return train, test
