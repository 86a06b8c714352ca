"""The mini benchmark: generated tasks small enough to train on with two CPU cores.

Classification, extraction and program execution in SuperNI's manner, with inputs of about 5-25 tokens and
answers of 1-6. Every answer is right by construction. A seed changes the examples, never the task.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from random import Random
from types import SimpleNamespace

from sapo.conf.errors import UserError, unknown
from sapo.data.files import read_yaml
from sapo.data.tasks import Example, Task

_CONTENT = read_yaml(Path(__file__).with_name("mini.yaml"))
_TASKS = {
    name: Task(name, facts["instruction"], facts["suffix"], (), (), tuple(facts.get("labels", ())))
    for name, facts in _CONTENT["tasks"].items()
}
words = SimpleNamespace(**{name: tuple(listed) for name, listed in _CONTENT["words"].items()})
words.categories = tuple(getattr(words, name) for name in words.categories)
# This many draws in a row without a new input mean that a generator has (nearly) nothing left to give.
PATIENCE = 3000


def mini_tasks() -> tuple[str, ...]:
    """The names of all mini tasks, classification first."""
    return tuple(_TASKS)


@lru_cache(64)
def generate(name: str, train: int, test: int, seed: int) -> Task:
    """The mini task `name` with `train` and `test` examples, all inputs distinct, labels balanced within one.

    The test set does not depend on `train`, and a larger training set begins with the smaller one.
    Raises UserError for an unknown name, a negative size, or more examples than there are distinct ones.
    """
    if name not in _TASKS:
        raise unknown("mini task", name, _TASKS)
    if train < 0 or test < 0:
        raise UserError(f"{name}: train={train} and test={test} examples; sizes cannot be negative.")
    task, seen = _TASKS[name], set[str]()
    rows: dict[str, list[Example]] = {"test": [], "train": []}
    for (split, found), size in zip(rows.items(), (test, train), strict=True):
        rng = Random(f"{name} {split} {seed}")  # noqa: S311
        block: list[str] = []
        for _ in range(size):
            if not block:  # labels come in blocks of one each
                block = list(task.labels or ("",))
                rng.shuffle(block)
            label = block.pop()
            draws = (_DRAWS[name](rng, label) for _ in range(PATIENCE))
            example = next((example for example in draws if example.input not in seen), None)
            if example is None:
                of = f" for {label!r}" if label else ""
                there = f"{len(seen)} in train and test together"
                raise UserError(f"{name} has no more distinct examples{of} after {there}: ask for fewer.")
            seen.add(example.input)
            found.append(example)
    return replace(task, train=tuple(rows["train"]), test=tuple(rows["test"]))


def _fill(rng: Random, template: str, **known: object) -> str:
    """The template with every slot filled, at random if it is not known; a template may leave slots out."""
    slots = {slot: rng.choice(getattr(words, listed)) for slot, listed in _CONTENT["slots"].items()}
    return template.format(**slots, **known)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


# --- what draws an example of each task; its label is "" where there are none ------------------------------


def _sentiment(rng: Random, label: str) -> Example:
    """A review whose last word on the product is clear; one in three first says the opposite of it."""
    is_good = label == "positive"
    good, bad = rng.choice(words.good), rng.choice(words.bad)
    adjective, opposite = (good, bad) if is_good else (bad, good)
    reason = rng.choice(words.praise if is_good else words.blame)
    product = rng.choice(words.products)
    forms = (
        f"The {product} is {adjective}, {reason}.",
        f"{_sentence(reason)}: this {product} is {adjective}.",
        f"I {'feared' if is_good else 'hoped for'} {'an' if opposite[0] in 'aeiou' else 'a'} {opposite} "
        f"{product}, but {reason}.",
    )
    return Example(rng.choice(forms), label)


def _complaint(rng: Random, label: str) -> Example:
    """Bad reviews; the rest is half praise, half plain questions. A letter's end says nothing on it."""
    if label == "yes" or rng.random() < 0.5:
        product = rng.choice(words.products)
        opinion = rng.choice(words.blame if label == "yes" else words.praise)
        return Example(f"About the {product}: {opinion}, {_fill(rng, rng.choice(words.closings))}.", label)
    question = _fill(rng, rng.choice(words.shop_questions))
    return Example(f"About the {rng.choice(words.products)}: {question}?", label)


def _topic(rng: Random, label: str) -> Example:
    topics = {"food": "cooking", "sports": "playing", "music": "tunes", "weather": "forecasts"}
    return Example(_sentence(_fill(rng, rng.choice(getattr(words, topics[label])))) + ".", label)


def _formality(rng: Random, label: str) -> Example:
    return Example(_fill(rng, rng.choice(words.formal if label == "formal" else words.casual)), label)


def _tense(rng: Random, label: str) -> Example:
    past, present, future, thing = rng.choice(words.verbs)
    verb = {"past": past, "present": present, "future": future}[label]
    who = rng.choice((f"The {rng.choice(words.jobs)}", rng.choice(words.names)))
    return Example(f"{who} {verb} {_fill(rng, thing)}.", label)


def _word_list(rng: Random, size: int) -> list[str]:
    return rng.sample([word for category in words.categories for word in category], size)


def _member(rng: Random, label: str) -> Example:
    *listed, other = _word_list(rng, rng.randint(4, 6))
    word = rng.choice(listed) if label == "yes" else other
    return Example(f"List: {', '.join(listed)}. Word: {word}", label)


def _city(rng: Random, _: str) -> Example:
    start, end = rng.sample(words.cities, 2)
    return Example(_fill(rng, rng.choice(words.journeys), start=start, end=end), end)


def _price(rng: Random, _: str) -> Example:
    """A price with another amount beside it: the old price, or what is saved (never the same number)."""
    template = rng.choice(words.offers)
    low, high = sorted(rng.sample(range(5, 100), 2))
    now, old = (high, low) if "raised" in template else (low, high)
    saved = rng.choice([amount for amount in range(2, 30) if amount != now])
    return Example(_fill(rng, template, now=now, old=old, saved=saved), f"${now}")


def _odd(rng: Random, _: str) -> Example:
    """Three words of one category and one of another, at any place."""
    kind, other = rng.sample(words.categories, 2)
    odd = rng.choice(other)
    listed = [*rng.sample(kind, 3), odd]
    rng.shuffle(listed)
    return Example(", ".join(listed), odd)


def _animals(rng: Random, _: str) -> Example:
    """Four to six words, one to three of them animals."""
    count = rng.randint(1, 3)
    others = [word for category in words.categories if category is not words.animals for word in category]
    listed = rng.sample(words.animals, count) + rng.sample(others, rng.randint(4, 6) - count)
    rng.shuffle(listed)
    return Example(", ".join(listed), ", ".join(word for word in listed if word in words.animals))


def _last(rng: Random, _: str) -> Example:
    listed = _word_list(rng, rng.randint(3, 6))
    return Example(", ".join(listed), listed[-1])


def _sort(rng: Random, _: str) -> Example:
    first, second = rng.sample(range(10, 100), 2)
    text = f"{first}{rng.choice((', ', ' and ', ' '))}{second}"
    return Example(text, f"{min(first, second)}, {max(first, second)}")


# By name: `mini_topic` is drawn by `_topic`.
_DRAWS = {name: globals()[name.removeprefix("mini")] for name in _TASKS}
