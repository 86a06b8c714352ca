"""The scored subset: decided by seed, task and number of rows alone, and the same for all that score."""

import asyncio
import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from sapo.data.benchmarks import load_task
from sapo.data.mini import generate
from sapo.data.own import gather
from sapo.data.subset import draw, subset
from sapo.experiments.continual import choose_prompt
from sapo.experiments.model.load import load_model
from sapo.experiments.runs import Planned
from sapo.experiments.select import select_prompt

TASK = generate("mini_price", 20, 4, 0)


@given(count=st.integers(0, 30), seed=st.integers(0, 5), choice=st.sampled_from(["random", "first"]))
def test_rows_in_their_order_the_same_from_memory_and_from_a_stream(count, seed, choice):
    drawn = subset(TASK, count, choice, seed)
    places = [TASK.train.index(example) for example in drawn]
    assert places == sorted(set(places))
    assert len(drawn) == min(count, 20)

    class Stream:
        def __iter__(self):
            return iter(TASK.train)

    assert draw(Stream(), count, choice, seed, TASK.name) == (drawn, 20)


def test_the_draw_by_hand():
    rows = random.Random("subset 3 mini_price").sample(range(20), 5)  # noqa: S311
    assert subset(TASK, 5, "random", 3) == tuple(TASK.train[row] for row in sorted(rows))
    assert subset(TASK, 5, "first", 3) == TASK.train[:5]
    assert subset(TASK, 5, "random", 0) != subset(TASK, 5, "random", 1)


def test_a_run_select_and_select_prompt_score_the_same_rows(tiny_config, tmp_path):
    rows = "input,output\n" + "".join(f"number {n},{n % 3}\n" for n in range(100))
    (tmp_path / "digits").mkdir()
    for split in ("train", "test"):
        (tmp_path / "digits" / f"{split}.csv").write_text(rows)
    (tmp_path / "digits.yaml").write_text("instruction: Give the rest by three.\ndata: digits\n")
    (tmp_path / "pool.yaml").write_text("[Divide by three and give the rest.]")
    own = ("sequence=own", "sequence.tasks=[digits]", f"data.root='{tmp_path}'", "policy=sapo", "seed=3")
    pool = ("paraphrases=file", f"paraphrases.file='{tmp_path / 'pool.yaml'}'")
    sizes = ("scorer.examples=12", "data.train_examples=100", "data.max_input_tokens=512")
    config = tiny_config(*own, *pool, *sizes)
    asked = []

    class Watched:
        async def run(self, stage):
            asked.append(stage)
            return Planned("key")

    task = load_task("digits", config)
    asyncio.run(choose_prompt(config, Watched(), "base", task))
    (scored,) = asked

    by_name = gather({}, replace(config, task="digits")).task.train
    given = {"data": str(tmp_path / "digits"), "instruction": task.instruction}
    by_file = gather(given, config).task.train
    model = load_model(config)
    options = {"n_examples": 12, "seed": 3, "name": "digits"}
    selection = select_prompt(model.base, model.tokenizer, task.train, [task.instruction, "Do."], **options)
    assert scored.examples == by_name == by_file == selection.task.train
    assert len(scored.examples) == 12
