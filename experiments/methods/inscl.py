"""InsCL: LoraInc, and `method.buffer` rows of earlier tasks are trained on too (Wang et al., NAACL 2024).

How many of a task: in proportion to its distance from the task to learn, so more of more distant ones. The
distance is the 1-Wasserstein distance between the sets of instructions that both are trained with, under the
cosine distance of their embeddings: mean-pooled last hidden states of the untouched base model.

Which of a task (`method.unit`): InsCL ranks instructions by InsInfo. Where each task has one instruction, its
rule leaves a uniform draw (`instruction`, and the same without the claim: `quota`). The paper must have
ranked rows, and does not say how: `instance` takes those of highest InsInfo, with tags from a language model;
`lexical` too, with content words in place of tags.

With `method.access=full` all earlier rows are kept. With `buffer`, only `method.buffer` rows: after each task
as many of every task, chosen in the same way, when later tasks are not known. All that is kept is then
replayed, so that distances decide nothing. Not taken over: lemmas and clusters of tags.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from scipy.optimize import linprog

from sapo.conf.errors import WorkError
from sapo.conf.schema import MethodConfig
from sapo.data.files import write_json
from sapo.data.tasks import Example
from sapo.experiments.methods.insinfo import documents, highest, ins_info, lexical_tags
from sapo.experiments.methods.lorainc import LoraInc
from sapo.experiments.methods.memory import Kept, learned, quotas, read_kept, write_kept
from sapo.experiments.methods.method import KEPT, Context
from sapo.experiments.methods.replay import at_random
from sapo.experiments.methods.tagging import Tags, tagger_name
from sapo.experiments.model.budgets import one_example
from sapo.experiments.model.lessons import Lesson
from sapo.experiments.model.load import LanguageModel

RULES = {
    "instruction": "rows at random, which InsCL's rule comes to where each task has one instruction",
    "quota": "rows at random",
    "lexical": "rows of highest InsInfo, with content words in place of tags, so long rows above all",
    "instance": "rows of highest InsInfo, with tags from a language model",
}
EMBEDDING = "mean-pooled last hidden states of the untouched base model"


def inscl_label(method: MethodConfig) -> str:
    """What a result of this InsCL is called in tables: never the bare name, which is the paper's."""
    tags = f", tags: {tagger_name(method.tagger)}" if method.unit == "instance" else ""
    access = ", buffer" if method.access == "buffer" else ""
    return f"inscl ({method.unit}{tags}{access})"


class InsCL(LoraInc):
    """Trains on the task's own rows and the chosen ones; what it draws is decided by (seed, position)."""

    reads = ("buffer", "unit", "access", "tagger")
    keeps = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._earlier = read_kept(context.previous)
        self._tasks = [*self._earlier, *map(learned, context.lessons)]
        self._replayed: list[dict[str, Any]] = []

    def replayed(self) -> Sequence[tuple[Lesson, Example]]:
        """The chosen rows of earlier tasks."""
        if self.config.unit in ("lexical", "instance"):
            _ = self._values  # tags are asked for before a training, not after it
        if not self._earlier:
            return ()
        lessons = [kept.lesson for kept in self._earlier]
        distances = task_distances(self.context.language_model, lessons, self.context.lessons)
        counts = quotas(distances, [len(kept.examples) for kept in self._earlier], self.config.buffer)
        self._replayed = [
            {"task": lesson.task.name, "distance": distance, "replayed": count}
            for lesson, distance, count in zip(lessons, distances, counts, strict=True)
        ]
        return [pair for kept in self._chosen(self._earlier, counts) for pair in kept.pairs()]

    def save(self, model: PeftModel, folder: Path) -> None:
        """The adapter, the rows that later tasks can choose from with their tags, and what was replayed."""
        super().save(model, folder)
        kept = self._tasks
        if self.config.access == "buffer":
            counts = quotas([1] * len(kept), [len(one.examples) for one in kept], self.config.buffer)
            kept = self._chosen(kept, counts)
        write_kept(folder, kept)
        if self.config.unit == "instance":
            self._tags.write(folder, [text for one in kept for text in documents(one)])
        facts = {
            "method": inscl_label(self.config),
            "quotas": f"by distance of {EMBEDDING}",
            "rows": RULES[self.config.unit],
            "tasks": self._replayed,
        }
        write_json(folder / KEPT / "selection.json", facts)

    def _chosen(self, tasks: Sequence[Kept], counts: Sequence[int]) -> list[Kept]:
        """The first of the present tasks with as many rows of each as `counts` says."""
        if self.config.unit in ("instruction", "quota"):
            rng = f"{self.context.seed} {self.context.position}"
            return [at_random(kept, count, rng) for kept, count in zip(tasks, counts, strict=True)]
        return [
            kept.only(highest(values, count))
            for kept, values, count in zip(tasks, self._values, counts, strict=False)
        ]

    @cached_property
    def _tags(self) -> Tags:
        return Tags(self.context.config, self.context.previous)

    @cached_property
    def _values(self) -> list[list[float]]:
        """InsInfo of every row that is there, by task: rows kept of earlier tasks and all of this one."""
        texts = [documents(kept) for kept in self._tasks]
        everything = [text for task in texts for text in task]
        if self.config.unit == "instance":
            values = iter(ins_info(self._tags.of(everything)))
        else:
            values = iter(ins_info([lexical_tags(text) for text in everything]))
        return [[next(values) for _ in task] for task in texts]


def task_distances(model: LanguageModel, earlier: Sequence[Lesson], new: Sequence[Lesson]) -> list[float]:
    """Distance of each earlier task from the new one, by the prompts that they are trained with."""
    present = _embeddings(model, new)
    return [wasserstein(_embeddings(model, [lesson]), present) for lesson in earlier]


@torch.inference_mode()
def _embeddings(model: LanguageModel, lessons: Sequence[Lesson]) -> NDArray[np.float64]:
    """A row for each prompt; a blank instruction is embedded by its suffix."""
    rows = []
    for lesson in lessons:
        for prompt in lesson.prompts:
            text = prompt.text.strip() or lesson.task.suffix.strip() or lesson.task.separator
            ids = model.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            with one_example(ids.shape[1]):
                states = model.base.eval().base_model(input_ids=ids.to(model.base.device)).last_hidden_state
            row = states[0].double().mean(0).cpu().numpy()  # (1, tokens, width) -> (width)
            if not np.isfinite(row).all():
                raise WorkError(f"Task {lesson.task.name}: its prompt's embedding is not finite: {text!r}")
            rows.append(row)
    return np.stack(rows)


def wasserstein(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """1-Wasserstein distance between two sets of vectors (n, width) of equal weights, at cost 1 - cosine."""
    units = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (first, second)]
    cost = 1 - units[0] @ units[1].T
    n, m = cost.shape
    # What leaves each of the first and what reaches each of the second; the plan is one row of n * m values.
    moved = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    solution = linprog(cost.ravel(), A_eq=moved, b_eq=[1 / n] * n + [1 / m] * m)
    if not solution.success:
        raise WorkError(f"The distance between two tasks' prompts was not found: {solution.message}")
    return max(0.0, float(solution.fun))
