"""Tasks by name: the real benchmarks, users' own, and every fault named with its file and place."""

import json
import shutil
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
from tiny import refusal

from sapo.conf.load import load_one
from sapo.conf.schema import Config
from sapo.data.benchmarks import (
    benchmark_of,
    load_benchmark_task,
    load_own_task,
    load_task,
    load_tasks,
    read_examples,
    rows_taken,
)
from sapo.data.mini import generate
from sapo.data.tasks import Example, Task

ROWS = [{"sentence": "so happy", "label": "good"}, {"sentence": "so sad", "label": "bad"}]
FACTS = {"instruction": "Name the mood.", "suffix": "Answer:", "labels": ["good", "bad"], "size": [2, 0, 2]}


@pytest.fixture
def root(tmp_path):
    """A benchmark folder with one SuperNI task, NI7."""
    folder = tmp_path / "bench" / "SUPERNI" / "task007_moods"
    folder.mkdir(parents=True)
    (folder.parent / "instructions.json").write_text(json.dumps({folder.name: FACTS}), encoding="utf-8")
    for split in ("train", "test"):
        (folder / f"{split}.json").write_text(json.dumps(ROWS), encoding="utf-8")
    return tmp_path / "bench"


@cache
def composed(overrides: tuple[str, ...]) -> Config:
    return load_one([*overrides])


def config_of(root: Path | None, *overrides: str) -> Config:
    config = deepcopy(composed(overrides))
    config.data.root = str(root) if root else None
    return config


# --- how many rows ---------------------------------------------------------------------------------------


def test_how_many_rows_are_taken_of_how_many(root):
    config = config_of(root, "sequence.tasks=[mini_city]")
    paper, both, few = (deepcopy(config) for _ in range(3))
    paper.scale.name, paper.data.train_examples, paper.data.test_examples = "paper", 1000, None
    both.sequence.tasks = ["NI007", "mini_city"]
    few.sequence.tasks = ["NI007"]
    assert list(map(rows_taken, (config, paper, both, few))) == [
        "48 of 1,000 training rows a task, 32 of 200 test rows (scale=mini, data.train_examples)",
        "all 1,000 training rows a task, all 200 test rows (scale=paper, data.train_examples)",
        "48 of 2 to 1,000 training rows a task, 32 of 2 to 200 test rows (scale=mini, data.train_examples)",
        "all 2 training rows a task, all 2 test rows (scale=mini, data.train_examples)",
    ]


# --- the real data -----------------------------------------------------------------------------------------


def test_a_superni_task(benchmarks):
    config = config_of(benchmarks, "sequence=ni_seq_c1", "trainer=paper")
    task = load_task("NI195", config)
    assert (task.name, task.short_name) == ("NI195", "NI195")
    assert (task.kind, task.language) == ("classification", "en")
    assert task.instruction.startswith("In this task, you are given a text from tweets.")
    assert task.suffix == "Directly output only positive or negative as your answer."
    assert (task.labels, task.separator) == (("positive", "negative"), "Text:")
    assert (len(task.train), len(task.test)) == (1000, 650)
    assert task.train[0].input.startswith("@theroser @honorsociety I'm glad")
    assert task.train[0].target == "positive"
    assert task.test[0] == Example("Going to bed. yay for sheet being fresh out of the dryer. ", "positive")
    assert load_task("task195_sentiment140_classification", config) == task


def test_a_trace_task(benchmarks):
    task = load_task("NumGLUE-cm", config_of(benchmarks, "sequence=trace", "trainer=paper"))
    assert (task.name, task.separator, len(task.test)) == ("NumGLUE-cm", "Text:", 81)
    assert task.train[0].target == "12"


@pytest.mark.parametrize("sequence", ["ni_seq_g2", "ni_probe_g1"])
def test_rows_whose_right_answer_is_nothing_load(benchmarks, sequence):
    trained, unseen = load_tasks(config_of(benchmarks, f"sequence={sequence}", "trainer=paper"))
    tasks = {task.name: task for task in (*trained, *unseen)}
    name, row = ("NI511", 79) if "NI488" not in tasks else ("NI488", 11)
    assert tasks[name].train[row].target == ""


def test_the_tasks_of_a_sequence_in_order(benchmarks):
    trained, unseen = load_tasks(config_of(benchmarks, "sequence=ni_probe_g5", "data.train_examples=2"))
    assert [task.name for task in trained] == ["NI339", "NI618"]
    assert [task.name for task in unseen] == ["NI163", "NI292", "NI141", "NI511", "NI024", "NI619"]


def test_the_chinese_task_has_a_chinese_separator(benchmarks, root):
    facts = json.loads((benchmarks / "TRACE" / "instructions.json").read_text(encoding="utf-8"))
    (root / "SUPERNI").rename(root / "TRACE")
    for name in ("C-STANCE", "FOMC"):
        shutil.copytree(root / "TRACE" / "task007_moods", root / "TRACE" / name)
    (root / "TRACE" / "instructions.json").write_text(json.dumps(facts), encoding="utf-8")
    chinese, english = (load_benchmark_task(name, "trace", root) for name in ("C-STANCE", "FOMC"))
    assert (chinese.separator, chinese.language) == ("文本:", "zh")
    assert (english.separator, english.language) == ("Text:", "en")


# --- where a task is looked for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "benchmark"),
    [
        ("mini_city", "mini"),
        ("NI024", "superni"),
        ("task024_cosmosqa_answer_generation", "superni"),
        ("FOMC", "trace"),
        ("NIGHT", "trace"),
        ("tasks", "trace"),
    ],
)
def test_names_tell_the_benchmark(name, benchmark):
    assert benchmark_of(name, default="trace") == benchmark


@pytest.mark.parametrize("name", ["mini_city", "NI007", "FOMC"])
def test_in_a_sequence_of_users_tasks_their_names_come_first(root, name):
    config = config_of(root, "sequence=own", f"sequence.tasks=[{name}]")
    (root / f"{name}.yaml").write_text("instruction: Sweet or sour?\ndata: dishes.csv\n", encoding="utf-8")
    (root / "dishes.csv").write_text("input,output\nhoney cake,sweet\nlemon tart,sour\n", encoding="utf-8")
    ((task,), _) = load_tasks(config)
    assert (task.name, task.instruction) == (name, "Sweet or sour?")
    (root / f"{name}.yaml").unlink()
    if name == "FOMC":
        refusal(load_task, name, config)
    else:
        expected = {"NI007": "Name the mood.", "mini_city": generate("mini_city", 1, 1, 0).instruction}
        assert load_task(name, config).instruction == expected[name]


def test_mini_tasks_need_no_folder():
    config = config_of(None, "data.train_examples=4", "data.test_examples=2")
    trained, unseen = load_tasks(config)
    assert trained == [generate(name, 4, 2, 0) for name in config.sequence.tasks]
    assert unseen == []


def test_rows_are_cut_to_what_is_configured(root):
    task = load_task("NI007", config_of(root, "data.train_examples=1", "data.test_examples=1"))
    assert task.train == task.test == (Example("so happy", "good"),)


def test_numbers_and_padded_labels_become_texts(tmp_path):
    rows = {"6 x 7": 42, " kept ": " good\n", "10^400": 10**400}
    content = [{"sentence": text, "label": label} for text, label in rows.items()]
    (tmp_path / "rows.json").write_text(json.dumps(content), encoding="utf-8")
    read = {example.input: example.target for example in read_examples(tmp_path / "rows.json")}
    assert read == {"6 x 7": "42", " kept ": "good", "10^400": f"1{'0' * 400}"}


def test_the_published_code_keeps_blanks_around_labels(root):
    rows = [{"sentence": " x ", "label": " good\n"}, {"sentence": "y", "label": "bad"}]
    (root / "SUPERNI" / "task007_moods" / "train.json").write_text(json.dumps(rows))
    config = config_of(root, "sequence=ni_seq_c1")
    assert load_task("NI007", config).train[0] == Example(" x ", "good")
    kept = load_task("NI007", config_of(root, "sequence=ni_seq_c1", "parity=reference"))
    assert kept.train[0] == Example(" x ", " good\n")
    assert load_task("NI007", config) is not kept


def test_labels_with_blanks_are_in_the_published_files(benchmarks):
    kept = load_benchmark_task("NI360", "superni", benchmarks, keep_blanks=True)
    stripped = load_benchmark_task("NI360", "superni", benchmarks)
    for split, expected in (("train", 14), ("test", 8)):
        pairs = list(zip(getattr(kept, split), getattr(stripped, split), strict=True))[:1000]
        assert sum(one.target != other.target for one, other in pairs) == expected


def test_two_names_of_one_task_are_refused(root):
    config = config_of(root, "sequence.tasks=[NI007]", "sequence.unseen=[task007_moods]")
    assert refusal(load_tasks, config) == "NI007 and task007_moods are one task, NI007: name it once."


# --- own tasks ---------------------------------------------------------------------------------------------


def own(folder: Path, text: str) -> Config:
    (folder / "dishes.yaml").write_text(text, encoding="utf-8")
    (folder / "dishes.csv").write_text("dish,taste\nhoney cake,sweet\nlemon tart,sour\n", encoding="utf-8")
    return config_of(folder, "sequence.benchmark=own", "sequence.tasks=[dishes]")


def test_an_own_task_file_beside_its_table(tmp_path):
    described = "instruction: Sweet or sour?\ndata: dishes.csv\nsuffix: 'Taste:'\nlabels: [sweet, sour]\n"
    ((task,), _) = load_tasks(own(tmp_path, described + "columns: [dish, taste]\n"))
    assert isinstance(task, Task)
    assert (task.name, task.instruction, task.suffix) == ("dishes", "Sweet or sour?", "Taste:")
    assert (task.kind, len(task.train), len(task.test)) == ("classification", 1, 1)
    assert {*task.train, *task.test} == {Example("honey cake", "sweet"), Example("lemon tart", "sour")}
    assert "Unknown own task 'dishs'. Did you mean dishes?" in refusal(load_own_task, "dishs", tmp_path)
    own(tmp_path, "instruction: Do.\ndata: plates.csv\n")
    assert "plates.csv: there is no such file or folder" in refusal(load_own_task, "dishes", tmp_path)


def test_rows_in_the_working_folder_are_read_again_when_they_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = own(tmp_path, "instruction: Sweet or sour?\ndata: elsewhere.csv\n")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "dishes.yaml").rename(tmp_path / "tasks" / "dishes.yaml")
    config.data.root = "tasks"
    lengths = []
    for count in (2, 3):
        (tmp_path / "elsewhere.csv").write_text("input,output\n" + "".join(f"{n},x\n" for n in range(count)))
        task = load_task("dishes", config)
        lengths.append(len(task.train) + len(task.test))
    assert lengths == [2, 3]


# --- faults ------------------------------------------------------------------------------------------------


def test_a_task_that_cannot_be_found_is_named_with_the_way_on(root, tmp_path):
    message = refusal(load_task, "NI195", config_of(None))
    for part in ("superni", "no folder is set", "SAPO_DATA", "sapo fetch benchmarks"):
        assert part in message
    assert "Unknown SUPERNI task 'NI008'. Did you mean NI007?" in refusal(load_task, "NI008", config_of(root))
    message = refusal(load_tasks, config_of(root, "sequence.tasks=[NI007,NI008,mini_ciy]"))
    assert message.count("\n") == 1
    assert "'NI008'" in message
    assert "'mini_ciy'. Did you mean mini_city" in message
