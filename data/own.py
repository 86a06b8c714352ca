"""A user's own rows: read as examples whatever their form, scored or split, and written with a prompt."""

import csv
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import Any

import yaml

from sapo.conf.errors import UserError
from sapo.conf.names import plain
from sapo.conf.schema import Config
from sapo.data.benchmarks import is_label, load_task
from sapo.data.files import is_text, user_path, write_whole
from sapo.data.own_files import DELIMITERS, Row, Rows, kind_of, read_splits, splits_of
from sapo.data.pools import load_pool
from sapo.data.prompts import PromptPool, pool_content
from sapo.data.subset import draw, subset
from sapo.data.tasks import SEPARATORS, Example, Task, own_task, with_separator

# What columns are taken for input and target without being named: the first pair whose columns are there.
# A column that is both holds the two as turns; `--write` writes input/completion with a user's layout.
_SHAPES = """messages/messages conversations/conversations input/completion input/output input/target
prompt/completion prompt/response prompt/chosen question/answer sentence/label text/label text/summary
instruction/output instruction/response chosen/chosen"""
SHAPES = [tuple(pair.split("/")) for pair in _SHAPES.split()]
INSTRUCTIONS = ("definition", "instruction")  # columns that hold what a row's input is to be used for
ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names
SHOWN = 5  # rows named in one message
TEST_SHARE = 0.2  # of rows without a test split
LOOKED_AT = 1000  # rows whose columns are looked at before any row is turned into an example


def load_own(
    path_or_name: str,
    instruction: str,
    *,
    suffix: str = "",
    labels: Sequence[str] | Mapping[str, str] = (),
    columns: tuple[str, str] | None = None,
    name: str | None = None,
    delimiter: str | None = None,
) -> Task:
    """A task from a JSONL, JSON, CSV, TSV or parquet file, a folder with train and test files, or a dataset.

    A Hugging Face dataset is taken from the disk if it was saved there, else by its name. `columns` names the
    columns of input and target; without it `guess_columns` decides. `labels` may map what stands in the rows
    to labels. Without a test split a fifth of the rows is drawn for it. The task's notes say what was read,
    and what was left out.
    """
    renamed = labels_of(labels)
    named = tuple(dict.fromkeys(renamed.values()))
    frame = own_task(name or own_name(path_or_name), instruction, suffix, named)
    splits = read_splits(user_path(path_or_name), path_or_name, delimiter)
    read = {split: OwnExamples(rows, columns, frame, renamed) for split, rows in splits.items()}
    train, test = list(read["train"]), list(read.get("test", ()))
    notes = [note for examples in read.values() for note in examples.notes]
    if "test" not in read:
        if (n := len(train)) < 2:
            raise UserError(f"{splits['train'].source}: {n} row; at least 2 are needed, train and test.")
        Random(0).shuffle(train)  # noqa: S311
        size = min(max(1, round(TEST_SHARE * n)), n - 1)
        train, test = train[size:], train[:size]
        notes.append(f"no test rows there: {size:,} of {n:,} rows are held out, drawn at random")
        if shared := len({example.input for example in train} & {example.input for example in test}):
            notes.append(f"{shared} inputs occur in train and in test; drop duplicate rows")
    if not train or not test:
        raise UserError(f"{path_or_name}: the {'test' if train else 'train'} split is empty.")
    return replace(frame, train=tuple(train), test=tuple(test), notes=tuple(dict.fromkeys(notes)))


def own_name(path_or_name: str) -> str:
    """What a task is called after its data: the file's or folder's name, or the dataset's."""
    path = user_path(path_or_name)
    if path.exists():
        return Path(path.name.removesuffix(".gz")).stem if path.is_file() else path.resolve().name
    return path_or_name.replace("/", "_")


def guess_columns(names: Iterable[str], source: str) -> tuple[str, str]:
    """Input's and target's column, twice a chat's; what rows bring to do stands before: instruction+input."""
    names = list(names)
    by_lower = {name.lower(): name for name in names}
    for first, second in SHAPES:
        if {first, second} <= by_lower.keys():
            others = (name for name in INSTRUCTIONS if name in by_lower and first not in (name, second))
            return "+".join(by_lower[name] for name in (*others, first)), by_lower[second]
    known = ", ".join("/".join(dict.fromkeys(shape)) for shape in SHAPES)
    found = next((each for each in DELIMITERS if len(names) == 1 and each in names[0]), None)
    hint = f"If {found!r} stands between its columns: data.delimiter={found!r}. " if found else ""
    raise UserError(
        f"{source}: no known pair of columns among {', '.join(names) or 'none'}. {hint}"
        f"Name yours with columns=[INPUT,TARGET] (A+B joins two); known without: {known}."
    )


# --- from rows to examples ---------------------------------------------------------------------------------


class _RowError(Exception):
    """Why no example comes of a row: a reason that several rows may share, and what is this row's own."""

    def __init__(self, reason: str, own: str = "") -> None:
        super().__init__(reason)
        self.own = own


class OwnExamples:
    """A user's rows as examples: read anew by each iteration, one at a time, never held whole.

    An iteration passes over rows that cannot be used, and at its end raises one UserError that names them.
    What it left out of rows that it used is counted in `notes`. `columns` are those of input and target, and
    guessed if not given; a name `a+b` joins the texts of two columns by a blank line. `frame` is the task
    that the rows belong to: its labels are checked, and its instruction is not repeated in an input.
    `renamed` has the label for what stands in the target's column.
    """

    def __init__(
        self,
        rows: Rows,
        columns: tuple[str, str] | None = None,
        frame: Task | None = None,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        self.rows, self.frame, self.renamed = rows, frame or own_task("own", ""), renamed or {}
        seen = [row.values for row in islice(rows.read(), LOOKED_AT)]
        if not seen:
            raise UserError(f"{rows.source}: no rows.")
        names = list(dict.fromkeys(name for values in seen for name in values))
        self.columns = columns or guess_columns(names, rows.source)
        self.inputs, self.targets = ([name] if name in names else name.split("+") for name in self.columns)
        used = (*self.inputs, *self.targets)
        if missing := " and ".join(repr(name) for name in used if name not in names):
            raise UserError(f"{rows.source}: no column {missing}; there are {', '.join(names)}.")
        self.is_guessed = columns is None
        self.is_chat = self.is_guessed and self.columns[0] == self.columns[1]
        # Preferences: what is marked as false is what a model shall not say.
        marks = [name for name in names if name.lower() == "label" and name not in used and self.is_guessed]
        is_verdict = all(isinstance(values.get(name), bool) for name in marks[:1] for values in seen)
        self.verdict = marks[0] if marks and is_verdict else None
        # The instructions that the rows looked at bring along; None where one has none.
        own = [name for name in self.inputs if name.lower() in INSTRUCTIONS and len(self.inputs) > 1]
        self.instructions = list(dict.fromkeys(_instruction(values.get(own[0])) for values in seen if own))
        self.left_out: Counter[str] = Counter()
        self.unused: dict[str, None] = {}
        self.kinds: defaultdict[str, dict[str, str]] = defaultdict(dict)

    @property
    def notes(self) -> list[str]:
        """What was read, and what the last iteration left out, a line each."""
        given, target = (" and ".join(map(repr, names)) for names in (self.inputs, self.targets))
        lines = [f"input from column {given}, target from column {target}", *self.rows.said]
        left_out = [f"{count} {what}" for what, count in self.left_out.items()] + self.rows.left_out
        if self.unused:
            unused = ", ".join(map(repr, self.unused))
            left_out.append(f"column {unused} (columns=[A+B,TARGET] joins what belongs to the input)")
        if left_out:
            lines.append(f"left out: {'; '.join(left_out)}")
        return [f"{self.rows.source}: {line}" for line in lines]

    def __iter__(self) -> Iterator[Example]:
        self.left_out.clear()
        self.kinds.clear()
        faults: defaultdict[str, list[str]] = defaultdict(list)
        for row in self._rows():
            try:
                yield self._example(row)
            except _RowError as error:
                faults[str(error)].append(row.where + error.own)
        lines = []
        for name, kinds in self.kinds.items():
            if len(kinds) > 1:
                found = ", ".join(f"{kind} ({where})" for kind, where in kinds.items())
                lines.append(f"column '{name}' mixes types: {found}. Make them all texts.")
        for reason, places in faults.items():
            more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
            lines.append(f"{reason} in {', '.join(places[:SHOWN])}{more}. Mend or drop these rows.")
        if lines:
            raise UserError("\n".join(f"{self.rows.source}: {line}" for line in lines))

    def _rows(self) -> Iterator[Row]:
        """The rows that are to be learned from; which of guessed rows' texts nobody reads is noted."""
        read = {*self.inputs, *self.targets, "chat_template_kwargs"}  # the latter is what `--write` adds
        for row in self.rows.read():
            if self.verdict and row.values.get(self.verdict) is False:
                self.left_out[f"rejected rows (column {self.verdict!r} is false)"] += 1
                continue
            for name, value in row.values.items() if self.is_guessed else ():
                if name not in read and value and isinstance(value, str | list | dict):
                    self.unused[name] = None
            yield row

    def _example(self, row: Row) -> Example:
        """The row's input and target as texts; what the frame says already is not said again in an input."""
        given = wanted = row.values
        if self.is_chat:  # up to its last answer it is the input
            (name,) = self.targets
            turns = given[name] if isinstance(given.get(name), list) else []
            end = _last(turns, "assistant") or 0
            given, wanted = {name: turns[:end]}, {name: turns[end:]}
        answers = [self._text(wanted.get(name), name, "assistant", row.where) for name in self.targets]
        texts = [self._text(given.get(name), name, "user", row.where) for name in self.inputs]
        for name, found in ((self.inputs[0], texts), (self.targets[0], answers)):
            if found == [None]:
                raise _RowError(f"column '{name}' is empty or absent")
        target = "\n\n".join(answer for answer in answers if answer)
        if not target.strip():
            raise _RowError("empty target")
        target = self.renamed.get(target, target)
        if (labels := self.frame.labels) and target not in labels:
            way = " (labels={0: NAME, 1: NAME} names numbers)" if target.isdecimal() else ""
            raise _RowError(f"target is none of the labels {', '.join(labels)}{way}", f" ({target!r})")
        if len(texts) == 1:
            is_turn = isinstance(given[self.inputs[0]], list) and not self.is_chat
            return Example(self._unframed(str(texts[0])) if is_turn else str(texts[0]), target)
        written = [text for text in texts if text and text.strip()]
        kept = [text for text in written if text.strip() != self.frame.instruction.strip()]
        if len(kept) < len(written):
            self.left_out["instructions that are the task's own"] += 1
        return Example("\n\n".join(kept), target)

    def _text(self, value: Any, name: str, role: str, where: str) -> str | None:
        """A column's value as a text: of turns the role's last, of several answers the first."""
        kind = kind_of(value)
        if kind == "nothing":
            return None
        self.kinds[name].setdefault(kind, where)
        if self.is_chat or (isinstance(value, list) and any(map(_role, value))):
            return self._turn(value or [], name, role)
        value = _content(value, name)
        if isinstance(value, list) and all(kind_of(item) == "text" for item in value):
            if len(value) > 1 and role == "assistant":
                self.left_out["rows' further targets (the first is taken)"] += 1
            if len(value) == 1 or (value and role == "assistant"):
                value = value[0]
        if not isinstance(value, str | int | float):
            raise _RowError(f"column '{name}' holds {kind}, not texts or numbers,")
        if isinstance(value, float) and math.isinf(value):
            raise _RowError(f"column '{name}' holds Infinity")
        if isinstance(value, float):  # 1.10 is 1.1 by now
            self.left_out[f"numbers' notations in column {name!r} (from {self.kinds[name][kind]} on)"] += 1
        if isinstance(value, str) and not is_text(value):
            raise _RowError(f"column '{name}' holds half a surrogate pair")
        return str(value) if isinstance(value, str) else json.dumps(value)

    def _turn(self, turns: list[Any], name: str, role: str) -> str:
        """The content of the role's last turn; the other turns are counted."""
        used = _last(turns, role)
        turn = {} if used is None else turns[used]
        content = _content(turn.get("content", turn.get("value")), name)
        if used is None or not is_text(content):
            raise _RowError(f"column '{name}' has no {role} turn, with role and content (texts),")
        for place, other in enumerate(turns):
            if place != used:
                what = "later" if place > used and role == "assistant" else "earlier"
                self.left_out[f"{_role(other) if _role(other) in ('system', 'tool') else what} turns"] += 1
        return content

    def _unframed(self, turn: str) -> str:
        """The input in a user turn that `--write` wrote: instruction before it and suffix after it go."""
        for separator in SEPARATORS.values():
            _, is_framed, text = turn.partition(f"\n\n{separator}\n")
            if is_framed:
                self.left_out["instructions before the input, as `sapo select --write` puts them there"] += 1
                return text.removesuffix(f"\n\n{self.frame.suffix}")
        return turn


def _last(turns: list[Any], role: str) -> int | None:
    """The place of a role's last turn."""
    return max((place for place, turn in enumerate(turns) if _role(turn) == role), default=None)


def _role(turn: Any) -> str:
    """Who speaks in a turn, under ShareGPT's names, too; empty for what is no turn."""
    role = str(turn.get("role", turn.get("from", ""))) if isinstance(turn, dict) else ""
    return ROLES.get(role, role)


def _content(value: Any, name: str) -> Any:
    """The text of content parts, which are objects with a text, or texts; anything else is as it was."""
    if not isinstance(value, list) or not any(isinstance(part, dict) for part in value):
        return value
    texts = [part.get("text") if isinstance(part, dict) else part for part in value]
    kinds = [part.get("type") for part, text in zip(value, texts, strict=True) if not is_text(text) and part]
    if any(kinds):
        raise _RowError(f"column '{name}' has parts that are no texts ({kinds[0]})")
    return "\n".join(map(str, texts)) if all(map(is_text, texts)) else None


def _instruction(value: Any) -> str | None:
    """A text, or texts in a list that are one; None if it says nothing."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    return value if is_text(value) and value.strip() else None


def examples_of(items: Any, columns: tuple[str, str] | None = None, frame: Task | None = None) -> OwnExamples:
    """What a caller has as examples, as `splits_of` takes it: the training rows of splits."""
    return OwnExamples(splits_of(items)["train"], columns, frame)


def require_enough(drawn: Iterable[Example], n_rows: int) -> None:
    """UserError if too few examples would be scored to compare prompts at all."""
    n_distinct = len(set(drawn))
    if n_distinct < 2:
        need = "it takes 2 to tell a difference from noise, and some dozens to find a small one"
        scored = f"{n_distinct} of {n_rows} examples would be scored, repetitions counted once"
        raise UserError(f"{scored}; {need}.")


# --- what `sapo select` chooses from -----------------------------------------------------------------------

OF_TASK = ("data", "instruction", "suffix", "columns", "labels")  # what describes a task of own rows
ARGUMENTS = (*OF_TASK, "adapter")  # what a selection is told beside the settings
# What `select` and `compare` begin with, so that they score the same rows: enough to see differences of some
# hundredths of a nat, few enough for a minute or two on two cores, drawn from all rows.
DEFAULTS = ("scorer.examples=64", "data.train_examples=null", "data.max_input_tokens=1536")


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
    """The task, pool and rows that `data=` or `task=` mean; only a file's rows to be scored are held."""
    scorer = config.scorer
    if config.task:
        if named := [name for name in OF_TASK if name in given]:
            raise UserError(f"task={config.task} brings its own {named[0]}: say task=, or data= and others.")
        task = load_task(config.task, config)
        scored = subset(task, scorer.examples, scorer.subset, config.seed)
        require_enough(scored, len(task.train))
        pool = load_pool(task, config.paraphrases)
        return Material(replace(task, train=scored), pool, task.train, len(task.train), task.name, None)
    if not given.get("data"):
        raise UserError("Which rows? Say data=FILE instruction=TEXT, or task=NAME (`sapo ls tasks`).")
    rows, renamed = _training_rows(given, config), labels_of(given.get("labels", ""))
    instruction, labels = _instruction_of(given, config, rows), tuple(dict.fromkeys(renamed.values()))
    frame = own_task(own_name(given["data"]), instruction, given.get("suffix", ""), labels)
    frame = with_separator(frame, config.data.separator)
    pool = load_pool(frame, config.paraphrases)  # tried before any row is read, unless they say what is asked
    examples = OwnExamples(rows, _pair(given), frame, renamed)
    drawn, n_rows = draw(examples, scorer.examples, scorer.subset, config.seed, frame.name)
    require_enough(drawn, n_rows)
    task = replace(frame, train=drawn, notes=tuple(examples.notes))
    return Material(task, pool, examples, n_rows, rows.source, examples.columns)


def names(text: str) -> list[str]:
    """`[a,b]` or `a,b` as texts; a name with a comma stands in double quotes."""
    inner = text.strip().removeprefix("[").removesuffix("]")
    return [name.strip() for name in next(csv.reader([inner], skipinitialspace=True), []) if name.strip()]


def labels_of(given: Any) -> dict[str, str]:
    """The label of what stands in the rows for it: `[A,B]` for themselves, or `{0: A, 1: B}`."""
    if isinstance(given, str) and given.strip().startswith("{"):
        try:
            given = yaml.safe_load(text := given)
        except yaml.YAMLError:
            given = None
        if not isinstance(given, dict) or not all(map(is_label, [*given, *given.values()])):
            raise UserError(f"labels={text}: write labels={{0: NAME, 1: NAME}}; put yes and no in quotes.")
    listed = names(given) if isinstance(given, str) else given or ()
    pairs = listed.items() if isinstance(listed, Mapping) else zip(listed, listed, strict=True)
    return {str(value): str(label) for value, label in pairs}


def _pair(given: Mapping[str, str]) -> tuple[str, str] | None:
    """The columns that are named."""
    columns = names(given.get("columns", ""))
    if columns and len(columns) != 2:
        raise UserError(f"columns={given['columns']}: give columns=[INPUT,TARGET].")
    return (columns[0], columns[1]) if columns else None


def _training_rows(given: Mapping[str, str], config: Config) -> Rows:
    return read_splits(user_path(given["data"]), given["data"], config.data.delimiter)["train"]


def _instruction_of(given: Mapping[str, str], config: Config, rows: Rows) -> str:
    """The instruction that is given; else that of the pool file, or the one that all rows bring along."""
    if given.get("instruction"):
        return given["instruction"]
    path = user_path(config.paraphrases.file or "")
    if not path.exists():
        raise UserError(f"paraphrases.file: no prompt pool {path}.")
    original = pool_content(path).get("original") if path.is_file() else None
    if is_text(original) and original.strip():
        return original
    brought = OwnExamples(rows, _pair(given)).instructions
    texts = [text for text in brought if text]
    if len(brought) == len(texts) == 1:
        return texts[0]
    say = "Say instruction=TEXT, or give a pool file that has `original:`."
    if texts:
        such = " and ".join(map(repr, texts[:2]))
        say += f" The rows bring {len(texts)} of their own, such as {such}, which stay before their inputs."
    raise UserError(f"Which instruction? {say}")


def write_own_task(given: Mapping[str, str], instruction: str, folder: Path) -> str:
    """Writes NAME.yaml, the task that `data=` and the like describe, into `folder`; returns its name."""
    source, renamed = user_path(given["data"]), labels_of(given.get("labels", ""))
    name = plain(own_name(given["data"]))
    facts = {
        "instruction": instruction,
        "data": str(source.resolve()) if source.exists() else given["data"],
        **({"suffix": given["suffix"]} if given.get("suffix") else {}),
        **({"labels": renamed if [*renamed] != [*renamed.values()] else [*renamed]} if renamed else {}),
        **({"columns": names(given["columns"])} if given.get("columns") else {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{name}.yaml", yaml.safe_dump(facts, allow_unicode=True, sort_keys=False))
    return name


def own_sequence(given: Mapping[str, str], overrides: Sequence[str], config: Config) -> list[str]:
    """The overrides that train `data=FILE` as a sequence of one task, which is kept in the store."""
    if "data" not in given:
        raise UserError(f"{next(iter(given))}= describes the rows of data=FILE: say which.")
    if beside := [each for each in overrides if each.startswith(("sequence", "data.root="))]:
        raise UserError(f"data={given['data']} is a sequence of its own: leave {beside[0]} out.")
    instruction = _instruction_of(given, config, _training_rows(given, config))
    folder = Path(config.store.root) / "tasks"
    name = write_own_task(given, instruction, folder)
    own = ["sequence=own", f"sequence.name={name}", f"sequence.tasks=[{name}]", f"data.root={folder}"]
    return [*own, *overrides]


# --- writing -----------------------------------------------------------------------------------------------


def require_writable(path: Path, replaces: bool = False) -> None:
    """UserError unless a file can be written at `path`, a new one unless it `replaces` what is there."""
    if path.is_dir():
        raise UserError(f"--write {path}: that is a folder; name a file, such as {path / 'rows.jsonl'}.")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--write {path}: there is no folder {path.parent} that can be written to.")
    if not replaces and (path.exists() or path.is_symlink()):
        raise UserError(f"--write {path}: there is such a file already. Name another, or delete it first.")


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Writes the records, an object a line, and returns how many; the file appears whole or not at all."""
    number = count()  # records come one by one: all of them may be more than the memory holds
    rows = (record for record, _ in zip(records, number, strict=False))
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(path, lines)
    return next(number)
