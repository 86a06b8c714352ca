"""Task files of Natural Instructions: our splits, and what the reference says where it names a task."""

import json

import pytest
from tiny import refusal

from sapo.conf.load import load_one
from sapo.data.benchmarks import catalogue, load_task, rows_taken

ANSWERS = ("even", "odd")
ROWS = [{"input": f"number {i // 2}", "output": [ANSWERS[i // 2 % 2], "?"]} for i in range(80)]
TASK = {"Contributors": ["A"], "Definition": ["Say whether", "it is even."], "Instances": ROWS}


def config(root, *overrides):
    return load_one(["sequence=ni_seq_g1", "sequence.tasks=[NI9001]", f"data.root={root}", *overrides])


def write(folder, name="task9001_evenness", content=TASK):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture(params=["tasks", "."], ids=["the repository", "the files alone"])
def root(request, tmp_path):
    write(tmp_path / request.param)
    return tmp_path


def test_a_task_is_called_by_its_number_and_split_by_its_inputs(root):
    task = load_task("NI9001", config(root, "data.train_examples=null"))
    assert (task.name, task.instruction, task.suffix) == ("NI9001", "Say whether it is even.", "")
    assert task.labels == ("even", "odd")
    train, test = ({row.input for row in rows} for rows in (task.train, task.test))
    assert not train & test
    assert (len(task.train), len(task.test), len(train), len(test)) == (72, 8, 36, 4)
    assert {(row.input, row.target) for row in (*task.train, *task.test)} == {
        (row["input"], row["output"][0]) for row in ROWS
    }
    assert [row.input for row in task.train] != sorted(row.input for row in task.train)
    where, how = task.notes
    assert where.endswith("8 of them drawn for the test, not the reference's split")
    assert "task9001_evenness.json" in where
    assert how.endswith("its answers are taken for labels: even, odd")


def test_the_split_is_the_same_every_time_and_rows_are_counted(root):
    first = load_task("NI9001", config(root))
    write(root / "again")
    assert load_task("task9001_evenness", config(root / "again")) == first
    assert rows_taken(config(root)).startswith("48 of 72 training rows")


def test_the_references_words_and_rows_come_first(root):
    base = root / "SUPERNI"
    base.mkdir()
    facts = {"instruction": "Even?", "suffix": "Output yes or no.", "labels": ["even", "odd", "neither"]}
    (base / "instructions.json").write_text(json.dumps({"task9001_evenness": facts}))
    task = load_task("NI9001", config(root))
    assert (task.instruction, task.suffix, task.labels[-1]) == ("Even?", "Output yes or no.", "neither")
    assert len(task.notes) == 1
    (base / "task9001_evenness").mkdir()
    for split in ("train", "test"):
        (base / "task9001_evenness" / f"{split}.json").write_text('[{"sentence": "2", "label": "even"}]')
    assert [row.input for row in load_task("NI9001", config(root)).train] == ["2"]


def test_all_files_are_listed_without_being_read_whole(root):
    folder = next(root.rglob("task9001*")).parent
    (folder / "task9002_cut.json").write_text('{"Definition": ["Cut it."], "Instances": [')
    found = {each["name"]: each for each in catalogue(root) if each["at_hand"]}
    said = [found[name]["instruction"] for name in ("NI9001", "NI9002")]
    assert said == ["Say whether it is even.", "Cut it."]
    assert "Unknown SUPERNI task 'NI9003'. Did you mean NI9" in refusal(load_task, "NI9003", config(root))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "with Definition and Instances"),
        ({"Definition": ["x"], "Instances": []}, "with Definition and Instances"),
        ({"Instances": ROWS}, "`Definition` must be"),
        ({"Definition": ["x"], "Instances": [*ROWS, {"input": "1"}]}, "row 81: expected"),
        ({"Definition": ["x"], "Instances": [{"input": "1", "output": []}]}, "row 1: expected"),
        ({"Definition": ["x"], "Instances": ROWS[:2]}, "all rows have one input"),
    ],
)
def test_files_that_are_no_task(tmp_path, content, message):
    write(tmp_path / "tasks", content=content)
    assert message in refusal(load_task, "NI9001", config(tmp_path))
