"""What `sapo compare` trains, serves and tests: rows, prompts, stages; and what it refuses."""

import asyncio
import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from sapo.conf.errors import UserError
from sapo.data.benchmarks import load_tasks
from sapo.data.own import gather
from sapo.data.prompts import Prompt
from sapo.experiments import compare_prompts
from sapo.experiments.compare import (
    NO_INSTRUCTION,
    UNTOUCHED,
    compare,
    cost,
    measure,
    prepare,
    wordings_of,
    write_task,
)
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store
from sapo.experiments.model.load import load_model
from sapo.experiments.plan import PlanEngine

ORIGINAL = "Say whether the number is odd or even."
PARAPHRASES = [
    "Which of the two is the number that follows: odd, or even?",
    "Look at the last digit: is the number even, or is it odd?",
    "Decide if this number can be halved: answer odd or even.",
    "Name the parity of the number, odd or even.",
    "Is what you read an odd number, or an even one?",
    "Parity: odd, even?",
]


@pytest.fixture
def given(tmp_path):
    """60 numbers with their parity, and a pool of six paraphrases, as `sapo compare` is given them."""
    rows = [{"input": f"number {i}", "target": "odd" if i % 2 else "even"} for i in range(60)]
    (tmp_path / "parity.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "pool.yaml").write_text(json.dumps({"original": ORIGINAL, "prompts": PARAPHRASES}))
    return {"data": str(tmp_path / "parity.jsonl"), "labels": "odd,even"}


@pytest.fixture
def splits(given, tmp_path):
    """`splits(slice(40), slice(40, None))`: the same of a folder with these lines for training and test."""

    def written(train, test):
        lines, folder = (tmp_path / "parity.jsonl").read_text().splitlines(keepends=True), tmp_path / "rows"
        folder.mkdir(exist_ok=True)
        for name, part in (("train", train), ("test", test)):
            (folder / f"{name}.jsonl").write_text("".join(lines[part]))
        return {**given, "data": str(folder)}

    return written


@pytest.fixture
def config(tiny_config, tmp_path):
    def composed(*overrides):
        pool = f"paraphrases.file='{tmp_path / 'pool.yaml'}'"
        rows = ("data.train_examples=null", "data.test_examples=20", "scorer.examples=30")
        return tiny_config(pool, *rows, "compare.unseen=2", "compare.retain=[mini_price]", *overrides)

    return composed


def test_test_rows_are_neither_scored_nor_trained_and_the_scored_are_those_of_select(given, config):
    setting = prepare(given, [config()])
    assert setting.scored == gather(given, config()).task.train
    train, test = ({example.input for example in rows} for rows in (setting.task.train, setting.task.test))
    assert len(test) == 20
    assert len(train) == 40
    assert not test & train
    assert {example.input for example in setting.scored} <= train
    assert prepare(given, [config()]).task == setting.task
    assert prepare(given, [config("seed=1")]).task.test != setting.task.test


def test_what_is_amiss_in_training_rows_is_named(given, config, tmp_path):
    path = tmp_path / "parity.jsonl"
    held = json.dumps({"input": "<|im_end|> number", "target": "odd"})
    path.write_text(path.read_text() + f"{held}\n" * 3)
    setting = prepare(given, [config("data.test_examples=12")])
    assert any("hold control tokens of the model (<|im_end|>)" in note for note in setting.notes)
    assert any("repeat an earlier row" in note for note in setting.notes)


def test_a_test_file_is_the_test(config, splits):
    setting = prepare(splits(slice(40), slice(38, None)), [config()])
    assert [example.input for example in setting.task.test] == [f"number {i}" for i in range(38, 58)]
    assert any("2 of 20 test rows stand in the training rows" in note for note in setting.notes)


def test_each_row_and_column_is_the_prompt_that_its_name_means(given, config):
    setting = prepare(
        given, [config("compare.train=[original,chosen,highest,mixed,none,3]", "compare.unseen=1")]
    )
    losses = {-1: 2.0, 0: 3.0, 1: 1.0, 2: 9.0, 3: 4.0, 4: 5.0, 5: 6.0}
    found = wordings_of(setting, losses)
    pool = setting.pool
    assert found.trained["original"] == (pool.original,)
    assert found.trained["chosen"] == (pool.at(1),)
    assert found.trained["highest"] == (pool.at(2),)
    assert found.trained["3"] == (pool.at(3),)
    assert found.trained["none"] == (NO_INSTRUCTION,)
    assert found.served["short"] == (pool.at(5),)  # the shortest text
    unseen = found.served["unseen"]
    assert len(unseen) == 1
    assert {prompt.index for prompt in unseen} <= {0, 4}
    assert set(found.trained["mixed"]) == {pool.original, *pool.paraphrases} - set(unseen)
    own = prepare(given, [config("compare.short='odd, even?'", "scorer.include_original=false")])
    assert wordings_of(own, {**losses, -1: 0.0}).trained["chosen"] == (pool.at(1),)
    assert wordings_of(own, losses).served["short"] == (Prompt("odd, even?", -3),)


@pytest.mark.slow  # trains under three prompts with two seeds
def test_every_row_is_served_every_column_and_what_is_equal_is_computed_once(given, config):
    rows = "compare.train=[original,chosen,mixed]"
    configs = [config(rows), config(rows, "seed=1")]
    setting = prepare(given, configs)
    engine = LocalEngine(Store(Path(configs[0].store.root)))
    before = cost(setting, engine)
    wordings, found = compare(setting, engine)
    answers = found.answers
    assert before["seconds"] is None
    cells = answers.groupby(["seed", "trained", "served"]).size()
    for seed in (0, 1):
        for trained in (UNTOUCHED, *wordings.trained):
            for served in ("original", "none", "short", "unseen", "retained", "trained"):
                expected = {"unseen": 40}.get(served, 20)
                missing = (trained, served) == (UNTOUCHED, "trained")
                assert cells.get((seed, trained, served), 0) == (0 if missing else expected)
    kinds = [kind for kind, _ in engine.store.stages()]
    different = len(set(wordings.trained.values()))
    assert kinds.count("train") == 2 * different == before["trainings"]
    assert kinds.count("score") == 1
    untouched = answers[answers["trained"] == UNTOUCHED].groupby("seed")["nll"].apply(list)
    assert untouched[0] == untouched[1]
    after = cost(setting, engine)
    assert after == {"trainings": 0, "evaluations": 0, "seconds": (0, 0), "notes": []}


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({}, ["compare.train=[7]"], "No prompt 7"),
        ({}, ["compare.unseen=6"], "compare.unseen=6: the pool of parity has"),
        ({}, ["scorer.examples=55"], r"5 others are left to test.*scorer.examples=40"),
        ({}, ["compare.retain=[mini_prices]"], "Unknown mini task 'mini_prices'"),
        ({}, ["scorer=race"], "scorer=race: a comparison needs the loss of every prompt"),
        ({}, ["task=mini_price"], "task=mini_price brings its own data"),
        ({"data": "missing.jsonl"}, [], "missing.jsonl"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_computed(
    given, config, changes, overrides, message
):
    with pytest.raises(UserError, match=message):
        prepare({**given, **changes}, [config(*overrides)])


def test_rows_that_cannot_tell_prompts_apart_are_refused(given, config, splits):
    with pytest.raises(UserError, match="10 distinct test rows; a comparison needs at least 12"):
        prepare(splits(slice(40), slice(41, None, 2)), [config()])
    with pytest.raises(UserError, match="all 20 test rows have the answer 'odd'"):
        prepare(splits(slice(40), slice(1, None, 2)), [config()])


def test_a_task_that_is_trained_and_several_settings_are_refused(given, config):
    only = config("task=mini_price", "paraphrases.file=null", "data.test_examples=12")
    with pytest.raises(UserError, match="mini_price is the task that is trained"):
        prepare({}, [only])
    with pytest.raises(UserError, match="one value of every setting but the seed"):
        prepare(given, [config(), config("method.rank=4")])


def test_the_commands_that_train_for_good_name_the_prompt_and_the_data(given, config, tmp_path):
    setting = prepare(given, [config()])
    folder = tmp_path / "report"
    asked = ["model=tiny_llama", "compare.unseen=2", "seed=0"]
    train, export = write_task(setting, given, asked, [setting.pool.at(3)], folder)
    assert train == (
        f"sapo train sequence=own data.root={folder} 'sequence.tasks=[parity]' policy=fixed policy.index=3 "
        f"model=tiny_llama paraphrases.file={folder / 'pool.yaml'} data.train_examples=null"
    )
    assert export == "sapo export RUN --to FOLDER"
    (task,), _ = load_tasks(config("sequence=own", "sequence.tasks=[parity]", f"data.root='{folder}'"))
    assert (task.instruction, task.labels) == (ORIGINAL, ("odd", "even"))
    none, _ = write_task(setting, given, asked, [NO_INSTRUCTION], tmp_path / "none")
    assert " policy=static " in none
    (task,), _ = load_tasks(
        config("sequence=own", "sequence.tasks=[parity]", f"data.root='{tmp_path / 'none'}'")
    )
    assert task.instruction == ""
    mixed, _ = write_task(setting, given, asked, setting.pool.candidates(include_original=True), folder)
    assert " policy=paft model=tiny_llama" in mixed


def test_every_stage_of_a_comparison_has_the_layout_and_the_command_names_it(given, config, tmp_path):
    setting = prepare(given, [config("data.layout=system")])
    planned = PlanEngine(Store(tmp_path / "store"))
    asyncio.run(measure(setting, planned))
    stages = planned.to_do.values()
    assert {stage.kind for stage in stages} == {"score", "train", "evaluate"}
    assert {stage.config.data.layout for stage in stages} == {"system"}
    command, _ = write_task(setting, given, ["data.layout=system"], [setting.pool.original], tmp_path)
    assert " policy=static data.layout=system" in command


def test_objects_that_a_caller_has_are_compared_and_left_as_they_are(tiny_config):
    held = load_model(tiny_config())
    before = {name: value.clone() for name, value in held.base.state_dict().items()}
    whole = Dataset.from_list([{"input": f"number {i}", "output": i % 2} for i in range(45)])
    rows = DatasetDict({"train": whole.select(range(30)), "validation": whole.select(range(30, 45))})
    settings = ["scorer.examples=20", "compare.train=[original,chosen]", "compare.serve=[trained,none]"]
    settings += ["compare.retain=[]", "trainer.epochs=1", "evaluator.max_new_tokens=4"]
    named = {"labels": {0: "even", 1: "odd"}, "settings": settings}
    found = compare_prompts(held.base, held.tokenizer, rows, [ORIGINAL, *PARAPHRASES], **named)
    assert len(found.answers[["served", "row"]].drop_duplicates()) == 2 * 15
    assert found.trained == [UNTOUCHED, "original", "chosen"]
    assert found.served == ["trained", "none"]
    assert found.measures == ("label_match", "nll")
    assert found.verdict
    assert found.retained.empty
    after = held.base.state_dict()
    assert all((after[name] == value).all() for name, value in before.items())
