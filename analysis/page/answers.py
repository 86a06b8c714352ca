"""Predictions to browse: each test example's answer when its task was learned, and at the end of the run."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sapo.analysis.page.sections import RunPage
from sapo.analysis.results import column_rows
from sapo.data.tasks import short_name

MOST_ROWS = 50  # of one task and run
FEWEST_ROWS = 5
PAGE_ROWS = 8000  # of a whole page, so that a browser opens it
LONGEST = 600  # letters of one answer
CHANGES = ("lost", "gained", "reworded", "same")
Tested = tuple[str, str, float]  # target, prediction, ROUGE-L
States = dict[int, dict[int, Tested]]  # state -> example


@dataclass(frozen=True)
class Answer:
    """One test example in two states; `before` is None where only the last state was tested."""

    example: int
    target: str
    before: str | None
    before_score: float | None
    after: str
    after_score: float
    change: str


@dataclass(frozen=True)
class Answers:
    """The answers of one task and run, changed ones first; `counts` is over all, `rows` holds `shown`."""

    page: RunPage
    task: str
    before: str | None
    after: str
    counts: dict[str, int]
    total: int
    rows: tuple[Answer, ...]

    @property
    def short_name(self) -> str:
        """The task's short name."""
        return short_name(self.task)


def answers(pages: Sequence[RunPage]) -> dict[str, list[Answers]]:
    """The answers of every task, a block a run, within what a page can hold."""
    cells = sum(len(page.run.tasks) + len(page.run.unseen) for page in pages)
    most = max(FEWEST_ROWS, min(MOST_ROWS, PAGE_ROWS // max(cells, 1)))
    blocks: dict[str, list[Answers]] = {}
    for page in pages:
        tested = _tested(page)
        for task in (*page.run.tasks, *page.run.unseen):
            found = blocks.setdefault(task, [])
            if task in tested:
                found.append(_block(page, task, tested[task], most))
    return {task: found for task, found in blocks.items() if found}


def _tested(page: RunPage) -> dict[str, States]:
    """The rows of a run by task, state and example."""
    rows = column_rows(page.run, "trained")
    columns = (rows[name] for name in ("task", "after", "example", "target", "prediction", "rougeL"))
    tested: dict[str, States] = {}
    for task, after, example, *answer in zip(*columns, strict=True):
        tested.setdefault(task, {}).setdefault(int(after), {})[int(example)] = tuple(answer)
    return tested


def _block(page: RunPage, task: str, states: States, most: int) -> Answers:
    first, last = _states(page, task, sorted(states))
    before = {} if first is None else states[first]
    rows = [_answer(example, before.get(example), states[last][example]) for example in states[last]]
    rows.sort(key=_place)
    counts = Counter(row.change for row in rows)
    return Answers(
        page,
        task,
        None if first is None else _state_name(page, first),
        _state_name(page, last),
        {change: counts[change] for change in CHANGES if first is not None},
        len(rows),
        tuple(rows[:most]),
    )


def _states(page: RunPage, task: str, tested: Sequence[int]) -> tuple[int | None, int]:
    """The states compared: after the task's own training, else untouched; and the last one tested."""
    last = tested[-1]
    trained = page.run.tasks.index(task) + 1 if task in page.run.tasks else 0
    return next((state for state in (trained, 0) if state in tested and state != last), None), last


def _state_name(page: RunPage, state: int) -> str:
    return f"after {short_name(page.run.tasks[state - 1])}" if state else "untouched model"


def _answer(example: int, before: Tested | None, after: Tested) -> Answer:
    target, text, score = after
    if before is None:
        return Answer(example, _clipped(target), None, None, _clipped(text), score, "same")
    _, old_text, old_score = before
    change = "lost" if score < old_score else "gained" if score > old_score else "reworded"
    if (text, score) == (old_text, old_score):
        change = "same"
    return Answer(example, _clipped(target), _clipped(old_text), old_score, _clipped(text), score, change)


def _place(row: Answer) -> tuple[int, float, int]:
    """The largest losses first, then gains, then other words."""
    difference = 0.0 if row.before_score is None else row.after_score - row.before_score
    return CHANGES.index(row.change), -abs(difference), row.example


def _clipped(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} letters)"
