"""The processes that compute a stage together, a device each; nearly always there is one.

All run the same code on the same inputs, share out what is read, and put together what was found. They have
to meet in the same order: whatever decides how often they do must be the same in all of them.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed

Item = TypeVar("Item")


def _are_several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def count() -> int:
    """How many there are."""
    return distributed.get_world_size() if _are_several() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if _are_several() else 0


def share(items: Sequence[Item]) -> Sequence[Item]:
    """The items that this one works on: they are dealt in turn."""
    return items[rank() :: count()]


def gathered(own: Item) -> list[Item]:
    """What each of them has, in the order of their ranks."""
    if not _are_several():
        return [own]
    found: list[Item | None] = [None] * count()
    distributed.all_gather_object(found, own)
    return found  # type: ignore[return-value]  # all are there


def add_up(tensors: Sequence[Tensor]) -> None:
    """Puts the sum over all of them in each tensor's place, in one exchange and in float32."""
    if not _are_several():
        return
    flat = torch.cat([tensor.flatten().float() for tensor in tensors])
    distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))
