"""Rows out of files, folders, data frames and datasets, one at a time: only a JSON list is held whole."""

import csv
import gzip
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from sapo.conf.errors import UserError
from sapo.data.files import json_of
from sapo.data.tasks import Example

LONGEST_LINE = 2**26  # bytes; a longer one is no line of a data set, and would have to be held whole
LARGEST_JSON = 2**28  # bytes; a JSON list has to be held whole
DELIMITERS = (",", ";", "\t", "|")
SNIFFED = 50  # lines by which a delimiter is told
SPLITS = dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation")
SPLITS |= {"train": "train", "training": "train", "test": "test"}
_SPLIT = re.compile(rf"({'|'.join(sorted(SPLITS, key=len, reverse=True))})(?![a-z])", re.IGNORECASE)
KINDS = {bool: "true/false", str: "text", int: "number", float: "number", list: "a list", dict: "an object"}


class Row(NamedTuple):
    """One row and where it stands ("line 3", "row 3", "item 3"), for messages."""

    where: str
    values: Mapping[str, Any]


class Rows(NamedTuple):
    """The rows of one file or split, read anew by each call, and what to call them in messages.

    `left_out` is what a reading found beside the rows, and did not read; `said` are lines on how it is read.
    """

    source: str
    read: Callable[[], Iterator[Row]]
    left_out: list[str] = []  # noqa: RUF012 (a file has its own)
    said: list[str] = []  # noqa: RUF012


class Number(str):
    """A number as a JSON file writes it, so that 1.10 stays 1.10 and 1e400 finite."""

    __slots__ = ()


_json = partial(json_of, parse_int=Number, parse_float=Number)


def kind_of(value: Any) -> str:
    """What a value is, in a user's words."""
    if value is None or value != value:  # NaN is what tables hold where nothing was written
        return "nothing"
    if isinstance(value, Number):
        return "number"
    return next((name for kind, name in KINDS.items() if isinstance(value, kind)), type(value).__name__)


# --- splits ------------------------------------------------------------------------------------------------


def read_splits(path: Path, name: str, delimiter: str | None = None) -> dict[str, Rows]:
    """The rows under "train" and, if there is such a split, "test"; UserError if there is no such data.

    A folder holds a file a split, shards of each (`train-0001.jsonl`, `train/…`), or shards of one whose
    names tell no split. `delimiter` stands between the fields of a CSV file; it is found out if not given.
    """
    if path.is_file():
        return {"train": _files(str(path), [path], delimiter)}
    if path.is_dir():
        is_saved = any((path / mark).is_file() for mark in ("dataset_dict.json", "state.json"))
        return _dataset(str(path), on_disk=True) if is_saved else _folder(path, delimiter)
    if _ending(path) in READERS or path.is_absolute() or name.startswith((".", "~")):
        raise UserError(f"{name}: there is no such file or folder.")
    return _dataset(name, on_disk=False)


def splits_of(items: Any) -> dict[str, Rows]:
    """The same of (input, target) pairs, Examples, dicts, a data frame, a dataset, or splits of these."""
    if isinstance(items, Mapping):
        return settled({name: splits_of(split)["train"] for name, split in items.items()}, "examples")
    if hasattr(items, "features"):
        return {"train": Rows("examples", partial(_dataset_rows, items))}
    if hasattr(items, "iloc"):
        items = items.astype(object).where(items.notna(), None).to_dict("records")
    if isinstance(items, str | Path) or not hasattr(items, "__iter__"):
        raise UserError(f"examples: expected rows, a data frame or a dataset, found {kind_of(items)}.")
    held = []
    for i, item in enumerate(items):
        if isinstance(item, Example):
            item = (item.input, item.target)
        if isinstance(item, tuple | list) and len(item) == 2:
            item = dict(zip(("input", "target"), item, strict=True))
        if not isinstance(item, Mapping):
            expected = "expected (input, target) or a dict of columns"
            raise UserError(f"examples, row {i}: {expected}, found {kind_of(item)}.")
        held.append(Row(f"row {i}", item))
    return {"train": Rows("examples", lambda: iter(held))}


def settled(found: Mapping[str, Rows], name: str) -> dict[str, Rows]:
    """Train and test of all splits there are; a validation split is the test where there is no other."""
    if "train" not in found:
        raise UserError(f"{name}: the dataset has no split 'train'; it has {', '.join(found)}.")
    named = {SPLITS.get(split, split): rows for split, rows in reversed([*found.items()])}
    test = "test" if "test" in named else "validation"
    is_moved = test == "validation" and test in named
    said = ["no test split there: the validation split is the test"] if is_moved else []
    unread = (split for split in found if SPLITS.get(split, split) not in ("train", test))
    said = [*named["train"].said, *said, *(f"the split {split!r} is not read" for split in unread)]
    splits = {"train": named["train"]._replace(said=said)}
    return {**splits, "test": named[test]} if test in named else splits


def _folder(path: Path, delimiter: str | None) -> dict[str, Rows]:
    files: defaultdict[str, list[Path]] = defaultdict(list)
    there = sorted(each for each in path.iterdir() if not each.name.startswith((".", "_")))
    for each in there:
        named = _SPLIT.match(each.name)
        for file in sorted(each.iterdir()) if named and each.is_dir() else [each]:
            if file.is_file() and _ending(file) in READERS:
                files[SPLITS[named[1].lower()] if named else ""].append(file)
    others = files.pop("", [])
    if "train" not in files and len({_ending(file) for file in others}) == 1:
        files["train"] = others
    if not files and (path / "data").is_dir():  # of a repository on the hub
        return _folder(path / "data", delimiter)
    if "train" not in files:
        names = ", ".join(file.name for file in there[:10]) or "nothing"
        known = ", ".join(f"train{ending}" for ending in READERS)
        raise UserError(f"{path}: no train file ({known}); it has {names}.")
    splits = {}
    for split, found in sorted(files.items(), key=lambda item: item[0] != "train"):
        if len({_ending(file) for file in found}) > 1:
            several = ", ".join(file.name for file in found[:5])
            raise UserError(f"{path}: more than one {split} file: {several}.")
        source = str(found[0]) if len(found) == 1 else f"{path} ({len(found)} {split} files)"
        splits[split] = _files(source, found, delimiter)
    return settled(splits, str(path))


def _ending(path: Path) -> str:
    """The ending by which a file is read; that of what it packs, for .gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _files(source: str, files: Sequence[Path], delimiter: str | None) -> Rows:
    """The rows of files of one kind, one after the other."""
    first, ending = files[0], _ending(files[0])
    reader = READERS.get(ending)
    if reader is None or (reader is _parquet and first.suffix.lower() == ".gz"):
        known = f"{', '.join(READERS)}, and all but the last packed as .gz"
        raise UserError(f"{first}: cannot read '{first.suffix}' files; known: {known}.")
    left_out: list[str] = []
    said: list[str] = []
    options = {}
    if reader is _delimited:
        usual = "\t" if ending == ".tsv" else ","
        given = {"tab": "\t", "\\t": "\t"}.get(delimiter or "", delimiter)
        options["delimiter"] = given or _sniffed(first, usual)
        if options["delimiter"] != usual:
            said.append(f"fields are separated by {options['delimiter']!r}")

    def read() -> Iterator[Row]:
        left_out.clear()
        for file in files:
            for row in reader(file, left_out, **options):
                yield row._replace(where=f"{file.name}, {row.where}") if len(files) > 1 else row

    return Rows(source, read, left_out, said)


# --- files -------------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends, split at line feeds only: JSON texts may hold U+2028."""
    number, offset = 1, 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for line in iter(partial(file.readline, LONGEST_LINE + 1), b""):
                if len(line) > LONGEST_LINE:
                    raise UserError(f"{path}: line {number} is longer than {LONGEST_LINE >> 20} MiB.")
                yield line.decode().removeprefix("" if offset else "\ufeff")
                number, offset = number + 1, offset + len(line)
    except UnicodeDecodeError as error:
        place = f"byte {offset + error.start} (line {number})"
        raise UserError(f"{path}: not UTF-8 at {place}: {error.reason}. Save the file as UTF-8.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _object(path: Path, where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{path}, {where}: expected an object with named columns, found {kind_of(value)}.")
    return Row(where, value)


def _jsonl(path: Path, _: list[str]) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            yield _object(path, f"line {number}", _json(line, path, number))


def _json_file(path: Path, left_out: list[str]) -> Iterator[Row]:
    """The rows of a JSON file: a list, an object a line, or an object that holds the one list."""
    written = (line.strip() for line in _lines(path) if line.strip())
    first, second = next(written, ""), next(written, "")
    if second and first.startswith("{") and first.endswith("}"):
        yield from _jsonl(path, left_out)
        return
    lines, size = [], 0
    for line in _lines(path):
        lines.append(line)
        if (size := size + len(line)) > LARGEST_JSON:
            raise UserError(
                f"{path}: a JSON list of more than {LARGEST_JSON >> 20} MiB is not read, since it cannot be "
                "read in parts. Write it as JSONL, an object a line."
            )
    content = _json("".join(lines), path)
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
    others = [name for name, value in members.items() if value and name not in (lists[0], "Definition")]
    left_out += [noted for name in others if (noted := f"member {name!r}") not in left_out]
    return [({"definition": definition} if definition else {}) | item for item in members[lists[0]]]


def _sniffed(path: Path, usual: str) -> str:
    """The delimiter by which the first rows have as many fields as the header; the usual one if none has."""
    csv.field_size_limit(LONGEST_LINE)
    sample = list(islice(_lines(path), SNIFFED))
    for delimiter in dict.fromkeys((usual, *DELIMITERS)):
        try:
            rows = [len(row) for row in csv.reader(sample, delimiter=delimiter) if row]
        except csv.Error:  # which reading says with its place
            continue
        whole = rows[:-1] if len(sample) == SNIFFED else rows  # the last one may go on
        if whole and whole[0] > 1 and len(set(whole)) == 1:
            return delimiter
    return usual


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
                    f"columns. Put fields that hold the delimiter {delimiter!r} in double quotes, or say "
                    "another one: data.delimiter=."
                )
            yield Row(f"line {lines.line_num}", dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path}, line {lines.line_num}: {error}.") from error


def _parquet(path: Path, _: list[str]) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            features = {}
            if b"huggingface" in (file.schema_arrow.metadata or {}):  # as datasets writes it
                from datasets import Features

                features = Features.from_arrow_schema(file.schema_arrow)
            batches = file.iter_batches(batch_size=1024)
            yield from _with_class_names((row for batch in batches for row in batch.to_pylist()), features)
    except (pyarrow.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from error


READERS: dict[str, Callable[..., Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json_file,
    ".csv": _delimited,
    ".tsv": _delimited,
    ".parquet": _parquet,
}


def _dataset(name: str, on_disk: bool) -> dict[str, Rows]:
    """The train and test splits of a Hugging Face dataset; a dataset without splits is all train."""
    import datasets

    try:
        loaded = datasets.load_from_disk(name) if on_disk else datasets.load_dataset(name)
    except Exception as error:  # the library raises whatever its file systems, hub and parsers raise
        what = "the saved dataset" if on_disk else "there is no such file, and a dataset of this name"
        raise UserError(f"{name}: {what} cannot be loaded ({type(error).__name__}: {error}).") from error
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    rows = {split: Rows(f"{name} ({split})", partial(_dataset_rows, each)) for split, each in splits.items()}
    return settled(rows, name)


def _dataset_rows(dataset: Any) -> Iterator[Row]:
    plain = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
    return _with_class_names(plain, dataset.features or {})


def _with_class_names(records: Any, features: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of a table, with the names of classes in place of their numbers."""
    classes = {column: f.names for column, f in features.items() if type(f).__name__ == "ClassLabel"}
    for i, record in enumerate(records, start=1):
        numbers = {column: record[column] for column in classes if column in record}
        named = {c: None if n is None or n < 0 else classes[c][n] for c, n in numbers.items()}
        yield Row(f"row {i}", record | named)
