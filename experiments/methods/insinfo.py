"""InsInfo: how much the tags of a row say, among all rows considered (Wang et al. 2024, InsCL).

A row's document is the instruction that it was trained with, and its input. Rare tags say much: a row's
InsInfo is the sum over its tags of ln(N / f), N documents of which f carry the tag.
"""

import math
from collections import Counter
from collections.abc import Sequence, Set

from sapo.data.hygiene import words
from sapo.experiments.methods.memory import Kept

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


def documents(kept: Kept) -> list[str]:
    """The text of each row of a task that tags are about; of several instructions, with the first."""
    instruction = kept.lesson.prompts[0].text
    return [f"{instruction}\n\n{example.input}" for example in kept.examples]


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
    return sorted(range(len(values)), key=lambda index: (-values[index], index))[:count]
