"""The scored subset: the training examples that every prompt's loss is measured on."""

import random
from collections.abc import Iterable, Sized
from itertools import islice

from sapo.data.remembering import remembered
from sapo.data.tasks import Example, Task


@remembered(1024)
def subset(task: Task, count: int, choice: str, seed: int) -> tuple[Example, ...]:
    """The training examples of a task that are scored: its `first` rows, or a `random` draw, in their order.

    Seed, the task's name and its number of rows alone decide a draw, so that a run, `sapo select` and
    `select_prompt` read the same rows. All of them where the task has no more than `count`.
    """
    return draw(task.train, count, choice, seed, task.name)[0]


def draw(
    examples: Iterable[Example], count: int, choice: str, seed: int, task: str
) -> tuple[tuple[Example, ...], int]:
    """The same of examples that are read anew by each iteration and never held whole, with their number."""
    n = len(examples) if isinstance(examples, Sized) else sum(1 for _ in examples)
    rows = list(range(min(count, n)))
    if choice == "random" and count < n:
        rows = sorted(random.Random(f"subset {seed} {task}").sample(range(n), count))  # noqa: S311
    chosen = set(rows)
    read = enumerate(islice(examples, rows[-1] + 1 if rows else 0))
    return tuple(example for row, example in read if row in chosen), n
