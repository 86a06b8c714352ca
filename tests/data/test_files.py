"""Result files are there whole, or not at all; why not decides the exit code."""

import errno
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from sapo.analysis.figures import save
from sapo.conf.errors import UserError, WorkError
from sapo.data.files import write_result


def test_a_text_replaces_what_was_there(tmp_path):
    assert write_result(tmp_path / "new" / "a.md", "ä\n").read_bytes() == "ä\n".encode()
    assert write_result(tmp_path / "new" / "a.md", b"b").read_text() == "b"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.md"]


@pytest.mark.parametrize(
    ("number", "kind", "mend"),
    [
        (errno.ENOSPC, WorkError, "Make room"),
        (errno.EDQUOT, WorkError, "Make room"),
        (errno.EFBIG, WorkError, "Make room"),
        (errno.EACCES, UserError, "Name a folder that you may write"),
        (errno.EROFS, UserError, "Name a folder that you may write"),
        (errno.ENOTDIR, UserError, "Choose another folder"),
    ],
)
def test_what_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch, number, kind, mend):
    path = write_result(tmp_path / "a.png", "old")
    opened = Path.open

    def refuse(self: Path, mode: str = "r", **options: Any) -> Any:
        if mode != "wb":
            return opened(self, mode, **options)
        with opened(self, mode) as file:
            file.write(b"ne")
        raise OSError(number, "no")

    monkeypatch.setattr(Path, "open", refuse)
    for write in (lambda: write_result(path, "new"), lambda: save(Figure(), tmp_path / "a")):
        with pytest.raises(UserError, match=mend) as caught:
            write()
        assert type(caught.value) is kind
        assert str(path) in str(caught.value)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]
