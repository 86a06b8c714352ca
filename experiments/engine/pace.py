"""Stragglers: stages that take much longer than their size lets expect."""

import asyncio
import statistics
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

from sapo.experiments.engine.local import Stage

SLOW = 3.0  # times as long as expected
KNOWN = 3  # finished stages of a kind and model from which the time of the next is expected
RECENT = 50  # of them are looked at
LEAST = 30.0  # seconds below which nothing is slow


@dataclass
class _Running:
    stage: Stage
    where: str
    begun: float
    alarm: asyncio.TimerHandle | None = None


class Pace:
    """Tells of stages that run `SLOW` times as long as the median of their kind and model, by size."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self._rates: dict[tuple[str, str], deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        self._running: dict[int, _Running] = {}

    def expected(self, stage: Stage) -> float | None:
        """Seconds that a stage of this size takes; None while too few of its kind and model are known."""
        rates = self._rates[_sort(stage)]
        return statistics.median(rates) * size(stage) if len(rates) >= KNOWN else None

    def begin(self, stage: Stage, where: str) -> None:
        """A worker begins the stage."""
        self._running[id(stage)] = _Running(stage, where, asyncio.get_running_loop().time())
        self._watch()

    def end(self, stage: Stage, counts: bool) -> None:
        """The worker has ended, one way or the other; the time of one that computed counts."""
        running = self._running.pop(id(stage))
        if running.alarm:
            running.alarm.cancel()
        if counts:
            seconds = asyncio.get_running_loop().time() - running.begun
            self._rates[_sort(stage)].append(seconds / size(stage))
            self._watch()

    def _watch(self) -> None:
        """Sets the alarms of running stages whose time can be expected now."""
        loop = asyncio.get_running_loop()
        for running in self._running.values():
            expected = self.expected(running.stage)
            if running.alarm is None and expected is not None:
                limit = running.begun + max(SLOW * expected, LEAST)
                running.alarm = loop.call_at(limit, self._ring, running, expected)

    def _ring(self, running: _Running, expected: float) -> None:
        stage, seconds = running.stage, asyncio.get_running_loop().time() - running.begun
        self.tell(
            f"{stage.kind} of {stage.name} on {running.where} runs for {seconds:.0f} s; by the others of its "
            f"kind it should take {expected:.0f} s"
        )


def size(stage: Stage) -> int:
    """Rows that a stage goes through, which its time grows with."""
    return max(1, round(sum(len(rows) * times for _, rows, _, times in stage.readings)))  # type: ignore[attr-defined]


def _sort(stage: Stage) -> tuple[str, str]:
    return stage.kind, stage.config.model.name  # type: ignore[attr-defined]
