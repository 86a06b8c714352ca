"""Probes on a tiny model: what their runs share, what is measured beside them, and what is left on disk."""

import asyncio
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from tiny import refusal

from sapo.analysis.probes.results import load_probe
from sapo.conf.errors import WorkError
from sapo.conf.load import load, load_one
from sapo.conf.schema import Config
from sapo.experiments.continual import run_sequence, scored_examples
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store
from sapo.experiments.jobs import Job
from sapo.experiments.model.identity import looked_at_once
from sapo.experiments.plan import PlanEngine, plan_jobs
from sapo.experiments.probe import measure, probes_of, write_probes
from sapo.experiments.stages import BASE

FEW = (
    *("experiment=probe_mini", "model=tiny_llama", "policy.index=-1", "sequence.unseen=[mini_topic]"),
    *("trainer.epochs=1", "data.train_examples=4", "data.test_examples=1", "scorer.examples=3"),
    *("evaluator.max_new_tokens=1", "engine.device=cpu"),
)
TABLES = ("losses", "answers", "gradients")


def configs(*overrides: str, prompts=(-1, 0, 1, 2)) -> list[Config]:
    """A small probe's runs; composed once, since that takes longer than a tiny model's stages."""
    said = {override.split("=")[0] for override in overrides}
    return variants(load_one([*(s for s in FEW if s.split("=")[0] not in said), *overrides]), prompts)


def variants(config: Config, prompts) -> list[Config]:
    return [replace(config, policy=replace(config.policy, index=index)) for index in prompts]


def jobs(*overrides: str) -> list[Job]:
    return list(map(Job, configs(*overrides)))


def engine_on(root: Path) -> tuple[LocalEngine, Counter]:
    """An engine and the counts of what it computes, by kind."""
    computed: Counter[str] = Counter()
    return LocalEngine(
        Store(root), lambda stage, event: computed.update([stage.kind] * (event == "done"))
    ), computed


@pytest.fixture(scope="module")
def probe(tmp_path_factory, run_probes):
    """A finished probe's folder, and what was computed for it."""
    engine, computed = engine_on(tmp_path_factory.mktemp("probe") / "store")
    (folder,) = run_probes(configs(), engine, gradients=True)
    return folder, computed


@pytest.fixture
def copy(probe, tmp_path):
    """The probe's store again: the folder, its runs' jobs, their folders, an engine and its counts."""
    folder, _ = probe
    root = shutil.copytree(folder.parent.parent, tmp_path / "copy")
    asked, runs = jobs(), contents(folder)[0]["runs"]
    folders = {job.key: root / "runs" / runs[str(job.config.policy.index)] for job in asked}
    return root / "probes" / folder.name, asked, folders, *engine_on(root)


def contents(folder: Path) -> tuple[dict, list[pd.DataFrame]]:
    """The record but for what its stages took, and the tables."""
    record = json.loads((folder / "probe.json").read_text())
    record["stages"] = [{**stage, "seconds": 0} for stage in record["stages"]]
    return record, [pd.read_parquet(folder / f"{name}.parquet") for name in TABLES]


def same(found, expected) -> None:
    """The same record, and tables that are equal to the last bit."""
    assert found[0] == expected[0]
    for table, other in zip(found[1], expected[1], strict=True):
        pd.testing.assert_frame_equal(table, other, check_exact=True)


def test_the_first_task_is_trained_once_and_each_prompt_of_the_second_once(probe):
    folder, computed = probe
    # Two states before the last training and one after each prompt, three tasks; and the scored examples.
    # Gradients are of three paraphrases under three different ranks; of the first task and the unseen one.
    expected = {"train": 1 + 4, "evaluate": 2 * 3 + 4 * 3 + 4, "score": 1, "gradient": 3 + 2}
    assert computed == expected
    result = load_probe(folder)  # which holds that the runs differ in the prompt of the second task only
    states = [run.record.states for run in result.runs.values()]
    assert list(result.runs) == [-1, 0, 1, 2]
    assert [len({found[after].key for found in states}) for after in range(3)] == [1, 1, 4]


def test_losses_and_answers_are_of_the_scored_examples_in_the_state_before_the_second_task(probe):
    folder, _ = probe
    record, (losses, answers, _) = contents(folder)
    (tested,) = probes_of(jobs())
    examples = scored_examples(tested.tasks[1], tested.original.config)
    pairs = [(index, example) for index in (-1, 0, 1, 2) for example in range(3)]
    for table in (losses, answers):
        assert list(zip(table["prompt"], table["example"], strict=True)) == pairs
    assert answers["target"].tolist() == [example.target for example in examples] * 4
    assert (record["n_scored"], record["n_cut"]) == (3, 0)
    # Asked for its answers, the same state gives the targets the same likelihoods.
    store, state = Store(folder.parent.parent), load_probe(folder).runs[-1].record.states[1].key
    tables = {
        stored.identity["prompt"]: stored.examples()["nll"].to_numpy()
        for kind, stored in store.stages()
        if kind == "evaluate" and stored.identity["state"] == state and stored.result.examples == 3
    }
    for index, text in record["prompts"].items():
        own = losses[losses["prompt"] == int(index)]
        assert tables[text] == pytest.approx((own["nll"] / own["n_tokens"]).to_numpy(), rel=1e-4)


def test_gradients_are_compared_for_prompts_by_rank_of_their_loss(probe):
    folder, _ = probe
    record, (_, _, gradients) = contents(folder)
    ordered = load_probe(folder).pre_update_losses().drop(-1).sort_values()
    by_rank = gradients.groupby("rank")["prompt"].unique()
    assert [list(prompts) for prompts in by_rank] == [[index] for index in ordered.index]
    roles = {(record["tasks"][0], "trained"), ("mini_topic", "unseen")}
    assert set(zip(gradients["task"], gradients["role"], strict=True)) == roles
    # The tiny model has two layers: the top quarter is the last one.
    assert set(gradients["layer"]) == {1}
    assert set(gradients["projection"]) == {"q_proj", "v_proj"}
    assert gradients["cosine"].abs().max() <= 1 + 1e-9


def test_the_same_again_computes_nothing_and_keeps_gradients_that_are_not_asked_for(copy):
    folder, asked, folders, engine, computed = copy
    before = contents(folder)
    assert write_probes(asked, folders, engine) == ([folder], [])
    assert computed.total() == 0
    same(contents(folder), before)


def test_a_probe_goes_on_without_prompts_whose_runs_failed_and_names_them(copy):
    folder, asked, folders, engine, computed = copy
    _, (losses, _, _) = contents(folder)
    lost = folders.pop(asked[2].key)
    # Gradients that lie there are kept: with one prompt less, they are of other ranks.
    assert write_probes(asked, folders, engine) == ([folder], [])
    assert computed["train"] == computed["evaluate"] == 0
    result = load_probe(folder)
    assert (list(result.prompts), result.missing) == ([-1, 0, 2], (1,))
    kept = losses[losses["prompt"] != 1].reset_index(drop=True)
    pd.testing.assert_frame_equal(result.losses, kept, check_exact=True)
    few = [("probe of mini_probe tiny_llama lorainc fixed seed 0", "too many of its runs failed")]
    folders[asked[2].key] = lost
    for left in (asked[1:], asked[:2]):  # without the original; with one other
        assert write_probes(asked, {job.key: folders[job.key] for job in left}, engine) == ([], few)


def test_one_probe_that_cannot_be_measured_leaves_the_others(copy, monkeypatch):
    folder, first, folders, engine, _ = copy
    second = jobs("seed=1")
    folders |= {other.key: folders[job.key] for job, other in zip(first, second, strict=True)}

    async def run(stage):
        if stage.config.seed == 1:
            raise WorkError("The gradient is zero.")
        return await LocalEngine.run(engine, stage)

    monkeypatch.setattr(engine, "run", run)
    failed = [("probe of mini_probe tiny_llama lorainc fixed seed 1", "The gradient is zero.")]
    assert write_probes([*first, *second], folders, engine, gradients=True) == ([folder], failed)


def test_examples_whose_target_is_cut_are_counted_and_a_probe_of_none_else_says_why(
    copy, tmp_path, monkeypatch
):
    _, asked, folders, engine, _ = copy

    def write(cut):
        """With the targets of the examples `cut` cut off under one prompt."""

        async def run(stage):
            stored = await LocalEngine.run(engine, stage)
            if stage.kind != "score":
                return stored
            losses = stored.examples()
            is_cut = (losses["prompt"] == 0) & losses["example"].isin(cut)
            changed = shutil.copytree(stored.folder, tmp_path / f"{len(cut)} cut" / "score" / stored.key)
            changed_losses = losses.assign(n_tokens=losses["n_tokens"].mask(is_cut, 0))
            changed_losses.to_parquet(changed / "examples.parquet")
            return replace(stored, folder=changed)

        monkeypatch.setattr(engine, "run", run)
        return write_probes(asked, folders, engine)

    ((found,), _) = write([1])
    result = load_probe(found)
    assert (result.n_cut, sorted(set(result.losses["example"]))) == (1, [0, 2])
    before = contents(found)
    written, ((_, message),) = write([0, 1, 2])
    assert written == []
    assert "Every scored example of mini_complaint has its target cut off" in message
    assert "data.truncation=input" in message
    same(contents(found), before)


@pytest.mark.slow  # half a probe
def test_a_probe_that_broke_half_way_goes_on_and_leaves_the_same_folder(probe, copy, run_probes, monkeypatch):
    (folder, _), (written, _, _, engine, _) = probe, copy
    root = written.parent.parent
    for name in ("probes", "runs", "stages/gradient", *map(str, sorted(root.glob("stages/*/*"))[::4])):
        shutil.rmtree(root / name, ignore_errors=True)
    left, building = [0] * 3, Store.building

    def broken(store, kind, key):
        left.pop()
        return building(store, kind, key)

    monkeypatch.setattr(Store, "building", broken)
    with pytest.raises(IndexError):
        run_probes(configs(), engine, gradients=True)
    assert not (root / "probes").exists()
    assert not list((root / "building").iterdir())
    monkeypatch.undo()
    again, computed = engine_on(root)
    assert run_probes(configs(), again, gradients=True) == [written]
    assert 0 < computed.total() < 14
    same(contents(written), contents(folder))


def test_what_is_measured_can_be_planned(tmp_path):
    asked = jobs(f"store.root='{tmp_path}'")
    planned = plan_jobs(asked, [(asked, True)])
    to_do = {line["kind"]: line["to_do"] for line in (*planned["kinds"], *planned["trainings"])}
    expected = {"score": 1, "train": 5, "evaluate": 22, "gradient": 5}
    assert to_do == expected | {"train, task 1": 1, "train, task 2": 4}
    assert not list(tmp_path.iterdir())


TOO_FEW = "needs the original, policy.index=-1, and at least 2 paraphrases; here are policy.index="


@pytest.mark.parametrize(
    ("overrides", "prompts", "message"),
    [
        (["sequence.tasks=[mini_sentiment]"], (-1, 0, 1), "pair of tasks; sequence mini_probe has 1"),
        (["sequence.tasks=[mini_sentiment,mini_city,mini_price]"], (-1, 0, 1), "sequence mini_probe has 3"),
        (["policy.last_only=false"], (-1, 0, 1), "policy.last_only=true"),
        (["method=single"], (-1, 0, 1), "method=single does not train one task after another"),
        (["scorer=race"], (-1, 0, 1), "needs the loss of every prompt"),
        (
            ["paraphrases.count=2"],
            (-1, 0, 2),
            "No prompt 2: the pool of mini_complaint has paraphrases 0 to 1",
        ),
        ([], (0, 1, 2), f"{TOO_FEW}0,1,2"),
        ([], (-1, 0), f"{TOO_FEW}-1,0"),
    ],
)
def test_what_cannot_be_a_probe_is_refused_before_anything_is_computed(
    tmp_path, run_probes, overrides, prompts, message
):
    engine, computed = engine_on(tmp_path / "store")
    assert message in refusal(run_probes, configs(*overrides, prompts=prompts), engine)
    assert computed.total() == 0
    assert not (tmp_path / "store").exists()


def test_the_papers_15_pairs_train_9_first_and_294_second_tasks(benchmarks, tmp_path):
    small = ("data.train_examples=4", "data.test_examples=2", f"data.root={benchmarks}")
    originals = load(["experiment=probe_paper", "policy.index=-1", "model=tiny_llama", *small])
    assert len(originals) == 15
    assert sum(len(config.sequence.unseen) for config in originals) == 117
    # Unseen tasks are only tested: without them the trainings are the same, and the stages far fewer.
    alone = [replace(config, sequence=replace(config.sequence, unseen=[])) for config in originals]
    every = [Job(config) for pair in alone for config in variants(pair, range(-1, 20))]
    assert [len(probe.jobs) for probe in probes_of(every)] == [21] * 15
    engine = PlanEngine(Store(tmp_path))
    with looked_at_once():
        for job in every:
            asyncio.run(run_sequence(job.config, engine))
        for probe in probes_of(every):
            asyncio.run(measure(probe, engine, gradients=False))
    trainings = Counter(stage.state == BASE for stage in engine.to_do.values() if stage.kind == "train")
    assert trainings == {True: 9, False: 294}
    assert not any(config.evaluator.common_prompt for config in originals)
    # Two of the pairs are one and the same, and differ in their unseen tasks only.
    assert Counter(stage.kind for stage in engine.to_do.values())["score"] == 14
