"""What a piece of work takes: seconds, tokens through the model, peak memory; two of them side by side."""

import ctypes
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from transformers import PreTrainedModel

Result = TypeVar("Result")
_STATM = Path("/proc/self/statm")
_SAMPLE_SECONDS = 0.002


@dataclass
class Usage:
    """What one call took; `memory` is the growth to the peak in bytes, None where it cannot be measured."""

    seconds: float = 0.0
    tokens: int = 0
    memory: int | None = None


@dataclass(frozen=True)
class Side(Generic[Result]):
    """One way of doing the work: its usage (medians over rounds, highest memory) and its last result."""

    usage: Usage
    result: Result


def memory_measure(device: torch.device) -> str:
    """How memory is measured on a device, for people."""
    if device.type == "cuda":
        return "peak of torch.cuda.max_memory_allocated above the start"
    if _STATM.is_file():
        return f"peak growth of the resident set, sampled every {_SAMPLE_SECONDS * 1000:.0f} ms"
    return "not measured on this system"


@contextmanager
def measured(base: PreTrainedModel) -> Iterator[Usage]:
    """Usage of what is done inside: tokens that go through the base model's embedding, time, memory."""
    usage = Usage()

    def count(_: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        usage.tokens += arguments[0].numel()

    gc.collect()
    _give_back_memory()
    hook = base.get_input_embeddings().register_forward_pre_hook(count)
    try:
        with _memory(base.device, usage):
            begun = time.perf_counter()
            yield usage
            if base.device.type == "cuda":
                torch.cuda.synchronize()
            usage.seconds = time.perf_counter() - begun
    finally:
        hook.remove()


@contextmanager
def _memory(device: torch.device, usage: Usage) -> Iterator[None]:
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield
        usage.memory = torch.cuda.max_memory_allocated(device) - before
    elif _STATM.is_file():
        before = _resident()
        peaks, stop = [before], threading.Event()
        sampler = threading.Thread(target=_sample, args=(peaks, stop), daemon=True)
        sampler.start()
        try:
            yield
        finally:
            stop.set()
            sampler.join()
        usage.memory = max(0, max(peaks) - before)
    else:
        yield


def _sample(peaks: list[int], stop: threading.Event) -> None:
    while not stop.wait(_SAMPLE_SECONDS):
        peaks[0] = max(peaks[0], _resident())


def _resident() -> int:
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _give_back_memory() -> None:
    """Freed memory that the C library keeps would hide what the next piece of work needs."""
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def side_by_side(
    base: PreTrainedModel, plain: Callable[[], Result], ours: Callable[[], Result], rounds: int
) -> tuple[Side[Result], Side[Result]]:
    """Both in turn, `rounds` times; which of them begins alternates too."""
    works = (plain, ours)
    usages: tuple[list[Usage], list[Usage]] = ([], [])
    results: list[Any] = [None, None]
    for number in range(rounds):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            with measured(base) as usage:
                results[which] = works[which]()
            usages[which].append(usage)
    first, second = (Side(typical(us), result) for us, result in zip(usages, results, strict=True))
    return first, second


def typical(usages: list[Usage]) -> Usage:
    """Median seconds, the tokens, and the highest memory of several rounds of the same work."""
    memories = [usage.memory for usage in usages if usage.memory is not None]
    return Usage(
        statistics.median(usage.seconds for usage in usages),
        usages[0].tokens,
        max(memories) if memories else None,
    )
