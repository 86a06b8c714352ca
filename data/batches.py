"""Grouping examples of like length under a token budget."""

from collections.abc import Sequence
from itertools import takewhile


def by_tokens(lengths: Sequence[int], budget: int, overhead: int) -> list[list[int]]:
    """Indices grouped by length, so that a batch's longest x count stays within `budget`.

    Of all such groupings it is the cheapest: the sum of longest x count, padding included, and of `overhead`
    for each batch. An example longer than the budget stands alone. Longest first, so that a batch that does
    not fit in memory fails at once.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))

    def padded(begin: int, end: int) -> int:
        return lengths[order[begin]] * (end - begin)

    # Of the first 0, 1, 2, … examples: the least cost, and where the last batch begins.
    costs, begins = [0], [0]
    for end in range(1, len(order) + 1):
        fitting = takewhile(lambda b: b == end - 1 or padded(b, end) <= budget, range(end - 1, -1, -1))  # noqa: B023
        cost, begin = min((costs[b] + padded(b, end) + overhead, b) for b in fitting)
        costs.append(cost)
        begins.append(begin)
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.insert(0, order[begins[end] : end])
        end = begins[end]
    return batches
