"""Batches under a token budget."""

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from sapo.data.batches import by_tokens

LENGTHS = st.lists(st.integers(1, 60), max_size=60)
BUDGETS = st.integers(1, 200)
OVERHEADS = st.integers(0, 80)


def test_a_worked_example():
    lengths = [5, 30, 10, 50, 20, 5]
    # 50 alone (2 x 50 > 60); 30 with 20 pads 10, which is less than a batch; 10, 5 and 5 pad 10 as well.
    assert by_tokens(lengths, budget=60, overhead=11) == [[3], [1, 4], [2, 0, 5]]
    # Padding of 10 is more than a batch: only equal lengths stand together.
    assert by_tokens(lengths, budget=60, overhead=9) == [[3], [1], [4], [2], [0, 5]]


def test_nothing_to_group():
    assert by_tokens([], budget=10, overhead=0) == []


@given(LENGTHS, BUDGETS, OVERHEADS)
def test_every_index_comes_once_and_the_longest_first(lengths, budget, overhead):
    flat = [index for batch in by_tokens(lengths, budget, overhead) for index in batch]
    assert flat == sorted(range(len(lengths)), key=lambda index: -lengths[index])


@given(LENGTHS, BUDGETS, OVERHEADS)
def test_only_a_single_example_may_exceed_the_budget(lengths, budget, overhead):
    for batch in by_tokens(lengths, budget, overhead):
        padded = max(lengths[index] for index in batch) * len(batch)
        assert padded <= budget or len(batch) == 1


def cost(sizes: list[list[int]], overhead: int) -> int:
    return sum(max(batch) * len(batch) + overhead for batch in sizes)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), BUDGETS, OVERHEADS)
def test_no_other_cut_of_the_sorted_lengths_is_cheaper(lengths, budget, overhead):
    ranked = sorted(lengths, reverse=True)
    places = range(1, len(ranked))
    costs = []
    for count in range(len(ranked)):
        for cuts in combinations(places, count):
            bounds = [0, *cuts, len(ranked)]
            sizes = [ranked[begin:end] for begin, end in pairwise(bounds)]
            if all(len(batch) == 1 or batch[0] * len(batch) <= budget for batch in sizes):
                costs.append(cost(sizes, overhead))
    found = [[lengths[i] for i in batch] for batch in by_tokens(lengths, budget, overhead)]
    assert cost(found, overhead) == min(costs)
