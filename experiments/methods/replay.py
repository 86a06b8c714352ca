"""Experience replay: LoraInc, and each task is trained on together with examples of earlier ones.

The buffer holds `method.buffer` rows in all, each shown under the prompts of its own training. Not in the
paper; it tells what InsCL's choice of examples adds to having examples at all.

What is kept of learned tasks lies in a state's folder: `kept/tasks.json`, each task and the prompts it was
trained with, and `kept/examples.jsonl`, one kept training row a line.
"""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from peft import PeftModel

from sapo.conf.errors import WorkError
from sapo.data.files import write_json
from sapo.data.hygiene import distinct_rows
from sapo.data.prompts import Prompt
from sapo.data.tasks import Example, Task
from sapo.experiments.methods.lorainc import LoraInc
from sapo.experiments.methods.method import KEPT
from sapo.experiments.model.rows import TrainingTask

TASKS, EXAMPLES = "tasks.json", "examples.jsonl"
_STORED = ("instruction", "suffix", "separator", "language")  # of a task, beside its name and rows


class Replay(LoraInc):
    """Trains on the task's own rows and the whole buffer; what it draws is decided by (seed, position)."""

    names = ("replay",)
    reads = ("buffer",)
    keeps = True
    replays = True

    def replayed(self) -> Sequence[tuple[TrainingTask, Example]]:
        """The buffer."""
        return [pair for kept in read_kept(self.context.previous) for pair in kept.pairs()]

    def save(self, model: PeftModel, folder: Path) -> None:
        """The adapter, and the buffer with this task in it."""
        super().save(model, folder)
        new = [learned(task) for task in self.context.tasks]
        rng = f"{self.context.seed} {self.context.position}"
        write_kept(folder, balanced(read_kept(self.context.previous), new, self.config.buffer, rng))


@dataclass(frozen=True)
class Kept:
    """A learned task with its prompts, the rows kept of it, and how many it had, repeats aside.

    Those rows are the training rows of `learned.task`, which has no test rows.
    """

    learned: TrainingTask
    distinct: int

    @property
    def name(self) -> str:
        """The task's name."""
        return self.learned.task.name

    @property
    def examples(self) -> tuple[Example, ...]:
        """The rows that are kept."""
        return self.learned.task.train

    def only(self, indices: Sequence[int]) -> "Kept":
        """The same task with some of the rows, in their order."""
        rows = tuple(self.examples[index] for index in sorted(indices))
        return replace(self, learned=replace(self.learned, task=replace(self.learned.task, train=rows)))

    def pairs(self) -> list[tuple[TrainingTask, Example]]:
        """Each row with its task and prompts."""
        return [(self.learned, example) for example in self.examples]


def learned(task: TrainingTask) -> Kept:
    """A task with all rows that it was trained on, each once."""
    rows = tuple(task.task.train[index] for index in sorted(set(distinct_rows(task.task.train))))
    return Kept(replace(task, task=replace(task.task, train=rows, test=(), labels=())), len(rows))


def quotas(weights: Sequence[float], sizes: Sequence[int], budget: int) -> list[int]:
    """How many of `sizes` rows each task gives, in proportion to its weight; they sum to `budget`.

    Shares are rounded down, and what is left over goes one by one to the largest shares, of equal ones to the
    earlier task's (OPPO-Mente-Lab/InsCL, replay/InsCL_sampling.py). A task that has fewer rows than its share
    gives all of them, and the others share the rest by their weights; where all weights left are 0, equally.
    If there are not more rows than `budget`, all are given.
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
    largest = sorted(waiting, key=lambda k: (-shares[k], k))
    for k in largest[: left - sum(given[k] for k in waiting)]:
        given[k] += 1
    return given


def balanced(earlier: Sequence[Kept], new: Sequence[Kept], budget: int, rng: str) -> list[Kept]:
    """The same number of rows of each task, drawn at random; an odd one more of the earliest.

    A task with fewer rows gives all, the others then more; of an earlier task, what was kept before is all
    there is. `rng` seeds the draw.
    """
    tasks = [*earlier, *new]
    counts = quotas([1] * len(tasks), [len(kept.examples) for kept in tasks], budget)
    return [at_random(kept, count, rng) for kept, count in zip(tasks, counts, strict=True)]


def at_random(kept: Kept, count: int, rng: str) -> Kept:
    """The task with `count` of its rows, drawn uniformly; `rng` and the task's name decide which."""
    draw = random.Random(f"replay {rng} {kept.name}")  # noqa: S311
    return kept.only(draw.sample(range(len(kept.examples)), count))


def read_kept(state: Path | None) -> list[Kept]:
    """What the training that left the state kept, in the order of learning; nothing before the first."""
    if state is None:
        return []
    try:
        found = []
        rows: dict[str, list[Example]] = {}
        # JSON escapes line feeds but not the other characters at which `splitlines` would break a line.
        for line in (state / KEPT / EXAMPLES).read_text(encoding="utf-8").split("\n")[:-1]:
            row = json.loads(line)
            rows.setdefault(row["task"], []).append(Example(row["input"], row["target"]))
        for facts in json.loads((state / KEPT / TASKS).read_text(encoding="utf-8")):
            own = tuple(rows.get(facts["task"], ()))
            if len(own) != facts["kept"]:
                raise ValueError(f"{len(own)} rows of {facts['task']} where {facts['kept']} were kept")
            task = Task(facts["task"], train=own, test=(), **{name: facts[name] for name in _STORED})
            prompts = tuple(Prompt(prompt["text"], prompt["index"]) for prompt in facts["prompts"])
            found.append(Kept(TrainingTask(task, prompts), facts["distinct"]))
        return found
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WorkError(
            f"Damaged: cannot read the examples kept in {state / KEPT} ({error!r}). "
            f"Delete {state} to train it again."
        ) from error


def write_kept(folder: Path, kept: Sequence[Kept]) -> None:
    """Writes `kept/` in the folder of a state."""
    (folder / KEPT).mkdir(parents=True, exist_ok=True)
    facts = [
        {
            "task": one.name,
            **{name: getattr(one.learned.task, name) for name in _STORED},
            "prompts": [{"index": prompt.index, "text": prompt.text} for prompt in one.learned.prompts],
            "distinct": one.distinct,
            "kept": len(one.examples),
        }
        for one in kept
    ]
    write_json(folder / KEPT / TASKS, facts)
    with (folder / KEPT / EXAMPLES).open("w", encoding="utf-8", newline="\n") as file:
        for one, example in (pair for kept_task in kept for pair in kept_task.pairs()):
            row = {"task": one.task.name, "input": example.input, "target": example.target}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
