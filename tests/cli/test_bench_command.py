"""`sapo bench …` on the random tiny model: both ways do the same work, and the figures belong together."""

import pytest
import torch

from sapo.conf.load import load_one
from sapo.data.benchmarks import load_task
from sapo.data.pools import load_pool
from sapo.experiments.bench.metering import Usage, measured, side_by_side, typical
from sapo.experiments.bench.plain import padded_tokens, plain_answers
from sapo.experiments.bench.setup import MINI_TASKS, TASKS, bench_configs
from sapo.experiments.model.load import load_model

SMALL = (
    "model=tiny_llama",
    "engine.device=cpu",
    "scorer.examples=10",
    "data.train_examples=10",
    "data.test_examples=9",
    "trainer.global_batch=5",
    "evaluator.max_new_tokens=3",
    "paraphrases.count=3",
    "task=mini_price",
)


def rendered(prompt: str | None = None, count: int = 10):
    config = load_one(["model=tiny_llama", "data.max_input_tokens=1536", "data.train_examples=1000"])
    task = load_task("mini_price", config)
    renderer = load_model(config).renderer(1536)
    return renderer.render(task, prompt or task.instruction, task.train[:count])


def check(row):
    """A row's ratio and rates are those of its seconds and tokens; ours computes fewer tokens."""
    plain, ours = row["plain"], row["ours"]
    assert row["ratio"] == pytest.approx(plain["seconds"] / ours["seconds"])
    for side in (plain, ours):
        assert side["tokens_per_second"] == pytest.approx(side["tokens"] / side["seconds"])
        assert side["memory"] is None or side["memory"] >= 0
    assert 0 < ours["tokens"] < plain["tokens"]


def test_scoring_compares_the_same_losses_and_counts_padded_tokens(sapo):
    done = sapo("bench", "scoring", *SMALL, "--rounds", "2", "--race-examples", "24", "--json")
    (row,) = done.document["rows"]
    check(row)
    assert (row["kind"], row["task"], row["examples"]) == ("scoring", "mini_price", 10)
    assert row["plain"]["tokens"] == padded_tokens(rendered())
    assert 0 <= row["difference"]["nll"] < 1e-4
    (middle,) = done.document["medians"]
    assert middle["ratio"] == row["ratio"]
    assert middle["race_ratio"] == row["race"]["ratio"]


def test_a_race_is_run_on_the_whole_pool_beside_a_projection(sapo):
    done = sapo("bench", "scoring", *SMALL, "--rounds", "1", "--race-examples", "24", "--json")
    (row,) = done.document["rows"]
    race = row["race"]
    config = load_one(["model=tiny_llama", "paraphrases.count=3", "data.train_examples=1000"])
    prompts = load_pool(load_task("mini_price", config), config.paraphrases).candidates(True)
    assert (race["prompts"], race["examples"]) == (4, 24)
    assert race["plain_tokens"] == sum(padded_tokens(rendered(prompt.text, 24)) for prompt in prompts)
    assert race["plain_seconds"] == pytest.approx(race["plain_tokens"] / row["plain"]["tokens_per_second"])
    assert 8 / 24 <= race["read"] <= 1


def test_training_compares_losses_and_weights(sapo):
    done = sapo("bench", "training", *SMALL, "method.dropout=0.5", "--rounds", "1", "--json")
    (row,) = done.document["rows"]
    check(row)
    assert 0 <= row["difference"]["loss"] < 1e-4
    assert 0 < row["difference"]["update"] < 1e-2  # 0 would mean that weights were compared to themselves


def test_evaluation_compares_answers(sapo):
    done = sapo("bench", "evaluation", *SMALL, "--rounds", "1", "--json")
    (row,) = done.document["rows"]
    check(row)
    assert (row["examples"], row["difference"]) == (9, {"predictions": 0})


def test_plain_answers_end_before_the_stop_token():
    model = load_model(load_one(["model=tiny_llama"])).base
    free = plain_answers(model, rendered(), 6, [0])
    assert len(free) == 10
    stop = free[9][2]
    stopped = plain_answers(model, rendered(), 6, [stop])
    assert stopped[9] == free[9][: free[9].index(stop)]


def test_all_prints_a_table_of_each_kind(sapo):
    done = sapo("bench", "all", *SMALL, "--rounds", "1", "--race-examples", "0")
    assert done.code == 0
    for kind in ("scoring", "training", "evaluation"):
        assert kind in done.out
        assert f"mini_price {kind}: " in done.err
    assert "race" not in done.out
    assert "tiny_llama on cpu" in done.out


def test_overhead_divides_selection_by_training(sapo):
    done = sapo("bench", "overhead", *SMALL, "--json")
    (row,) = done.document["rows"]
    for name, seconds in row["selection_seconds"].items():
        assert row["of_plain_training"][name] == pytest.approx(seconds / row["plain_training_seconds"])
        assert row["of_our_training"][name] == pytest.approx(seconds / row["our_training_seconds"])
        assert done.document["median_of_plain_training"][name] == row["of_plain_training"][name]
    assert 8 / 250 <= row["race_read"] <= 1


def test_racing_replays_what_the_store_holds(sapo, small, tmp_path, monkeypatch):
    root = tmp_path / "scored"
    overrides = ("sequence.tasks=[mini_price]", "scorer.examples=24", "data.train_examples=24")
    done = sapo("train", *small, *overrides, "policy=sapo", f"store.root='{root}'", "--json")
    monkeypatch.setenv("SAPO_STORE", str(root))
    (row,) = sapo("bench", "racing", "--orders", "5", "--json").document["rows"]
    (choice,) = done.document["runs"][0]["choices"]
    assert (row["task"], row["prompts"], row["examples"]) == ("mini_price", 4, 24)
    assert (row["winner"], row["loss"]) == (choice["index"], pytest.approx(choice["loss"]))
    assert 0 <= row["same_winner"] <= row["agreement"] <= 1
    assert 8 / 24 <= row["read"] <= 1
    assert "agreement" in sapo("bench", "racing", "--orders", "2").out


def test_racing_an_empty_store_says_what_to_do(sapo):
    done = sapo("bench", "racing")
    assert done.code == 2
    assert "scored in full" in done.err
    assert "sapo train policy=sapo scorer=full" in done.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("trainer.schedule=warmup_log_constant",), "trainer.schedule=warmup_log_constant"),
        (("task=null",), "say which task"),
        (("task=NI195",), "data"),
    ],
)
def test_what_cannot_be_measured_is_refused(sapo, overrides, message):
    done = sapo("bench", "training", *SMALL[:-1], *overrides)
    assert done.code == 2
    assert message in done.err


def test_default_tasks_are_real_ones_where_the_data_are(benchmarks):
    assert [config.task for config in bench_configs([])] == list(MINI_TASKS)
    assert [config.task for config in bench_configs([f"data.root='{benchmarks}'"])] == list(TASKS)


def test_an_override_replaces_a_default_size():
    (config,) = bench_configs(["task=mini_price", "scorer.examples=3"])
    assert (config.scorer.examples, config.data.test_examples) == (3, 24)


# --- the meter ---------------------------------------------------------------------------------------------


def test_tokens_are_those_that_go_through_the_embedding():
    base = load_model(load_one(["model=tiny_llama"])).base
    with measured(base) as usage, torch.inference_mode():
        base(input_ids=torch.zeros(3, 5, dtype=torch.long))
        base(input_ids=torch.zeros(1, 4, dtype=torch.long))
    assert usage.tokens == 19
    assert usage.seconds > 0


def test_memory_is_the_growth_to_the_peak():
    base = load_model(load_one(["model=tiny_llama"])).base
    with measured(base) as usage:
        torch.ones(32 * 2**20).sum().item()  # 128 MiB
    if usage.memory is None:
        pytest.skip("this system does not say how much memory a process holds")
    assert 120 * 2**20 < usage.memory < 512 * 2**20


def test_both_ways_are_measured_in_turn():
    base = load_model(load_one(["model=tiny_llama"])).base
    calls = []

    def way(name):
        return lambda: calls.append(name) or name

    first, second = side_by_side(base, way("plain"), way("ours"), 3)
    assert calls == ["plain", "ours", "ours", "plain", "plain", "ours"]
    assert (first.result, second.result) == ("plain", "ours")


def test_rounds_are_summed_up_by_median_time_and_highest_memory():
    usages = [Usage(3.0, 10, 5), Usage(1.0, 10, 9), Usage(2.0, 10, None)]
    assert typical(usages) == Usage(2.0, 10, 9)
    assert typical([Usage(1.0, 10, None)]).memory is None
