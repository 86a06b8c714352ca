"""The continual loop on a tiny model: what is asked, what is shared, what is left."""

import asyncio
import json
import sys

import numpy as np
import pandas as pd
import pytest

from sapo.conf.load import choices
from sapo.conf.schema import Config
from sapo.data.losses import prompt_losses
from sapo.data.tasks import own_task
from sapo.experiments.continual import pool_for, run_sequence
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store
from sapo.experiments.jobs import Job
from sapo.experiments.model import training
from sapo.experiments.plan import plan
from sapo.experiments.run import expected_stages
from sapo.experiments.run import run as run_jobs
from sapo.experiments.runs import write_run

SMALL = ("paraphrases.count=3", "data.train_examples=4", "data.test_examples=2", "scorer.examples=2")


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("grid"))


def finish(configs: list[Config], store: Store):
    """The runs, and a line for every stage that was computed."""
    computed = []
    engine = LocalEngine(store, lambda stage, event: computed.append(stage.kind) if event == "done" else None)
    return [asyncio.run(run_sequence(config, engine)) for config in configs], computed


def test_a_run_trains_in_order_and_tests_learned_tasks_with_their_own_prompt(tiny_config, store):
    ((run,), computed) = finish([tiny_config("policy=fixed", "policy.index=1", *SMALL)], store)
    assert sorted(set(computed)) == ["evaluate", "train"]
    names = [task.name for task in run.tasks]
    assert [choice.task for choice in run.choices] == names == run.config.sequence.tasks
    for evaluation in run.evaluations:
        is_learned = names.index(evaluation.task) < evaluation.after
        trained = is_learned and evaluation.column == "trained"
        assert evaluation.prompt.index == (1 if trained else -1)
    columns = [evaluation.column for evaluation in run.evaluations]
    assert columns.count("trained") == 4 * 3
    assert columns.count("common") == 1 + 2 + 3  # learned tasks, with their original instruction too


def test_the_common_column_can_be_left_out_and_is_not_there_under_the_original(tiny_config, store):
    off = tiny_config("policy=fixed", "policy.index=1", "evaluator.common_prompt=false", *SMALL)
    runs, _ = finish([off, tiny_config("policy=static", *SMALL)], store)
    assert {evaluation.column for run in runs for evaluation in run.evaluations} == {"trained"}


def test_multitask_trains_all_tasks_at_once_and_is_tested_at_the_end(tiny_config, store):
    ((run,), computed) = finish([tiny_config("method=multitask", "policy=static", *SMALL)], store)
    assert computed.count("train") == 1
    assert run.trained[0].result.examples == 3 * 4
    assert [(state.after, len(state.tasks)) for state in run.states] == [(0, 3), (3, 3)]


def test_single_trains_each_task_from_the_untouched_model_and_tests_it_alone(tiny_config, store):
    config = tiny_config("method=single", "policy=sapo", *SMALL)
    ((run,), _) = finish([config, tiny_config("method=lorainc", "policy=sapo", *SMALL)][:1], store)
    read = [json.loads((stored.folder / "identity.json").read_text()) for stored in run.trained]
    assert [identity["state"] for identity in read] == ["base"] * 3
    after = [(e.task, e.column) for e in run.evaluations if e.after == 3 and e.column == "trained"]
    assert after == [(task.name, "trained") for task in run.tasks]
    # Its first task is what every method that keeps only an adapter trains first.
    _, computed = finish([tiny_config("method=lorainc", "policy=sapo", *SMALL)], store)
    assert computed.count("train") == 2


def test_zero_shot_trains_nothing_and_tests_under_the_prompt_that_sapo_would_train_with(tiny_config, store):
    ((run,), computed) = finish([tiny_config("method=zero_shot", "policy=sapo", *SMALL)], store)
    assert "train" not in computed
    for choice in run.choices:
        (tested,) = [e for e in run.evaluations if (e.after, e.task, e.column) == (3, choice.task, "trained")]
        assert tested.prompt == choice.prompt


def test_paft_draws_from_the_whole_pool_and_is_tested_with_the_original(tiny_config, store):
    ((run,), computed) = finish([tiny_config("policy=paft", *SMALL)], store)
    assert "score" not in computed
    assert all(len(choice.drawn) == 4 for choice in run.choices)  # the original and three paraphrases
    assert {evaluation.prompt.index for evaluation in run.evaluations} == {-1}


def test_runs_that_differ_in_the_order_of_tasks_or_in_drawn_prompts_have_folders_of_their_own(
    tiny_config, store
):
    few = ("data.train_examples=2", "data.test_examples=1", "trainer.epochs=1")
    order = ("[mini_price,mini_topic]", "[mini_topic,mini_price]")
    configs = [tiny_config("policy=static", f"sequence.tasks={tasks}", *few) for tasks in order]
    configs += [tiny_config("policy=paft", f"paraphrases.count={n}", *few) for n in (2, 3)]
    runs, _ = finish(configs, store)
    assert len({write_run(run, store) for run in runs}) == 4


GRID = [(method, policy) for method in choices("method") for policy in choices("policy")]


@pytest.mark.parametrize(("method", "policy"), GRID)
def test_every_policy_works_with_every_method(tiny_config, shared_store, method, policy):
    small = ("paraphrases.count=2", "data.train_examples=4", "data.test_examples=1", "scorer.examples=2")
    few = ("method.buffer=2", "method.fisher_examples=2", "trainer.epochs=1")
    config = tiny_config(f"method={method}", f"policy={policy}", "policy.index=0", *small, *few)
    ((run,), _) = finish([config], shared_store)
    folder = write_run(run, shared_store)
    table = pd.read_parquet(folder / "predictions.parquet")
    assert table[table["after"] == 3]["task"].nunique() == 3
    assert np.isfinite(table[["rougeL", "exact_match", "nll"]].to_numpy()).all()
    assert expected_stages(config) >= len(run.evaluations) + len(run.trained)


def test_sapo_trains_with_the_prompt_of_lowest_loss_in_the_present_state(tiny_config, store):
    ((run,), _) = finish([tiny_config("policy=sapo", *SMALL)], store)
    for choice in run.choices:
        losses = {c["index"]: c["loss"] for c in choice.candidates}
        assert sorted(losses) == [-1, 0, 1, 2]
        assert losses[choice.prompt.index] == min(losses.values())
    scored = [stored for kind, stored in store.stages() if kind == "score"]
    states = {json.loads((s.folder / "identity.json").read_text())["state"] for s in scored}
    assert states == {"base", run.trained[0].key, run.trained[1].key}
    first = next(s for s in scored if s.result.task == run.tasks[0].name)
    recomputed = prompt_losses(first.examples(), "token")["loss"].tolist()
    assert recomputed == [c["loss"] for c in run.choices[0].candidates]


def test_nothing_is_computed_twice_and_runs_share_what_they_have_in_common(tiny_config, store):
    configs = [tiny_config(f"policy={name}", *SMALL) for name in ("static", "random")]
    runs, computed = finish(configs, store)
    # The untouched model's three evaluations are common to both.
    assert computed.count("train") == 6
    # Learned tasks of the second run are tested twice where its prompt is not the original.
    assert 3 + 9 + 9 < computed.count("evaluate") <= 3 + 9 + 9 + 6
    again, computed = finish(configs, store)
    assert computed == []
    assert [run.prompts for run in again] == [run.prompts for run in runs]


def test_force_computes_again_and_gets_the_same(tiny_config, store):
    config = tiny_config("policy=static", *SMALL)
    finish([config], store)
    before = {
        s.key: (s.folder / "manifest.json").read_text() for kind, s in store.stages() if kind == "train"
    }
    engine = LocalEngine(store, force=True)
    asyncio.run(run_sequence(config, engine))
    assert len(engine.computed) == 3 + 12
    for key, manifest in before.items():
        old, new = (
            json.loads(manifest),
            json.loads((store.find("train", key).folder / "manifest.json").read_text()),
        )
        weights = "adapter/adapter_model.safetensors"
        assert old[weights] == new[weights]


class Killed(BaseException):
    """In the place of a kill."""


def test_a_run_killed_after_each_stage_ends_with_the_same_numbers(tiny_config, tmp_path, monkeypatch):
    config = tiny_config("policy=sapo", "sequence.tasks=[mini_price,mini_topic]", *SMALL)
    undisturbed = Store(tmp_path / "undisturbed")
    ((run,), computed) = finish([config], undisturbed)
    expected = pd.read_parquet(write_run(run, undisturbed) / "predictions.parquet")
    store, building = Store(tmp_path / "killed"), Store.building
    kills = 0
    for _ in range(len(computed) + 1):
        left = [1]

        def one_more(store, kind, key, left=left):
            if not left:
                raise Killed
            left.pop()
            return building(store, kind, key)

        monkeypatch.setattr(Store, "building", one_more)
        try:
            ((resumed,), _) = finish([config], store)
        except Killed:
            kills += 1
        else:
            break
    assert kills == len(computed) - 1
    pd.testing.assert_frame_equal(
        pd.read_parquet(write_run(resumed, store) / "predictions.parquet"), expected
    )


def test_a_task_without_an_instruction_keeps_its_empty_prompt_and_says_so(tiny_config, store, tmp_path):
    (tmp_path / "code.csv").write_text("input,output\n" + "".join(f"x{i} =,{i}\n" for i in range(10)))
    (tmp_path / "code.yaml").write_text("instruction: ''\ndata: code.csv\n")
    own = ("sequence.benchmark=own", "sequence.tasks=[code]", f"data.root={tmp_path}")
    ((run,), computed) = finish([tiny_config("policy=sapo", *own)], store)
    assert "score" not in computed
    facts = json.loads((write_run(run, store) / "run.json").read_text())
    assert facts["prompts"] == {"code": ""}
    assert facts["notes"][:1] == ["code: an empty instruction has no paraphrases; policy sapo keeps it."]


@pytest.mark.parametrize("tasks", [("mine", "yours"), ("task1", "task2"), ("task1_mine", "task2_yours")])
def test_only_the_last_task_gets_a_paraphrase_whatever_tasks_are_called(tiny_config, tmp_path, tasks):
    (tmp_path / "pool.yaml").write_text("prompts: [Tell whether this number is odd or even.]\n")
    sequence = ("sequence=own", f"sequence.tasks=[{','.join(tasks)}]")
    policy = ("policy=fixed", "policy.index=0", "policy.last_only=true")
    config = tiny_config(*sequence, *policy, f"paraphrases.file='{tmp_path / 'pool.yaml'}'")
    pools = [pool_for(own_task(task, "Is this number odd or even?"), config) for task in tasks]
    assert [len(pool.paraphrases) for pool in pools] == [0, 1]


def test_the_plan_counts_what_is_shared_and_what_is_done(tiny_config, store):
    configs = [tiny_config(f"policy={name}", *SMALL) for name in ("static", "sapo")]
    jobs = [Job(config) for config in configs]
    by_kind = {kind.kind: kind for kind in plan(jobs, store).kinds}
    assert [by_kind[kind].to_do for kind in ("score", "train", "evaluate")] == [3, 6, 27]
    assert all(kind.seconds is None and kind.tokens > 0 for kind in by_kind.values())
    finish(configs, store)
    assert [(kind.to_do, kind.tokens, kind.seconds) for kind in plan(jobs, store).kinds] == [(0, 0, 0)] * 3


def test_the_run_folder_tells_everything(tiny_config, store):
    ((run,), _) = finish([tiny_config("policy=random", *SMALL)], store)
    folder = write_run(run, store)
    facts = json.loads((folder / "run.json").read_text())
    assert facts["demonstration"] is True
    assert facts["tasks"] == run.config.sequence.tasks
    assert facts["prompts"] == {name: prompt.text for name, prompt in run.prompts.items()}
    assert set(facts["environment"]["packages"]) >= {"torch", "transformers", "peft"}
    assert [state["after"] for state in facts["states"]] == [0, 1, 2, 3]
    assert all(sizes["adapter/adapter_model.safetensors"] > 0 for sizes in facts["kept"].values())
    table = pd.read_parquet(folder / "predictions.parquet")
    trained = table[table["column"] == "trained"]
    assert trained.groupby(["after", "task"]).size().tolist() == [2] * 12
    assert write_run(run, store) == folder


def test_eight_frames_lie_between_the_command_and_an_optimizer_step(tiny_config, store, monkeypatch):
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
    run_jobs([Job(tiny_config("policy=static", "sequence.tasks=[mini_city]", *SMALL))], LocalEngine(store))
    (own,) = {tuple(one) for one in frames}
    assert [name.removeprefix("sapo.experiments.") for name in own] == [
        "model.training.train",
        "stages.compute",
        "engine.local.run",
        "continual.one_after_another",
        "continual.run_sequence",
        "run._outcome",
        "run.run",
    ]  # and the command
