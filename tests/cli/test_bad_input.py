"""What people get wrong: one message that names the mend, exit code 2, and an untouched store."""

import json

import pytest

COMMANDS = {"train": ["train"], "plan": ["plan"], "reproduce": ["reproduce", "table1"], "doctor": ["doctor"]}

OVERRIDES = [
    ("policy=sappo", "Did you mean"),
    ("model=smollm", "Unknown model"),
    ("sequence=ni_seq_x9", "Unknown sequence"),
    ("sequence.tasks=[mini_citty]", "mini_city"),
    ("seed=many", "seed"),
    ("trainer.epochs=0", "trainer.epochs=0"),
    ("trainer.epoch=1", "trainer.epoch"),
    ("seed=range(2", "range(2"),
    ("sequence.tasks=[NI195]", "sapo fetch benchmarks"),
    ("sequence.tasks=[]", "no tasks"),
    ("sequence.tasks=[mini_city,mini_city]", "twice"),
    ("paraphrases=file", "paraphrases.file"),
    ("engine.device=cuda", "engine.device"),
    ("model.path=nowhere", "nowhere"),
]


@pytest.mark.parametrize(("override", "message"), OVERRIDES)
def test_wrong_overrides(sapo, small, tmp_path, override, message):
    import torch

    if override.endswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    store = tmp_path / "untouched"
    done = sapo("train", *small, f"store.root='{store}'", override, "--json")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("sapo: ")
    assert message in done.err
    assert "Traceback" not in done.err
    assert not store.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_composes_refuses_alike(sapo, command):
    done = sapo(*COMMANDS[command], "policy=sappo", "--json")
    assert (done.code, done.out) == (2, "")
    assert "Did you mean" in done.err


def test_all_missing_things_are_named_at_once(sapo, small, tmp_path):
    done = sapo(
        "train",
        *small,
        "model=qwen3_14b,llama2_7b_chat",
        "sequence.tasks=[NI195]",
        f"store.root='{tmp_path / 's'}'",
    )
    assert done.code == 2
    for part in ("sapo fetch model qwen3_14b", "sapo fetch model llama2_7b_chat", "sapo fetch benchmarks"):
        assert part in done.err


@pytest.fixture
def superni(tmp_path):
    """A benchmark folder with one task."""
    folder = tmp_path / "data" / "SUPERNI"
    task = folder / "task195_sentiment140_classification"
    task.mkdir(parents=True)
    facts = {
        "instruction": "Say positive or negative.",
        "suffix": "Answer:",
        "labels": ["positive", "negative"],
    }
    (folder / "instructions.json").write_text(json.dumps({task.name: facts}))
    for split in ("train", "test"):
        (task / f"{split}.json").write_text(json.dumps([{"sentence": "good", "label": "positive"}] * 3))
    return folder


def test_broken_json_is_named_with_its_position(sapo, superni):
    path = superni / "task195_sentiment140_classification" / "train.json"
    path.write_text('[\n {"sentence": "a", "label": }\n]')
    done = sapo("show", "task", "task=NI195", f"data.root={superni.parent}", "--json")
    assert (done.code, done.out) == (2, "")
    assert "train.json, line 2, column" in done.err


def test_a_row_without_label_is_named(sapo, superni):
    path = superni / "task195_sentiment140_classification" / "test.json"
    path.write_text('[{"sentence": "a", "label": "x"}, {"sentence": "a"}]')
    done = sapo("show", "task", "task=NI195", f"data.root={superni.parent}")
    assert done.code == 2
    assert "test.json, row 2" in done.err


def test_a_task_that_the_benchmark_lacks(sapo, superni):
    done = sapo("show", "task", "task=NI19", f"data.root={superni.parent}")
    assert done.code == 2
    assert "NI195" in done.err
    done = sapo("show", "task", "task=FOMC", f"data.root={superni.parent}")
    assert done.code == 2
    assert "TRACE" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index=8"], "train rows 0 to 7"),
        (["index=-1"], "train rows 0 to 7"),
        (["index=4", "split=test"], "test rows 0 to 3"),
        (["index=x"], "whole number"),
        (["split=dev"], "Unknown split"),
        (["prompt=3"], "paraphrases 0 to 2"),
        (["prompt=-2"], "paraphrases 0 to 2"),
    ],
)
def test_examples_that_are_not_there(sapo, small, arguments, message):
    done = sapo("show", "example", "task=mini_city", *small, *arguments, "--json")
    assert (done.code, done.out) == (2, "")
    assert message in done.err


@pytest.mark.parametrize("command", ["task", "pool", "example"])
def test_which_task(sapo, command):
    done = sapo("show", command, "model=tiny_llama")
    assert done.code == 2
    assert "task=NAME" in done.err


def test_a_pool_of_another_instruction(sapo, small, tmp_path):
    pool = tmp_path / "pool.yaml"
    pool.write_text("original: Do something else.\nprompts: [Do it.]\n")
    done = sapo("train", *small, "policy=random", "paraphrases=file", f"paraphrases.file='{pool}'", "--json")
    assert (done.code, done.out) == (2, "")
    assert "another instruction" in done.err


def test_experiments_and_scales(sapo):
    assert "Unknown target" in sapo("reproduce", "table9").err
    assert "Unknown scale" in sapo("reproduce", "table1", "--scale", "huge").err
    assert "leave experiment=" in sapo("reproduce", "table1", "experiment=table1_mini").err
