"""What a wording is chosen from: rows, instruction and paraphrases; and the rows written out with it."""

import csv
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sapo.conf.errors import UserError
from sapo.conf.schema import Config
from sapo.data.benchmarks import load_task
from sapo.data.files import is_text, read_yaml
from sapo.data.hygiene import distinct_rows
from sapo.data.own import OwnExamples, own_name, own_task, require_enough
from sapo.data.own_files import read_splits
from sapo.data.pools import load_pool
from sapo.data.prompts import BANK, PromptPool
from sapo.data.subset import draw, subset
from sapo.data.tasks import Example, Task

# What a selection is told beside the settings.
ARGUMENTS = ("data", "instruction", "suffix", "columns", "input", "target", "labels", "adapter")
_OF_DATA = ("instruction", "suffix", "columns", "input", "target", "labels")


@dataclass(frozen=True)
class Material:
    """A task whose `train` rows are to be scored, its prompt pool, and where all its rows come from."""

    task: Task
    pool: PromptPool
    rows: Iterable[Example]  # all training rows, read anew by each iteration
    n_rows: int
    source: str
    columns: tuple[str, str] | None  # of input and target; None for a task that is known by name


def gather(given: Mapping[str, str], config: Config) -> Material:
    """The task, pool and rows that `data=` or `task=` mean; only a file's rows to be scored are held.

    Raises UserError for rows that cannot be used, naming them, and where there is no pool.
    """
    if config.task:
        if said := [name for name in ("data", *_OF_DATA) if name in given]:
            raise UserError(f"task={config.task} brings its own {said[0]}: say task=, or data= and the like.")
        task = load_task(config.task, config)
        scored = subset(task, config.scorer.examples, config.scorer.subset, config.seed)
        require_enough(len(set(distinct_rows(scored))), len(task.train))
        pool = load_pool(task, config.paraphrases)
        return Material(replace(task, train=scored), pool, task.train, len(task.train), task.name, None)
    if not given.get("data"):
        raise UserError("Which rows? Say data=FILE instruction=TEXT, or task=NAME (`sapo ls tasks`).")
    labels = tuple(names(given.get("labels", "")))
    instruction = given.get("instruction") or _pool_original(config)
    frame = own_task(own_name(given["data"]), instruction, given.get("suffix", ""), labels)
    pool = _own_pool(frame, config)
    rows = read_splits(Path(given["data"]).expanduser(), given["data"])["train"]
    examples = OwnExamples.of(rows, _columns(given), labels)
    drawn, n_rows = draw(examples, config.scorer.examples, config.scorer.subset, config.seed, frame.name)
    require_enough(len(set(distinct_rows(drawn))), n_rows)
    return Material(replace(frame, train=drawn), pool, examples, n_rows, rows.source, examples.columns)


def _columns(given: Mapping[str, str]) -> tuple[str, str] | None:
    """The columns named by `columns=[INPUT,TARGET]` or by `input=` and `target=`; None to guess them."""
    named = names(given.get("columns", ""))
    if not named and ("input" in given) != ("target" in given):
        raise UserError("input= and target= name a column each: give both, or neither to have them guessed.")
    if not named:
        return (given["input"], given["target"]) if "input" in given else None
    if len(named) != 2 or "input" in given:
        raise UserError(f"columns={given['columns']}: give columns=[INPUT,TARGET], or input= and target=.")
    return named[0], named[1]


def names(text: str) -> list[str]:
    """`[a,b]` or `a,b` as texts; a name with a comma stands in double quotes."""
    inner = text.strip().removeprefix("[").removesuffix("]")
    return [name.strip() for name in next(csv.reader([inner], skipinitialspace=True), []) if name.strip()]


# --- the pool ----------------------------------------------------------------------------------------------


def _pool_original(config: Config) -> str:
    """The instruction that a pool file says it was written for."""
    named = config.paraphrases.file
    path = Path(named or "").expanduser()
    if named and not path.exists():
        raise UserError(f"paraphrases.file: no prompt pool {path}.")
    if path.is_file():
        content = read_yaml(path, "prompt pool")
        original = content.get("original") if isinstance(content, dict) else None
        if isinstance(original, str) and is_text(original) and original.strip():
            return original
    raise UserError("Which instruction? Say instruction=TEXT, or give a pool file that has `original:`.")


def _own_pool(task: Task, config: Config) -> PromptPool:
    """A user's instruction's pool: a file's, a paraphraser's, or the bank's if it has the instruction."""
    if config.paraphrases.source != "bank":
        return load_pool(task, config.paraphrases)
    for path in sorted(BANK.glob("*.yaml")):
        if read_yaml(path)["original"] == task.instruction:
            settings = replace(config.paraphrases, source="file", file=str(path))
            return load_pool(task, settings)
    raise UserError(
        "There are no paraphrases of this instruction: the bank does not have it. Two ways to get them: "
        "have a model write them (`sapo paraphrase instruction=TEXT paraphrases=… --write POOL.yaml`), "
        "or write POOL.yaml yourself, with `prompts:`, a list of texts. Then add paraphrases.file=POOL.yaml."
    )


# --- writing -----------------------------------------------------------------------------------------------


def require_writable(path: Path, inputs: Iterable[str | None]) -> None:
    """UserError unless a file can be written at `path` without touching anything that is read."""
    if path.is_dir():
        raise UserError(f"--write {path}: that is a folder; name a file, such as {path / 'rows.jsonl'}.")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--write {path}: there is no folder {path.parent} that can be written to.")
    for name in filter(None, inputs):
        given = Path(name).expanduser()
        read = [given, *(given.glob("*") if given.is_dir() else ())]
        if path.exists() and any(file.exists() and path.samefile(file) for file in read):
            raise UserError(f"--write {path}: that is what is read. Name another file.")
    if path.exists() or path.is_symlink():
        raise UserError(f"--write {path}: there is such a file already. Name another, or delete it first.")


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Writes the records, an object a line, and returns how many; the file appears whole or not at all."""
    count = 0
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("w", encoding="utf-8", newline="\n") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return count
