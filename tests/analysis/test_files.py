"""Result files are there whole, or not at all; why not decides the exit code."""

import errno
from pathlib import Path

import pytest

from sapo.analysis.files import replacing, write_text
from sapo.conf.errors import UserError, WorkError


def test_a_text_replaces_what_was_there(tmp_path: Path) -> None:
    assert write_text(tmp_path / "new" / "a.md", "ä\n").read_bytes() == "ä\n".encode()
    assert write_text(tmp_path / "new" / "a.md", "b").read_text() == "b"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.md"]


def fail_within(path: Path, error: OSError) -> None:
    with replacing(path) as temporary:
        temporary.write_text("ne")
        raise error


@pytest.mark.parametrize(
    ("number", "kind", "mend"),
    [
        (errno.ENOSPC, WorkError, "Make room"),
        (errno.EDQUOT, WorkError, "Make room"),
        (errno.EFBIG, WorkError, "Make room"),
        (errno.EACCES, UserError, "Choose another folder"),
        (errno.EROFS, UserError, "Choose another folder"),
    ],
)
def test_what_cannot_be_written_leaves_what_was_there(
    tmp_path: Path, number: int, kind: type[UserError], mend: str
) -> None:
    path = write_text(tmp_path / "a.csv", "old")
    with pytest.raises(UserError, match=mend) as caught:
        fail_within(path, OSError(number, "no"))
    assert type(caught.value) is kind
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
