"""AP, BWT and FWT of a score matrix in three definitions, and the CSV file such a matrix lives in.

a[i][j] is the score on task j after training task i; i = 0 is the untouched model, j counts from 1.
Every metric is linear in a, so that a definition is written once, as weights: values, the cells a metric
needs, and bootstrap intervals all follow from them.
"""

import csv
import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

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
Array = NDArray[np.float64]


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
def metric_weights(definition: str, metric: str, n: int) -> Array | None:
    """Weights w (n+1 x n) with metric = sum of w * a; None where the metric needs more than `n` tasks."""
    check_definition(definition)
    weights = np.zeros((n + 1, n))
    if metric == "AP":
        weights[n] = 1 / n
        return weights
    if n < 2:
        return None
    backward, over = metric == "BWT", n if definition == "paper" else n - 1
    for after in range(1, n + 1):
        # Every a[after][task] counts as its change since another state.
        tasks = range(1, after) if backward else range(after + 1, n + 1)
        share = len(tasks)
        if definition == "gem":
            share = 1
            tasks = tasks[:1] if not backward else tasks if after == n else tasks[:0]
        for task in tasks:
            since = after - 1 if definition == "paper" else task if backward else 0
            weights[after, task - 1] += 1 / (over * share)
            weights[since, task - 1] -= 1 / (over * share)
    return weights


def rounded(value: float) -> float:
    """The value without the noise of summation (75.99999999999999), and never -0.0."""
    return round(float(value), 10) + 0.0


def _checked(matrix: ArrayLike) -> Array:
    scores = np.asarray(matrix, dtype=float)
    is_matrix = scores.ndim == 2 and len(scores) > 1 and scores.shape[1] >= len(scores) - 1
    if not is_matrix or np.isinf(scores).any():
        form = "N+1 rows and N or more columns (N >= 1) of finite scores, NaN where a task was not evaluated"
        raise ValueError(f"A score matrix has {form}; got shape {scores.shape}.")
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

    (_, (_, *tasks)), *lines = _rows(path)
    scores: dict[int, list[float]] = {}
    for number, (after, *cells) in lines:
        where = f"{path}, line {number}"
        if len(cells) != len(tasks):
            raise UserError(
                f"{where}: {len(cells) + 1} fields where the header has {len(tasks) + 1}. A cell that was "
                "not evaluated stays empty between its commas."
            )
        due = [max(scores) + 1] if scores else [0, 1]
        if after not in map(str, due):
            rows = "Rows are 0, 1, …, N in order, each once"
            raise UserError(f"{where}, column after: '{after}' stands where {due[0]} should. {rows}.")
        is_nll = "nll" in path.stem.split("_")
        scores[int(after)] = [
            _score(f"{where}, column {task}", cell, is_nll) for task, cell in zip(tasks, cells, strict=True)
        ]
    n = max(scores, default=0)
    if not n:
        raise UserError(f"{path} has no row with `after` 1 or more: metrics need at least one trained state.")
    if n > len(tasks):
        where = f"{path}, line {lines[-1][0]}"
        raise UserError(f"{where}: more trained states ({n}) than tasks ({len(tasks)}).")
    frame = DataFrame.from_dict(scores, orient="index", columns=tasks)
    return frame.reindex(RangeIndex(n + 1, name="after"))


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
    first, *tasks = header = rows[0][1] if rows else [""]
    if first != "after" or not tasks:
        form = "the header is `after,<task>,<task>,…` with commas"
        raise UserError(f"{path}, line 1: {form}; this one is '{','.join(header)[:60]}'.")
    for place, task in enumerate(tasks):
        if not task or task in tasks[:place]:
            raise UserError(
                f"{path}, line 1, column {place + 2}: task '{task}' is named twice, or not at all."
            )
    return rows


def _score(where: str, text: str, is_nll: bool) -> float:
    """A cell's score, NaN if it is empty."""
    if not text:
        return np.nan
    try:
        score = np.nan if "_" in text else float(text)
    except ValueError:
        score = np.nan
    if not 0 <= score <= (np.finfo(float).max if is_nll else 100):
        limits = "of 0 or more" if is_nll else "from 0 to 100"
        empty = "Leave a cell that was not evaluated empty"
        raise UserError(f"{where}: '{text}' is not a number {limits}. {empty}.")
    return score
