"""Experience replay: LoraInc, and each task is trained on together with examples of earlier ones.

The buffer holds `method.buffer` rows in all, each shown under the prompt of its own training. Not in the
paper; it tells what InsCL's choice of examples adds to having examples at all.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel

from sapo.data.tasks import Example
from sapo.experiments.methods.lorainc import LoraInc
from sapo.experiments.methods.memory import Kept, learned, quotas, read_kept, write_kept
from sapo.experiments.model.lessons import Lesson


class Replay(LoraInc):
    """Trains on the task's own rows and the whole buffer; what it draws is decided by (seed, position)."""

    reads = ("buffer", "buffer_choice")
    keeps = True

    def replayed(self) -> Sequence[tuple[Lesson, Example]]:
        """The buffer."""
        return [pair for kept in read_kept(self.context.previous) for pair in kept.pairs()]

    def save(self, model: PeftModel, folder: Path) -> None:
        """The adapter, and the buffer with this task in it."""
        super().save(model, folder)
        new = [learned(lesson) for lesson in self.context.lessons]
        choose = reservoir if self.config.buffer_choice == "reservoir" else balanced
        rng = f"{self.context.seed} {self.context.position}"
        write_kept(folder, choose(read_kept(self.context.previous), new, self.config.buffer, rng))


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
    draw = random.Random(f"replay {rng} {kept.lesson.task.name}")  # noqa: S311
    return kept.only(draw.sample(range(len(kept.examples)), count))


def reservoir(earlier: Sequence[Kept], new: Sequence[Kept], budget: int, rng: str) -> list[Kept]:
    """A uniform sample of all rows seen so far, whatever their task (Vitter 1985, Algorithm R).

    The stream goes on where it was, since `Kept.distinct` counts the rows that earlier tasks brought.
    """
    draw = random.Random(f"reservoir {rng}")  # noqa: S311
    tasks = [*earlier, *new]
    slots = [(k, index) for k, kept in enumerate(earlier) for index in range(len(kept.examples))]
    seen = sum(kept.distinct for kept in earlier)
    for k, kept in enumerate(new, start=len(earlier)):
        for index in range(len(kept.examples)):
            seen += 1
            if len(slots) < budget:
                slots.append((k, index))
            elif (place := draw.randrange(seen)) < budget:
                slots[place] = (k, index)
    return [kept.only([index for task, index in slots if task == k]) for k, kept in enumerate(tasks)]
