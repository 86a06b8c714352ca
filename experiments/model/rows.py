"""What a training learns: tasks under prompts, and their rows."""

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
