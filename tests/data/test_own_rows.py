"""Users' rows one at a time: drawn without being held, and every fault named at the end."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

import sapo.data.own_files as own_files
from sapo.conf.errors import UserError
from sapo.data.own import OwnExamples, examples_of, require_writable, write_jsonl
from sapo.data.own_files import read_splits
from sapo.data.subset import draw
from sapo.data.tasks import Example, own_task

RECORDS = [{"text": f"row {i}", "label": str(i)} for i in range(40)]


def rows_of(path: Path) -> OwnExamples:
    return OwnExamples(read_splits(path, str(path))["train"])


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(rows_of(path))
    return str(caught.value)


# --- reading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_large_file_is_never_held(tmp_path: Path, ending: str) -> None:
    """20 MB of rows are drawn from within 3 MB."""
    path, text = tmp_path / f"large.{ending}", "x" * 1000
    with path.open("w") as file:
        if ending == "csv":
            file.write("text,label\n")
        for i in range(20_000):
            row = json.dumps({"text": text, "label": str(i)}) if ending == "jsonl" else f"{text},{i}"
            file.write(row + "\n")
    tracemalloc.start()
    try:
        drawn, total = draw(rows_of(path), 64, "random", 0, "large")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(drawn), total) == (64, 20_000)
    assert path.stat().st_size > 20_000_000
    assert peak < 3_000_000


def test_rows_are_read_anew_each_time(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, RECORDS)))
    rows = rows_of(path)
    assert list(rows) == list(rows) == [Example(record["text"], record["label"]) for record in RECORDS]
    assert rows.columns == ("text", "label")


def test_a_fault_in_the_last_row_is_found(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [*RECORDS, {"text": "x", "label": None}])))
    assert f"{path}: column 'label' is empty or absent in line 41." in refusal(path)


def test_bad_utf8_far_down_is_placed(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"text,label\n" + b"a,b\n" * 2000 + b"\xff,b\n")
    assert f"{path}: not UTF-8 at byte 8011 (line 2002): invalid start byte" in refusal(path)


def test_a_file_without_lines_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_files, "LONGEST_LINE", 2**20)
    path = tmp_path / "one.jsonl"
    path.write_bytes(b"{" * (2**20 + 1))
    assert f"{path}: line 1 is longer than 1 MiB." in refusal(path)


def test_a_field_may_be_as_long_as_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_files, "LONGEST_LINE", 2**18)
    path = tmp_path / "rows.csv"
    text = "x" * (2**18 - 10)
    path.write_text(f"input,output\n{text},long\nshort,short\n")
    rows = read_splits(path, str(path))["train"].read()
    assert [dict(row.values) for row in rows] == [
        {"input": text, "output": "long"},
        {"input": "short", "output": "short"},
    ]
    path.write_text(f'input,output\n"{text}\n{text}",long\n')
    assert f"{path}, line 3: field larger than field limit" in refusal(path)


def test_a_large_json_list_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_files, "LARGEST_JSON", 2**20)
    path = tmp_path / "list.json"
    path.write_bytes(b"[" + b" " * 2**20 + b"]")
    assert "a JSON list of more than 1 MiB" in refusal(path)
    assert "JSONL" in refusal(path)


def test_objects_are_named_by_their_place() -> None:
    with pytest.raises(UserError, match=r"examples: empty target in row 1, row 2\."):
        list(examples_of([("a", "b"), ("c", ""), ("d", " ")]))
    assert list(examples_of([("a", "b")], frame=own_task("t", "", "", ("b",)))) == [Example("a", "b")]


# --- writing -----------------------------------------------------------------------------------------------


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"

    def breaking() -> Iterator[dict]:
        yield {"a": 1}
        raise UserError("no more")

    with pytest.raises(UserError):
        write_jsonl(path, breaking())
    assert list(tmp_path.iterdir()) == []
    assert write_jsonl(path, [{"a": "ü\u2028"}, {"b": 2}]) == 2
    assert path.read_text(encoding="utf-8") == '{"a": "ü\u2028"}\n{"b": 2}\n'
    with pytest.raises(UserError):
        write_jsonl(path, breaking())
    assert path.read_text(encoding="utf-8").count("\n") == 2


def test_a_file_of_the_data_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(UserError, match="that is what is read"):
        require_writable(tmp_path / "train.jsonl", [str(tmp_path), None])
    require_writable(tmp_path / "new.jsonl", [str(tmp_path), None])
