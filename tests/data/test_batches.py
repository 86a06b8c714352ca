"""Batches under a token budget."""

from hypothesis import given
from hypothesis import strategies as st

from sapo.data.batches import by_tokens

LENGTHS = st.lists(st.integers(1, 60), max_size=60)
BUDGETS = st.integers(1, 200)


def test_a_worked_example() -> None:
    # Longest first: 50 alone (2 x 50 > 60), 30 with 20 (2 x 30), then 10, 5 and 5 (3 x 10).
    assert by_tokens([5, 30, 10, 50, 20, 5], budget=60) == [[3], [1, 4], [2, 0, 5]]


def test_nothing_to_group() -> None:
    assert by_tokens([], budget=10) == []


@given(LENGTHS, BUDGETS)
def test_every_index_comes_once(lengths: list[int], budget: int) -> None:
    assert sorted(index for batch in by_tokens(lengths, budget) for index in batch) == list(
        range(len(lengths))
    )


@given(LENGTHS, BUDGETS)
def test_only_a_single_example_may_exceed_the_budget(lengths: list[int], budget: int) -> None:
    for batch in by_tokens(lengths, budget):
        padded = max(lengths[index] for index in batch) * len(batch)
        assert padded <= budget or len(batch) == 1


@given(LENGTHS, BUDGETS)
def test_the_longest_come_first_and_a_batch_is_full_before_the_next(lengths: list[int], budget: int) -> None:
    batches = by_tokens(lengths, budget)
    flat = [lengths[index] for batch in batches for index in batch]
    assert flat == sorted(lengths, reverse=True)
    for batch in batches[:-1]:
        assert lengths[batch[0]] * (len(batch) + 1) > budget


@given(LENGTHS, BUDGETS)
def test_order_does_not_depend_on_where_equal_lengths_stand(lengths: list[int], budget: int) -> None:
    sizes = [[lengths[i] for i in batch] for batch in by_tokens(lengths, budget)]
    assert sizes == [[sorted(lengths)[i] for i in batch] for batch in by_tokens(sorted(lengths), budget)]
