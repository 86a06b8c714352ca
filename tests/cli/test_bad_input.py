"""What people get wrong: one message that names the mend, exit code 2, and an untouched store."""

import pytest
from test_bad_overrides import refused

COMMANDS = {"train": ["train"], "plan": ["plan"], "reproduce": ["reproduce", "table1"], "doctor": ["doctor"]}

OVERRIDES = [
    ("sequence.tasks=[mini_citty]", "mini_city"),
    ("sequence.tasks=[NI195]", "sapo fetch benchmarks"),
    ("engine.device=cuda", "engine.device"),
    ("model.path=nowhere", "nowhere"),
]


@pytest.mark.parametrize(("override", "message"), OVERRIDES)
def test_what_is_not_there(sapo, small, tmp_path, override, message):
    import torch

    if override.endswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    store = tmp_path / "untouched"
    assert message in refused(sapo("train", *small, f"store.root='{store}'", override, "--json"))
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
