"""The generated mini tasks: right answers, balance, disjoint splits, the same bytes for the same seed."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import refusal

from sapo.data import mini
from sapo.data.mini import generate, mini_tasks, words
from sapo.data.tasks import digest, examples_digest

NAMES = mini_tasks()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=5, deadline=None)
@given(train=st.integers(0, 60), test=st.integers(0, 60), seed=st.integers(0, 2**32))
def test_splits_are_distinct_balanced_and_of_the_size_asked_for(name, train, test, seed):
    task = generate(name, train, test, seed)
    assert (len(task.train), len(task.test)) == (train, test)
    assert len({example.input for example in task.train + task.test}) == train + test
    for split in (task.train, task.test):
        counts = Counter(example.target for example in split)
        if task.labels:
            share = [counts.pop(label, 0) for label in task.labels]
            assert max(share) - min(share) <= 1
            assert not counts


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_changes_the_examples_and_sizes_nest(name):
    small, large, other = generate(name, 16, 24, 3), generate(name, 64, 24, 3), generate(name, 16, 24, 4)
    assert small.test == large.test
    assert small.train == large.train[:16]
    assert not {small.train, small.test} & {other.train, other.test}
    assert replace(other, train=(), test=()) == generate(name, 0, 0, 7)


def test_golden_digest():
    """The same bytes on every supported Python: stored results would lose their meaning otherwise."""
    tasks = [generate(name, 32, 32, 0) for name in NAMES]
    digests = [examples_digest(task.train + task.test) for task in tasks]
    assert digest(digests) == "d184bf2fcac4d4205756b8e99a31ea3c5b97c838733e63aa7d255b04395c1e23"


def test_no_word_stands_in_two_categories():
    listed = [word for category in words.categories for word in category]
    assert len(listed) == len(set(listed))


def test_what_cannot_be_made_is_refused(monkeypatch):
    monkeypatch.setattr(mini, "PATIENCE", 30)
    for name, sizes, message in (
        ("mini_sort", (30_000, 0), "mini_sort has no more distinct examples after"),
        ("mini_formality", (30_000, 0), "'formal' after"),
        ("mini_sorted", (1, 1), "Did you mean mini_sort"),
        ("mini_sort", (-1, 1), "cannot be negative"),
    ):
        assert message in refusal(generate, name, *sizes, 0)


# --- every answer is what the instruction asks for, worked out again from the input -------------------------

CATEGORY = {word: i for i, kind in enumerate(words.categories) for word in kind}
SIGNS = {"food": words.foods, "sports": words.sports, "music": words.instruments, "weather": words.skies}
SLANG = {"u", "worries", "lol", "thanks", "gonna", "totally", "wanna", "super", "guess"}


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def odd(text: str) -> str:
    listed = text.split(", ")
    count = Counter(CATEGORY[word] for word in listed)
    assert len(set(listed)) == 4
    assert sorted(count.values()) == [1, 3]
    return next(word for word in listed if count[CATEGORY[word]] == 1)


def member(text: str) -> str:
    listed, word = re.fullmatch(r"List: (.+)\. Word: (\w+)", text).groups()
    return "yes" if word in listed.split(", ") else "no"


def city(text: str) -> str:
    named = [word for word in words_of(text) if word in words.cities]
    assert len(set(named)) == len(named) == 2
    away = r"(?:\b[Ff]rom|\bleft|\bleaves|week in|years in)"
    (end,) = (name for name in named if not re.search(rf"{away} {name}\b", text))
    assert re.search(rf"(?:\bto|\bfor|\bin|\bon to) {end}\b", text)
    return end


def price(text: str) -> str:
    amounts = re.findall(r"\$\d+", text)
    assert len(set(amounts)) == len(amounts) == 2
    if "save" in text or " off" in text:
        return amounts["save" not in text]
    return sorted(amounts, key=lambda amount: int(amount[1:]))["raised" in text]


def opinion(text: str, **signs: tuple[str, ...]) -> str:
    (label,) = (
        label for label, texts in signs.items() if any(sign.lower() in text.lower() for sign in texts)
    )
    return label


def topic(text: str) -> str:
    (label,) = (label for label, listed in SIGNS.items() if {*words_of(text.lower())} & {*listed})
    return label


ANSWERS: dict[str, Callable[[str], str]] = {
    "mini_sentiment": lambda text: opinion(text, positive=words.praise, negative=words.blame),
    "mini_complaint": lambda text: opinion(text, yes=words.blame, no=(*words.praise, "?")),
    "mini_topic": topic,
    "mini_formality": lambda text: "casual" if SLANG & {*words_of(text)} else "formal",
    "mini_tense": lambda text: "future" if " will " in text else "present" if " is " in text else "past",
    "mini_member": member,
    "mini_city": city,
    "mini_price": price,
    "mini_odd": odd,
    "mini_animals": lambda text: ", ".join(word for word in text.split(", ") if word in words.animals),
    "mini_last": lambda text: text.split(", ")[-1],
    "mini_sort": lambda text: ", ".join(sorted(re.findall(r"\d+", text), key=int)),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_right_and_every_row_short(name):
    for example in generate(name, 200, 0, seed=5).train:
        text, target = example.input, example.target
        assert ANSWERS[name](text) == target
        assert (text, target) == (text.strip(), target.strip())
        assert not {"\n", "{"} & {*text, *target}
        assert 1 <= len(text.split()) <= 18
        assert 1 <= len(target.split()) <= 3
