"""The bench on the random tiny model: both ways do the same work, and the figures belong together."""

import importlib.util
from pathlib import Path

import pytest

from sapo.cli.app import main as sapo
from sapo.conf.errors import UserError
from sapo.conf.load import load_one

_SPEC = importlib.util.spec_from_file_location("bench", Path(__file__).with_name("bench.py"))
bench = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(bench)

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
    assert (
        0 < training["difference"]["update"] < 1e-2
    )  # 0 would mean that weights were compared to themselves
    assert evaluation["difference"] == {"answers": 0}
    race = scoring["race"]
    assert (race["prompts"], race["examples"]) == (4, 24)
    assert 8 / 24 <= race["read"] <= 1
    table = capsys.readouterr().out
    assert all(word in table for word in ("tiny_llama on cpu", "scoring", "training", "evaluation", "race"))


def test_overhead_divides_selection_by_training():
    (row,) = bench.main(["overhead", *SMALL, "--rounds", "1", "--json"])
    for name, seconds in row["selection_seconds"].items():
        assert row["of_plain_training"][name] == seconds / row["training_seconds"]["plain"]
    assert 8 / 250 <= row["race_read"] <= 1


def test_racing_replays_what_the_store_holds(tmp_path, monkeypatch):
    root = f"store.root={tmp_path / 'scored'}"
    monkeypatch.setattr(bench, "look_sizes", lambda n: [n])
    with pytest.raises(UserError, match=r"scored in full.*sapo train policy=sapo scorer=full"):
        bench.main(["racing", root])
    overrides = ("sequence.tasks=[mini_price]", "scorer.examples=24", "data.train_examples=24")
    with pytest.raises(SystemExit):
        sapo(["train", *SMALL[:2], *overrides, "paraphrases.count=3", "policy=sapo", root])
    (row,) = bench.main(["racing", root, "--orders", "5"])
    assert (row["prompts"], row["examples"]) == (4, 24)
    assert row["loss"] > 0
    assert 8 / 24 <= row["read"] <= 1


def test_what_the_plain_way_cannot_do_is_refused():
    with pytest.raises(UserError, match=r"trainer\.schedule=warmup_log_constant"):
        bench.main(["training", *SMALL, "trainer.schedule=warmup_log_constant"])
