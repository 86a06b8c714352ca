"""Examples of learned tasks that a method keeps: what is stored of them, and how a budget is shared out.

In a state's folder: `kept/tasks.json`, each learned task's frame and the prompts it was trained with, and
`kept/examples.jsonl`, one kept training row a line.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from sapo.conf.errors import WorkError
from sapo.data.files import write_json
from sapo.data.hygiene import distinct_rows
from sapo.data.prompts import Prompt
from sapo.data.tasks import Example, Task
from sapo.experiments.methods.method import KEPT
from sapo.experiments.model.lessons import Lesson

TASKS = "tasks.json"
EXAMPLES = "examples.jsonl"


@dataclass(frozen=True)
class Kept:
    """A learned task: its frame and prompts, the rows kept of it, and how many it had, repeats aside.

    The lesson's task has those rows as its training rows, and no test rows.
    """

    lesson: Lesson
    distinct: int

    @property
    def examples(self) -> tuple[Example, ...]:
        """The rows that are kept."""
        return self.lesson.task.train

    def only(self, indices: Sequence[int]) -> "Kept":
        """The same task with some of the rows, in their order."""
        rows = tuple(self.examples[index] for index in sorted(indices))
        return replace(self, lesson=replace(self.lesson, task=replace(self.lesson.task, train=rows)))

    def pairs(self) -> list[tuple[Lesson, Example]]:
        """Each row with its task's frame and prompts."""
        return [(self.lesson, example) for example in self.examples]


def learned(lesson: Lesson) -> Kept:
    """A task with all rows that it was trained on, each once."""
    rows = tuple(lesson.task.train[index] for index in sorted(set(distinct_rows(lesson.task.train))))
    return Kept(replace(lesson, task=replace(lesson.task, train=rows, test=(), labels=())), len(rows))


def quotas(weights: Sequence[float], sizes: Sequence[int], budget: int) -> list[int]:
    """How many of `sizes` rows each task gives, in proportion to its weight; they sum to `budget`.

    Shares are rounded by largest remainder. A task that has fewer rows than its share gives all of them, and
    the others share the rest by their weights; where all weights left are 0, equally. Of equal remainders the
    earlier task's counts first. If there are not more rows than `budget`, all are given.
    """
    given = list(sizes)
    if sum(sizes) <= budget:
        return given
    left, waiting = budget, list(range(len(sizes)))
    while True:
        exact = [Fraction(weights[k]) for k in waiting]
        if not any(exact):
            exact = [Fraction(1)] * len(waiting)
        shares = {k: left * weight / sum(exact) for k, weight in zip(waiting, exact, strict=True)}
        short = [k for k in waiting if shares[k] >= sizes[k]]
        if not short:
            break
        left -= sum(sizes[k] for k in short)
        waiting = [k for k in waiting if k not in short]
    for k in waiting:
        given[k] = math.floor(shares[k])
    by_remainder = sorted(waiting, key=lambda k: (given[k] - shares[k], k))
    for k in by_remainder[: left - sum(given[k] for k in waiting)]:
        given[k] += 1
    return given


def read_kept(state: Path | None) -> list[Kept]:
    """What the training that left the state kept, in the order of learning; nothing before the first."""
    if state is None:
        return []
    try:
        frames = json.loads((state / KEPT / TASKS).read_text(encoding="utf-8"))
        rows: dict[str, list[Example]] = {frame["task"]: [] for frame in frames}
        # JSON escapes line feeds but not the other characters at which `splitlines` would break a line.
        for line in (state / KEPT / EXAMPLES).read_text(encoding="utf-8").split("\n")[:-1]:
            row = json.loads(line)
            rows[row["task"]].append(Example(row["input"], row["target"]))
        return [_kept(frame, rows[frame["task"]]) for frame in frames]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WorkError(
            f"Damaged: cannot read the examples kept in {state / KEPT} ({error!r}). "
            f"Delete {state} to train it again."
        ) from error


def write_kept(folder: Path, kept: Sequence[Kept]) -> None:
    """Writes `kept/` in the folder of a state."""
    (folder / KEPT).mkdir(parents=True, exist_ok=True)
    write_json(folder / KEPT / TASKS, [_frame(one) for one in kept])
    with (folder / KEPT / EXAMPLES).open("w", encoding="utf-8", newline="\n") as file:
        for lesson, example in (pair for one in kept for pair in one.pairs()):
            row = {"task": lesson.task.name, "input": example.input, "target": example.target}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _frame(kept: Kept) -> dict[str, Any]:
    task = kept.lesson.task
    names = ("instruction", "suffix", "separator", "language")
    return {
        "task": task.name,
        **{name: getattr(task, name) for name in names},
        "prompts": [{"index": prompt.index, "text": prompt.text} for prompt in kept.lesson.prompts],
        "distinct": kept.distinct,
        "kept": len(kept.examples),
    }


def _kept(frame: dict[str, Any], rows: Sequence[Example]) -> Kept:
    names = ("instruction", "suffix", "separator", "language")
    task = Task(frame["task"], train=tuple(rows), test=(), **{name: frame[name] for name in names})
    prompts = tuple(Prompt(prompt["text"], prompt["index"]) for prompt in frame["prompts"])
    if len(rows) != frame["kept"]:
        raise ValueError(f"{len(rows)} rows of {task.name} where {frame['kept']} were kept")
    return Kept(Lesson(task, prompts), frame["distinct"])
