"""What a training learns: tasks under prompts, and which prompt an example is shown under when."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sapo.data.prompts import Prompt
from sapo.data.render import Rendered, Renderer
from sapo.data.tasks import Example, Task


@dataclass(frozen=True)
class Lesson:
    """A task and the prompts that it is trained with: one, or several to draw from in training."""

    task: Task
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One training example under every prompt of its lesson; rows of one `group` share prompts and frame."""

    wordings: tuple[Rendered, ...]
    group: int


@dataclass(frozen=True)
class Draws:
    """Which prompt each example is shown under: drawn anew every `redraw` examples of every epoch.

    The draw is decided by (seed, epoch, block of examples in training order) alone (PAFT,
    EMNLP 2025), so a resumed training goes on with the same prompts.
    """

    seed: int
    redraw: int

    def wording(self, row: Row, epoch: int, place: int) -> int:
        """The index of the row's wording at `place` in the training order of an epoch."""
        if len(row.wordings) == 1:
            return 0
        block = place // self.redraw
        return random.Random(f"prompt {self.seed} {epoch} {block}").randrange(len(row.wordings))  # noqa: S311


def lesson_rows(
    renderer: Renderer, lessons: Sequence[Lesson], replayed: Sequence[tuple[Lesson, Example]] = ()
) -> list[Row]:
    """Training rows of all lessons in order, then replayed ones, each under its own task's frame and prompts.

    A row whose target was cut off under any prompt (`data.truncation=end`) teaches nothing and is left out.
    """
    together = [(lesson, list(lesson.task.train)) for lesson in lessons]
    by_lesson: dict[tuple[str, str, tuple[Prompt, ...]], tuple[Lesson, list[Example]]] = {}
    for lesson, example in replayed:
        key = (lesson.task.name, lesson.task.suffix, lesson.prompts)
        by_lesson.setdefault(key, (lesson, []))[1].append(example)
    rows = []
    for group, (lesson, examples) in enumerate([*together, *by_lesson.values()]):
        wordings = [renderer.render(lesson.task, prompt.text, examples) for prompt in lesson.prompts]
        rows += [Row(wording, group) for wording in zip(*wordings, strict=True)]
    return [row for row in rows if all(wording.target_ids for wording in row.wordings)]
