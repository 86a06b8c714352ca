"""Every task that can be named, and whether its data is at hand."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sapo.data.benchmarks import FOLDERS, benchmark_of, checked_facts, read_instructions
from sapo.data.files import read_yaml
from sapo.data.mini import mini_tasks
from sapo.data.own import own_task
from sapo.data.prompts import BANK
from sapo.data.tasks import Task, short_name


@dataclass(frozen=True)
class Entry:
    """A task's name, benchmark and instruction, the size of its bank pool, and whether it can be loaded."""

    name: str
    benchmark: str
    instruction: str
    paraphrases: int
    at_hand: bool


def catalogue(root: Path | None) -> list[Entry]:
    """All tasks of the bank and of the benchmark folder `root`, by benchmark and name."""
    entries = {path.stem: _bank_entry(path, root) for path in sorted(BANK.glob("*.yaml"))}
    for entry in _unbanked(root):
        entries.setdefault(entry.name, entry)
    order = ("mini", *FOLDERS, "own")
    return sorted(entries.values(), key=lambda entry: (order.index(entry.benchmark), _natural(entry.name)))


def without_rows(name: str) -> Task | None:
    """A benchmark's task with nothing but the instruction that the bank has; None if it has none."""
    path = BANK / f"{short_name(name)}.yaml"
    if path.stem in mini_tasks() or not path.is_file():
        return None
    return own_task(path.stem, read_yaml(path)["original"] or "")


def _bank_entry(path: Path, root: Path | None) -> Entry:
    pool = read_yaml(path)
    benchmark = benchmark_of(path.stem, "own")
    at_hand = path.stem in mini_tasks() or _folder(path.stem, benchmark, root) is not None
    return Entry(path.stem, benchmark, pool.get("original") or "", len(pool["prompts"]), at_hand)


def _unbanked(root: Path | None) -> Iterator[Entry]:
    """Tasks in the benchmark folder that may have no paraphrases in the bank, and users' own."""
    for benchmark, name in FOLDERS.items() if root else ():
        path = Path(str(root)) / name / "instructions.json"
        for folder, facts in read_instructions(path).items() if path.is_file() else ():
            task, instruction = short_name(folder), checked_facts(facts, f"{path}: {folder}")["instruction"]
            yield Entry(task, benchmark, instruction, 0, _folder(task, benchmark, root) is not None)
    for path in sorted(root.glob("*.yaml")) if root else ():
        facts = read_yaml(path)
        if isinstance(facts, dict) and {"instruction", "data"} <= facts.keys():
            instruction = checked_facts({"suffix": "", **facts}, str(path))["instruction"]
            yield Entry(path.stem, "own", instruction, 0, True)


def _folder(task: str, benchmark: str, root: Path | None) -> Path | None:
    """The task's data folder, if it is there."""
    if root is None or benchmark not in FOLDERS:
        return None
    folders = (root / FOLDERS[benchmark]).glob("*/train.json")
    return next((path.parent for path in folders if short_name(path.parent.name) == task), None)


def _natural(name: str) -> tuple[str, int]:
    """NI24 before NI195."""
    letters = name.rstrip("0123456789")
    return letters, int(name[len(letters) :] or 0)
