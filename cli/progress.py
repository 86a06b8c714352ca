"""Progress over stages on stderr: a bar on a terminal, one line a computed stage elsewhere."""

import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sapo.cli.console import Terminal
from sapo.experiments.stages import Stage


class StageProgress:
    """An engine's watcher that shows what runs, and how many stages of how many are finished.

    Stages of many runs may be under way at once. One that several runs ask for counts for each of them.
    """

    def __init__(self, total: int = 0) -> None:
        console = Terminal(stderr=True)
        self.total = total
        self.console = console
        self.finished = 0
        self._running: dict[int, tuple[float, str]] = {}
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}", markup=False),
            )
            # Libraries' prints are sent to stderr already.
            self._bar = Progress(*columns, console=console, transient=True, redirect_stdout=False)
            self._row = self._bar.add_task("", total=total)

    def expect(self, stages: int) -> None:
        """So many stages more are to come."""
        self.total += stages
        if self._bar:
            self._bar.update(self._row, total=self.total)

    def __enter__(self) -> "StageProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, stage: Stage, event: str) -> None:
        """Told a stage's `begin` and its end, `done` or `failed`, or that it was `stored`."""
        if event == "begin":
            self._running[id(stage)] = time.monotonic(), str(stage)
            self._show_running()
            return
        begun, _ = self._running.pop(id(stage), (0.0, ""))
        self._show_running()
        if event == "failed":
            return
        self.finished += 1
        if self._bar:
            self._bar.advance(self._row)
        elif event == "done":
            taken = time.monotonic() - begun
            self.console.out(f"[{self.finished}/{self.total}] {stage}: {taken:.1f} s")

    def tell(self, line: str) -> None:
        """A line for people, above the bar."""
        self.console.out(line)

    def _show_running(self) -> None:
        """The stage that runs longest, and how many beside it."""
        if self._bar and self._running:
            _, first = min(self._running.values())
            more = f" and {len(self._running) - 1} more" if len(self._running) > 1 else ""
            self._bar.update(self._row, description=first + more)
