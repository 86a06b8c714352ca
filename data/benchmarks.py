"""Loading a task by name: SuperNI and TRACE in the reference's folder layout, mini, and users' own."""

import json
from pathlib import Path
from typing import Any

import yaml

from sapo.conf.errors import UserError, unknown
from sapo.conf.schema import Config
from sapo.data.mini import generate, mini_tasks
from sapo.data.tasks import Example, Task, short_name

FOLDERS = {"superni": "SUPERNI", "trace": "TRACE"}
TRACE_TASKS = ("C-STANCE", "FOMC", "MeetingBank", "Py150", "ScienceQA", "NumGLUE-cm")
MINI_TEST_EXAMPLES = 200
MINI_SEED = 0
MOST_EMPTY = 0.05  # share of rows without a target; NI488 has 2 %
_FETCH = "Set data.root=FOLDER or SAPO_DATA, or get the data with: sapo fetch benchmarks"


def load_tasks(config: Config) -> tuple[list[Task], list[Task]]:
    """The trained tasks of the config's sequence, in order, and its unseen tasks.

    Raises UserError naming every task that cannot be loaded.
    """
    failures: list[str] = []
    loaded: dict[str, Task] = {}
    for name in (*config.sequence.tasks, *config.sequence.unseen):
        try:
            loaded[name] = load_task(name, config)
        except UserError as error:
            failures.append(str(error))
    if failures:
        raise UserError("\n".join(dict.fromkeys(failures)))
    return [loaded[n] for n in config.sequence.tasks], [loaded[n] for n in config.sequence.unseen]


def load_task(name: str, config: Config) -> Task:
    """One task of the config's benchmark, cut to the configured number of rows."""
    return cut(load_whole_task(name, config), config)


def cut(task: Task, config: Config) -> Task:
    """The task with its first rows only, as many as are configured."""
    train, test = train_rows(config), config.data.test_examples
    return Task(**{**vars_of(task), "train": task.train[:train], "test": task.test[:test]})


def train_rows(config: Config) -> int:
    """How many of a task's first training rows are used."""
    return config.data.train_examples or config.sequence.train_examples


def load_whole_task(name: str, config: Config) -> Task:
    """One task of the config's benchmark with all rows of its files; a generated one as large as configured.

    The benchmark is told by the name where it can be: `mini_…`, `NI195`, or a TRACE name.
    """
    benchmark = benchmark_of(name, config.sequence.benchmark)
    if benchmark == "mini":
        if name not in mini_tasks():
            raise unknown("mini task", name, mini_tasks())
        test = config.data.test_examples or MINI_TEST_EXAMPLES
        return generate(name, train_rows(config), test, MINI_SEED)
    if not config.data.root:
        raise UserError(f"The tasks of {benchmark} need benchmark data, and no folder is set. {_FETCH}")
    root = Path(config.data.root)
    return load_own_task(name, root) if benchmark == "own" else load_benchmark_task(name, benchmark, root)


def vars_of(task: Task) -> dict[str, Any]:
    """The declared fields of a task by name."""
    return {name: getattr(task, name) for name in Task.__dataclass_fields__}


def benchmark_of(name: str, default: str) -> str:
    """Which benchmark a task name belongs to."""
    if name.startswith("mini_"):
        return "mini"
    if name.startswith(("NI", "task")) and short_name(name).removeprefix("NI").isdigit():
        return "superni"
    return "trace" if name in TRACE_TASKS else default


def load_benchmark_task(name: str, benchmark: str, root: Path) -> Task:
    """A SuperNI or TRACE task: `ROOT/SUPERNI/<task>/{train,test}.json`, and `instructions.json` beside it."""
    base = root / FOLDERS[benchmark]
    if not base.is_dir():
        raise UserError(f"No folder {FOLDERS[benchmark]} in {root}. {_FETCH}")
    instructions = read_json(base / "instructions.json")
    folders = {short_name(folder): folder for folder in instructions}
    folder = folders.get(short_name(name))
    if folder is None:
        raise unknown(f"{FOLDERS[benchmark]} task", name, folders)
    if not (base / folder).is_dir():
        raise UserError(f"Task {name}: no folder {base / folder}. {_FETCH}")
    facts = instructions[folder]
    if not isinstance(facts, dict) or not {"instruction", "suffix"} <= facts.keys():
        raise UserError(f"{base / 'instructions.json'}: {folder} needs `instruction` and `suffix`.")
    is_chinese = any("一" <= character <= "鿿" for character in facts["instruction"])
    return Task(
        name=short_name(folder),
        instruction=facts["instruction"],
        suffix=facts["suffix"],
        train=read_examples(base / folder / "train.json"),
        test=read_examples(base / folder / "test.json"),
        labels=tuple(facts.get("labels") or ()),
        language="zh" if is_chinese else "en",
        # The official code asks for the Chinese word "attitude", which only C-STANCE's instruction has.
        separator="文本:" if is_chinese else "Text:",
    )


def load_own_task(name: str, root: Path) -> Task:
    """A user's task in `ROOT/<name>.yaml`: instruction, data, and optionally suffix, labels, columns."""
    from sapo.data.own import load_own  # brings pandas

    path = root / f"{name}.yaml"
    if not path.is_file():
        raise unknown("own task", name, (p.stem for p in root.glob("*.yaml")))
    try:
        facts = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"Cannot read {path}: {error}") from error
    if not isinstance(facts, dict) or not {"instruction", "data"} <= facts.keys():
        raise UserError(f"{path}: a task needs `instruction:` and `data:` (a file, or a dataset's name).")
    known = {"instruction", "data", "suffix", "labels", "columns"}
    if facts.keys() - known:
        raise unknown(f"key in {path}", sorted(facts.keys() - known)[0], known)
    columns = facts.get("columns")
    if columns is not None and not (isinstance(columns, list) and len(columns) == 2):
        raise UserError(f"{path}: `columns:` is a list of two names, [INPUT, TARGET].")
    data = path.parent / str(facts["data"])
    return load_own(
        str(data) if data.exists() else str(facts["data"]),
        str(facts["instruction"]),
        suffix=facts.get("suffix", ""),
        labels=tuple(map(str, facts.get("labels") or ())),
        columns=(str(columns[0]), str(columns[1])) if columns else None,
        name=name,
    )


def read_examples(path: Path) -> tuple[Example, ...]:
    """Examples of a JSON list of `{"sentence", "label"}`; UserError names the file and the row.

    A rare empty label stays: in the published data it is the right answer of some rows (NI488: a list without
    letters), and a model then learns to end its turn at once. Where more are empty, targets are missing.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: expected a list of at least one example.")
    examples = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not {"sentence", "label"} <= row.keys():
            raise UserError(f'{path}, row {number}: expected {{"sentence": …, "label": …}}.')
        text, label = row["sentence"], row["label"]
        if not isinstance(text, str) or not isinstance(label, str | int | float):
            raise UserError(f"{path}, row {number}: `sentence` must be a text, and `label` a text or number.")
        examples.append(Example(text, str(label).strip()))
    empty = [number for number, example in enumerate(examples, start=1) if not example.target]
    if len(empty) > MOST_EMPTY * len(examples):
        rows_named = ", ".join(map(str, empty[:5])) + (", …" if len(empty) > 5 else "")
        raise UserError(
            f"{path}: no target (`label` is empty) in {len(empty)} of {len(examples)} rows: {rows_named}."
        )
    return tuple(examples)


def read_json(path: Path) -> Any:
    """A JSON file's content; UserError names the file and the position of what is wrong."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"No file {path}. {_FETCH}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: byte {error.start}.") from error
