"""Every file of the paraphrase bank: readable, for the instruction its task has, and valid."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml
from tiny import refusal

from sapo.conf.load import load_one
from sapo.data.mini import generate, mini_tasks
from sapo.data.pool_checks import check_pool
from sapo.data.pools import load_pool
from sapo.data.prompts import BANK, read_pool
from sapo.data.tasks import Task, own_task, short_name

FILES = sorted(BANK.glob("*.yaml"))
MINI = [path for path in FILES if path.stem.startswith("mini_")]
# Collections in another style, of the tasks of mini_three.
STYLES = sorted(BANK.glob("*/*.yaml"))
BENCHMARKS = [path for path in FILES if path not in MINI]
# The tasks of the sequences NI-Seq-G1 and NI-Seq-C1, whose pools hold 50 instead of 20.
LARGE = {"NI589", "NI141", "NI618", "NI339", "NI360", "NI195", "NI1310", "NI273", "NI611", "NI224"}


@cache
def benchmark_tasks(root: Path) -> dict[str, Task]:
    """The tasks of SuperNI and TRACE without examples, by short name."""
    found = {}
    for benchmark in ("SUPERNI", "TRACE"):
        content = json.loads((root / benchmark / "instructions.json").read_text(encoding="utf-8"))
        for name, facts in content.items():
            found[short_name(name)] = own_task(
                name, *map(facts.get, ("instruction", "suffix")), tuple(facts["labels"])
            )
    return found


def check(path: Path, task: Task, size: int) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(content) == {"task", "language", "source", "original", "prompts"}
    assert content["task"] == task.name
    assert content["language"] == task.language
    pool = read_pool(path, task)
    assert check_pool(pool, task) == []
    assert len(pool.paraphrases) == (size if task.instruction else 0)


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_benchmark_pool_is_valid(path, benchmarks):
    tasks = benchmark_tasks(benchmarks)
    assert path.stem in tasks, f"{path.name} is of no task of the benchmarks"
    check(path, tasks[path.stem], 50 if path.stem in LARGE else 20)


def test_every_benchmark_task_has_a_pool(benchmarks):
    assert {path.stem for path in MINI} == set(mini_tasks())
    assert set(benchmark_tasks(benchmarks)) == {path.stem for path in BENCHMARKS}


@pytest.mark.parametrize("name", mini_tasks())
def test_mini_pool_is_valid_and_of_the_length_that_the_bank_promises(name):
    task = generate(name, 0, 0, 0)
    check(BANK / f"{name}.yaml", task, 20)
    pool = read_pool(BANK / f"{name}.yaml", task)
    ratios = [len(prompt.text) / len(task.instruction) for prompt in pool.paraphrases]
    assert 0.6 <= min(ratios) < 0.8
    assert 1.1 < max(ratios) <= 1.6


@pytest.mark.parametrize("path", STYLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_pool_of_another_style_is_valid_and_keeps_to_its_style(path):
    task = generate(path.stem, 0, 0, 0)
    check(path, task, 10)
    ratios = [len(prompt.text) / len(task.instruction) for prompt in read_pool(path, task).candidates(False)]
    low, high = {"terse": (0.3, 0.45), "elaborate": (1.8, 2.5)}[path.parent.name]
    assert low <= min(ratios) <= max(ratios) <= high


@pytest.mark.parametrize("style", ["terse", "elaborate"])
def test_a_style_is_chosen_by_its_name(style):
    tasks = {path.stem for path in STYLES if path.parent.name == style}
    assert tasks == set(load_one(["sequence=mini_three"]).sequence.tasks)
    config = load_one([f"paraphrases={style}"]).paraphrases
    task = generate("mini_topic", 0, 0, 0)
    assert load_pool(task, config) == read_pool(BANK / style / "mini_topic.yaml", task)
    said = f"The bank '{style}' has no paraphrases of task mini_odd"
    assert said in refusal(load_pool, generate("mini_odd", 0, 0, 0), config)


def test_rows_of_ones_own_find_the_pool_of_their_instruction_whatever_they_are_called():
    config, task = load_one(["paraphrases=bank"]).paraphrases, generate("mini_topic", 0, 0, 0)
    named = replace(task, name="mini_city")  # as another pool is
    texts = read_pool(BANK / "mini_topic.yaml", task).paraphrases[: config.count]
    assert load_pool(named, config).paraphrases == texts
    said = refusal(load_pool, replace(named, instruction="Name a fruit."), config)
    assert "mini_city (mini_city.yaml is of another instruction)" in said
