"""Users' own data: every format gives the same task, and every fault is named with its file and row."""

import gzip
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import datasets
import pandas as pd
import pytest
from tiny import refusal as refusal_of

from sapo.conf.errors import UserError
from sapo.conf.load import load_one
from sapo.data import own_files
from sapo.data.benchmarks import load_own_task
from sapo.data.own import (
    OwnExamples,
    examples_of,
    guess_columns,
    labels_of,
    load_own,
    own_sequence,
    require_writable,
    write_jsonl,
)
from sapo.data.own_files import read_splits
from sapo.data.subset import draw
from sapo.data.tasks import Example, Task, own_task

INSTRUCTION = "Say whether the dish is sweet or sour."
RECORDS = [
    {"text": "honey cake", "label": "sweet"},
    {"text": 'lemon "sorbet", cold', "label": "sour"},
    {"text": "two\nlines of sugar", "label": "sweet"},
    {"text": "Sauerkraut, süß-sauer", "label": "sour"},
    {"text": "candy\u2028floss", "label": "sweet"},
]
ROWS = {Example(record["text"], record["label"]) for record in RECORDS}


def write(path: Path, records: list[dict[str, object]], sep: str | None = None) -> Path:
    """The records in the format that the file's ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if ".jsonl" in path.suffixes:
        content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    elif path.suffix == ".parquet":
        pd.DataFrame(records).to_parquet(path)
    else:
        usual = "\t" if path.suffix == ".tsv" else ","
        pd.DataFrame(records).to_csv(path, index=False, sep=sep or usual)
    return path


def rows_of(task: Task) -> set[Example]:
    return {*task.train, *task.test}


def rows_in(path: Path) -> OwnExamples:
    return OwnExamples(read_splits(path, str(path))["train"])


def load(path: Path, **options: object) -> Task:
    return load_own(str(path), INSTRUCTION, **options)


def refusal(path: Path, **options: object) -> str:
    return refusal_of(load, path, **options)


# --- what is read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_task(tmp_path, ending):
    task = load(write(tmp_path / f"dishes.{ending}", RECORDS), suffix="Answer:", labels=("sweet", "sour"))
    assert (len(task.train), len(task.test)) == (4, 1)
    assert rows_of(task) == ROWS
    assert (task.name, task.instruction, task.suffix) == ("dishes", INSTRUCTION, "Answer:")
    assert (task.kind, task.labels, task.language) == ("classification", ("sweet", "sour"), "en")


def test_a_fifth_of_the_rows_is_the_test(tmp_path):
    path = write(tmp_path / "many.jsonl", [{"input": f"q{i}", "output": f"a{i}"} for i in range(50)])
    first = load(path)
    assert load(path) == first
    assert {example.target for example in first.train + first.test} == {f"a{i}" for i in range(50)}
    assert len(first.test) == 10


def test_a_folder_with_one_split_or_both(tmp_path):
    folder = write(tmp_path / "v1.dishes" / "train.parquet", RECORDS[:3]).parent
    assert len(load(folder).train) == 2
    write(folder / "test.csv", RECORDS[3:])
    task = load(folder)
    assert [example.input for example in task.train + task.test] == [record["text"] for record in RECORDS]
    assert (task.name, len(task.train)) == ("v1.dishes", 3)


@pytest.mark.parametrize(
    "names", ["train-{}.jsonl", "train/{}.jsonl", "part-{}.jsonl.gz", "data/train-{}.csv"]
)
def test_shards_are_one_split(tmp_path, names):
    folder = tmp_path / "dishes"
    paths = [folder / names.format(number) for number in range(2)]
    for path, records in zip(paths, (RECORDS[:3], RECORDS[3:]), strict=True):
        write(path, records)
    (folder / "README.md").write_text("x")
    (folder / "_SUCCESS").write_text("")
    task = load(folder)
    assert rows_of(task) == ROWS
    assert "dishes" in task.notes[0]
    assert "(2 train files): input from column 'text'" in task.notes[0]
    if names == "train/{}.jsonl":
        write(paths[1], [*RECORDS, {"text": "x", "label": ""}])
        assert "empty target in 1.jsonl, line 6." in refusal(folder)
        write(folder / "test-1.jsonl", RECORDS[:1])
        write(folder / "test-2.parquet", RECORDS[:1])
        assert "more than one test file: test-1.jsonl, test-2.parquet" in refusal(folder)


def test_a_validation_split_is_the_test_where_there_is_no_other(tmp_path):
    write(tmp_path / "train.jsonl", RECORDS[:3])
    write(tmp_path / "dev.csv", RECORDS[3:4])
    task = load(tmp_path)
    assert [example.target for example in task.test] == ["sour"]
    said = f"{tmp_path / 'train.jsonl'}: no test split there: the validation split is the test"
    assert said in task.notes
    write(tmp_path / "test.csv", RECORDS[4:])
    task = load(tmp_path)
    assert [example.input for example in task.test] == [RECORDS[4]["text"]]
    assert f"{tmp_path / 'train.jsonl'}: the split 'validation' is not read" in task.notes


def test_packed_files(tmp_path):
    def packed(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    task = load(packed("rows.jsonl.gz", gzip.compress(b'{"input": "a", "output": "b"}\n' * 3)))
    assert (task.name, len(task.train + task.test)) == ("rows", 3)
    whole = gzip.compress(json.dumps(RECORDS).encode())
    assert rows_of(load(packed("list.json.gz", whole))) == ROWS
    for name, content, said in (
        ("no.csv.gz", b"text,label", "no.csv.gz: cannot be read: Not a gzipped file"),
        ("cut.json.gz", whole[:60], "cannot be read: Compressed file ended"),
        ("rows.parquet.gz", b"", "cannot read '.gz' files; known: .jsonl"),
    ):
        assert said in refusal(packed(name, content))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_delimiter_is_found_out(tmp_path, delimiter, ending):
    task = load(write(tmp_path / f"dishes.{ending}", RECORDS, sep=delimiter))
    assert rows_of(task) == ROWS
    usual = delimiter == ("," if ending == "csv" else "\t")
    assert any("fields are separated by" in note for note in task.notes) == (not usual)


def test_a_delimiter_can_be_said(tmp_path):
    path = tmp_path / "dishes.csv"
    path.write_text("text:label\n" + "a, b; c:x\n" * 60)
    assert "line 2: 2 fields, but the header has 1 columns." in refusal(path)
    assert load(path, delimiter=":").train[0] == Example("a, b; c", "x")
    path.write_text("text,label\n" + "a,x\n" * 60 + "a,b,x\n")
    assert "the delimiter ',' in double quotes, or say another one: data.delimiter=." in refusal(path)


def test_labels_may_have_other_names_in_the_rows(tmp_path):
    path = write(tmp_path / "dishes.csv", [{"text": f"x{i}", "label": i % 2} for i in range(6)])
    for labels in ({0: "sweet", 1: "sour"}, "{0: sweet, 1: sour}", '{"0": sweet, "1": sour}'):
        task = load(path, labels=labels_of(labels))
        assert task.labels == ("sweet", "sour")
        found = {(int(e.input[1:]) % 2, e.target) for e in task.train + task.test}
        assert found == {(0, "sweet"), (1, "sour")}
    said = refusal(path, labels=("sweet", "sour"))
    assert "none of the labels sweet, sour (labels={0: NAME, 1: NAME} names numbers) in line 2 ('0')" in said
    described = "instruction: Sort.\ndata: dishes.csv\nlabels: {0: sweet, 1: sour}\n"
    (tmp_path / "dishes.yaml").write_text(described)
    assert load_own_task("dishes", tmp_path).labels == ("sweet", "sour")
    for wrong in ("{0: a, 1", "{no: sour}", "{0: [sour]}"):
        assert "write labels=" in refusal_of(labels_of, wrong)


def test_rows_that_bring_their_instruction_are_a_sequence_without_more_words(tmp_path):
    rows = [{"instruction": "Sort.", "input": f"x{i}", "output": "a" if i % 2 else "b"} for i in range(4)]
    path = write(tmp_path / "alpaca.json", rows)
    config = load_one(["task=mini_city", f"store.root='{tmp_path}'"])
    overrides = own_sequence({"data": str(path), "labels": "{a: sweet, b: sour}"}, [], config)
    assert "sequence.tasks=[alpaca]" in overrides
    task = load_own_task("alpaca", tmp_path / "tasks")
    assert (task.instruction, task.labels) == ("Sort.", ("sweet", "sour"))
    assert {(each.input[0], each.target) for each in task.train} <= {("x", "sweet"), ("x", "sour")}
    plain = write(tmp_path / "plain.json", RECORDS)
    assert "Which instruction" in refusal_of(own_sequence, {"data": str(plain)}, [], config)
    several = write(tmp_path / "several.json", [*rows, rows[0] | {"instruction": "Order."}])
    said = "The rows bring 2 of their own, such as 'Sort.' and 'Order.'"
    assert said in refusal_of(own_sequence, {"data": str(several)}, [], config)


def test_what_python_has_is_read_as_files_are():
    frame = pd.DataFrame([*RECORDS, {"text": "x", "label": None}]).convert_dtypes()
    assert "column 'label' is empty or absent in row 5" in refusal_of(list, examples_of(frame))
    dataset = datasets.Dataset.from_list(RECORDS)
    for items in (
        frame[:5],
        frame[:5].astype("category"),
        dataset,
        dataset.with_format("pandas"),
        dataset.to_iterable_dataset(),
        datasets.DatasetDict({"train": dataset, "test": dataset}),
        {"train": RECORDS, "validation": RECORDS[:1]},
    ):
        examples = examples_of(items)
        assert set(examples) == set(examples) == ROWS
    assert {e.target for e in examples_of(pd.DataFrame({"text": ["a", "b"], "label": [1, 2]}))} == {"1", "2"}
    for items, message in ((RECORDS[0], "found text"), ("rows.csv", "found text"), (3, "found number")):
        assert f"expected rows, a data frame or a dataset, {message}" in refusal_of(examples_of, items)


def test_a_saved_dataset_with_named_classes(tmp_path):
    kinds = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["sweet", "sour"])}
    classes = {"text": ["honey", "lemon"], "label": [0, 1]}
    split = datasets.Dataset.from_dict(classes, features=datasets.Features(kinds))
    datasets.DatasetDict({"train": split, "test": split.select([1])}).save_to_disk(tmp_path / "both")
    task = load(tmp_path / "both")
    assert task.train == (Example("honey", "sweet"), Example("lemon", "sour"))
    assert task.test == (Example("lemon", "sour"),)
    split.save_to_disk(tmp_path / "one")
    assert len(load(tmp_path / "one").train) == 1
    datasets.DatasetDict({"all": split}).save_to_disk(tmp_path / "all")
    assert "has no split 'train'; it has all" in refusal(tmp_path / "all")
    split.to_parquet(tmp_path / "classes.parquet")
    assert set(load(tmp_path / "classes.parquet", labels=("sweet", "sour")).train) <= set(task.train)
    (tmp_path / "one" / "state.json").write_text("{}")
    assert "the saved dataset cannot be loaded" in refusal(tmp_path / "one")


def test_a_dataset_by_name(monkeypatch):
    def hub(name: str) -> datasets.DatasetDict:
        if name == "someone/dishes":
            return datasets.DatasetDict({"train": datasets.Dataset.from_list(RECORDS)})
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", hub)
    task = load_own("someone/dishes", INSTRUCTION)
    assert (task.name, len(task.train)) == ("someone_dishes", 4)
    said = refusal_of(load_own, "else/x", INSTRUCTION)
    assert said.startswith("else/x: there is no such file")
    assert "ConnectionError: no route" in said


def test_duplicates_across_the_split_are_warned_of(tmp_path):
    task = load(write(tmp_path / "same.json", [{"input": "x", "output": "y"}] * 4))
    assert "1 inputs occur in train and in test; drop duplicate rows" in task.notes


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("marked.csv", b"\xef\xbb\xbfinput,output\r\na,b\r\n\r\nc,d\r\n"),
        ("lines.jsonl", b'\n{"input": "a", "output": "b"}\r\n\r\n{"input": "c", "output": "d"}'),
    ],
)
def test_byte_order_mark_blank_lines_and_windows_line_ends(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert rows_of(load(tmp_path / name)) == {Example("a", "b"), Example("c", "d")}


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        ("id Prompt Completion", ("Prompt", "Completion")),
        ("answer question", ("question", "answer")),
        ("text label input", ("text", "label")),
        ("text label messages", ("messages", "messages")),
        ("instruction input output", ("instruction+input", "output")),
        ("prompt chosen rejected", ("prompt", "chosen")),
    ],
)
def test_guessing_columns(names, pair):
    assert guess_columns(names.split(), "a file") == pair


# --- forms that people have --------------------------------------------------------------------------------


def chat(*turns: tuple[str, object]) -> list[dict[str, object]]:
    return [{"role": role, "content": content} for role, content in turns]


WRITTEN = {
    "prompt": chat(("user", "Sort it.\n\nText:\nhoney\n\nAnswer:")),
    "completion": chat(("assistant", "sweet")),
    "chat_template_kwargs": {"enable_thinking": False},
}
HISTORY = chat(
    *(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")),
    ("user", [{"type": "text", "text": "honey"}]),
    *(("assistant", None), ("tool", "{}"), ("assistant", "sweet"), ("user", "Thanks")),
)
PREFERRED = {"chosen": chat(("user", "a"), ("assistant", "b"))}
REJECTED = {"rejected": chat(("user", "a"), ("assistant", "c"))}
TURNS = [{"from": "human", "value": "honey"}, {"from": "gpt", "value": "sweet"}]
PARTS = chat(
    ("user", [{"type": "input_text", "text": "sweet"}, "honey"]),
    ("assistant", [{"type": "text", "text": "yes"}]),
)
ASKED = {"context": "Ann is in Oslo.", "question": "Where?", "answer": "Oslo", "id": 7, "choices": ["a", "b"]}
HONEY = ("honey", "sweet")
TOLD = {"instruction": "Sort.", "output": "sweet"}
TRIPLE = {"prompt": chat(("user", "a")), "chosen": chat(("assistant", "b"))}
FORMS = [  # a row, its input and target, and what of it is left out
    (TOLD | {"input": "honey"}, ("Sort.\n\nhoney", "sweet"), []),
    (TOLD | {"input": ""}, ("Sort.", "sweet"), []),
    (TOLD | {"input": None}, ("Sort.", "sweet"), []),
    (
        TOLD | {"instruction": INSTRUCTION, "input": "honey"},
        HONEY,
        ["1 instructions that are the task's own"],
    ),
    (
        {"instruction": "Sort.", "context": "honey", "response": "sweet"},
        ("Sort.", "sweet"),
        ["column 'context' (columns=[A+B,TARGET]"],
    ),
    (ASKED, ("Where?", "Oslo"), ["column 'context', 'choices' (columns="]),
    ({"conversations": TURNS, "id": "a"}, HONEY, ["column 'id'"]),
    ({"messages": HISTORY}, HONEY, ["1 later turns; 1 system turns; 3 earlier turns; 1 tool turns"]),
    (WRITTEN, HONEY, ["1 instructions before the input, as `sapo select"]),
    ({"messages": PARTS}, ("sweet\nhoney", "yes"), []),
    ({"prompt": [{"type": "text", "text": "honey"}], "response": "sweet"}, HONEY, []),
    (TRIPLE | {"rejected": chat(("assistant", "c"))}, ("a", "b"), ["column 'rejected'"]),
    (PREFERRED | REJECTED, ("a", "b"), ["column 'rejected'"]),
    ({"question": "a", "answer": ["b", "c"]}, ("a", "b"), ["1 rows' further targets (the first is taken)"]),
]


@pytest.mark.parametrize(("row", "expected", "left_out"), FORMS)
def test_a_row_is_read_as_what_it_is(row, expected, left_out):
    examples = examples_of([row], frame=own_task("dishes", INSTRUCTION, "Answer:"))
    assert list(examples) == list(examples) == [Example(*expected)]
    _, *notes = examples.notes
    assert len(notes) == len(left_out)
    assert all(f"examples: left out: {what}" in note for what, note in zip(left_out, notes, strict=True))


def test_rows_that_are_marked_as_rejected_are_no_targets():
    examples = examples_of([{"prompt": "a", "completion": c, "label": c == "b"} for c in ("b", "c", "b")])
    assert list(examples) == [Example("a", "b")] * 2
    assert examples.notes[1:] == ["examples: left out: 1 rejected rows (column 'label' is false)"]


def test_named_columns_are_joined_and_the_rest_is_the_users_business():
    row = {"context": "Ann is in Oslo.", "question": "Where?", "answer": "Oslo", "a+b": "c"}
    examples = examples_of([row], ("context+question", "answer"))
    assert list(examples) == [Example("Ann is in Oslo.\n\nWhere?", "Oslo")]
    said = "input from column 'context' and 'question', target from column 'answer'"
    assert examples.notes == [f"examples: {said}"]
    assert list(examples_of([row], ("a+b", "answer"))) == [Example("c", "Oslo")]


def natural_instructions() -> dict[str, object]:
    instances = [{"id": str(n), "input": str(n), "output": ["No" if n % 2 else "Yes"]} for n in range(4)]
    said = {"Contributors": ["A"], "Definition": ["Is it even?"], "Positive Examples": []}
    return {**said, "Instances": instances}


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (json.dumps(natural_instructions()), 4),
        (json.dumps(natural_instructions(), indent=1), 4),
        ('{"text":"a","label":"x"}\n{"text":"b","label":"y"}\n', 2),
        ('{"text":"a","label":"x"}\r\n\r\n{"text":"b","label":"y"}', 2),
        ('{"data":[{"text":"a","label":"x"},{"text":"b","label":"y"}]}', 2),
        ('{\n"version": 1, "rows":[{"text":"a","label":"x"},{"text":"b","label":"y"}]}', 2),
        ('\ufeff[{"text":"a","label":"x"},{"text":"b","label":"y"}]', 2),
    ],
)
def test_json_in_any_usual_form(tmp_path, content, count):
    path = tmp_path / "rows.json"
    path.write_text(content, encoding="utf-8")
    task = load_own(str(path), "Is it even?")
    assert len(task.train + task.test) == count
    assert {example.target for example in task.train + task.test} in ({"Yes", "No"}, {"x", "y"})
    assert all(len(example.input) == 1 for example in task.train + task.test)


def test_what_a_json_file_holds_beside_its_rows_is_said(tmp_path):
    path = tmp_path / "task.json"
    path.write_text(json.dumps(natural_instructions()))
    task = load_own(str(path), "Even or not?")
    assert {example.input for example in task.train + task.test} == {f"Is it even?\n\n{n}" for n in range(4)}
    assert task.notes[1].startswith(f"{path}: left out: member 'Contributors'; column 'id'")
    path.write_text('{"train": [{"text": "a"}], "test": [{"text": "b"}]}')
    assert "an object with several lists (train, test: write each to a file)" in refusal(path)
    path.write_text('{"text": ["a", "b"], "label": ["x", "y"]}')
    assert "expected a JSON list of objects, found an object. An object a line" in refusal(path)


def test_numbers_stay_as_they_are_written(tmp_path):
    path = tmp_path / "sums.jsonl"
    numbers = ("1.10", "1e400", "-0", "7" * 5000)
    path.write_text("".join(f'{{"input": "{n}", "output": {n}}}\n' for n in numbers))
    task = load(path)
    assert all(example.input == example.target for example in task.train + task.test)
    assert task.notes[1:] == ("no test rows there: 1 of 4 rows are held out, drawn at random",)
    path.write_text('{"input": "a", "output": 1}\n{"input": "b", "output": Infinity}\n')
    assert f"{path}: column 'output' holds Infinity in line 2." in refusal(path)
    examples = examples_of([("a", 1.10), ("b", 2.5)])
    assert [example.target for example in examples] == ["1.1", "2.5"]
    said = "left out: 2 numbers' notations in column 'target' (from row 0 on)"
    assert examples.notes[1] == f"examples: {said}"


@pytest.mark.parametrize("name", ["a[1] b?*", "it's #1=2", "données~", "~x"])
def test_any_name_of_a_file_or_folder(tmp_path, monkeypatch, name):
    folder = tmp_path / name
    folder.mkdir()
    write(folder / "train.jsonl", RECORDS)
    assert load(write(folder / f"{name}.csv", RECORDS)).name == name
    monkeypatch.chdir(tmp_path)
    assert load_own(name, INSTRUCTION).name == name
    datasets.Dataset.from_list(RECORDS).save_to_disk(folder / "saved")
    assert len(load(folder / "saved").train) == 4
    (folder / "mine.yaml").write_text("instruction: Sort.\ndata: train.jsonl\n")
    assert len(load_own_task("mine", folder).train) == 4


# --- what is refused ---------------------------------------------------------------------------------------


GOOD = {"text": "x", "label": "y"}
EMPTY = {**GOOD, "label": ""}
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x"}
PICTURE = {**USER, "content": [{"type": "image_url", "image_url": {}}]}
NO_TURNS = {
    "assistant": ("Hi", [], [{"role": "user"}], [USER], [USER, {**ANSWER, "content": "\ud800"}]),
    "user": ([ANSWER], [ANSWER, USER], [{**USER, "content": {}}, ANSWER]),
}
FAULTS = [  # an ending, what is in the file, and what is said of it; a list is an object a line
    ("jsonl", '{"input": "a", "output": "b"}\n{"input": "a" "output": "b"}', "JSON at line 2, column 15"),
    ("json", '[\n  {"input": "a"},\n  {"input" "b"}\n]', "broken JSON at line 3, column 12"),
    ("json", '{"input": "a", "output": "b"}', "expected a JSON list of objects, found an object"),
    ("json", '[{"input": "a", "output": "b"}, "c"]', "item 2: expected an object with named columns, fou"),
    ("csv", "input,output\nsüß,x\n".encode("latin-1"), "not UTF-8 at byte 14 (line 2)"),
    ("csv", b"text,label\n" + b"a,b\n" * 2000 + b"\xff,b\n", "not UTF-8 at byte 8011 (line 2002)"),
    ("csv", "input,output\na,b\nc,d,e\n", "line 3: 3 fields, but the header has 2 columns."),
    ("csv", "input,output,input\na,b,c\n", "occurs twice in the header: input, output, input"),
    ("csv", 'input,output\na,"b\n', "line 2: unexpected end of data"),
    ("csv", "input,output\na\rb,c\n", "line 2: new-line character seen in unquoted field"),
    ("parquet", b"PAR1 no", "not a readable parquet file"),
    ("jsonl", [], "no rows"),
    ("jsonl", [GOOD], "1 row; at least 2"),
    ("jsonl", [{"tweet": "a", "mood": "b"}], "no known pair of columns among tweet, mood. Name yours"),
    ("csv", "text;label\na;b;c\n", "If ';' stands between its columns: data.delimiter=';'. Name yours"),
    ("jsonl", [GOOD, EMPTY] * 8, "empty target in line 2, line 4, line 6, line 8, line 10 and 3"),
    ("json", json.dumps([GOOD, {"text": "x"}]), "column 'label' is empty or absent in item 2."),
    ("jsonl", [*[GOOD] * 40, {**GOOD, "label": None}], "column 'label' is empty or absent in line 41."),
    ("jsonl", [GOOD, {**GOOD, "label": 1}], "column 'label' mixes types: text (line 1), number (line 2)."),
    ("jsonl", [{**GOOD, "text": ["x", "y"]}] * 2, "holds a list, not texts or numbers, in line 1"),
    ("jsonl", [{**GOOD, "text": "\ud800"}, GOOD], "column 'text' holds half a surrogate pair in line 1."),
    *(
        ("jsonl", [{"messages": turns}], f"has no {role} turn, with role and content (texts), in")
        for role, several in NO_TURNS.items()
        for turns in several
    ),
    ("jsonl", [{"messages": [USER, {**ANSWER, "content": " "}]}], "empty target in line 1"),
    ("jsonl", [{"messages": [PICTURE, ANSWER]}], "has parts that are no texts (image_url) in line 1"),
    (
        "jsonl",
        [GOOD, EMPTY, {**GOOD, "text": None}],
        "empty target in line 2. Mend or drop these rows.\nPATH: column 'text' is empty or absent in line 3.",
    ),
]


@pytest.mark.parametrize(("ending", "content", "message"), FAULTS)
def test_faults_are_named_with_their_place(tmp_path, ending, content, message):
    path = tmp_path / f"rows.{ending}"
    if isinstance(content, list):
        content = "\n".join(map(json.dumps, content))
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    said = refusal(path)
    assert said.startswith(str(path))
    assert message.replace("PATH", str(path)) in said


def test_columns_and_labels_that_are_not_there(tmp_path):
    path = write(tmp_path / "dishes.csv", RECORDS)
    assert "no column 'feeling'; there are text, label" in refusal(path, columns=("text", "feeling"))
    said = refusal(path, labels=("sweet", "salty"))
    assert "target is none of the labels sweet, salty in line 3 ('sour'), line 6 ('sour')" in said


def test_paths_that_lead_nowhere(tmp_path):
    assert "there is no such file or folder" in refusal(tmp_path / "no.jsonl")
    assert "there is no such file or folder" in refusal(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("x")
    assert "cannot read '.txt' files; known: .jsonl" in refusal(tmp_path / "notes.txt")
    assert "no train file (train.jsonl, " in refusal(tmp_path)
    assert "it has notes.txt" in refusal(tmp_path)
    write(tmp_path / "train.json", RECORDS)
    write(tmp_path / "train.csv", RECORDS)
    assert "more than one train file: train.csv, train.json" in refusal(tmp_path)


def test_a_hole_in_a_parquet_file_is_no_number(tmp_path):
    path = write(tmp_path / "holes.parquet", [{"text": "x", "label": 1.0}, {"text": "x", "label": None}])
    assert f"{path}: column 'label' is empty or absent in row 2." in refusal(path)


# --- reading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_large_file_is_never_held(tmp_path, ending):
    """A reading holds some of the first rows, to know their columns, and the rows drawn."""
    path, text = tmp_path / f"large.{ending}", "x" * 1000
    row, head = {"jsonl": ('{{"text": "{}", "label": "{}"}}', []), "csv": ("{},{}", ["text,label"])}[ending]
    path.write_text("\n".join([*head, *(row.format(text, i) for i in range(4000))]))
    tracemalloc.start()
    try:
        drawn, total = draw(rows_in(path), 64, "random", 0, "large")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(drawn), total) == (64, 4000)
    assert peak < path.stat().st_size / 2


def test_rows_are_read_anew_each_time(tmp_path):
    rows = rows_in(write(tmp_path / "rows.jsonl", RECORDS))
    assert list(rows) == list(rows) == [Example(record["text"], record["label"]) for record in RECORDS]
    assert rows.columns == ("text", "label")


def test_a_field_may_be_long(tmp_path):
    rows = [{"input": "x" * 2**18, "output": "long"}, {"input": "short", "output": "short"}]
    assert {len(example.input) for example in rows_in(write(tmp_path / "rows.csv", rows))} == {2**18, 5}


def test_objects_are_named_by_their_place():
    said = refusal_of(list, examples_of([("a", "b"), ("c", ""), ("d", " ")]))
    assert "examples: empty target in row 1, row 2." in said
    assert list(examples_of([("a", "b")], frame=own_task("t", "", "", ("b",)))) == [Example("a", "b")]


def test_what_would_have_to_be_held_whole_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(own_files, "LONGEST_LINE", 2**10)
    monkeypatch.setattr(own_files, "LARGEST_JSON", 2**10)
    path = tmp_path / "one.jsonl"
    path.write_bytes(b"{" * (2**10 + 1))
    assert f"{path}: line 1 is longer than 0 MiB." in refusal(path)
    path = tmp_path / "list.json"
    path.write_bytes(b"[\n" + b"\n" * 2**10 + b"]")
    assert "a JSON list of more than 0 MiB" in refusal(path)
    assert "JSONL" in refusal(path)


# --- writing -----------------------------------------------------------------------------------------------


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out.jsonl"
    require_writable(path)

    def breaking() -> Iterator[dict]:
        yield {"a": "x" * 2**20}
        assert sum(part.stat().st_size for part in tmp_path.glob(".*")) > 2**19  # a line is written at once
        raise UserError("no more")

    refusal_of(write_jsonl, path, breaking())
    assert list(tmp_path.iterdir()) == []
    assert write_jsonl(path, [{"a": "ü\u2028"}, {"b": 2}]) == 2
    assert path.read_text(encoding="utf-8") == '{"a": "ü\u2028"}\n{"b": 2}\n'
    refusal_of(write_jsonl, path, breaking())
    assert path.read_text(encoding="utf-8").count("\n") == 2
    assert "there is such a file already" in refusal_of(require_writable, path)
