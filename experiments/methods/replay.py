"""Experience replay: LoraInc, and each task is trained on together with examples of earlier ones.

The buffer holds `method.buffer` rows in all, each shown under the prompts of its own training. Not in the
paper; it tells what InsCL's choice of examples adds to having examples at all.

What is kept of learned tasks lies in a state's folder: `kept/tasks.json`, each task and the prompts it was
trained with, and `kept/examples.jsonl`, one kept training row a line.
"""

import json
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

from peft import PeftModel

from sapo.conf.errors import WorkError
from sapo.data.files import write_json
from sapo.data.hygiene import distinct_rows
from sapo.data.prompts import Prompt
from sapo.data.tasks import Example, Task
from sapo.experiments.methods.lorainc import LoraInc
from sapo.experiments.methods.method import KEPT, Context
from sapo.experiments.model.rows import TrainingTask

TASKS, EXAMPLES = "tasks.json", "examples.jsonl"
_STORED = ("instruction", "suffix", "separator", "language")  # of a task, beside its name and rows


class Replay(LoraInc):
    """Trains on the task's own rows and the whole buffer; what it draws is decided by (seed, position)."""

    reads: ClassVar[tuple[str, ...]] = ("buffer",)
    keeps = True
    replays = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.earlier = read_kept(context.previous)
        self.tasks = [*self.earlier, *(only(one, distinct_rows(one.task.train)) for one in context.tasks)]

    def replayed(self) -> Sequence[tuple[TrainingTask, Example]]:
        """The buffer."""
        return rows_of(self.earlier)

    def save(self, model: PeftModel, folder: Path) -> None:
        """The adapter, and what later tasks can replay."""
        super().save(model, folder)
        write_kept(folder, self.kept())

    def kept(self) -> list[TrainingTask]:
        """The buffer with this task in it: as many rows of every task."""
        return self.chosen(self.tasks, quotas(self.tasks, self.config.buffer))

    def chosen(self, tasks: Sequence[TrainingTask], counts: Sequence[int]) -> list[TrainingTask]:
        """The tasks with so many rows of each, drawn uniformly; the task's name decides which, too."""
        drawn, begin = [], f"replay {self.context.seed} {self.context.position}"
        for one, count in zip(tasks, counts, strict=True):
            draw = random.Random(f"{begin} {one.task.name}")  # noqa: S311
            drawn.append(only(one, draw.sample(range(len(one.task.train)), count)))
        return drawn


def only(one: TrainingTask, indices: Sequence[int]) -> TrainingTask:
    """A task and its prompts with some of its training rows, each once, in their order; without test rows."""
    rows = tuple(one.task.train[index] for index in sorted(set(indices)))
    return replace(one, task=replace(one.task, train=rows, test=(), labels=()))


def rows_of(tasks: Sequence[TrainingTask]) -> list[tuple[TrainingTask, Example]]:
    """Every training row with its task and prompts."""
    return [(one, example) for one in tasks for example in one.task.train]


def quotas(tasks: Sequence[TrainingTask], budget: int, weights: Sequence[float] | None = None) -> list[int]:
    """How many of its rows each task gives, in proportion to its weight, or equally; they sum to `budget`.

    Shares are rounded down, and what is left over goes one by one to the largest shares, of equal ones to the
    earlier task's (OPPO-Mente-Lab/InsCL, replay/InsCL_sampling.py). A task that has fewer rows than its share
    gives all of them, and the others share the rest by their weights; where all weights left are 0, equally.
    If there are not more rows than `budget`, all are given.
    """
    given = [len(one.task.train) for one in tasks]
    if sum(given) <= budget:
        return given
    left, waiting = budget, set(range(len(given)))
    while True:
        exact = {k: Fraction(weights[k]) if weights else Fraction(1) for k in waiting}
        whole = sum(exact.values())
        shares = {k: left * exact[k] / whole if whole else Fraction(left, len(waiting)) for k in waiting}
        short = {k for k in waiting if shares[k] >= given[k]}
        if not short:
            break
        left -= sum(given[k] for k in short)
        waiting -= short
    given = [math.floor(shares[k]) if k in waiting else size for k, size in enumerate(given)]
    for k in sorted(waiting, key=lambda k: (-shares[k], k))[: budget - sum(given)]:
        given[k] += 1
    return given


def read_kept(state: Path | None) -> list[TrainingTask]:
    """What the training that left the state kept, in the order of learning; nothing before the first."""
    if state is None:
        return []
    try:
        found: list[TrainingTask] = []
        rows: dict[str, list[Example]] = defaultdict(list)
        # JSON escapes line feeds but not the other characters at which `splitlines` would break a line.
        for line in (state / KEPT / EXAMPLES).read_text(encoding="utf-8").split("\n")[:-1]:
            row = json.loads(line)
            rows[row["task"]].append(Example(row["input"], row["target"]))
        for facts in json.loads((state / KEPT / TASKS).read_text(encoding="utf-8")):
            own = tuple(rows[facts["task"]])
            if len(own) != facts["kept"]:
                raise ValueError(f"{len(own)} rows of {facts['task']} where {facts['kept']} were kept")
            task = Task(facts["task"], train=own, test=(), **{name: facts[name] for name in _STORED})
            prompts = tuple(Prompt(prompt["text"], prompt["index"]) for prompt in facts["prompts"])
            found.append(TrainingTask(task, prompts))
        return found
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WorkError(
            f"Damaged: cannot read the examples kept in {state / KEPT} ({error!r}). "
            f"Delete {state} to train it again."
        ) from error


def write_kept(folder: Path, kept: Sequence[TrainingTask]) -> None:
    """Writes `kept/` in the folder of a state."""
    (folder / KEPT).mkdir(parents=True, exist_ok=True)
    facts = [
        {
            "task": one.task.name,
            **{name: getattr(one.task, name) for name in _STORED},
            "prompts": [{"index": prompt.index, "text": prompt.text} for prompt in one.prompts],
            "kept": len(one.task.train),
        }
        for one in kept
    ]
    write_json(folder / KEPT / TASKS, facts)
    rows = [{"task": one.task.name, "input": row.input, "target": row.target} for one, row in rows_of(kept)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / KEPT / EXAMPLES).write_text(lines, encoding="utf-8", newline="\n")
