"""The continual loop on a tiny model: what is asked, what is shared, what is left."""

import asyncio
import json
import sys
from functools import cache, partial

import numpy as np
import pandas as pd
import pytest
from tiny import SMALL

from sapo.conf.load import choices, load_one
from sapo.conf.schema import Config
from sapo.data.losses import prompt_losses
from sapo.data.records import StageResult, write_record
from sapo.data.tasks import own_task
from sapo.experiments.continual import pool_for, run_sequence, stages_asked
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import EXAMPLES, Store, Stored
from sapo.experiments.jobs import Job
from sapo.experiments.model import training
from sapo.experiments.plan import plan_jobs
from sapo.experiments.run import run as run_jobs
from sapo.experiments.runs import shortened, write_run

FEW = (
    *(*SMALL, "sequence.tasks=[mini_price,mini_topic]", "data.train_examples=4", "data.test_examples=1"),
    *("scorer.examples=2", "evaluator.max_new_tokens=2"),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Of all tests that may find stages of others: runs share what they have in common."""
    return Store(tmp_path_factory.mktemp("shared"))


@cache
def config(*overrides: str) -> Config:
    return load_one([*FEW, *overrides])


def finish(configs: list[Config], store: Store):
    """The runs, and the kind of every stage that was computed."""
    computed = []
    engine = LocalEngine(store, lambda stage, event: computed.append(stage.kind) if event == "done" else None)
    return [asyncio.run(run_sequence(config, engine)) for config in configs], computed


@pytest.fixture(scope="module")
def adaptive(store):
    """A run under `sapo`."""
    ((run,), _) = finish([config("policy=sapo")], store)
    return run


def test_a_run_trains_in_order_and_tests_learned_tasks_with_their_own_prompt(store):
    ((run,), _) = finish([config("policy=fixed", "policy.index=1")], store)
    names = [task.name for task in run.tasks]
    assert [choice.task for choice in run.choices] == names == run.config.sequence.tasks
    for evaluation in run.evaluations:
        is_learned = names.index(evaluation.task.name) < evaluation.after
        trained = is_learned and evaluation.column == "trained"
        assert evaluation.prompt.index == (1 if trained else -1)
    columns = [evaluation.column for evaluation in run.evaluations]
    assert columns.count("trained") == 3 * 2
    assert columns.count("common") == 1 + 2  # learned tasks, with their original instruction too
    off = config("policy=fixed", "policy.index=1", "evaluator.common_prompt=false")
    ((run,), computed) = finish([off], store)
    assert {evaluation.column for evaluation in run.evaluations} == {"trained"}
    assert computed == []


def test_sapo_trains_with_the_prompt_of_lowest_loss_in_the_present_state(adaptive):
    run = adaptive
    for choice in run.choices:
        losses = {candidate.index: candidate.loss for candidate in choice.candidates}
        assert sorted(losses) == [-1, 0, 1, 2]
        assert losses[choice.prompt.index] == min(losses.values())
        recomputed = prompt_losses(choice.scored.examples(), "token")["loss"].tolist()
        assert recomputed == list(losses.values())
    scored_in = [choice.scored.identity["state"] for choice in run.choices]
    assert scored_in == ["base", run.trained[0].key]


def test_multitask_trains_all_tasks_at_once_and_is_tested_at_the_end(store):
    ((run,), computed) = finish([config("method=multitask", "policy=static")], store)
    assert computed.count("train") == 1
    assert run.trained[0].result.examples == 2 * 4
    assert [(state.after, len(state.tasks)) for state in run.states] == [(0, 2), (2, 2)]


def test_single_trains_each_task_from_the_untouched_model_and_tests_it_alone(store, adaptive):
    ((run,), computed) = finish([config("method=single", "policy=sapo")], store)
    assert [stored.identity["state"] for stored in run.trained] == ["base"] * 2
    assert [e.task for e in run.evaluations if e.after == 2 and e.column == "trained"] == run.tasks
    # Its first task is what every method that keeps only an adapter trains first.
    assert computed.count("train") == 1
    assert run.trained[0].key == adaptive.trained[0].key


def test_zero_shot_trains_nothing_and_tests_under_the_prompt_that_sapo_would_train_with(store):
    ((run,), computed) = finish([config("method=zero_shot", "policy=sapo")], store)
    assert "train" not in computed
    for choice in run.choices:
        tested = [e for e in run.evaluations if (e.after, e.column) == (2, "trained")]
        assert [e.prompt for e in tested if e.task.name == choice.task] == [choice.prompt]


def test_paft_draws_from_the_whole_pool_and_is_tested_with_the_original(store):
    ((run,), computed) = finish([config("policy=paft")], store)
    assert "score" not in computed
    assert all(len(choice.drawn) == 4 for choice in run.choices)  # the original and three paraphrases
    assert {evaluation.prompt.index for evaluation in run.evaluations} == {-1}


# Every method, every policy, and drawn prompts with methods that keep or join what they were trained with.
GRID = [
    *((method, "sapo") for method in choices("method")),
    *(("lorainc", policy) for policy in choices("policy") if policy != "sapo"),
    *((method, "paft") for method in ("multitask", "inscl", "ewc")),
]


@pytest.mark.slow  # a run each; what each method and policy does has tests of its own
@pytest.mark.parametrize(("method", "policy"), GRID)
def test_every_policy_and_every_method_work(store, method, policy):
    few = ("method.buffer=2", "method.fisher_examples=2", "policy.index=0")
    asked = config(f"method={method}", f"policy={policy}", *few)
    ((run,), _) = finish([asked], store)
    folder = write_run(run, store)
    losses = pd.read_csv(folder / "losses.csv").groupby("task", sort=False)["loss"].apply(list)
    stored = [loss for each in run.trained for loss in each.result.losses]
    assert [loss for of_task in losses for loss in of_task] == pytest.approx(stored)
    table = pd.read_parquet(folder / "predictions.parquet")
    assert table[table["after"] == 2]["task"].nunique() == 2
    inputs = {task.name: [example.input for example in task.test] for task in (*run.tasks, *run.unseen)}
    read = zip(table["task"], table["example"], table["input"], strict=True)
    assert all(inputs[task][example] == text for task, example, text in read)
    assert np.isfinite(table[["rougeL", "exact_match", "nll"]].to_numpy()).all()
    assert stages_asked(partial(run_sequence, asked)).total() >= len(run.evaluations) + len(run.trained)


def test_a_task_without_an_instruction_keeps_its_empty_prompt_and_says_so(store, tmp_path):
    (tmp_path / "code.csv").write_text("input,output\n" + "".join(f"x{i} =,{i}\n" for i in range(10)))
    (tmp_path / "code.yaml").write_text("instruction: ''\ndata: code.csv\n")
    own = ("sequence.benchmark=own", "sequence.tasks=[code]", f"data.root={tmp_path}")
    ((run,), computed) = finish([config("policy=sapo", *own)], store)
    assert "score" not in computed
    facts = json.loads((write_run(run, store) / "run.json").read_text())
    assert facts["prompts"] == {"code": ""}
    assert facts["notes"][:1] == ["code: an empty instruction has no paraphrases; policy sapo keeps it."]


@pytest.mark.parametrize("tasks", [("mine", "yours"), ("task1", "task2"), ("task1_mine", "task2_yours")])
def test_only_the_last_task_gets_a_paraphrase_whatever_tasks_are_called(tmp_path, tasks):
    (tmp_path / "pool.yaml").write_text("prompts: [Tell whether this number is odd or even.]\n")
    sequence = ("sequence=own", f"sequence.tasks=[{','.join(tasks)}]")
    policy = ("policy=fixed", "policy.index=0", "policy.last_only=true")
    asked = config(*sequence, *policy, f"paraphrases.file='{tmp_path / 'pool.yaml'}'")
    pools = [pool_for(own_task(task, "Is this number odd or even?"), asked) for task in tasks]
    assert [len(pool.paraphrases) for pool in pools] == [0, 1]


def test_plans_and_runs_share_what_they_have_in_common_and_compute_nothing_twice(tmp_path, adaptive):
    store = Store(tmp_path / "store")
    configs = [config(f"policy={name}", f"store.root='{store.root}'") for name in ("static", "sapo")]
    jobs = [Job(one) for one in configs]
    kinds = {kind["kind"]: kind for kind in plan_jobs(jobs)["kinds"]}
    # The untouched model's two evaluations are common to both; learned tasks are tested twice under sapo.
    assert [kinds[kind]["to_do"] for kind in ("score", "train", "evaluate")] == [2, 4, 2 + 4 + 4 + 3]
    assert all(kind["seconds"] is None and kind["tokens"] > 0 for kind in kinds.values())
    runs, computed = finish(configs, store)
    assert computed.count("train") <= 4
    assert 2 + 4 + 4 <= computed.count("evaluate") <= 2 + 4 + 4 + 3
    again, computed = finish(configs, store)
    assert computed == []
    assert [run.prompts for run in again] == [run.prompts for run in runs]
    assert again[1].prompts == adaptive.prompts
    kinds = plan_jobs(jobs)["kinds"]
    assert [(kind["to_do"], kind["tokens"], kind["seconds"]) for kind in kinds] == [(0, 0, (0, 0))] * 3


def test_force_computes_again_and_gets_the_same(tmp_path):
    one = config("policy=static", "sequence.tasks=[mini_price]")
    store = Store(tmp_path / "store")
    ((run,), _) = finish([one], store)
    weights = run.trained[0].folder / "adapter" / "adapter_model.safetensors"
    before = weights.read_bytes(), weights.stat().st_ino
    engine = LocalEngine(store, force=True)
    asyncio.run(run_sequence(one, engine))
    assert len(engine.computed) == 1 + 2
    assert weights.read_bytes() == before[0]
    assert weights.stat().st_ino != before[1]


def test_runs_that_differ_in_the_order_of_tasks_or_in_drawn_prompts_have_folders_of_their_own(store):
    both = ("mini_price,mini_topic", "mini_topic,mini_price")
    asked = [("policy=static", f"sequence.tasks=[{tasks}]") for tasks in both]
    asked += [("policy=paft", "sequence.tasks=[mini_price]", f"paraphrases.count={n}") for n in (2, 3)]
    runs, _ = finish([config(*overrides) for overrides in asked], store)
    assert len({write_run(run, store) for run in runs}) == 4


def test_the_run_folder_tells_everything(adaptive, store):
    run = adaptive
    folder = write_run(run, store)
    facts = json.loads((folder / "run.json").read_text())
    cut = [each.stored.result.unfinished for each in run.evaluations if each.after]
    rows = sum(each.stored.result.examples for each in run.evaluations if each.after)
    limit = "answers of trained states ran into evaluator.max_new_tokens=2 before they ended."
    assert facts["notes"] == [f"{sum(cut)} of {rows} {limit}"]
    assert cut[0] == run.evaluations[2].stored.examples()["is_unfinished"].sum() == 1
    assert facts["demonstration"] is True
    assert facts["tasks"] == run.config.sequence.tasks
    assert facts["prompts"] == {name: prompt.text for name, prompt in run.prompts.items()}
    assert set(facts["environment"]["packages"]) >= {"torch", "transformers", "peft"}
    assert [state["after"] for state in facts["states"]] == [0, 1, 2]
    assert all(sizes["adapter/adapter_model.safetensors"] > 0 for sizes in facts["kept"].values())
    table = pd.read_parquet(folder / "predictions.parquet")
    trained = table[table["column"] == "trained"]
    assert trained.groupby(["after", "task"]).size().tolist() == [1] * 6
    assert write_run(run, store) == folder


def test_what_scoring_shortened_counts_too_each_example_once(tmp_path):
    stages = []
    for kind, count in (("train", 1), ("score", 3)):
        stages.append(Stored("key", tmp_path / kind / "key"))
        stages[-1].folder.mkdir(parents=True)
        result = StageResult(task="a", model="m", seconds=1.0, tokens=1, shortened=count)
        write_record(stages[-1].folder / "result.json", result)
    rows = {"prompt": [-1, -1, 0, 0], "example": [0, 1, 0, 1], "is_shortened": [True, False, True, True]}
    pd.DataFrame(rows).to_parquet(stages[-1].folder / EXAMPLES)
    assert shortened(stages) == {"a": 2}


def test_eight_frames_lie_between_the_command_and_an_optimizer_step(tmp_path, monkeypatch):
    """Whoever follows a step back to the command meets run, loop, engine, stage and training once each."""
    frames, step = [], training.AdamW.step

    def noted(*arguments, **settings):
        frame = sys._getframe(1)
        found = []
        while frame := frame.f_back:
            module = frame.f_globals["__name__"]
            found.append(f"{module}.{frame.f_code.co_name}") if module.startswith("sapo.") else None
        frames.append(found)
        return step(*arguments, **settings)

    monkeypatch.setattr(training.AdamW, "step", noted)
    asked = config("policy=static", "sequence.tasks=[mini_city]")
    run_jobs([Job(asked)], LocalEngine(Store(tmp_path / "store")))
    (own,) = {tuple(one) for one in frames}
    way = "model.training.train stages.compute engine.local.run continual.one_after_another "
    way += "continual.run_sequence run._outcome run.run"  # and the command
    assert [name.removeprefix("sapo.experiments.") for name in own] == way.split()
