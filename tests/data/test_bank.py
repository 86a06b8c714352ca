"""Every file of the paraphrase bank: readable, for the instruction its task has, and valid."""

import json
from functools import cache
from pathlib import Path

import pytest
import yaml

from sapo.data.mini import generate, mini_tasks
from sapo.data.pool_checks import require_valid
from sapo.data.prompts import BANK, read_pool
from sapo.data.tasks import Task, short_name

FILES = sorted(BANK.glob("*.yaml"))
MINI = [path for path in FILES if path.stem.startswith("mini_")]
BENCHMARKS = [path for path in FILES if path not in MINI]
# The tasks of the sequences NI-Seq-G1 and NI-Seq-C1, whose pools hold 50 instead of 20.
LARGE = {"NI589", "NI141", "NI618", "NI339", "NI360", "NI195", "NI1310", "NI273", "NI611", "NI224"}


@cache
def benchmark_tasks(root: Path) -> dict[str, Task]:
    """The tasks of SuperNI and TRACE without examples, by short name."""
    found = {}
    for benchmark in ("SUPERNI", "TRACE"):
        content = json.loads((root / benchmark / "instructions.json").read_text(encoding="utf-8"))
        for name, entry in content.items():
            language = "zh" if name == "C-STANCE" else "en"
            task = Task(
                name, entry["instruction"], entry["suffix"], (), (), tuple(entry["labels"]), language=language
            )
            found[short_name(name)] = task
    return found


def check(path: Path, task: Task) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(content) == {"task", "language", "source", "original", "prompts"}
    assert content["task"] == task.name
    assert content["language"] == task.language
    pool = read_pool(path, task)
    require_valid(pool, task)
    size = 50 if path.stem in LARGE else 20
    assert len(pool.paraphrases) == (size if task.instruction else 0)


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_benchmark_pool_is_valid(path: Path, benchmarks: Path) -> None:
    tasks = benchmark_tasks(benchmarks)
    assert path.stem in tasks, f"{path.name} is of no task of the benchmarks"
    check(path, tasks[path.stem])


def test_every_benchmark_task_has_a_pool(benchmarks: Path) -> None:
    assert set(benchmark_tasks(benchmarks)) == {path.stem for path in BENCHMARKS}


@pytest.mark.parametrize("name", mini_tasks())
def test_mini_pool_is_valid(name: str) -> None:
    check(BANK / f"{name}.yaml", generate(name, 0, 0, 0))


@pytest.mark.parametrize("name", mini_tasks())
def test_mini_paraphrases_keep_to_the_length_the_bank_promises(name: str) -> None:
    task = generate(name, 0, 0, 0)
    pool = read_pool(BANK / f"{name}.yaml", task)
    ratios = [len(prompt.text) / len(task.instruction) for prompt in pool.paraphrases]
    assert 0.6 <= min(ratios) < 0.8
    assert 1.1 < max(ratios) <= 1.6


def test_no_mini_pool_without_its_task() -> None:
    assert {path.stem for path in MINI} == set(mini_tasks())
