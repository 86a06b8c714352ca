"""The bench on the random tiny model: both ways do the same work, and the figures belong together."""

import bench
import pytest

from sapo.conf.errors import UserError
from sapo.conf.load import load_one

SMALL = (
    "model=tiny_llama", "engine.device=cpu", "scorer.examples=10", "data.train_examples=10",
    "data.test_examples=9", "trainer.global_batch=5", "evaluator.max_new_tokens=3", "paraphrases.count=3",
    "task=mini_price", "method.dropout=0.5",
)  # fmt: skip


def test_both_ways_do_the_same_work(capsys):
    scoring, training, evaluation = bench.main(["all", *SMALL, "--rounds", "1", "--race-examples", "24"])
    for row in (scoring, training, evaluation):
        assert row["ratio"] == row["plain"]["seconds"] / row["ours"]["seconds"]
        assert 0 < row["ours"]["tokens"] < row["plain"]["tokens"]
    rows = bench.Bench(load_one([*bench.SIZES, *SMALL]), 1).rendered(10)
    assert scoring["plain"]["tokens"] == bench.padded_tokens(rows)
    assert 0 <= scoring["difference"]["nll"] < 1e-4
    assert 0 <= training["difference"]["loss"] < 1e-4
    # 0 would mean that weights were compared to themselves.
    assert 0 < training["difference"]["update"] < 1e-2
    assert evaluation["difference"] == {"answers": 0}
    race = scoring["race"]
    assert (race["prompts"], race["examples"]) == (4, 24)
    assert 8 / 24 <= race["read"] <= 1
    table = capsys.readouterr().out
    assert all(word in table for word in ("tiny_llama on cpu", "scoring", "training", "evaluation", "race"))


def test_what_the_plain_way_cannot_do_is_refused():
    with pytest.raises(UserError, match=r"trainer\.schedule=warmup_log_constant"):
        bench.main(["training", *SMALL, "trainer.schedule=warmup_log_constant"])
