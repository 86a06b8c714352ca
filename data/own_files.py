"""Rows out of files, folders and Hugging Face datasets, one at a time: only a JSON list is held whole."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sapo.conf.errors import UserError

LONGEST_LINE = 2**26  # bytes; a longer one is no line of a data set, and would have to be held whole
LARGEST_JSON = 2**28  # bytes; a JSON list has to be held whole
PARQUET_ROWS = 1024  # rows read at once


class Row(NamedTuple):
    """One row and where it stands ("line 3", "row 3", "item 3"), for messages."""

    where: str
    values: Mapping[str, Any]


class Rows(NamedTuple):
    """The rows of one file or split, read anew by each call, and what to call them in messages.

    `left_out` is what a reading found beside the rows, and did not read.
    """

    source: str
    read: Callable[[], Iterator[Row]]
    left_out: list[str] = []  # noqa: RUF012 (a file has its own)


class Number(str):
    """A number as a JSON file writes it, so that 1.10 stays 1.10 and 1e400 finite."""

    __slots__ = ()


def read_splits(path: Path, name: str) -> dict[str, Rows]:
    """The rows under "train" and, if there is such a split, "test"; UserError if there is no such data."""
    if path.is_file():
        return {"train": _file(path)}
    if path.is_dir() and any((path / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
        return _dataset(str(path), on_disk=True)
    if not path.is_dir():
        if path.suffix.lower() in READERS or path.is_absolute() or name.startswith((".", "~")):
            raise UserError(f"{name}: there is no such file or folder.")
        return _dataset(name, on_disk=False)
    splits = {}
    for split in ("train", "test"):
        found = sorted(file for file in path.glob(f"{split}.*") if file.suffix.lower() in READERS)
        if len(found) > 1:
            raise UserError(f"{path}: more than one {split} file: {', '.join(file.name for file in found)}.")
        if found:
            splits[split] = _file(found[0])
    if "train" not in splits:
        there = ", ".join(sorted(file.name for file in path.iterdir())[:10]) or "nothing"
        raise UserError(
            f"{path}: no train file ({', '.join('train' + end for end in READERS)}); it has {there}."
        )
    return splits


def _file(path: Path) -> Rows:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: cannot read '{path.suffix}' files; known: {', '.join(READERS)}.")
    left_out: list[str] = []
    return Rows(str(path), partial(reader, path, left_out), left_out)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends, split at line feeds only: JSON texts may hold U+2028."""
    number, offset = 1, 0
    try:
        with path.open("rb") as file:
            for line in iter(partial(file.readline, LONGEST_LINE + 1), b""):
                if len(line) > LONGEST_LINE:
                    raise UserError(f"{path}: line {number} is longer than {LONGEST_LINE >> 20} MiB.")
                yield line.decode().removeprefix("" if offset else "\ufeff")
                number, offset = number + 1, offset + len(line)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 at byte {offset + error.start} (line {number}): {error.reason}. "
            "Save the file as UTF-8."
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _json(path: Path, text: str, first_line: int) -> Any:
    try:
        return json.loads(text, parse_int=Number, parse_float=Number)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path}: broken JSON at line {line}, column {error.colno}: {error.msg}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {first_line}: lists are nested too deeply.") from error


def _object(path: Path, where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{path}, {where}: expected an object with named columns, found {kind_of(value)}.")
    return Row(where, value)


def _jsonl(path: Path, _: list[str]) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            yield _object(path, f"line {number}", _json(path, line, number))


def _json_file(path: Path, left_out: list[str]) -> Iterator[Row]:
    """The rows of a JSON file: a list, an object a line, or an object that holds the one list."""
    left_out.clear()
    written = (line.strip() for line in _lines(path) if line.strip())
    first, second = next(written, ""), next(written, "")
    if second and first.startswith("{") and first.endswith("}"):
        yield from _jsonl(path, left_out)
        return
    if path.stat().st_size > LARGEST_JSON:
        raise UserError(
            f"{path}: a JSON list of more than {LARGEST_JSON >> 20} MiB is not read, since it cannot be read "
            "in parts. Write it as JSONL, an object a line."
        )
    content = _json(path, "".join(_lines(path)), 1)
    items = content if isinstance(content, list) else _wrapped(path, content, left_out)
    for i, item in enumerate(items, start=1):
        yield _object(path, f"item {i}", item)


def _wrapped(path: Path, content: Any, left_out: list[str]) -> list[Any]:
    """The one list of objects among a JSON object's members; what else it holds is noted."""
    members = content if isinstance(content, dict) else {}
    lists = [
        name
        for name, value in members.items()
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    ]
    if "Instances" in lists:  # a task file of Natural Instructions
        lists = ["Instances"]
    if len(lists) != 1:
        several = f" with several lists ({', '.join(lists)}: write each to a file)" if lists else ""
        raise UserError(
            f"{path}: expected a JSON list of objects, found {kind_of(content)}{several}. "
            "An object a line (JSONL) is read, too, and an object whose one list holds the rows."
        )
    definition = members.get("Definition")
    shared = {"definition": definition} if definition else {}
    others = [name for name, value in members.items() if value and name not in (lists[0], "Definition")]
    left_out += [f"member {name!r}" for name in others]
    return [shared | item for item in members[lists[0]]]


def _delimited(path: Path, _: list[str], delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_LINE)  # else 128 KiB
    lines = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    try:
        header = next(lines, [])
        if len(set(header)) < len(header):
            raise UserError(f"{path}: a column name occurs twice in the header: {', '.join(header)}.")
        for fields in filter(None, lines):
            if len(fields) != len(header):
                raise UserError(
                    f"{path}, line {lines.line_num}: {len(fields)} fields, but the header has {len(header)} "
                    "columns. Put fields that hold the delimiter in double quotes."
                )
            yield Row(f"line {lines.line_num}", dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path}, line {lines.line_num}: {error}.") from error


def _parquet(path: Path, _: list[str]) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for record in batch.to_pylist():
                    number += 1
                    yield Row(f"row {number}", record)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from error


READERS: dict[str, Callable[..., Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json_file,
    ".csv": partial(_delimited, delimiter=","),
    ".tsv": partial(_delimited, delimiter="\t"),
    ".parquet": _parquet,
}


def _dataset(name: str, on_disk: bool) -> dict[str, Rows]:
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
        split: Rows(f"{name} ({split})", partial(dataset_rows, splits[split]))
        for split in ("train", "test")
        if split in splits
    }


def dataset_rows(dataset: Any) -> Iterator[Row]:
    """The rows of a Hugging Face split, with the names of classes in place of their numbers."""
    classes = {
        column: feature.names
        for column, feature in dataset.features.items()
        if type(feature).__name__ == "ClassLabel"
    }
    for i, record in enumerate(dataset, start=1):
        numbers = {column: record[column] for column in classes}
        named = {
            column: None if number is None or number < 0 else classes[column][number]
            for column, number in numbers.items()
        }
        yield Row(f"row {i}", record | named)


KINDS = (
    (bool, "true/false"),
    (Number, "number"),
    (str, "text"),
    (int | float, "number"),
    (list, "a list"),
    (dict, "an object"),
)


def kind_of(value: Any) -> str:
    """What a value is, in a user's words."""
    if value is None or value != value:  # NaN is what tables hold where nothing was written
        return "nothing"
    return next((name for kind, name in KINDS if isinstance(value, kind)), type(value).__name__)
