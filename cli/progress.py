"""Progress over stages on stderr: a bar on a terminal, one line a computed stage elsewhere."""

import time
from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sapo.experiments.engine.stages import Score, Stage, Train

WORDS = {"score": "scoring", "train": "training", "evaluate": "evaluating"}


class StageProgress:
    """An engine's watcher that shows what runs, and counts computed and stored stages by run."""

    def __init__(self, total: int) -> None:
        console = Console(stderr=True, highlight=False)
        self.total = total
        self.console = console
        self.computed: Counter[int] = Counter()
        self.stored: Counter[int] = Counter()
        self._begun = 0.0
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

    def __enter__(self) -> "StageProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, stage: Stage, event: str) -> None:
        """Told `begin`, `done` or `stored` of a stage."""
        if event == "begin":
            self._begun = time.monotonic()
            if self._bar:
                self._bar.update(self._row, description=describe(stage))
            return
        # A stage carries the config object of the run that asked for it.
        (self.computed if event == "done" else self.stored)[id(stage.config)] += 1
        if self._bar:
            self._bar.advance(self._row)
        elif event == "done":
            n = self.computed.total() + self.stored.total()
            seconds = time.monotonic() - self._begun
            self.console.out(f"[{n}/{self.total}] {describe(stage)}: {seconds:.1f} s")


def describe(stage: Stage) -> str:
    """`training mini_city, prompt 3`."""
    if isinstance(stage, Score):
        return f"{WORDS[stage.kind]} {len(stage.prompts)} prompts of {stage.name}"
    if isinstance(stage, Train):
        prompts = {prompt for lesson in stage.lessons for prompt in lesson.prompts}
        if len(prompts) > 1:
            return f"{WORDS[stage.kind]} {stage.name}, {len(prompts)} prompts"
        (prompt,) = prompts
    else:
        prompt = stage.prompt
    which = "original prompt" if prompt.index == -1 else f"prompt {prompt.index}"
    return f"{WORDS[stage.kind]} {stage.name}, {which}"
