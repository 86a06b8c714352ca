"""InsCL: LoraInc, and `method.buffer` rows of earlier tasks are trained on too (Wang et al., NAACL 2024).

How many of a task: in proportion to its distance from the task to learn, so more of more distant ones. The
distance is the 1-Wasserstein distance between the sets of instructions that both are trained with, under the
cosine distance of their embeddings: mean-pooled last hidden states of the untouched base model.

Which of a task (`method.unit`): InsCL ranks instructions by InsInfo. Where each task has one instruction, its
rule leaves a uniform draw (`quota`). The paper must have ranked rows, and does not say how: `instance` takes
those of highest InsInfo, with tags that a language model wrote beforehand (`method.tags`); `lexical` too,
with content words in place of tags. Not taken over: lemmas and clusters of tags.

InsInfo (Wang et al., section 3.2): of N rows, f of which carry a tag, a row's is the sum over its tags of
ln(N / f), so rare tags say much. A row's document is its task's instruction and its input.

With `method.access=full` all earlier rows are kept. With `buffer`, only `method.buffer` rows: after each task
as many of every task, chosen in the same way, when later tasks are not known. All that is kept is then
replayed, so that distances decide nothing.
"""

import math
from collections import Counter
from collections.abc import Sequence, Set
from functools import cached_property
from heapq import nlargest
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from scipy.optimize import linprog

from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import Config, MethodConfig
from sapo.data.benchmarks import load_tasks
from sapo.data.files import write_json
from sapo.data.hygiene import words
from sapo.data.tags import document, read_tags
from sapo.data.tasks import Example, digest
from sapo.experiments.methods.method import KEPT
from sapo.experiments.methods.replay import Replay, only, quotas, rows_of
from sapo.experiments.model.budgets import one_example
from sapo.experiments.model.load import LanguageModel
from sapo.experiments.model.rows import TrainingTask

RULES = {
    "quota": "rows at random, which InsCL's rule comes to where each task has one instruction",
    "lexical": "rows of highest InsInfo, with content words in place of tags, so long rows above all",
    "instance": "rows of highest InsInfo, with tags from a language model",
}
MOST_UNTAGGED = 0.2  # share of rows without tags above which the choice would not be one by tags (our choice)
# Words that say nothing of what a text is about; a Chinese character is a word.
_STOP_WORDS = """
a about after all also am an and any are as at be because been before being both but by can could did do does
doing each for from had has have he her here him his how i if in into is it its just may me more most my no
nor not of on one only or other our out over s she should so some such t than that the their them then there
these they this those to too under until up very was we were what when where which while who why will with
would you your
的 了 是 在 和 有 我 你 他 她 它 们 这 那 就 也 都 而 及 与 着 或 不 个 一 之 为 以 于 对 把 被 让 吗 呢 吧
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


class InsCL(Replay):
    """Trains on the task's own rows and the chosen ones; what it draws is decided by (seed, position)."""

    reads = ("buffer", "unit", "access")

    @classmethod
    def identity(cls, config: MethodConfig, is_first: bool) -> dict[str, Any]:
        """The settings, and which tags, whatever their file is called."""
        tags = {"tags": digest(read_tags(config.tags).content)} if config.unit == "instance" else {}
        return {**super().identity(config, is_first), **tags}

    @classmethod
    def label(cls, config: MethodConfig) -> str:
        """Which variant of InsCL it is: never the bare name, which is the paper's."""
        tags = f", tags: {read_tags(config.tags).writer}" if config.unit == "instance" else ""
        access = ", buffer" if config.access == "buffer" else ""
        return f"inscl ({config.unit}{tags}{access})"

    @classmethod
    def note(cls, config: MethodConfig) -> str:
        """How rows are chosen."""
        note = f"{cls.label(config)}: quotas by distance, {RULES[config.unit]}."
        is_all = config.access == "buffer"
        return f"{note} All rows kept are replayed, so distances decide nothing." if is_all else note

    @classmethod
    def require_ready(cls, config: Config) -> None:
        """UserError if the file of tags lacks rows of the sequence."""
        if config.method.unit == "instance":
            for task in load_tasks(config)[0]:
                _require_tags(config.method, [document(task.instruction, row) for row in task.train])

    @cached_property
    def amounts(self) -> list[dict[str, Any]]:
        """Of each earlier task its distance from the present one, and how many of its rows are replayed."""
        if not self.earlier:
            return []
        model = self.context.language_model
        present = _embeddings(model, self.context.tasks)
        distances = [wasserstein(_embeddings(model, [one]), present) for one in self.earlier]
        counts = quotas(self.earlier, self.config.buffer, distances)
        amounts = zip(self.earlier, distances, counts, strict=True)
        return [{"task": one.task.name, "distance": d, "replayed": count} for one, d, count in amounts]

    def replayed(self) -> Sequence[tuple[TrainingTask, Example]]:
        """The chosen rows of earlier tasks."""
        return rows_of(self.chosen(self.earlier, [amount["replayed"] for amount in self.amounts]))

    def kept(self) -> list[TrainingTask]:
        """All rows so far, or with `method.access=buffer` as many of every task."""
        return self.tasks if self.config.access == "full" else super().kept()

    def save(self, model: PeftModel, folder: Path) -> None:
        """What later tasks need, and what was replayed."""
        super().save(model, folder)
        facts = {"method": self.label(self.config), "tasks": self.amounts}
        write_json(folder / KEPT / "selection.json", facts)

    def chosen(self, tasks: Sequence[TrainingTask], counts: Sequence[int]) -> list[TrainingTask]:
        """The first of the present tasks with as many rows of each as `counts` says."""
        if self.config.unit == "quota" or not tasks:
            return super().chosen(tasks, counts)
        chosen = map(highest, self._values, counts)  # counts end first
        return [only(one, rows) for one, rows in zip(tasks, chosen, strict=True)]

    @cached_property
    def _values(self) -> list[list[float]]:
        """InsInfo of every row that is there, by task: rows kept of earlier tasks and all of this one."""
        texts = [[document(one.task.instruction, row) for row in one.task.train] for one in self.tasks]
        everything = [text for task in texts for text in task]
        by_model = self.config.unit == "instance"
        tags = _require_tags(self.config, everything) if by_model else map(lexical_tags, everything)
        values = iter(ins_info(list(tags)))
        return [list(islice(values, len(task))) for task in texts]


def _require_tags(method: MethodConfig, documents: Sequence[str]) -> list[frozenset[str]]:
    """The tags of each document, none for a few; UserError if the file has too few of them."""
    known = read_tags(method.tags).tags
    found = [known.get(digest(text)) for text in documents]
    lacking = sum(tags is None for tags in found)
    if lacking > MOST_UNTAGGED * len(documents):
        raise UserError(
            f"{lacking} of {len(documents)} rows have no tags in {method.tags}. Write them with "
            f"`sapo paraphrase --tags {method.tags} sequence=NAME paraphrases=openai|local …`. "
            "method.unit=lexical or quota needs none."
        )
    return [frozenset(tags or ()) for tags in found]


def lexical_tags(text: str) -> frozenset[str]:
    """The content words of a text: in lower case, of letters alone, no stop words, not stemmed."""
    return frozenset(word for word in words(text) if word.isalpha() and word not in STOP_WORDS)


def ins_info(tags: Sequence[Set[str]]) -> list[float]:
    """InsInfo of each document from its tags, in nats; 0 for one without tags."""
    frequency = Counter(tag for document in tags for tag in document)
    # An exact sum: sets have no order, and equal documents must have equal values.
    return [math.fsum(math.log(len(tags) / frequency[tag]) for tag in document) for document in tags]


def highest(values: Sequence[float], count: int) -> list[int]:
    """The indices of the `count` highest values; of equal ones the earlier come first."""
    return nlargest(count, range(len(values)), key=values.__getitem__)


@torch.inference_mode()
def _embeddings(model: LanguageModel, tasks: Sequence[TrainingTask]) -> NDArray[np.float64]:
    """A row for each prompt, (prompts, width); a blank instruction is embedded by its suffix."""
    rows = []
    for one in tasks:
        for prompt in one.prompts:
            text = prompt.text.strip() or one.task.suffix.strip() or one.task.separator
            ids = model.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            with one_example(ids.shape[1]):
                states = model.base.eval().base_model(input_ids=ids.to(model.base.device)).last_hidden_state
            row = states[0].double().mean(0).cpu().numpy()  # (1, tokens, width) -> (width)
            if not np.isfinite(row).all():
                raise WorkError(f"Task {one.task.name}: its prompt's embedding is not finite: {text!r}")
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
