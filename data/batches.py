"""Grouping examples of like length under a token budget."""

from collections.abc import Sequence

import numpy as np


def by_tokens(lengths: Sequence[int], budget: int, overhead: int) -> list[list[int]]:
    """Indices grouped by length, so that a batch's longest x count stays within `budget`.

    Of all such groupings it is the cheapest: the sum of longest x count, padding included, and of `overhead`
    for each batch. An example longer than the budget stands alone. Longest first, so that a batch that does
    not fit in memory fails at once.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    sizes = np.array([lengths[index] for index in order], dtype=np.int64)
    # Of the first 0, 1, 2, … examples: the least cost, and where the last batch begins.
    costs, begins = np.zeros(len(order) + 1, dtype=np.int64), [0]
    first = 0  # where the largest batch begins that ends here; a later end has a later one
    for end in range(1, len(order) + 1):
        while first < end - 1 and sizes[first] * (end - first) > budget:
            first += 1
        places = np.arange(first, end)
        found = costs[places] + sizes[places] * (end - places) + overhead
        begins.append(first + int(found.argmin()))
        costs[end] = found.min()
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.insert(0, order[begins[end] : end])
        end = begins[end]
    return batches
