"""AP, BWT and FWT of a score matrix in three definitions, and the CSV file such a matrix lives in.

a[i][j] is the score on task j after training task i; i = 0 is the untouched model, j counts from 1.
Every metric is linear in a, so that a definition is written once, as weights: values, the cells a metric
needs, and bootstrap intervals all follow from them.
"""

import csv
import io
import math
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sapo.conf.errors import UserError, unknown
from sapo.data.files import write_result

if TYPE_CHECKING:
    from pandas import DataFrame

METRICS = ("AP", "BWT", "FWT")
DEFINITIONS = {
    "paper": "the formulas as printed: mean change over each single training step, over N",
    "reference": "the published code: change since the task was trained / since the untouched model",
    "gem": "Lopez-Paz & Ranzato 2017: the same, at the end only / just before training only",
}
DEFAULT_DEFINITION = "reference"
Weights = NDArray[np.float64]


def continual_metrics(matrix: ArrayLike) -> dict[str, dict[str, float | None]]:
    """`{definition: {"AP": …, "BWT": …, "FWT": …}}` of scores (N+1 states x N tasks, NaN = not evaluated).

    Columns beyond the N-th are unseen tasks and do not count. A metric that needs a cell which was not
    evaluated, or more than the one task there is, is None.
    """
    scores = _checked(matrix)

    def value(definition: str, metric: str) -> float | None:
        weights = metric_weights(definition, metric, len(scores) - 1)
        if weights is None:
            return None
        cells = scores[:, : weights.shape[1]][weights != 0]
        return None if np.isnan(cells).any() else rounded(weights[weights != 0] @ cells)

    return {name: {metric: value(name, metric) for metric in METRICS} for name in DEFINITIONS}


def unseen_gain(matrix: ArrayLike) -> float | None:
    """Mean final-minus-untouched score over the unseen tasks (columns beyond the N-th); None if undefined."""
    scores = _checked(matrix)
    unseen = scores[:, len(scores) - 1 :]
    if not unseen.size or np.isnan(unseen[[0, -1]]).any():
        return None
    return rounded(np.mean(unseen[-1] - unseen[0]))


def why_undefined(matrix: ArrayLike, definition: str, metric: str, tasks: list[str]) -> str | None:
    """The reason why a metric is None, or None if it is defined."""
    scores = _checked(matrix)
    weights = metric_weights(definition, metric, len(scores) - 1)
    if weights is None:
        return "needs at least two trained tasks"
    missing = np.argwhere((weights != 0) & np.isnan(scores[:, : weights.shape[1]]))
    if not len(missing):
        return None
    after, column = missing[0]
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"not evaluated: {tasks[column]} after {after}{more}"


def check_definition(definition: str) -> None:
    """UserError unless `definition` is one of DEFINITIONS."""
    if definition not in DEFINITIONS:
        raise unknown("metric definition", definition, DEFINITIONS)


@lru_cache(maxsize=64)
def metric_weights(definition: str, metric: str, n: int) -> Weights | None:
    """Weights w (n+1 x n) with metric = sum of w * a; None where the metric needs more than `n` tasks."""
    check_definition(definition)
    weights = np.zeros((n + 1, n))
    if metric == "AP":
        weights[n] = 1 / n
        return weights
    if n < 2:
        return None
    backward = metric == "BWT"
    changes: list[tuple[int, int, int, float]] = []  # (i, j, i', weight) of every a[i][j] - a[i'][j]
    if definition == "gem":
        tasks = range(1, n) if backward else range(2, n + 1)
        changes = [(n, j, j, 1 / (n - 1)) if backward else (j - 1, j, 0, 1 / (n - 1)) for j in tasks]
    for after in () if definition == "gem" else range(2, n + 1) if backward else range(1, n):
        tasks = range(1, after) if backward else range(after + 1, n + 1)
        if definition == "reference":
            share = 1 / ((n - 1) * len(tasks))
            changes += [(after, task, task if backward else 0, share) for task in tasks]
        else:
            changes += [(after, task, after - 1, 1 / (n * len(tasks))) for task in tasks]
    for after, task, since, weight in changes:
        weights[after, task - 1] += weight
        weights[since, task - 1] -= weight
    return weights


def rounded(value: float) -> float:
    """The value without the noise of summation (75.99999999999999), and never -0.0."""
    return round(float(value), 10) + 0.0


def _checked(matrix: ArrayLike) -> NDArray[np.float64]:
    scores = np.asarray(matrix, dtype=float)
    if scores.ndim != 2 or len(scores) < 2 or scores.shape[1] < len(scores) - 1:
        raise ValueError(
            f"A score matrix has N+1 rows and N or more columns, N >= 1; got shape {scores.shape}."
        )
    if np.isinf(scores).any():
        raise ValueError("A score matrix holds finite scores, or NaN where a task was not evaluated.")
    return scores


def write_matrix(frame: "DataFrame", path: Path) -> Path:
    """A matrix as `after,<task>,…` with an empty cell for NaN, in full precision; returns the path."""
    return write_result(path, frame.to_csv(index_label="after", na_rep="", lineterminator="\n"))


def read_matrix(path: Path) -> "DataFrame":
    """The scores in a MATRIX.csv: index `after` 0..N, a column a task, NaN where a cell is empty.

    A file that starts at `after` 1 gets an empty row 0. Scores are 0-100; a file named for `nll`
    (`matrix_nll.csv`) holds nats, which have no upper limit. Raises UserError with file, line and column.
    """
    from pandas import DataFrame, RangeIndex

    (_, header), *lines = _rows(path)
    tasks = header[1:]
    highest = math.inf if "nll" in path.stem.split("_") else 100.0
    states: list[Any] = []
    scores: list[Any] = []
    for number, fields in lines:
        where = f"{path}, line {number}"
        if len(fields) != len(header):
            raise UserError(
                f"{where}: {len(fields)} fields where the header has {len(header)}. A cell that was not "
                "evaluated stays empty between its commas."
            )
        if not (fields[0].isascii() and fields[0].isdigit()):
            raise UserError(f"{where}, column after: '{fields[0]}' is not a whole number 0, 1, …, N.")
        state, due = int(fields[0]), [states[-1] + 1] if states else [0, 1]
        if state not in due:
            problem = "is there twice" if state in states else f"stands where {due[0]} should"
            raise UserError(f"{where}, column after: {state} {problem}. Rows are 0, 1, …, N in order.")
        states.append(state)
        cells = zip(tasks, fields[1:], strict=True)
        scores.append([_score(f"{where}, column {task}", text, highest) for task, text in cells])
    if not states or states == [0]:
        raise UserError(f"{path} has no row with `after` 1 or more: metrics need at least one trained state.")
    if states[-1] > len(tasks):
        where = f"{path}, line {lines[-1][0]}"
        raise UserError(f"{where}: more trained states ({states[-1]}) than tasks ({len(tasks)}).")
    if states[0] == 1:
        scores.insert(0, [math.nan] * len(tasks))
    return DataFrame(scores, columns=tasks, index=RangeIndex(len(scores), name="after"))


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, fields) of each line that is not blank; the first is the header, which is checked."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        rows = [(reader.line_num, [field.strip() for field in fields]) for fields in reader if any(fields)]
    except OSError as error:
        raise UserError(f"Cannot read the matrix {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): a matrix is a CSV file.") from error
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({error}).") from error
    if not rows:
        raise UserError(f"{path} is empty: a matrix has a header `after,<task>,…` and a row a state.")
    first, *tasks = rows[0][1]
    if first != "after":
        form = "the header is `after,<task>,<task>,…` with commas"
        raise UserError(f"{path}, line 1: {form}; this one begins with '{first}'.")
    if not tasks:
        raise UserError(f"{path}, line 1: the header names no task after `after`.")
    for place, task in enumerate(tasks):
        if not task or task in tasks[:place]:
            problem = f"task '{task}' is named twice" if task else "a task without a name"
            raise UserError(f"{path}, line 1, column {place + 2}: {problem}.")
    return rows


def _score(where: str, text: str, highest: float) -> float:
    """A cell's score, NaN if it is empty."""
    if not text:
        return math.nan
    try:
        score = math.nan if "_" in text else float(text)
    except ValueError:
        score = math.nan
    if math.isnan(score):
        raise UserError(f"{where}: '{text}' is not a number. Leave a cell that was not evaluated empty.")
    if not 0 <= score <= min(highest, sys.float_info.max):
        limits = "0 to 100" if math.isfinite(highest) else "finite and not negative"
        raise UserError(f"{where}: {text} is out of range: scores here are {limits}.")
    return score
