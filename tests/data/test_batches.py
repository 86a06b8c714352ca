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


@given(LENGTHS, BUDGETS, OVERHEADS)
def test_every_index_comes_once_the_longest_first_and_only_a_single_one_may_exceed(lengths, budget, overhead):
    batches = by_tokens(lengths, budget, overhead)
    flat = [index for batch in batches for index in batch]
    assert flat == sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for batch in batches:
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= budget


def cost(sizes: list[list[int]], overhead: int) -> int:
    return sum(max(batch) * len(batch) + overhead for batch in sizes)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), BUDGETS, OVERHEADS)
def test_no_other_cut_of_the_sorted_lengths_is_cheaper(lengths, budget, overhead):
    ranked = sorted(lengths, reverse=True)
    costs = []
    for count in range(len(ranked)):
        for cuts in combinations(range(1, len(ranked)), count):
            sizes = [ranked[begin:end] for begin, end in pairwise([0, *cuts, len(ranked)])]
            if all(len(batch) == 1 or batch[0] * len(batch) <= budget for batch in sizes):
                costs.append(cost(sizes, overhead))
    found = [[lengths[i] for i in batch] for batch in by_tokens(lengths, budget, overhead)]
    assert cost(found, overhead) == min(costs)
