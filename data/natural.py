"""Natural Instructions: tasks as the public repository's JSON files have them, with splits of our own."""

import json
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from sapo.conf.errors import UserError
from sapo.data.files import is_text, read_json
from sapo.data.remembering import while_unchanged
from sapo.data.tasks import Example, Task, own_task, short_name

FOLDER = "tasks"  # of the repository
SEED = 0
TEST_SHARE = 0.1  # as the reference splits its tasks
MOST_LABELS = 10  # that are taken for labels where no one says which there are
HEAD = 1 << 16  # characters of a file in which its definition stands


def task_files(root: Path) -> dict[str, Path]:
    """The task files in a folder, or in its folder `tasks`, by their short names: `NI195`."""
    folder = root / FOLDER if (root / FOLDER).is_dir() else root
    return {short_name(path.stem): path for path in sorted(folder.glob("task[0-9]*_*.json"))}


def definition(path: Path) -> str:
    """A task's definition, from the beginning of its file: a task may have 20 MB of rows."""
    with path.open(encoding="utf-8", errors="replace") as file:
        head = file.read(HEAD)
    if found := re.search(r'"Definition"\s*:\s*', head):
        with suppress(ValueError):
            return _definition(json.JSONDecoder().raw_decode(head[found.end() :])[0], path)
    return _definition(_content(path).get("Definition"), path)


@while_unchanged(lambda path, *_: [path])
def natural_task(path: Path, facts: tuple[str, str, tuple[str, ...]] | None, keep_blanks: bool) -> Task:
    """The task in a file: a tenth of its distinct inputs, drawn with a fixed seed, is the test set.

    `facts` are instruction, suffix and labels that the reference has for it; without them its definition is
    the instruction, and a few different answers are its labels. The notes say where the rows are from.
    """
    content = _content(path)
    rows = [_example(row, number, path, keep_blanks) for number, row in enumerate(content["Instances"], 1)]
    inputs = sorted({row.input for row in rows})
    Random(SEED).shuffle(inputs)  # noqa: S311
    held_out = set(inputs[: max(1, round(TEST_SHARE * len(inputs)))])
    train, test = ([row for row in rows if (row.input in held_out) == is_test] for is_test in (False, True))
    if not train:
        raise UserError(f"{path}: all rows have one input; at least 2 are needed, to train with and to test.")
    split = f"{len(test):,} of them drawn for the test, not the reference's split"
    notes = [f"{len(rows):,} rows of Natural Instructions ({path.name}), {split}"]
    if facts is None:
        answers = sorted({row.target for row in rows})
        few = tuple(answers) if len(answers) <= min(MOST_LABELS, len(rows) // 4) else ()
        facts = (_definition(content.get("Definition"), path), "", few)
        named = f"; its answers are taken for labels: {', '.join(few)}" if few else ""
        notes.append(f"its definition is the instruction, without a suffix{named}")
    # The files are in an order of their authors': the first rows of a task are not like the last.
    Random(SEED).shuffle(train)  # noqa: S311
    name = short_name(path.stem)
    return replace(own_task(name, *facts, train, test), notes=tuple(f"{name}: {note}" for note in notes))


def _content(path: Path) -> dict[str, Any]:
    content = read_json(path)
    rows = content.get("Instances") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: expected a task of Natural Instructions, with Definition and Instances.")
    return content


def _definition(value: Any, path: Path) -> str:
    text = " ".join(value) if isinstance(value, list) and all(map(is_text, value)) else value
    if not is_text(text) or not text.strip():
        raise UserError(f"{path}: `Definition` must be a text or a list of texts.")
    return text.strip()


def _example(row: Any, number: int, path: Path, keep_blanks: bool) -> Example:
    """A row's input and the first of its outputs, which is the target."""
    text = row.get("input") if isinstance(row, dict) else None
    outputs = row.get("output") if isinstance(row, dict) else None
    outputs = [outputs] if isinstance(outputs, str) else outputs
    if not is_text(text) or not isinstance(outputs, list) or not outputs or not is_text(outputs[0]):
        raise UserError(f'{path}, row {number}: expected {{"input": TEXT, "output": [TEXT, …]}}.')
    return Example(text, outputs[0] if keep_blanks else outputs[0].strip())
