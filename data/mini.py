"""The mini benchmark: generated tasks small enough to train on with two CPU cores.

Classification, extraction and program execution in SuperNI's manner, with inputs of about 5-25 tokens and
answers of 1-6. Every answer is right by construction. A seed changes the examples, never the task.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from sapo.conf.errors import UserError, unknown
from sapo.data import mini_words as words
from sapo.data.tasks import Example, Task

# This many draws in a row without a new input mean that a generator has (nearly) nothing left to give.
PATIENCE = 3000


@dataclass(frozen=True, slots=True)
class MiniTask:
    """What stays the same under every seed; `draw(rng, label)` makes one example (label "" if none)."""

    instruction: str
    suffix: str
    draw: Callable[[Random, str], Example]
    labels: tuple[str, ...] = ()


def mini_tasks() -> tuple[str, ...]:
    """The names of all mini tasks, classification first."""
    return tuple(_TASKS)


def generate(name: str, train: int, test: int, seed: int) -> Task:
    """The mini task `name` with `train` and `test` examples, all inputs distinct, labels balanced within one.

    The test set does not depend on `train`, and a larger training set begins with the smaller one.
    Raises UserError for an unknown name, a negative size, or more examples than there are distinct ones.
    """
    if name not in _TASKS:
        raise unknown("mini task", name, _TASKS)
    if train < 0 or test < 0:
        raise UserError(
            f"{name}: train={train} and test={test} examples asked for; sizes cannot be negative."
        )
    task = _TASKS[name]
    seen: set[str] = set()
    rows = {
        split: tuple(_examples(name, task, size, Random(f"{name} {split} {seed}"), seen))  # noqa: S311
        for split, size in (("test", test), ("train", train))
    }
    return Task(name, task.instruction, task.suffix, rows["train"], rows["test"], task.labels)


def _examples(name: str, task: MiniTask, size: int, rng: Random, seen: set[str]) -> Iterator[Example]:
    """`size` examples with inputs not in `seen`, which grows by them; labels come in blocks of one each."""
    block: list[str] = []
    for _ in range(size):
        if not block:
            block = list(task.labels or ("",))
            rng.shuffle(block)
        label = block.pop()
        for _ in range(PATIENCE):
            example = task.draw(rng, label)
            if example.input not in seen:
                break
        else:
            raise UserError(
                f"{name} has no more distinct examples{f' for {label!r}' if label else ''} after {len(seen)} "
                "in train and test together: ask for fewer."
            )
        seen.add(example.input)
        yield example


def _fill(rng: Random, template: str) -> str:
    """The template with every slot filled at random; a template may leave slots out."""
    return template.format(
        name=rng.choice(words.NAMES),
        surname=rng.choice(words.SURNAMES),
        city=rng.choice(words.CITIES),
        day=rng.choice(words.DAYS),
        month=rng.choice(words.MONTHS),
        food=rng.choice(words.FOODS),
        sport=rng.choice(words.SPORTS),
        instrument=rng.choice(words.INSTRUMENTS),
        sky=rng.choice(words.SKIES),
        thing=rng.choice(words.THINGS),
        product=rng.choice(words.PRODUCTS),
        place=rng.choice(words.PLACES),
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _review(rng: Random, positive: bool) -> str:
    """A review whose last word on the product is clear; one in three first says the opposite of it."""
    good, bad = rng.choice(words.GOOD), rng.choice(words.BAD)
    adjective, opposite = (good, bad) if positive else (bad, good)
    feeling = "feared" if positive else "hoped for"
    reason = rng.choice(words.PRAISE if positive else words.BLAME)
    product = rng.choice(words.PRODUCTS)
    forms = (
        f"The {product} is {adjective}, {reason}.",
        f"{_sentence(reason)}: this {product} is {adjective}.",
        f"I {feeling} {'an' if opposite[0] in 'aeiou' else 'a'} {opposite} {product}, but {reason}.",
    )
    return rng.choice(forms)


def _sentiment(rng: Random, label: str) -> Example:
    return Example(_review(rng, label == "positive"), label)


def _complaint(rng: Random, label: str) -> Example:
    """Complaints are bad reviews; the rest is half praise, half plain questions."""
    if label == "yes":
        return Example(
            f"About the {rng.choice(words.PRODUCTS)}: {rng.choice(words.BLAME)}, {_closing(rng)}.", label
        )
    if rng.random() < 0.5:
        return Example(
            f"About the {rng.choice(words.PRODUCTS)}: {rng.choice(words.PRAISE)}, {_closing(rng)}.", label
        )
    question = _fill(rng, rng.choice(words.SHOP_QUESTIONS))
    return Example(f"About the {rng.choice(words.PRODUCTS)}: {question}?", label)


def _closing(rng: Random) -> str:
    """The end of a letter, which says nothing on whether it is a complaint."""
    form = rng.choice(
        ("signed {name}", "writes {name}", "says {name} from {city}", "bought on {day} by {name}")
    )
    return _fill(rng, form)


def _topic(rng: Random, label: str) -> Example:
    templates = {
        "food": words.COOKING,
        "sports": words.PLAYING,
        "music": words.TUNES,
        "weather": words.FORECASTS,
    }[label]
    return Example(_sentence(_fill(rng, rng.choice(templates))) + ".", label)


def _formality(rng: Random, label: str) -> Example:
    return Example(_fill(rng, rng.choice(words.FORMAL if label == "formal" else words.CASUAL)), label)


def _tense(rng: Random, label: str) -> Example:
    past, present, future, thing = rng.choice(words.VERBS)
    verb = {"past": past, "present": present, "future": future}[label]
    who = rng.choice((f"The {rng.choice(words.JOBS)}", rng.choice(words.NAMES)))
    return Example(f"{who} {verb} {_fill(rng, thing)}.", label)


def _word_list(rng: Random, size: int) -> list[str]:
    return rng.sample([word for category in words.CATEGORIES for word in category], size)


def _member(rng: Random, label: str) -> Example:
    *listed, other = _word_list(rng, rng.randint(4, 6))
    word = rng.choice(listed) if label == "yes" else other
    return Example(f"List: {', '.join(listed)}. Word: {word}", label)


def _city(rng: Random, _: str) -> Example:
    start, end = rng.sample(words.CITIES, 2)
    template = rng.choice(words.JOURNEYS).replace("{start}", start).replace("{end}", end)
    return Example(_fill(rng, template), end)


def _price(rng: Random, _: str) -> Example:
    """A price with another amount beside it: the old price, or what is saved (never the same number)."""
    template = rng.choice(words.OFFERS)
    low, high = sorted(rng.sample(range(5, 100), 2))
    now, old = (high, low) if "raised" in template else (low, high)
    saved = rng.choice([amount for amount in range(2, 30) if amount != now])
    slots = {"{now}": now, "{old}": old, "{saved}": saved}
    for slot, amount in slots.items():
        template = template.replace(slot, str(amount))
    return Example(_fill(rng, template), f"${now}")


def _odd(rng: Random, _: str) -> Example:
    """Three words of one category and one of another, at any place."""
    kind, other = rng.sample(words.CATEGORIES, 2)
    odd = rng.choice(other)
    listed = [*rng.sample(kind, 3), odd]
    rng.shuffle(listed)
    return Example(", ".join(listed), odd)


def _animals(rng: Random, _: str) -> Example:
    """Four to six words, one to three of them animals."""
    count = rng.randint(1, 3)
    others = [word for category in words.CATEGORIES if category is not words.ANIMALS for word in category]
    listed = rng.sample(words.ANIMALS, count) + rng.sample(others, rng.randint(4, 6) - count)
    rng.shuffle(listed)
    return Example(", ".join(listed), ", ".join(word for word in listed if word in words.ANIMALS))


def _last(rng: Random, _: str) -> Example:
    listed = _word_list(rng, rng.randint(3, 6))
    return Example(", ".join(listed), listed[-1])


def _sort(rng: Random, _: str) -> Example:
    first, second = rng.sample(range(10, 100), 2)
    text = f"{first}{rng.choice((', ', ' and ', ' '))}{second}"
    return Example(text, f"{min(first, second)}, {max(first, second)}")


_TASKS = {
    "mini_sentiment": MiniTask(
        "In this task, you are given a short product review. Your task is to classify the review as "
        '"positive" if the writer likes the product or as "negative" if the writer does not like it.',
        "Directly output only positive or negative as your answer.",
        _sentiment,
        ("positive", "negative"),
    ),
    "mini_complaint": MiniTask(
        "In this task, you are given a short message from a customer to a shop. Decide whether the customer "
        'is complaining. Answer with "yes" if the message is a complaint and with "no" if it is not.',
        "Directly output only yes or no as your answer.",
        _complaint,
        ("yes", "no"),
    ),
    "mini_topic": MiniTask(
        "In this task, you are given a short sentence. Your task is to classify the sentence by its topic "
        "into four categories: 1) food, 2) sports, 3) music, and 4) weather.",
        "Directly output only food, sports, music or weather as your answer.",
        _topic,
        ("food", "sports", "music", "weather"),
    ),
    "mini_formality": MiniTask(
        "You are given a short message that somebody wrote at work. Your task is to judge its style. Label "
        'it "formal" if its tone is polite and official, or "casual" if it reads like a chat between '
        "friends.",
        "Directly output only formal or casual as your answer.",
        _formality,
        ("formal", "casual"),
    ),
    "mini_tense": MiniTask(
        "In this task, you are given a sentence about what somebody does. Indicate the time of the action: "
        '"past" if it has already happened, "present" if it is happening now, or "future" if it is still to '
        "come.",
        "Directly output only past, present or future as your answer.",
        _tense,
        ("past", "present", "future"),
    ),
    "mini_member": MiniTask(
        "Given a list of words and then one more word, determine whether that word occurs in the list. "
        'Answer "yes" if the list contains the word; otherwise, answer "no".',
        "Directly output only yes or no as your answer.",
        _member,
        ("yes", "no"),
    ),
    "mini_city": MiniTask(
        "In this task, you are given a sentence about a journey in which two cities are named. Your task is "
        "to extract the name of the city where the journey ends.",
        "Directly output only the name of the city as your answer.",
        _city,
    ),
    "mini_price": MiniTask(
        "In this task, you are given a sentence about something for sale. Find the price that a buyer has to "
        "pay now, and write it with the dollar sign in front, as in the sentence.",
        "Directly output only the price as your answer.",
        _price,
    ),
    "mini_odd": MiniTask(
        "Given a set of four words, three of which belong to the same category, find the word that does not "
        "belong with the others. Words are separated by commas.",
        "Directly output only the word as your answer.",
        _odd,
    ),
    "mini_animals": MiniTask(
        "In this task, you are given a list of words. You need to find all the words in the list that are "
        "animals and give them in the same order in which they appear in the list.",
        "Directly output only the animals, separated by comma and space.",
        _animals,
    ),
    "mini_last": MiniTask(
        "In this task, you are given a list of words separated by commas. Your task is to find the word that "
        "stands at the very end of the list. Do not change the word in any way.",
        "Directly output only the word as your answer.",
        _last,
    ),
    "mini_sort": MiniTask(
        "In this task, you are given two different numbers. You need to put them in ascending order, so that "
        "the smaller number comes first and the larger number comes second.",
        "Directly output only the two numbers, separated by comma and space.",
        _sort,
    ),
}
