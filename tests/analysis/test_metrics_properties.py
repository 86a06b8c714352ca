"""`sapo metrics`: any CSV text gives numbers or a UserError, and numbers are those of a plain computation."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sapo.analysis.metrics import continual_metrics, read_matrix
from sapo.conf.errors import UserError

SMALL = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
CELLS = st.sampled_from(["", "0", "50", "99.5", "100", "-1", "nan", "inf", "x", "1e2", "after", "1_0", " 7 "])
TABLES = st.lists(st.lists(CELLS, min_size=1, max_size=4).map(",".join), max_size=5).map("\n".join)
SCORES = st.floats(0, 100, allow_subnormal=False)


@SMALL
@given(text=st.text(max_size=40) | TABLES.map(lambda rows: f"after,a,b\n{rows}"))
def test_any_text_gives_numbers_or_a_user_error(tmp_path, text):
    path = tmp_path / "m.csv"
    path.write_bytes(text.encode("utf-8", errors="replace"))
    said, found = "", None
    try:
        found = continual_metrics(read_matrix(path))
    except UserError as error:
        said = str(error)
    if found is None:
        assert str(path) in said
        return
    assert set(found) == {"paper", "reference", "gem"}
    for values in found.values():
        assert all(value is None or abs(value) <= 200 for value in values.values())


@st.composite
def matrices(draw):
    n = draw(st.integers(2, 5))
    return [draw(st.lists(SCORES, min_size=n, max_size=n)) for _ in range(n + 1)]


@SMALL
@given(scores=matrices())
def test_numbers_are_those_of_a_plain_computation(tmp_path, scores):
    n = len(scores[0])
    lines = [",".join(["after", *(f"t{j}" for j in range(n))])]
    lines += [",".join([str(i), *map(repr, row)]) for i, row in enumerate(scores)]
    path = tmp_path / "m.csv"
    path.write_text("\n".join(lines))
    found = continual_metrics(read_matrix(path))
    ap = sum(scores[n]) / n
    bwt = sum(scores[n][j] - scores[j + 1][j] for j in range(n - 1)) / (n - 1)
    fwt = sum(scores[j][j] - scores[0][j] for j in range(1, n)) / (n - 1)
    for definition in found:
        assert found[definition]["AP"] == pytest.approx(ap, abs=1e-8)
    assert found["gem"]["BWT"] == pytest.approx(bwt, abs=1e-8)
    assert found["gem"]["FWT"] == pytest.approx(fwt, abs=1e-8)
