"""What a training learns: tasks under prompts, their rows, and which prompt a row is shown under when."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sapo.data.prompts import Prompt
from sapo.data.render import Rendered, Renderer
from sapo.data.tasks import Example, Task


@dataclass(frozen=True)
class TrainingTask:
    """A task and the prompts that it is trained with: one, or several to draw from in training."""

    task: Task
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One training example, rendered under every prompt of its task; rows of a `group` share prompts."""

    rendered: tuple[Rendered, ...]
    group: int


@dataclass(frozen=True)
class Draws:
    """Which prompt an example is shown under: drawn anew every `redraw` examples of every epoch.

    Seed, epoch and block of examples decide (PAFT, EMNLP 2025): a resumed training goes on with the same.
    """

    seed: int
    redraw: int

    def prompt(self, row: Row, epoch: int, place: int) -> int:
        """The index of the row's prompt at `place` in the training order of an epoch."""
        if len(row.rendered) == 1:
            return 0
        draw = random.Random(f"prompt {self.seed} {epoch} {place // self.redraw}")  # noqa: S311
        return draw.randrange(len(row.rendered))


def training_rows(
    renderer: Renderer, tasks: Sequence[TrainingTask], replayed: Sequence[tuple[TrainingTask, Example]] = ()
) -> list[Row]:
    """Rows of all tasks in order, then replayed ones, each with its own task's prompts, suffix and separator.

    A row whose target was cut off under any prompt (`data.truncation=end`) teaches nothing and is left out.
    """
    by_task: dict[Any, tuple[TrainingTask, list[Example]]] = {}
    for one, example in replayed:
        key = (one.task.name, one.task.suffix, one.prompts)
        by_task.setdefault(key, (one, []))[1].append(example)
    rows = []
    for group, (one, examples) in enumerate([*((one, one.task.train) for one in tasks), *by_task.values()]):
        columns = [renderer.render(one.task, prompt.text, examples) for prompt in one.prompts]
        rows += [Row(rendered, group) for rendered in zip(*columns, strict=True)]
    return [row for row in rows if all(rendered.target_ids for rendered in row.rendered)]
