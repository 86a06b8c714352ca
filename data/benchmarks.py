"""Loading a task by name: SuperNI and TRACE in the reference's folder layout, mini, and users' own."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sapo.conf.errors import UserError, unknown
from sapo.conf.names import shown, why_no_name
from sapo.conf.schema import Config
from sapo.data.files import is_text, read_json, read_yaml, user_path
from sapo.data.mini import generate, mini_tasks
from sapo.data.natural import definition, natural_task, task_files
from sapo.data.prompts import BANK
from sapo.data.remembering import remembered, while_unchanged
from sapo.data.tasks import Example, Task, own_task, short_name, with_separator

FOLDERS = {"superni": "SUPERNI", "trace": "TRACE"}
TRACE_TASKS = ("C-STANCE", "FOMC", "MeetingBank", "Py150", "ScienceQA", "NumGLUE-cm")
MINI_TRAIN_EXAMPLES = 1000  # of a generated task, where no number is asked for
MINI_TEST_EXAMPLES = 200
MOST_EMPTY = 0.05  # share of rows without a target; NI488 has 2 %
_FETCH = "Set data.root=FOLDER or SAPO_DATA, or get the data with: sapo fetch benchmarks"


def load_tasks(config: Config) -> tuple[list[Task], list[Task]]:
    """The trained and unseen tasks of the config's sequence; UserError names all that cannot be loaded."""
    failures: list[str] = []
    loaded: dict[str, Task] = {}
    for name in (*config.sequence.tasks, *config.sequence.unseen):
        try:
            loaded[name] = load_task(name, config)
        except UserError as error:
            failures.append(str(error))
    if failures:  # the way out that several share stands once, at the end
        way = [_FETCH] if any(failure.endswith(_FETCH) for failure in failures) else []
        lines = dict.fromkeys(failure.removesuffix(_FETCH).strip() for failure in failures)
        raise UserError("\n".join([*lines, *way]))
    first: dict[str, str] = {}
    for name, task in loaded.items():
        if (other := first.setdefault(task.name, name)) != name:
            raise UserError(f"{other} and {name} are one task, {task.name}: name it once.")
    return [loaded[n] for n in config.sequence.tasks], [loaded[n] for n in config.sequence.unseen]


def load_task(name: str, config: Config) -> Task:
    """One task, with as many rows as configured: the same object while its files are the same."""
    return cut(load_whole_task(name, config), config)


def cut(task: Task, config: Config) -> Task:
    """The task with its first rows only, as many as are configured, and with the configured separator."""
    data = config.data
    return _cut(task, data.train_examples, data.test_examples, data.separator)


@remembered(64)  # all tasks of a plan
def _cut(task: Task, train: int | None, test: int | None, separator: str) -> Task:
    return replace(with_separator(task, separator), train=task.train[:train], test=task.test[:test])


def rows_taken(config: Config) -> str:
    """How many rows a trained task has of how many: `48 of 1,000 training rows a task, … (scale=mini, …)`."""
    tasks = [load_whole_task(name, config) for name in config.sequence.tasks]
    parts = []
    for asked, split, generated, noun in (
        (config.data.train_examples, "train", MINI_TRAIN_EXAMPLES, "training rows a task"),
        (config.data.test_examples, "test", MINI_TEST_EXAMPLES, "test rows"),
    ):
        # No more rows of a generated task are made than are asked for.
        usual = {task.name: generated if task.name in mini_tasks() else 0 for task in tasks}
        sizes = [max(len(getattr(task, split)), usual[task.name]) for task in tasks]
        there = " to ".join(f"{size:,}" for size in sorted({min(sizes), max(sizes)}))
        taken = f"{asked:,} of" if asked is not None and asked < max(sizes) else "all"
        parts.append(f"{taken} {there} {noun}")
        if split == "train" and config.sequence.benchmark == "own":  # the rows that a policy would score
            parts.append(f"{min(config.scorer.examples, min(sizes)):,} of them scored")
    return f"{', '.join(parts)} (scale={config.scale.name}, data.train_examples)"


def load_whole_task(name: str, config: Config) -> Task:
    """One task of the config's benchmark with all rows of its files; a generated one as large as asked for.

    The benchmark is told by the name where it can be: `mini_…`, `NI195`, or a TRACE name. A user's task of
    such a name comes first in a sequence of users' tasks.
    """
    root = Path(config.data.root) if config.data.root else None
    benchmark = benchmark_of(name, config.sequence.benchmark, root)
    if benchmark == "mini":
        train = config.data.train_examples or MINI_TRAIN_EXAMPLES
        return generate(name, train, config.data.test_examples or MINI_TEST_EXAMPLES, 0)
    if root is None:
        raise UserError(f"The tasks of {benchmark} need benchmark data, and no folder is set. {_FETCH}")
    if benchmark == "own":
        return load_own_task(name, root, config.data.delimiter)
    return load_benchmark_task(name, benchmark, root, config.data.label_blanks == "keep")


def benchmark_of(name: str, default: str, root: Path | None = None) -> str:
    """Which benchmark a task name belongs to; where the default is `own`, a file in `root` decides first."""
    if default == "own" and root and not why_no_name(name) and (root / f"{name}.yaml").is_file():
        return "own"
    if name.startswith("mini_"):
        return "mini"
    short = short_name(name)
    if short.startswith("NI") and short.removeprefix("NI").isdigit():
        return "superni"
    return "trace" if name in TRACE_TASKS else default


def load_benchmark_task(name: str, benchmark: str, root: Path, keep_blanks: bool = False) -> Task:
    """A SuperNI or TRACE task: `ROOT/SUPERNI/<task>/{train,test}.json`, and `instructions.json` beside it.

    SuperNI tasks that are not there come from the files of Natural Instructions, where `root` holds them.
    Blanks around labels are stripped, or kept as by the published code.
    """
    base, short = root / FOLDERS[benchmark], short_name(name)
    natural = task_files(root) if benchmark == "superni" else {}
    if not base.is_dir() and not natural:
        raise UserError(f"No folder {FOLDERS[benchmark]} in {root}. {_FETCH}")
    path = base / "instructions.json"
    folders = {short_name(each): each for each in (read_instructions(path) if base.is_dir() else ())}
    folder = folders.get(short)
    if short in natural and not (folder and (base / folder / "train.json").is_file()):
        return natural_task(natural[short], _facts_of(path, folder) if folder else None, keep_blanks)
    if folder is None:
        raise unknown(f"{FOLDERS[benchmark]} task", name, folders | natural)
    if not (base / folder).is_dir():
        raise UserError(f"Task {name}: no folder {base / folder}. {_FETCH}")
    return _benchmark_task(path, folder, keep_blanks)


@while_unchanged(lambda path, folder, _: [path, *(path.parent / folder).glob("*.json")])
def _benchmark_task(path: Path, folder: str, keep_blanks: bool) -> Task:
    splits = (path.parent / folder / f"{split}.json" for split in ("train", "test"))
    rows = (read_examples(split, keep_blanks) for split in splits)
    return own_task(short_name(folder), *_facts_of(path, folder), *rows)


def _facts_of(path: Path, folder: str) -> tuple[str, str, tuple[str, ...]]:
    """Instruction, suffix and labels that `instructions.json` has for a task's folder."""
    facts = checked_facts(read_instructions(path)[folder], f"{path}: {folder}", ("instruction", "suffix"))
    return facts["instruction"], facts["suffix"], tuple(map(str, facts.get("labels") or ()))


@while_unchanged(lambda path: [path])
def read_instructions(path: Path) -> dict[str, Any]:
    """What `instructions.json` says of each task's folder; UserError if it names a folder elsewhere."""
    content = read_json(path, _FETCH)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object with a task's folder and facts in each member.")
    for folder in content:
        if reason := why_no_name(folder):
            raise UserError(f"{path}: {shown(folder)} cannot be a task's folder: {reason}.")
    return content


def is_label(value: Any) -> bool:
    """A text or a finite number: YAML reads an unquoted yes or no as true or false, which no target is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return is_text(value)
    return isinstance(value, int) or math.isfinite(value)


_FACTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "instruction": (is_text, "must be a text"),
    "suffix": (is_text, "must be a text"),
    "data": (is_text, "must be a text: a file, or a dataset's name"),
    "labels": (
        lambda labels: (
            isinstance(labels or [], list | dict)
            and all(map(is_label, [*(labels or []), *(labels.values() if isinstance(labels, dict) else [])]))
        ),
        "must be a list of texts or numbers, or such a label for each value; put yes and no in quotes",
    ),
    "columns": (
        lambda pair: pair is None or (isinstance(pair, list) and len(pair) == 2 and all(map(is_text, pair))),
        "is a list of two names, [INPUT, TARGET]",
    ),
}


def checked_facts(facts: Any, where: str, needed: tuple[str, str]) -> dict[str, Any]:
    """What a file says of a task, every value of the type that it must have; UserError otherwise."""
    if not isinstance(facts, dict) or not facts.keys() >= {*needed}:
        raise UserError(f"{where}: a task needs {' and '.join(f'`{name}`' for name in needed)}.")
    for name, (is_right, must) in _FACTS.items():
        if name in facts and not is_right(facts[name]):
            raise UserError(f"{where}: `{name}` {must}.")
    return facts


def load_own_task(name: str, root: Path, delimiter: str | None = None) -> Task:
    """A user's task in `ROOT/<name>.yaml`: instruction, data, and optionally suffix, labels, columns."""
    if reason := why_no_name(name):
        raise UserError(f"{shown(name)} cannot be a task's name: {reason}.")
    path = root / f"{name}.yaml"
    if not path.is_file():
        raise unknown("own task", name, (p.stem for p in root.glob("*.yaml")))
    facts = checked_facts(read_yaml(path), str(path), ("instruction", "data"))
    if strange := sorted(map(str, facts.keys() - _FACTS.keys())):
        raise unknown(f"key in {path}", strange[0][:60], _FACTS)
    beside = path.parent / user_path(facts["data"])
    # Else a file in the working folder, a dataset's name, or a file that is missing.
    data = str(beside) if beside.exists() else facts["data"]
    try:
        return _own_task(path, data, delimiter)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


@while_unchanged(lambda path, data, _: [path, user_path(data)])
def _own_task(path: Path, data: str, delimiter: str | None) -> Task:
    from sapo.data.own import load_own  # which loads tasks by their names itself

    facts = {name: value for name, value in read_yaml(path).items() if value and name != "data"}
    facts["columns"] = tuple(facts["columns"]) if "columns" in facts else None
    return load_own(data, facts.pop("instruction", ""), **facts, name=path.stem, delimiter=delimiter)


def read_examples(path: Path, keep_blanks: bool = False) -> tuple[Example, ...]:
    """Examples of a JSON list of `{"sentence", "label"}`; UserError names the file and the row.

    A rare empty label stays: in the published data it is the right answer of some rows (NI488: a list without
    letters), and a model then learns to end its turn at once. Where more are empty, targets are missing.
    """
    rows = read_json(path, _FETCH)
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: expected a list of at least one example.")
    examples = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not {"sentence", "label"} <= row.keys():
            raise UserError(f'{path}, row {number}: expected {{"sentence": …, "label": …}}.')
        text, label = row["sentence"], row["label"]
        if not is_text(text) or not is_label(label):
            raise UserError(f"{path}, row {number}: `sentence` must be a text, and `label` a text or number.")
        examples.append(Example(text, str(label) if keep_blanks else str(label).strip()))
    empty = [str(number) for number, example in enumerate(examples, 1) if not example.target.strip()]
    if len(empty) > MOST_EMPTY * len(examples):
        which = ", ".join(empty[:5]) + (", …" if len(empty) > 5 else "")
        of = f"{len(empty)} of {len(examples)} rows"
        raise UserError(f"{path}: no target (`label` is empty) in {of}: {which}.")
    return tuple(examples)


def catalogue(root: Path | None) -> list[dict[str, Any]]:
    """All tasks of the bank and of the benchmark folder `root`, users' own too, by benchmark and name.

    Each with its instruction, the size of its bank pool, and whether it can be loaded.
    """
    found: dict[str, tuple[str, str, int]] = {}
    at_hand = {*mini_tasks()}
    for path in sorted(BANK.glob("*.yaml")):
        pool = read_yaml(path)
        found[path.stem] = (benchmark_of(path.stem, "own"), pool.get("original") or "", len(pool["prompts"]))
    for benchmark, name in FOLDERS.items() if root else ():
        path = Path(str(root)) / name / "instructions.json"
        at_hand |= {short_name(rows.parent.name) for rows in path.parent.glob("*/train.json")}
        for folder in read_instructions(path) if path.is_file() else ():
            found.setdefault(short_name(folder), (benchmark, _facts_of(path, folder)[0], 0))
    for short, path in task_files(root).items() if root else ():
        at_hand.add(short)
        if short not in found:
            found[short] = ("superni", definition(path), 0)
    for path in sorted(root.glob("*.yaml")) if root else ():
        facts = read_yaml(path)
        if isinstance(facts, dict) and facts.keys() >= {"instruction", "data"}:
            checked_facts(facts, str(path), ("instruction", "data"))
            found.setdefault(path.stem, ("own", facts["instruction"], 0))
            at_hand.add(path.stem)
    order = ("mini", *FOLDERS, "own")

    def place(entry: dict[str, Any]) -> tuple[int, str, int]:
        letters = entry["name"].rstrip("0123456789")  # NI24 before NI195
        return order.index(entry["benchmark"]), letters, int(entry["name"][len(letters) :] or 0)

    facts = ("name", "benchmark", "instruction", "paraphrases", "at_hand")
    rows = ((name, *of_task, name in at_hand) for name, of_task in found.items())
    return sorted((dict(zip(facts, row, strict=True)) for row in rows), key=place)
