"""A user's own rows: read as examples whatever their form, scored or split, and written with a prompt."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from sapo.conf.errors import UserError
from sapo.conf.schema import Config
from sapo.data.benchmarks import load_task
from sapo.data.files import is_text, read_yaml, user_path
from sapo.data.hygiene import distinct_rows
from sapo.data.own_files import Row, Rows, dataset_rows, kind_of, read_splits
from sapo.data.pools import load_pool
from sapo.data.prompts import BANK, PromptPool
from sapo.data.subset import draw, subset
from sapo.data.tasks import SEPARATORS, Example, Task, own_task

# Pairs of column names that are understood without being named, the first that is there wins.
KNOWN_COLUMNS = (
    ("input", "output"),
    ("input", "target"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "chosen"),
    ("question", "answer"),
    ("sentence", "label"),
    ("text", "label"),
    ("text", "summary"),
    ("instruction", "output"),
    ("instruction", "response"),
)
CHATS = ("messages", "conversations", "chosen")  # columns that hold input and target as turns
INSTRUCTIONS = ("definition", "instruction")  # columns that hold what a row's input is to be used for
ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names
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
    `test_share` of the rows, drawn with `seed`, becomes the test set. The task's notes say what was read, and
    what was left out. Raises UserError for what is wrong with the data, naming file and row.
    """
    if not 0 < test_share < 1:
        raise UserError(f"test_share is {test_share}; it must lie between 0 and 1, such as 0.2.")
    frame = own_task(name or own_name(path_or_name), instruction, suffix, labels)
    splits = read_splits(user_path(path_or_name), path_or_name)
    read = {split: OwnExamples(rows, columns, frame) for split, rows in splits.items()}
    train, test = list(read["train"]), list(read.get("test", ()))
    notes = [note for examples in read.values() for note in examples.notes]
    if "test" not in read:
        train, test = _split(splits["train"].source, train, test_share, seed)
        if shared := len({example.input for example in train} & {example.input for example in test}):
            notes.append(f"{shared} inputs occur in train and in test; drop duplicate rows")
    if not train or not test:
        raise UserError(f"{path_or_name}: the {'test' if train else 'train'} split is empty.")
    return replace(frame, train=tuple(train), test=tuple(test), notes=tuple(dict.fromkeys(notes)))


def own_name(path_or_name: str) -> str:
    """What a task is called after its data: the file's or folder's name, or the dataset's."""
    path = user_path(path_or_name)
    if path.exists():
        return path.stem if path.is_file() else path.resolve().name
    return path_or_name.replace("/", "_")


def guess_columns(names: Iterable[str], source: str) -> tuple[str, str]:
    """The input's and the target's column among `names`; twice the same for a chat's.

    An instruction that a row brings along stands before its input: ("instruction+input", "output"). Raises
    UserError, listing the columns, if nothing known is there.
    """
    names = list(names)
    by_lower = {name.lower(): name for name in names}
    for chat in CHATS[:2]:
        if chat in by_lower:
            return by_lower[chat], by_lower[chat]
    for first, second in KNOWN_COLUMNS:
        if first in by_lower and second in by_lower:
            before = [by_lower[name] for name in INSTRUCTIONS if name in by_lower and name != first]
            return "+".join([*before, by_lower[first]]), by_lower[second]
    if "chosen" in by_lower:
        return by_lower["chosen"], by_lower["chosen"]
    known = ", ".join("/".join(pair) for pair in KNOWN_COLUMNS)
    raise UserError(
        f"{source}: no known pair of columns among {', '.join(names) or 'none'}. "
        f"Name yours with columns=[INPUT,TARGET] (A+B joins two); known without: {known}, {', '.join(CHATS)}."
    )


# --- from rows to examples ---------------------------------------------------------------------------------


class OwnExamples:
    """A user's rows as examples: read anew by each iteration, one at a time, never held whole.

    An iteration passes over rows that cannot be used, and at its end raises one UserError that names them.
    What it left out of rows that it used is counted in `notes`. `columns` are those of input and target, and
    guessed if not given; a name `a+b` joins the texts of two columns by a blank line. `frame` is the task
    that the rows belong to: its labels are checked, and its instruction is not repeated in an input.
    """

    def __init__(self, rows: Rows, columns: tuple[str, str] | None = None, frame: Task | None = None) -> None:
        self.rows, self.frame = rows, frame or own_task("own", "")
        seen = [row.values for row in islice(rows.read(), LOOKED_AT)]
        if not seen:
            raise UserError(f"{rows.source}: no rows.")
        names = list(dict.fromkeys(name for values in seen for name in values))
        self.columns = columns or guess_columns(names, rows.source)
        self.parts = [[name] if name in names else name.split("+") for name in self.columns]
        self.used = dict.fromkeys(name for parts in self.parts for name in parts)
        if missing := [name for name in self.used if name not in names]:
            raise UserError(
                f"{rows.source}: no column {' and '.join(map(repr, missing))}; there are {', '.join(names)}."
            )
        self.is_guessed = columns is None
        self.is_chat = self.is_guessed and self.columns[0] == self.columns[1]
        # Preferences: what is marked as false is what a model shall not say.
        verdict = next((name for name in names if name.lower() == "label" and name not in self.used), None)
        is_verdict = verdict and self.is_guessed and all(isinstance(v.get(verdict), bool) for v in seen)
        self.verdict = verdict if is_verdict else None
        # The instruction that all rows looked at bring along, if it is one.
        own = [name for name in self.parts[0] if name.lower() in INSTRUCTIONS and len(self.parts[0]) > 1]
        texts = {_joined(values.get(own[0])) for values in seen} if own else {None}
        self.instruction = texts.pop() if len(texts) == 1 else None
        self.left_out: Counter[str] = Counter()
        self.unused: dict[str, None] = {}

    @property
    def notes(self) -> list[str]:
        """What was read, and what the last iteration left out, a line each."""
        given, target = ("column " + " and ".join(map(repr, parts)) for parts in self.parts)
        lines = [f"{self.rows.source}: input from {given}, target from {target}"]
        left_out = [f"{count} {what}" for what, count in self.left_out.items()] + self.rows.left_out
        if self.unused:
            unused = ", ".join(map(repr, self.unused))
            left_out.append(f"column {unused} (columns=[A+B,TARGET] joins what belongs to the input)")
        return [*lines, *([f"{self.rows.source}: left out: {'; '.join(left_out)}"] if left_out else [])]

    def __iter__(self) -> Iterator[Example]:
        source, labels = self.rows.source, self.frame.labels
        self.left_out.clear()
        inputs = [_Column(source, name, "user", self.left_out) for name in self.parts[0]]
        targets = _Column(source, self.parts[1][0], "assistant", self.left_out)
        empty, strange = _Places(), _Places()
        text: str | None
        target: str | None
        for row in self._rows():
            if self.is_chat:
                text, target = _last_exchange(source, row, self.columns[0], self.left_out)
            else:
                text, target = self._input(row, inputs), targets.text(row)
            if target is not None and not target.strip():
                empty.add(row.where)
            elif target is not None and labels and target not in labels:
                strange.add(f"{row.where} ({target!r})")
            elif text is not None and target is not None:
                yield Example(text, target)
        for column in (*inputs, targets):
            column.require_sound(is_whole=len(inputs) == 1 or column is targets)
        if empty.count:
            raise UserError(f"{source}: empty target in {empty}. Fill or drop these rows.")
        if strange.count:
            raise UserError(f"{source}: target is none of the labels {', '.join(labels)} in {strange}.")

    def _rows(self) -> Iterator[Row]:
        """The rows that are to be learned from; which of guessed rows' texts nobody reads is noted."""
        read = {*self.used, "chat_template_kwargs"}  # the latter is what `--write` adds
        for row in self.rows.read():
            if self.verdict and row.values.get(self.verdict) is False:
                self.left_out[f"rejected rows (column {self.verdict!r} is false)"] += 1
                continue
            if self.is_guessed:
                others = (name for name, value in row.values.items() if value and name not in read)
                texts = (name for name in others if isinstance(row.values[name], str | list | dict))
                self.unused.update(dict.fromkeys(texts))
            yield row

    def _input(self, row: Row, columns: list["_Column"]) -> str | None:
        """The texts of the input's columns, joined by blank lines; what the frame says is not said again."""
        texts = [column.text(row) for column in columns]
        if len(columns) == 1:
            framed = isinstance(row.values.get(columns[0].name), list)
            return self._unframed(texts[0]) if framed and texts[0] is not None else texts[0]
        own = self.frame.instruction.strip()
        kept = [text for text in texts if text and text.strip() and text.strip() != own]
        if own and len(kept) < sum(bool(text and text.strip()) for text in texts):
            self.left_out["instructions that are the task's own"] += 1
        return "\n\n".join(kept)

    def _unframed(self, turn: str) -> str:
        """The input in a user turn that `--write` wrote: instruction before it and suffix after it go."""
        for separator in SEPARATORS.values():
            _, is_framed, text = turn.partition(f"\n\n{separator}\n")
            if is_framed:
                self.left_out["instructions before the input, as `sapo select --write` puts them there"] += 1
                return text.removesuffix(f"\n\n{self.frame.suffix}")
        return turn


def examples_of(
    items: Iterable[Any], columns: tuple[str, str] | None = None, frame: Task | None = None
) -> OwnExamples:
    """Objects that a caller has as examples: (input, target) pairs, Examples, dicts, or a dataset's split."""
    if hasattr(items, "features") and hasattr(items, "__len__"):
        return OwnExamples(Rows("examples", lambda: dataset_rows(items)), columns, frame)
    held = list(items)
    rows = Rows("examples", lambda: (Row(f"row {i}", _values(i, item)) for i, item in enumerate(held)))
    return OwnExamples(rows, columns, frame)


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


def require_enough(drawn: Iterable[Example], n_rows: int) -> None:
    """UserError if too few examples would be scored to compare prompts at all."""
    n_distinct = len(set(distinct_rows(tuple(drawn))))
    if n_distinct < 2:
        raise UserError(
            f"{n_distinct} of {n_rows} examples would be scored, repetitions counted once; it takes 2 to "
            "tell a difference from noise, and some dozens to find a small one."
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
    """The values of a column as texts, and what was wrong with them or left out of them."""

    def __init__(self, source: str, name: str, role: str, left_out: Counter[str]) -> None:
        self.source, self.name, self.role, self.left_out = source, name, role, left_out
        self.kinds: dict[str, _Places] = {}
        self.strange: str | None = None
        self.note = ""

    def text(self, row: Row) -> str | None:
        """The row's value as a text: of a chat the role's last turn, of several texts the first."""
        value = row.values.get(self.name)
        kind = kind_of(value)
        self.kinds.setdefault(kind, _Places()).add(row.where)
        if isinstance(value, list):
            value = self._of_list(value)
        if isinstance(value, float) and abs(value) == float("inf"):
            raise UserError(f"{self.source}, {row.where}: column '{self.name}' holds Infinity.")
        if not isinstance(value, str | int | float) or kind == "nothing":
            self.strange = self.strange or (kind if kind != "nothing" else None)
            return None
        if isinstance(value, float):
            self.note = self.note or f"numbers' notations in column {self.name!r} (one is read as {value!r})"
            self.left_out[self.note] += 1
        if not isinstance(value, str):
            return json.dumps(value)
        if not is_text(value):
            raise UserError(f"{self.source}, {row.where}: column '{self.name}' holds half a surrogate pair.")
        return str(value)

    def _of_list(self, values: list[Any]) -> Any:
        """The last turn of the column's role, or the first of several answers; None if it is no such list."""
        turns = _turns(values)
        if turns:
            places = [place for place, (role, _) in enumerate(turns) if role == self.role]
            _count_turns(turns, places[-1:], self.left_out)
            return turns[places[-1]][1] if places else None
        if not values or not all(kind_of(value) == "text" for value in values):
            return None
        if self.role == "user" and len(values) > 1:
            return None
        if len(values) > 1:
            self.left_out["rows' further targets (the first is taken)"] += 1
        return values[0]

    def require_sound(self, is_whole: bool) -> None:
        """UserError unless all values were of one kind, texts or numbers; of a whole input, none missing."""
        if "nothing" in self.kinds and is_whole:
            raise UserError(
                f"{self.source}: column '{self.name}' is empty or absent in {self.kinds['nothing']}."
            )
        self.kinds.pop("nothing", None)
        if len(self.kinds) > 1:
            kinds = ", ".join(f"{kind} ({places.first[0]})" for kind, places in self.kinds.items())
            raise UserError(f"{self.source}: column '{self.name}' mixes types: {kinds}. Make them all texts.")
        if self.strange:
            raise UserError(
                f"{self.source}: column '{self.name}' holds {self.strange}, not texts or numbers."
            )


def _joined(value: Any) -> str | None:
    """A text, or texts in a list that are one."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    return value if isinstance(value, str) and is_text(value) and value.strip() else None


def _turns(values: Any) -> list[tuple[str, Any]]:
    """Role and content of each turn, under ShareGPT's names, too; a content of text parts is one text."""
    if not isinstance(values, list) or not all(isinstance(turn, dict) for turn in values):
        return []
    turns = []
    for turn in values:
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if isinstance(content, list):
            parts = [part["text"] for part in content if isinstance(part, dict) and is_text(part.get("text"))]
            content = "\n".join(parts) if len(parts) == len(content) else None
        turns.append((ROLES.get(str(role), str(role)), content))
    return turns


def _count_turns(turns: list[tuple[str, Any]], used: list[int], left_out: Counter[str]) -> None:
    for place, (role, _) in enumerate(turns):
        if place not in used:
            what = "later" if used and place > used[-1] else "earlier"
            left_out[f"{role if role in ('system', 'tool') else what} turns"] += 1


def _last_exchange(source: str, row: Row, column: str, left_out: Counter[str]) -> tuple[str, str]:
    """The last assistant turn of a chat as target, and the user turn before it as input."""
    turns = _turns(row.values.get(column))
    last = max((place for place, (role, _) in enumerate(turns) if role == "assistant"), default=None)
    if last is None:
        raise UserError(
            f"{source}, {row.where}: '{column}' is not a list of turns with role and content (texts) "
            "that has an assistant turn."
        )
    asked = max((place for place, (role, _) in enumerate(turns[:last]) if role == "user"), default=None)
    if asked is None:
        raise UserError(f"{source}, {row.where}: no user turn comes before the last assistant turn.")
    if not all(kind_of(turns[place][1]) == "text" and is_text(turns[place][1]) for place in (asked, last)):
        raise UserError(f"{source}, {row.where}: a turn of '{column}' has a content that is no text.")
    _count_turns(turns, [asked, last], left_out)
    return turns[asked][1], turns[last][1]


def _split(source: str, rows: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Train and test by a seeded shuffle, at least one row each."""
    if len(rows) < 2:
        raise UserError(
            f"{source}: {len(rows)} row; at least 2 are needed, one to train with and one to test."
        )
    shuffled = list(rows)
    Random(seed).shuffle(shuffled)  # noqa: S311
    size = min(max(1, round(share * len(rows))), len(rows) - 1)
    return shuffled[size:], shuffled[:size]


# --- what `sapo select` chooses from -----------------------------------------------------------------------

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
    scorer = config.scorer
    if config.task:
        if named := [name for name in ("data", *_OF_DATA) if name in given]:
            raise UserError(
                f"task={config.task} brings its own {named[0]}: say task=, or data= and the like."
            )
        task = load_task(config.task, config)
        scored = subset(task, scorer.examples, scorer.subset, config.seed)
        require_enough(scored, len(task.train))
        pool = load_pool(task, config.paraphrases)
        return Material(replace(task, train=scored), pool, task.train, len(task.train), task.name, None)
    if not given.get("data"):
        raise UserError("Which rows? Say data=FILE instruction=TEXT, or task=NAME (`sapo ls tasks`).")
    labels = tuple(names(given.get("labels", "")))
    instruction = given.get("instruction") or _pool_original(config)
    if instruction:  # a pool that does not fit is told before any row is read
        pool = _own_pool(own_task(own_name(given["data"]), instruction), config)
    rows = read_splits(user_path(given["data"]), given["data"])["train"]
    instruction = instruction or OwnExamples(rows, _columns(given)).instruction
    if not instruction:
        raise UserError("Which instruction? Say instruction=TEXT, or give a pool file that has `original:`.")
    frame = own_task(own_name(given["data"]), instruction, given.get("suffix", ""), labels)
    pool = _own_pool(frame, config)
    examples = OwnExamples(rows, _columns(given), frame)
    drawn, n_rows = draw(examples, scorer.examples, scorer.subset, config.seed, frame.name)
    require_enough(drawn, n_rows)
    task = replace(frame, train=drawn, notes=tuple(examples.notes))
    return Material(task, pool, examples, n_rows, rows.source, examples.columns)


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


def _pool_original(config: Config) -> str | None:
    """The instruction that a pool file says it was written for."""
    named = config.paraphrases.file
    path = user_path(named or "")
    if named and not path.exists():
        raise UserError(f"paraphrases.file: no prompt pool {path}.")
    if named and path.is_file():
        content = read_yaml(path, "prompt pool")
        original = content.get("original") if isinstance(content, dict) else None
        if isinstance(original, str) and is_text(original) and original.strip():
            return original
    return None


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
        given = user_path(name)
        read = [given, *(given.iterdir() if given.is_dir() else ())]
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
