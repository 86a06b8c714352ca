"""A user's own task from a file, a folder or a Hugging Face dataset: read, checked row by row, and split."""

import csv
import io
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from sapo.conf.errors import UserError
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


class Row(NamedTuple):
    """One row and where it stands ("line 3", "row 3", "item 3"), for messages."""

    where: str
    values: Mapping[str, Any]


class Rows(NamedTuple):
    """The rows of one file or split, and what to call it in messages."""

    source: str
    rows: list[Row]


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
    path = Path(path_or_name).expanduser()
    splits = _read_splits(path, path_or_name)
    train = _examples(splits["train"], columns, labels)
    if "test" in splits:
        test = _examples(splits["test"], columns, labels)
    else:
        train, test = _split(splits["train"].source, train, test_share, seed)
    if not train or not test:
        raise UserError(f"{path_or_name}: the {'test' if train else 'train'} split is empty.")
    chinese = cjk_share(instruction) > 0.5
    return Task(
        name=name or _name(path, path_or_name),
        instruction=instruction,
        suffix=suffix,
        train=tuple(train),
        test=tuple(test),
        labels=labels,
        language="zh" if chinese else "en",
        separator="文本:" if chinese else "Text:",
    )


def _name(path: Path, given: str) -> str:
    if path.exists():
        return path.stem if path.is_file() else path.resolve().name
    return given.replace("/", "_")


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


# --- reading -----------------------------------------------------------------------------------------------


def _read_splits(path: Path, name: str) -> dict[str, Rows]:
    """The rows under "train" and, if there is such a split, "test"."""
    if path.is_file():
        return {"train": _read_file(path)}
    if path.is_dir() and any((path / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
        return _read_dataset(name, on_disk=True)
    if path.is_dir():
        return _read_folder(path)
    if path.suffix.lower() in READERS or path.is_absolute() or name.startswith((".", "~")):
        raise UserError(f"{name}: there is no such file or folder.")
    return _read_dataset(name, on_disk=False)


def _read_folder(folder: Path) -> dict[str, Rows]:
    """`train.*` and `test.*` of a folder, one readable file each."""
    splits = {}
    for split in ("train", "test"):
        found = sorted(file for file in folder.glob(f"{split}.*") if file.suffix.lower() in READERS)
        if len(found) > 1:
            raise UserError(
                f"{folder}: more than one {split} file: {', '.join(file.name for file in found)}."
            )
        if found:
            splits[split] = _read_file(found[0])
    if "train" not in splits:
        there = ", ".join(sorted(file.name for file in folder.iterdir())[:10]) or "nothing"
        raise UserError(
            f"{folder}: no train file ({', '.join('train' + end for end in READERS)}); it has {there}."
        )
    return splits


def _read_file(path: Path) -> Rows:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: cannot read '{path.suffix}' files; known: {', '.join(READERS)}.")
    try:
        return Rows(str(path), reader(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: not UTF-8 at byte {error.start} (line {line}): {error.reason}. Save the file as UTF-8."
        ) from error


def _jsonl(path: Path) -> list[Row]:
    # Not splitlines(): a JSON text may hold other line separators, such as U+2028.
    lines = enumerate(_text(path).split("\n"), start=1)
    return [
        Row(f"line {number}", _object(path, f"line {number}", _json(path, line, number)))
        for number, line in lines
        if line.strip()
    ]


def _json(path: Path, text: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path}: broken JSON at line {line}, column {error.colno}: {error.msg}.") from error


def _json_list(path: Path) -> list[Row]:
    content = _json(path, _text(path), 1)
    if not isinstance(content, list):
        raise UserError(f"{path}: expected a JSON list of objects, found {_kind(content)}.")
    return [Row(f"item {i}", _object(path, f"item {i}", item)) for i, item in enumerate(content, start=1)]


def _object(path: Path, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path}, {where}: expected an object with named columns, found {_kind(value)}.")
    return value


def _delimited(delimiter: str) -> Callable[[Path], list[Row]]:
    def read(path: Path) -> list[Row]:
        lines = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
        rows: list[Row] = []
        try:
            header = next(lines, [])
            if len(set(header)) < len(header):
                raise UserError(f"{path}: a column name occurs twice in the header: {', '.join(header)}.")
            for fields in lines:
                if fields:
                    rows.append(_fields(path, f"line {lines.line_num}", header, fields))
        except csv.Error as error:
            raise UserError(f"{path}, line {lines.line_num}: {error}.") from error
        return rows

    return read


def _fields(path: Path, where: str, header: list[str], fields: list[str]) -> Row:
    if len(fields) != len(header):
        raise UserError(
            f"{path}, {where}: {len(fields)} fields, but the header has {len(header)} columns. "
            "Put fields that hold the delimiter in double quotes."
        )
    return Row(where, dict(zip(header, fields, strict=True)))


def _parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        records = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from error
    return [Row(f"row {i}", record) for i, record in enumerate(records, start=1)]


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json_list,
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".parquet": _parquet,
}


def _read_dataset(name: str, on_disk: bool) -> dict[str, Rows]:
    """The train and test splits of a Hugging Face dataset; a dataset without splits is all train."""
    import datasets

    try:
        loaded = datasets.load_from_disk(name) if on_disk else datasets.load_dataset(name)
    except Exception as error:  # the library raises whatever its file systems, hub and parsers raise
        what = "the saved dataset" if on_disk else "there is no such file, and a dataset of this name"
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{name}: {what} cannot be loaded ({reason}).") from error
    splits = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    if "train" not in splits:
        raise UserError(f"{name}: the dataset has no split 'train'; it has {', '.join(splits)}.")
    return {
        split: Rows(f"{name} ({split})", _dataset_rows(splits[split]))
        for split in ("train", "test")
        if split in splits
    }


def _dataset_rows(dataset: Any) -> list[Row]:
    """The rows of a split, with the names of classes in place of their numbers."""
    classes = {
        column: feature.names
        for column, feature in dataset.features.items()
        if type(feature).__name__ == "ClassLabel"
    }
    rows = []
    for i, record in enumerate(dataset, start=1):
        named = {
            column: names[record[column]]
            for column, names in classes.items()
            if record[column] is not None and record[column] >= 0
        }
        rows.append(Row(f"row {i}", {**record, **dict.fromkeys(classes), **named}))
    return rows


# --- from rows to examples ---------------------------------------------------------------------------------


def _examples(data: Rows, columns: tuple[str, str] | None, labels: Sequence[str]) -> list[Example]:
    if not data.rows:
        raise UserError(f"{data.source}: no rows.")
    names = list(dict.fromkeys(name for row in data.rows for name in row.values))
    input_column, target_column = columns or guess_columns(names, data.source)
    missing = [column for column in (input_column, target_column) if column not in names]
    if missing:
        raise UserError(
            f"{data.source}: no column {' and '.join(map(repr, missing))}; there are {', '.join(names)}."
        )
    log.info("%s: input from column %r, target from column %r", data.source, input_column, target_column)
    if input_column == target_column and columns is None:
        pairs = [_last_exchange(data.source, row, input_column) for row in data.rows]
    else:
        inputs, targets = (_column(data, column) for column in (input_column, target_column))
        pairs = list(zip(inputs, targets, strict=True))
    _check_targets(data, [target for _, target in pairs], labels)
    return [Example(*pair) for pair in pairs]


def _column(data: Rows, column: str) -> list[str]:
    """The values of a column as texts; all of one kind, none missing."""
    values = [row.values.get(column) for row in data.rows]
    first: dict[str, str] = {}
    for row, value in zip(data.rows, values, strict=True):
        first.setdefault(_kind(value), row.where)
    if "nothing" in first:
        where = [row.where for row, value in zip(data.rows, values, strict=True) if _kind(value) == "nothing"]
        raise UserError(f"{data.source}: column '{column}' is empty or absent in {_some(where)}.")
    if len(first) > 1:
        kinds = ", ".join(f"{kind} ({where})" for kind, where in first.items())
        raise UserError(f"{data.source}: column '{column}' mixes types: {kinds}. Make them all texts.")
    if not isinstance(values[0], str | int | float):
        raise UserError(f"{data.source}: column '{column}' holds {_kind(values[0])}, not texts or numbers.")
    return [value if isinstance(value, str) else json.dumps(value) for value in values]


def _last_exchange(source: str, row: Row, column: str) -> tuple[str, str]:
    """The last assistant turn of a chat as target, and the user turn before it as input."""
    turns = row.values.get(column)
    try:
        spoken = [(turn["role"], turn["content"]) for turn in turns or ()]
    except (TypeError, KeyError):
        spoken = []
    roles = [role for role, content in spoken if isinstance(content, str)]
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


def _check_targets(data: Rows, targets: Sequence[str], labels: Sequence[str]) -> None:
    """Raises UserError if a target is empty, or is none of the labels where labels are given."""
    pairs = list(zip(data.rows, targets, strict=True))
    empty = [row.where for row, target in pairs if not target.strip()]
    if empty:
        raise UserError(f"{data.source}: empty target in {_some(empty)}. Fill or drop these rows.")
    strange = [f"{row.where} ({target!r})" for row, target in pairs if labels and target not in labels]
    if strange:
        raise UserError(
            f"{data.source}: target is none of the labels {', '.join(labels)} in {_some(strange)}."
        )


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


def _some(places: Sequence[str]) -> str:
    rest = len(places) - SHOWN
    return ", ".join(places[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _kind(value: Any) -> str:
    """What a value is, in a user's words."""
    kinds = (
        (bool, "true/false"),
        (str, "text"),
        (int | float, "number"),
        (list, "a list"),
        (dict, "an object"),
    )
    if value is None or value != value:  # NaN is what tables hold where nothing was written
        return "nothing"
    return next((name for kind, name in kinds if isinstance(value, kind)), type(value).__name__)
