"""The three definitions of AP, BWT and FWT, and MATRIX.csv."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sapo.analysis.metrics import (
    METRICS,
    continual_metrics,
    read_matrix,
    unseen_gain,
    why_undefined,
    write_matrix,
)
from sapo.conf.errors import UserError

NAN = math.nan
FEW = settings(max_examples=25)
SMALL = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
CELLS = st.sampled_from(["", "0", "50", "99.5", "100", "-1", "nan", "inf", "x", "1e2", "after", "1_0", " 7 "])
TABLES = st.lists(st.lists(CELLS, min_size=1, max_size=4).map(",".join), max_size=5).map("\n".join)


def vector() -> np.ndarray:
    """The example of the specification: N = 5, values worked out there."""
    matrix = np.full((6, 5), 40.0)
    for i in range(1, 6):
        for j in range(1, 6):
            matrix[i, j - 1] = 80 - 2 * (i - j) if j <= i else 40 + i
    return matrix


def plain(a: np.ndarray, n: int) -> dict[str, dict[str, float]]:
    """The formulas of the three definitions, written out; a[i][j] with j counted from 1."""
    a = np.column_stack([np.full(n + 1, NAN), a])
    steps, earlier = range(2, n + 1), range(1, n)

    def lost(since):
        return sum(sum(a[i][j] - since(i, j) for j in range(1, i)) / (i - 1) for i in steps)

    def gained(since):
        return sum(sum(a[i][j] - since(i, j) for j in range(i + 1, n + 1)) / (n - i) for i in earlier)

    found = {
        "reference": (lost(lambda i, j: a[j][j]) / (n - 1), gained(lambda i, j: a[0][j]) / (n - 1)),
        "paper": (lost(lambda i, j: a[i - 1][j]) / n, gained(lambda i, j: a[i - 1][j]) / n),
        "gem": (
            sum(a[n][j] - a[j][j] for j in earlier) / (n - 1),
            sum(a[j - 1][j] - a[0][j] for j in steps) / (n - 1),
        ),
    }
    return {name: dict(zip(METRICS, (a[n][1:].mean(), *both), strict=True)) for name, both in found.items()}


def matrices(smallest: int = 2):
    scores = st.floats(0, 100, allow_nan=False).map(lambda value: round(value, 3))
    return st.integers(smallest, 6).flatmap(lambda n: arrays(float, (n + 1, n), elements=scores))


def test_vector_of_the_specification():
    metrics = continual_metrics(vector())
    assert metrics["reference"] == {"AP": 76.0, "BWT": -3.5, "FWT": 2.5}
    assert metrics["paper"] == {"AP": 76.0, "BWT": -1.6, "FWT": 0.8}
    # At the end tasks 1-4 lost 8, 6, 4, 2; just before training tasks 2-5 had gained 1, 2, 3, 4.
    assert metrics["gem"] == {"AP": 76.0, "BWT": -5.0, "FWT": 2.5}


@FEW
@given(matrices())
def test_equals_the_formulas_written_out(matrix):
    expected = plain(matrix, len(matrix) - 1)
    for definition, values in continual_metrics(matrix).items():
        assert values == pytest.approx(expected[definition], abs=1e-6)


def test_what_is_not_evaluated_is_none_and_named():
    matrix = vector()
    matrix[0] = NAN
    metrics = continual_metrics(matrix)
    assert metrics["reference"] == {"AP": 76.0, "BWT": -3.5, "FWT": None}
    assert metrics["paper"] == {"AP": 76.0, "BWT": -1.6, "FWT": None}
    assert metrics["gem"]["FWT"] is None
    assert why_undefined(matrix, "reference", "FWT", list("abcde")) == "not evaluated: b after 0 and 3 more"
    assert why_undefined(matrix, "reference", "BWT", list("abcde")) is None
    assert continual_metrics([[40.0], [70.0]])["paper"] == {"AP": 70.0, "BWT": None, "FWT": None}
    assert why_undefined([[1], [2]], "gem", "BWT", ["a"]) == "needs at least two trained tasks"


def test_unseen_tasks_do_not_count_and_have_their_own_gain():
    matrix = np.column_stack([vector(), [10, 11, 12, 13, 14, 18], [20, 0, 0, 0, 0, 24]])
    assert continual_metrics(matrix) == continual_metrics(vector())
    assert unseen_gain(matrix) == 6.0  # (8 + 4) / 2
    assert unseen_gain(vector()) is None
    matrix[0, 6] = NAN
    assert unseen_gain(matrix) is None


@pytest.mark.parametrize("matrix", [[[1.0, 2.0]], [1.0, 2.0], [[1.0], [2.0], [3.0]], [[math.inf], [1.0]]])
def test_what_is_not_a_score_matrix_is_refused(matrix):
    with pytest.raises(ValueError, match="score matrix"):
        continual_metrics(matrix)


@FEW
@given(matrices(1))
def test_a_matrix_survives_its_file(tmp_path_factory, matrix):
    matrix[0, 0] = NAN
    frame = pd.DataFrame(matrix, columns=[f'task, "{j}" ü' for j in range(matrix.shape[1])])
    path = write_matrix(frame, tmp_path_factory.mktemp("matrix") / "M.csv")
    assert path.read_text(encoding="utf-8").startswith("after,")
    read = read_matrix(path)
    assert list(read.columns) == list(frame.columns)
    np.testing.assert_array_equal(read.to_numpy(), matrix)


def write(tmp_path: Path, content: str | bytes, name: str = "M.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_file_may_begin_at_1_and_have_blank_lines_spaces_and_a_byte_order_mark(tmp_path):
    path = write(tmp_path, "\ufeffafter, a , b\r\n1, 70 ,\r\n\r\n2, 60, 80\r\n")
    read = read_matrix(path)
    assert list(read.columns) == ["a", "b"]
    np.testing.assert_array_equal(read.to_numpy(), [[NAN, NAN], [70, NAN], [60, 80]])
    nats = read_matrix(write(tmp_path, "after,a\n0,250\n1,1\n", "matrix_nll.csv"))  # may exceed 100
    assert nats["a"].tolist() == [250, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: the header is `after,"),
        ("\n\n", "line 1: the header is `after,"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", r"not UTF-8 text \(byte 0\)"),
        ("0,40,40\n1,70,41\n", "line 1: the header is `after,"),
        ("after;a;b\n0;1;2\n", "with commas"),
        ("after\n0\n", "line 1: the header is `after,"),
        ("after,a,\n0,1,2\n", "line 1, column 3: task '' is named twice, or not at all"),
        ("after,a,a\n0,1,2\n", "line 1, column 3: task 'a' is named twice"),
        ("after,a\n", "no row with `after` 1"),
        ("after,a\n0,4\n", "no row with `after` 1"),
        ("after,a\n0,4\n,5\n", "line 3, column after: '' stands where 1 should"),
        ("after,a\n0,4\nx,5\n", "line 3, column after: 'x' stands where 1"),
        ("after,a\n0,4\n1.5,5\n", "line 3, column after: '1.5' stands where 1"),
        ("after,a\n0,4\n0,5\n", "line 3, column after: '0' stands where 1 should"),
        ("after,a,b\n1,4,4\n0,5,5\n", "line 3, column after: '0' stands where 2 should"),
        ("after,a,b\n0,4,4\n2,5,5\n", "line 3, column after: '2' stands where 1 should"),
        ("after,a\n2,4\n", "line 2, column after: '2' stands where 0 should"),
        ("after,a\n0,4\n1,5\n2,6\n", r"line 4: more trained states \(2\) than tasks \(1\)"),
        ("after,a,b\n0,4\n", "line 2: 2 fields where the header has 3"),
        ("after,a\n0,4\n1,5,6\n", "line 3: 3 fields where the header has 2"),
        ("after,a\n0,4\n1,high\n", "line 3, column a: 'high' is not a number"),
        ("after,a\n0,4\n1,nan\n", "line 3, column a: 'nan' is not a number"),
        ("after,a\n0,4\n1,1_0\n", "line 3, column a: '1_0' is not a number"),
        ("after,a\n0,4\n1,-1\n", "line 3, column a: '-1' is not a number from 0 to 100"),
        ("after,a\n0,4\n1,250\n", "line 3, column a: '250' is not a number from 0 to 100"),
        ("after,a\n0,4\n1,inf\n", "line 3, column a: 'inf' is not a number"),
        ("after,a\n0,4\n1,1e999\n", "line 3, column a: '1e999' is not a number"),
        ('after,a\n0,"4\n', "not CSV"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read_matrix(write(tmp_path, content))
    assert "M.csv" in str(caught.value)


def test_a_file_that_is_not_there_and_a_folder(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError, match="Cannot read the matrix"):
            read_matrix(path)


@SMALL
@given(text=st.text(max_size=40) | TABLES.map(lambda rows: f"after,a,b\n{rows}"))
def test_any_text_gives_numbers_or_a_user_error(tmp_path, text):
    path = tmp_path / "m.csv"
    path.write_bytes(text.encode("utf-8", errors="replace"))
    try:
        matrix = read_matrix(path)
    except UserError as error:
        message = str(error)
        assert str(path) in message  # an error is one of two right outcomes
        return
    found = continual_metrics(matrix)
    assert set(found) == {"paper", "reference", "gem"}
    for values in found.values():
        assert all(value is None or abs(value) <= 200 for value in values.values())
