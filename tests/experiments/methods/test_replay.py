"""What replay and InsCL keep of learned tasks, choose from it and train on again."""

import asyncio
import json
import math
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise, permutations
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapo.analysis.published import published
from sapo.conf.errors import UserError, WorkError
from sapo.data.benchmarks import load_tasks
from sapo.data.prompts import Prompt
from sapo.data.tags import document
from sapo.data.tasks import Example, Task, digest
from sapo.experiments.continual import run_sequence
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store
from sapo.experiments.methods import METHODS, Context
from sapo.experiments.methods.inscl import highest, ins_info, lexical_tags, wasserstein
from sapo.experiments.methods.replay import only, quotas, read_kept, write_kept
from sapo.experiments.model.adapters import plain
from sapo.experiments.model.load import load_model
from sapo.experiments.model.rows import TrainingTask
from sapo.experiments.run import require_ready
from sapo.experiments.runs import write_run


def task(name: str, inputs, prompts=("Do it.",), **facts) -> TrainingTask:
    rows = tuple(Example(text, f"answer to {text}") for text in inputs)
    test = (Example("test", "row"),)
    made = Task(name, prompts[0], facts.pop("suffix", "One word."), rows, test, **facts)
    return TrainingTask(made, tuple(Prompt(text, index - 1) for index, text in enumerate(prompts)))


def task_of(name: str, n: int):
    return task(name, [f"{name}{i}" for i in range(n)])


def sizes(kept):
    return [len(one.task.train) for one in kept]


# --- how many of each task ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "available", "budget", "expected"),
    [
        ([1, 2, 3], [99, 99, 99], 10, [1, 3, 6]),  # 1.67, 3.33, 5: the odd one to the largest
        ([1, 1, 1], [99, 99, 99], 50, [17, 17, 16]),  # equal shares: to the earliest
        (None, [99, 99, 99], 50, [17, 17, 16]),
        ([0, 0, 0], [99, 99, 99], 50, [17, 17, 16]),
        ([1, 1, 2], [99, 99, 20], 100, [40, 40, 20]),  # 25, 25, 50: the 30 that are missing go to the others
        ([0, 1], [50, 20], 40, [20, 20]),
        ([0.5, 0.1], [3, 4], 200, [3, 4]),
        ([0.7], [500], 200, [200]),
    ],
)
def test_quotas_by_hand(weights, available, budget, expected):
    assert quotas([task_of("a", n) for n in available], budget, weights) == expected


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 30)), min_size=1, max_size=8), st.integers(1, 60))
def test_quotas_sum_to_the_budget_and_more_distant_tasks_never_give_fewer_rows(tasks, budget):
    weights, available = zip(*tasks, strict=True)
    counts = quotas([task_of("a", n) for n in available], budget, weights)
    assert sum(counts) == min(budget, sum(available))
    assert all(0 <= count <= size for count, size in zip(counts, available, strict=True))
    counts = quotas([task_of("a", budget)] * len(weights), budget, weights)  # where none has too few
    for (weight, count), (greater, others) in pairwise(sorted(zip(weights, counts, strict=True))):
        assert weight == greater or count <= others


# --- what is kept ------------------------------------------------------------------------------------------


def test_what_is_kept_comes_back_from_disk_as_it_was(tmp_path):
    odd = 'line\u2028break "quoted" {brace}\nnext\r\n'
    kept = [
        task("a", [odd, "中文"], ("Do it.", "So it."), separator="文本:", language="zh"),
        task_of("b", 3),
        task("none", []),
    ]
    write_kept(tmp_path, kept)
    assert read_kept(tmp_path) == [only(one, range(len(one.task.train))) for one in kept]
    assert (tmp_path / "kept/examples.jsonl").read_text(encoding="utf-8").count("\n") == 5
    assert read_kept(None) == []


def test_damaged_rows_are_an_error_with_the_mend(tmp_path):
    write_kept(tmp_path, [task_of("a", 3)])
    path = tmp_path / "kept/examples.jsonl"
    path.write_text(path.read_text().rpartition("{")[0])
    with pytest.raises(WorkError, match=r"Damaged.*2 rows of a where 3 were kept.*train it again"):
        read_kept(tmp_path)


# --- InsInfo -----------------------------------------------------------------------------------------------


def test_ins_info_by_hand():
    values = ins_info([{"a", "b"}, {"a"}, {"c", "a"}, set()])
    assert values == pytest.approx([math.log(4 / 3) + math.log(4), math.log(4 / 3), values[0], 0])
    assert highest(values, 2) == [0, 2]  # of equal values the earlier first
    assert highest(values, 3) == [0, 2, 1]
    assert ins_info([{"same"}] * 3) == [0, 0, 0]


def test_lexical_tags_are_content_words():
    text = "The cat isn't on the Mat; 3 cats, and the mat? 我喜欢猫"
    assert lexical_tags(text) == {"cat", "mat", "cats", "isn", "喜", "欢", "猫"}


# --- distances ---------------------------------------------------------------------------------------------


def test_wasserstein_by_hand():
    x, y = np.array([[2.0, 0.0]]), np.array([[0.0, 5.0]])
    assert wasserstein(x, x) == pytest.approx(0, abs=1e-9)
    assert wasserstein(x, y) == pytest.approx(1)
    assert wasserstein(x, -x) == pytest.approx(2)
    assert wasserstein(np.vstack([x, y]), x) == pytest.approx(0.5)
    assert wasserstein(np.vstack([x, y]), np.vstack([y, x])) == pytest.approx(0, abs=1e-9)


def test_wasserstein_of_equal_numbers_is_the_best_assignment():
    first, second = np.random.default_rng(0).normal(size=(2, 4, 3))
    units = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (first, second)]
    cost = 1 - units[0] @ units[1].T
    best = min(sum(cost[i, j] for i, j in enumerate(order)) / 4 for order in permutations(range(4)))
    assert wasserstein(first, second) == pytest.approx(best)
    assert wasserstein(second, first) == pytest.approx(best)


# --- the methods -------------------------------------------------------------------------------------------


@pytest.fixture
def learn(tiny_config, tmp_path):
    """Learns tasks one after another, with random weights in place of training; what each one replayed."""

    def run(tasks, *overrides, folder=tmp_path / "states", seed=7, tags=None):
        config = tiny_config(*overrides)
        config.method.tags = tags
        model = load_model(config)
        previous, replayed = None, []
        for position, one in enumerate(tasks):
            context = Context(config, model, (one,), previous, position, seed + position)
            method = METHODS[config.method.name](context)
            previous = folder / str(position)
            with plain(model.base):
                replayed.append(list(method.replayed()))
                method.save(method.start(), previous)
        return replayed, previous

    return run


LEARNED = [
    task("a", [f"red fox {i}" for i in range(6)], ("Name the animal.",)),
    task("b", [f"blue sky {'word ' * i}" for i in range(7)], ("Name the colour.",), suffix="A colour."),
    task("c", ["one", "two", "three"], ("Count.", "Add up."), suffix="A number."),
]


@pytest.mark.parametrize("settings", [("method=replay",), ("method=inscl", "method.unit=quota")])
def test_state_and_seed_decide_which_rows_are_replayed_in_the_frame_of_their_own_training(
    learn, tmp_path, settings
):
    overrides = (*settings, "method.buffer=4")
    first, _ = learn(LEARNED, *overrides)
    again, _ = learn(LEARNED, *overrides, folder=tmp_path / "again")
    other, _ = learn(LEARNED, *overrides, folder=tmp_path / "other", seed=70)
    assert first == again != other
    assert [len({(one.task.name, row) for one, row in pairs}) for pairs in first] == [0, 4, 4]
    assert {one.task.name for one, _ in first[2]} == {"a", "b"}
    own = {one.task.name: one for one in LEARNED}
    for one, row in (*first[1], *first[2]):
        whole = own[one.task.name]
        assert replace(one, task=replace(one.task, train=whole.task.train, test=whole.task.test)) == whole
        assert row in whole.task.train


def test_a_buffer_is_shared_by_all_tasks_and_draws_uniformly(learn, tmp_path):
    """A row that comes twice is one, and what is missing comes from the others."""
    tasks = [task("a", ["x", "y", "x", "x", "y"]), task_of("b", 9), task_of("c", 30)]
    replayed, state = learn(tasks, "method=replay", "method.buffer=8")
    names = [Counter(one.task.name for one, _ in pairs) for pairs in replayed]
    assert names == [{}, {"a": 2}, {"a": 2, "b": 6}]
    kept = read_kept(state)
    assert sizes(kept) == [2, 3, 3]
    assert {row for _, row in replayed[2]} >= {row for one in kept[:2] for row in one.task.train}
    config = SimpleNamespace(method=SimpleNamespace(name="replay", buffer=5))
    contexts = (Context(config, None, (task_of("a", 10),), None, 0, seed) for seed in range(400))
    drawn = Counter(row.input for each in contexts for row in METHODS["replay"](each).kept()[0].task.train)
    assert len(drawn) == 10
    assert all(abs(count - 200) < 50 for count in drawn.values())  # five standard deviations


def test_full_access_keeps_every_distinct_row_and_a_buffer_only_its_size(learn, tmp_path):
    twice = replace(LEARNED[0].task, train=LEARNED[0].task.train * 2)
    tasks = [replace(LEARNED[0], task=twice), *LEARNED[1:]]
    overrides = ("method=inscl", "method.buffer=5")
    _, state = learn(tasks, *overrides, folder=tmp_path / "full")
    assert [one.task.train for one in read_kept(state)] == [one.task.train for one in LEARNED]
    _, state = learn(tasks, *overrides, "method.access=buffer", folder=tmp_path / "buffer")
    assert sizes(read_kept(state)) == [2, 2, 1]


def test_lexical_inscl_takes_the_rows_of_highest_ins_info(learn):
    """Rare words count most, and every word counts."""
    inputs = ["plain", "plain rare", "plain rare strange", "plain strange", "plain new odd queer"]
    replayed, state = learn([task("a", inputs), task("b", ["plain"])], "method=inscl", "method.buffer=2")
    assert [row.input for _, row in replayed[1]] == [inputs[2], inputs[4]]
    facts = json.loads((state / "kept/selection.json").read_text())
    assert facts["method"] == "inscl (lexical)"
    assert facts["tasks"] == [{"task": "a", "distance": facts["tasks"][0]["distance"], "replayed": 2}]


def test_amounts_follow_the_distances_of_the_prompts(learn):
    tasks = [
        task("near", [f"x{i}" for i in range(40)], ("Sort the words by length.",)),
        task("far", [f"y{i}" for i in range(40)], ("Is the review positive or negative? Decide.",)),
        task("same", ["z"], ("Sort the words by length.",)),
    ]
    replayed, state = learn(tasks, "method=inscl", "method.unit=quota", "method.buffer=20")
    near, far = json.loads((state / "kept/selection.json").read_text())["tasks"]
    assert near["distance"] == pytest.approx(0, abs=1e-6)
    assert far["distance"] > 0.01
    assert Counter(one.task.name for one, _ in replayed[2]) == {"far": 20}
    assert (near["replayed"], far["replayed"]) == (0, 20)


def test_a_blank_prompt_is_embedded_by_its_suffix(learn):
    replayed, _ = learn([task("a", "xy", ("",)), task("b", "z")], "method=inscl", "method.buffer=1")
    assert len(replayed[1]) == 1


# --- tags from a file --------------------------------------------------------------------------------------


def tag_file(path, tasks, words=str.split):
    """A file of tags: the words of each row's input, None where it says `untagged`."""
    lines = [{"writer": "some/tagger", "question": "q"}]
    for one in tasks:
        for row in one.task.train:
            key = digest(document(one.task.instruction, row))
            lines.append({"document": key, "tags": None if "untagged" in row.input else words(row.input)})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


INSTANCE = ("method=inscl", "method.unit=instance", "method.buffer=3", "method.tags=/somewhere/tags.jsonl")


def test_rows_of_highest_ins_info_by_the_tags_of_a_file(learn, tmp_path):
    inputs = [["p", "p q", "p q r", "p q"], ["p s", "p"], ["p t"]]
    tasks = [task(name, texts) for name, texts in zip("abc", inputs, strict=True)]
    replayed, state = learn(tasks, *INSTANCE, tags=tag_file(tmp_path / "tags.jsonl", tasks))
    assert {row.input for _, row in replayed[1]} == {"p", "p q", "p q r"}
    # Equal instructions are at distance 0 from each other: two rows of a, one of b.
    assert [row.input for _, row in replayed[2]] == ["p q", "p q r", "p s"]
    facts = json.loads((state / "kept/selection.json").read_text())
    assert facts["method"] == "inscl (instance, tags: some/tagger)"


def test_a_fifth_of_the_rows_may_be_without_tags(learn, tmp_path):
    few, many = task("a", ["w", "x", "y", "z", "untagged"]), task("a", ["x", "untagged"])
    learn([few, few], *INSTANCE, tags=tag_file(tmp_path / "few.jsonl", [few]))
    for tasks, file in (([many, many], "many"), ([few, task("b", ["not in the file"])], "few")):
        tags = tag_file(tmp_path / f"{file}.jsonl", tasks[:1])
        with pytest.raises(UserError, match=r"rows have no tags in .*sapo paraphrase --tags"):
            learn(tasks, *INSTANCE, tags=tags, folder=tmp_path / file)


def test_the_content_of_the_file_is_in_the_key_and_its_name_is_not(tiny_config, tmp_path):
    def identity(tags):
        return METHODS["inscl"].identity(replace(tiny_config(*INSTANCE).method, tags=tags), True)

    one = task("a", ["x y", "z"])
    first = identity(tag_file(tmp_path / "a.jsonl", [one]))
    assert identity(tag_file(tmp_path / "b.jsonl", [one])) == first
    assert identity(tag_file(tmp_path / "c.jsonl", [one], list)) != first


# --- before anything runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot read .*tags\.jsonl.*sapo paraphrase --tags"),
        ("", r"holds no tags"),
        ("a,b\n", r"holds no tags"),
        ('{"writer": "m", "question": "q"}\n{"document": "0a", "tags": [1]}\n', r"holds no tags"),
        ('{"writer": "m", "question": "q"}\n', r"8 of 8 rows have no tags"),
    ],
)
def test_tags_that_are_not_there_are_refused_before_anything_runs(tiny_config, tmp_path, content, message):
    path = tmp_path / "tags.jsonl"
    if content is not None:
        path.write_text(content)
    config = tiny_config(*INSTANCE, "policy=static")
    config.method.tags = str(path)
    with pytest.raises(UserError, match=rf"(?s){message}"):
        require_ready([config])


@pytest.mark.parametrize("method", ["replay", "inscl"])
def test_a_buffer_larger_than_the_data_or_one_task_alone_is_refused(tiny_config, method):
    config = tiny_config(f"method={method}", "policy=static")
    for buffer, tasks, message in (
        (16, config.sequence.tasks, None),
        (17, config.sequence.tasks, r"method\.buffer=17.*only 16 different rows"),
        (16, ["mini_topic"], "has only one"),
    ):
        config.method.buffer, config.sequence.tasks = buffer, tasks
        with pytest.raises(UserError, match=message) if message else nullcontext():
            require_ready([config])


def test_labels_say_which_inscl_it_is(tiny_config, tmp_path):
    method = replace(tiny_config("method=inscl").method, tags=tag_file(tmp_path / "tags.jsonl", []))
    ways = (("lexical", "full"), ("quota", "buffer"), ("instance", "full"))
    variants = ["inscl (lexical)", "inscl (quota, buffer)", "inscl (instance, tags: some/tagger)"]
    assert [METHODS["inscl"].label(replace(method, unit=u, access=a)) for u, a in ways] == variants
    assert METHODS["replay"].label(replace(method, name="replay")) == "replay"


@pytest.mark.slow  # a whole run
def test_a_run_trains_on_its_own_and_the_replayed_rows(tiny_config, tmp_path):
    config = tiny_config(
        "method=inscl", "method.buffer=5", "policy=fixed", "policy.index=1", "trainer.global_batch=4",
        "trainer.epochs=2", "data.test_examples=2", "evaluator.common_prompt=false",
    )  # fmt: skip
    store = Store(tmp_path / "store")
    run = asyncio.run(run_sequence(config, LocalEngine(store)))
    facts = [(each.result.replayed, each.result.examples, each.result.steps) for each in run.trained]
    assert facts == [(0, 8, 2 * 2), (5, 13, 2 * 4), (5, 13, 2 * 4)]
    kept = read_kept(run.trained[-1].folder)
    assert [one.task.name for one in kept] == [one.name for one in load_tasks(config)[0]]
    assert all(one.prompts == (run.prompts[one.task.name],) and one.prompts[0].index == 1 for one in kept)
    record = json.loads((write_run(run, store) / "run.json").read_text())
    assert (record["method"], record["label"]) == ("inscl", "inscl (lexical)")
    assert any("inscl (lexical)" in note for note in record["notes"])
    assert list(published("table1", "m", "s", "inscl (lexical)")["method"]) == ["InsCL"] * 2
    assert published("table1", "m", "s", "replay").empty
