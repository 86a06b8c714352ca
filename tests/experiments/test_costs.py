"""What stages take: their work against what goes through the model, and rates that hold here or do not."""

import asyncio
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sapo.data.mini import generate
from sapo.data.prompts import Prompt
from sapo.experiments import costs
from sapo.experiments.costs import Rates, Work, find_rates, priced, stage_bytes, stated_hours, work_of
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store
from sapo.experiments.model import budgets
from sapo.experiments.model.budgets import CPU_PASS
from sapo.experiments.model.load import load_model
from sapo.experiments.model.rows import TrainingTask
from sapo.experiments.stages import BASE, Evaluate, Score, Train

TASK = generate("mini_city", 24, 12, 0)
PROMPT = Prompt(TASK.instruction)
RATES = {"training": 100.0, "reading": 400.0, "steps": 2.0, "rows": 10}


def rates_here(config):
    beside = {"train": 3.0, "score": 1.0, "evaluate": 2.0}
    return Rates(place=costs.place_of(config), beside=beside, a_pass=CPU_PASS, **RATES)


def test_work_is_what_goes_through_the_model(tiny_config, tmp_path):
    """Against the tokens that its embedding sees; a pass counts as CPU_PASS of them."""
    config = tiny_config("trainer.epochs=2", "evaluator.max_new_tokens=24", "data.max_input_tokens=600")
    engine, untouched, seen = LocalEngine(Store(tmp_path)), set(), []
    embedding = load_model(config).base.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda _, given: seen.append(given[0].numel()))
    trained = Train(config, BASE, 0, (TrainingTask(TASK, (PROMPT,)),))
    stages = [
        Score(config, BASE, TASK, TASK.train, (PROMPT, Prompt("Name the country of the city.", 0))),
        trained,
        Evaluate(config, BASE, TASK, PROMPT),
        Evaluate(config, trained.key, TASK, PROMPT),
    ]
    for stage in stages:
        seen.clear()
        asyncio.run(engine.run(stage))
        real = sum(seen) + CPU_PASS * len(seen)
        least, most = (work.trained + work.read + work.generated for work in work_of(stage, untouched))
        assert 0.8 * least < real < 1.25 * most, stage
    handle.remove()


def test_a_race_is_a_range_and_kept_predictions_are_not_read_again(tiny_config):
    prompts = (PROMPT, Prompt("Where is it?", 0))
    least, most = work_of(Score(tiny_config("scorer=race"), BASE, TASK, TASK.train, prompts), set())
    full = work_of(Score(tiny_config(), BASE, TASK, TASK.train, prompts), set())
    assert most == full[0] == full[1]
    assert 0.4 < least.read / most.read < 0.9
    untouched, silent = set(), tiny_config("evaluator.answers=false")
    first, second = (work_of(Evaluate(silent, "a" * 64, TASK, PROMPT), untouched)[0].read for _ in range(2))
    assert first == 2 * second == 2 * work_of(Evaluate(silent, BASE, TASK, PROMPT), untouched)[0].read


def test_seconds_are_what_a_stage_takes_anyway_and_its_work_at_its_rates(tiny_config):
    config = tiny_config()
    stage = Evaluate(config, BASE, TASK, PROMPT)
    rates = rates_here(config)
    assert rates.seconds(stage, Work(100, 200, 2 * (CPU_PASS + 10))) == 2.0 + 1.0 + 0.5 + 1.0
    assert priced([stage])[0][0].seconds is None
    costs.save_rates(config, rates)
    least, most = work_of(stage, set())
    assert priced([stage])[0][0].seconds == (
        pytest.approx(0.8 * rates.seconds(stage, least)),
        pytest.approx(1.2 * rates.seconds(stage, most)),
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"place": {"machine": "cpu: another", "torch": "1.0", "model": "m"}}, "measured elsewhere.*another"),
        ({"a_pass": 7}, f"measured elsewhere.*tokens a pass 7, here {CPU_PASS}"),
        ({"training": 0}, "greater than 0"),
        ({"reading": float("nan")}, "reading: Input should be"),
        ({"beside": {"train": 1.0}}, "beside: .*at least 3 items"),
        ({"speed": 3}, "speed: Extra inputs"),
    ],
    ids=str,
)
def test_a_file_that_says_nothing_here_is_a_line(tiny_config, change, reason):
    config = tiny_config()
    assert find_rates(config) == (None, "")
    costs.save_rates(config, rates_here(config))
    assert find_rates(config) == (rates_here(config), "")
    path = costs.rates_file(config)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    costs_of, (note,) = priced([Evaluate(config, BASE, TASK, PROMPT)] * 2)
    assert [cost.seconds for cost in costs_of] == [None, None]
    assert re.search(f"is not used.*{reason}.*sapo plan --measure", note)


def test_stated_hours_of_the_paper_and_of_a_share_of_the_peak(tiny_config):
    config = tiny_config("model.parameters=8.19", "model.embeddings=1.245")  # Qwen3-8B
    stage = Train(config, BASE, 0, (TrainingTask(TASK, (PROMPT,)),))
    hours = stated_hours(stage, 18.5e6, Work(trained=1e9, read=2e9))
    peak = (27.78e9 * 1e9 + 13.89e9 * 2e9) / (989e12 * 0.4) / 3600
    assert hours == {"paper": pytest.approx(16 * 8.19 / 8.2), "peak": pytest.approx(peak, rel=1e-3)}
    unknown = Train(tiny_config(), BASE, 0, (TrainingTask(TASK, (PROMPT,)),))
    assert stated_hours(unknown, 1, Work(trained=1e9)) == {"paper": None, "peak": None}


def test_tokens_of_a_model_that_is_not_here_are_estimated(tiny_config, tmp_path, monkeypatch):
    """By characters, about as many as the tokenizer of such a model would make."""
    monkeypatch.setenv("HF_HUB_CACHE", str(Path(tmp_path)))
    config = tiny_config("model=qwen3_8b", "data.max_input_tokens=50")
    shape = costs.shape_of(TASK, TASK.train, config)
    assert shape.rows == 24
    assert 10 < shape.prefix < 60
    assert 24 * 20 < shape.own < 24 * 70


def test_devices_share_rows_and_prompts_but_not_what_each_reads_anyway(tiny_config, monkeypatch):
    """As on GPUs; the processes of a CPU share its cores."""
    stages = [
        lambda config: Evaluate(config, BASE, TASK, PROMPT),
        lambda config: Train(config, BASE, 0, (TrainingTask(TASK, (PROMPT,)),)),
        lambda config: Score(config, BASE, TASK, TASK.train, (PROMPT, Prompt("Where is it?", 0))),
    ]
    one, two = (tiny_config("evaluator.answers=false", f"engine.devices={n}") for n in (1, 2))
    assert [work_of(make(one), set()) for make in stages] == [work_of(make(two), set()) for make in stages]
    monkeypatch.setattr(costs, "device_of", lambda config: torch.device("cuda"))
    a_pass, shape = costs.pass_of(one), costs.shape_of(TASK, TASK.test, one)
    (alone, _), (shared, _) = (work_of(stages[0](config), set()) for config in (one, two))
    assert alone.read == a_pass + shape.prefix + shape.own
    assert shared.read == pytest.approx(a_pass + shape.prefix + shape.own / 2)
    trained, dealt = (work_of(stages[1](config), set())[0].trained for config in (one, two))
    own = costs.shape_of(TASK, TASK.train, one).own * one.trainer.epochs
    assert trained - dealt == pytest.approx(own / 2)
    scored, each = (work_of(stages[2](config), set())[0].read for config in (one, two))
    assert each < 0.6 * scored


@pytest.mark.parametrize(
    ("shape", "weights"),
    [
        ({}, 2 * 4096 * 128 * (32 + 8) + 3 * 4096 * 12288),
        ({"num_experts_per_tok": 8, "moe_intermediate_size": 768}, 2 * 4096 * 128 * 40 + 3 * 4096 * 768 * 8),
        ({"intermediate_size": [1000, 2000]}, 2 * 4096 * 128 * 40 + 3 * 4096 * 2000),
    ],
)
def test_a_gpu_s_pass_is_counted_by_the_weights_that_a_token_meets(shape, weights):
    sizes = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    config = SimpleNamespace(**{**sizes, "intermediate_size": 12288, **shape})
    assert budgets.layer_weights(config) == weights
    assert budgets.pass_tokens(torch.device("cuda"), weights) == round(5.6e11 / 2 / weights)
    assert budgets.pass_tokens(torch.device("cpu"), weights) == CPU_PASS


@pytest.mark.parametrize(
    ("method", "adapters"),
    [("lorainc", 5), ("olora", 5), ("inscl", 5), ("replay", 5), ("sequential", 1), ("ewc", 3)],
)
def test_the_fifth_training_keeps_as_many_adapters_as_its_method(tiny_config, method, adapters):
    def size(name, position):
        config = tiny_config(f"method={name}", "method.rank=8")
        return stage_bytes(Train(config, BASE, position, (TrainingTask(TASK, ()),)))

    adapter = size("lorainc", 1) - size("lorainc", 0)
    assert adapter > 0 == size("sequential", 1) - size("sequential", 0)
    assert size(method, 4) - size("sequential", 0) == (adapters - 1) * adapter
