"""Probes on a tiny model: what their runs share, what is measured beside them, and what is left on disk."""

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Sequence
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
from sapo.experiments.probe import (
    finished_part,
    measure_all,
    probes_of,
    write_probes,
)
from sapo.experiments.stages import BASE

FEW = (
    *("experiment=probe_mini", "model=tiny_llama", "policy.index=-1", "sequence.unseen=[mini_topic]"),
    *("trainer.epochs=1", "data.train_examples=4", "data.test_examples=1", "scorer.examples=3"),
    *("evaluator.max_new_tokens=1", "engine.device=cpu"),
)
TABLES = ("losses", "answers", "gradients")


def configs(*overrides: str, prompts: Sequence[int] = (-1, 0, 1, 2)) -> list[Config]:
    """A small probe's runs; composed once, since that takes longer than a tiny model's stages."""
    said = {override.split("=")[0] for override in overrides}
    return variants(load_one([*(s for s in FEW if s.split("=")[0] not in said), *overrides]), prompts)


def jobs(*overrides: str, prompts: Sequence[int] = (-1, 0, 1, 2)) -> list[Job]:
    return [Job(config) for config in configs(*overrides, prompts=prompts)]


def variants(config: Config, prompts: Sequence[int]) -> list[Config]:
    return [replace(config, policy=replace(config.policy, index=index)) for index in prompts]


def engine_on(root: Path) -> tuple[LocalEngine, Counter]:
    """An engine and the counts of what it computes, by kind."""
    computed: Counter[str] = Counter()

    def watch(stage, event):
        computed[stage.kind] += event == "done"

    return LocalEngine(Store(root), watch), computed


def plan_runs(asked: Sequence[Job], engine: PlanEngine) -> None:
    """Asks for all that the runs are made of."""
    for job in asked:
        asyncio.run(run_sequence(job.config, engine))


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
    root = tmp_path / "copy"
    shutil.copytree(folder.parent.parent, root)
    asked, runs = jobs(), contents(folder)[0]["runs"]
    folders = {job.key: root / "runs" / runs[str(job.config.policy.index)] for job in asked}
    return root / "probes" / folder.name, root, asked, folders, *engine_on(root)


def contents(folder: Path) -> tuple[dict, list[pd.DataFrame]]:
    record = json.loads((folder / "probe.json").read_text())
    return record, [pd.read_parquet(folder / f"{name}.parquet") for name in TABLES]


def test_the_first_task_is_trained_once_and_each_prompt_of_the_second_once(probe):
    _, computed = probe
    assert computed["train"] == 1 + 4
    # Two states before the last training and one after each prompt, three tasks; and the scored examples.
    assert computed["evaluate"] == 2 * 3 + 4 * 3 + 4
    assert computed["score"] == 1
    # Three paraphrases under three different ranks; the first task and the unseen one.
    assert computed["gradient"] == 3 + 2


def test_the_runs_differ_in_the_prompt_of_the_second_task_only(probe):
    folder, _ = probe
    result = load_probe(folder)
    assert list(result.runs) == [-1, 0, 1, 2]
    for index, run in result.runs.items():
        assert run.record.prompts[result.current] == result.prompts[index]
        assert run.record.prompts[result.trained] == result.runs[-1].record.prompts[result.trained]
    states = [json.loads((run.path / "run.json").read_text())["states"] for run in result.runs.values()]
    assert len({found[1]["key"] for found in states}) == 1
    assert len({found[2]["key"] for found in states}) == 4


def test_losses_and_answers_are_of_the_scored_examples_in_the_state_before_the_second_task(probe):
    folder, _ = probe
    record, (losses, answers, _) = contents(folder)
    (tested,) = probes_of(jobs())
    examples = scored_examples(tested.tasks[1], tested.config)
    pairs = [(index, example) for index in (-1, 0, 1, 2) for example in range(3)]
    for table in (losses, answers):
        assert list(zip(table["prompt"], table["example"], strict=True)) == pairs
    assert answers["target"].tolist() == [example.target for example in examples] * 4
    assert (record["n_scored"], record["n_cut"]) == (3, 0)
    # Asked for its answers, the same state gives the targets the same likelihoods.
    stages = folder.parent.parent / "stages" / "evaluate"
    run = json.loads((folder.parent.parent / "runs" / record["runs"]["-1"] / "run.json").read_text())
    tables = {}
    for identity in stages.glob("*/identity.json"):
        facts = json.loads(identity.read_text())
        if facts["state"] == run["states"][1]["key"] and facts["prompt"] in record["prompts"].values():
            table = pd.read_parquet(identity.with_name("examples.parquet"))
            if table["target"].tolist() == [example.target for example in examples]:
                tables[facts["prompt"]] = table
    for index, text in record["prompts"].items():
        own = losses[losses["prompt"] == int(index)]
        assert tables[text]["nll"].to_numpy() == pytest.approx(
            (own["nll"] / own["n_tokens"]).to_numpy(), rel=1e-4
        )


def test_gradients_are_compared_for_prompts_by_rank_of_their_loss(probe):
    folder, _ = probe
    record, (_, _, gradients) = contents(folder)
    ordered = load_probe(folder).pre_update_losses().drop(-1).sort_values()
    by_rank = gradients.groupby("rank")["prompt"].unique()
    assert [list(prompts) for prompts in by_rank] == [[index] for index in ordered.index]
    assert set(zip(gradients["task"], gradients["role"], strict=True)) == {
        (record["tasks"][0], "trained"),
        ("mini_topic", "unseen"),
    }
    # The tiny model has two layers: the top quarter is the last one.
    assert set(gradients["layer"]) == {1}
    assert set(gradients["projection"]) == {"q_proj", "v_proj"}
    assert gradients["cosine"].abs().max() <= 1 + 1e-9


def test_the_same_again_computes_nothing_and_keeps_gradients_that_are_not_asked_for(copy):
    folder, _, asked, folders, engine, computed = copy
    before = contents(folder)
    assert write_probes(asked, folders, engine) == ([folder], [])
    assert computed.total() == 0
    same(contents(folder), before)


def test_a_probe_goes_on_without_prompts_whose_runs_failed_and_names_them(copy):
    folder, _, asked, folders, engine, computed = copy
    _, (losses, _, _) = contents(folder)
    del folders[asked[2].key]
    # Gradients that lie there are kept: with one prompt less, they are of other ranks.
    (found,), _ = write_probes(asked, folders, engine)
    assert found == folder
    assert computed["train"] == computed["evaluate"] == 0
    result = load_probe(found)
    assert (list(result.prompts), result.missing) == ([-1, 0, 2], (1,))
    kept = losses[losses["prompt"] != 1].reset_index(drop=True)
    pd.testing.assert_frame_equal(result.losses, kept, check_exact=True)
    (whole,) = probes_of(asked)
    assert finished_part(whole, list(folders)[:2]) is None
    assert finished_part(whole, list(folders)[1:]) is None
    assert finished_part(whole, [job.key for job in asked]) == whole


def test_one_probe_that_cannot_be_measured_leaves_the_others(copy, monkeypatch):
    folder, _, first, folders, engine, _ = copy
    second = jobs("seed=1")
    asked = [*first, *second]
    folders |= {other.key: folders[job.key] for job, other in zip(first, second, strict=True)}

    async def run(stage):
        if stage.config.seed == 1:
            raise WorkError("The gradient is zero.")
        return await LocalEngine.run(engine, stage)

    monkeypatch.setattr(engine, "run", run)
    name = "probe of mini_probe tiny_llama lorainc fixed seed 1"
    written = write_probes(asked, folders, engine, gradients=True)
    assert written == ([folder], [(name, "The gradient is zero.")])
    other = {key: folder for key, folder in folders.items() if key not in {job.key for job in second[2:]}}
    written = write_probes(asked, other, engine)
    assert written == ([folder], [(name, "too many of its runs failed")])


def test_examples_whose_target_is_cut_are_counted_and_a_probe_of_none_else_says_why(
    copy, tmp_path, monkeypatch
):
    _, _, asked, folders, engine, _ = copy

    def write(cut):
        """With the targets of the examples `cut` cut off under one prompt."""

        async def run(stage):
            stored = await LocalEngine.run(engine, stage)
            if stage.kind != "score":
                return stored
            losses = stored.examples()
            is_cut = (losses["prompt"] == 0) & losses["example"].isin(cut)
            changed = shutil.copytree(stored.folder, tmp_path / f"{len(cut)} cut" / "score" / stored.key)
            losses.assign(n_tokens=losses["n_tokens"].mask(is_cut, 0)).to_parquet(
                changed / "examples.parquet"
            )
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


class Killed(Exception):  # noqa: N818
    """In the place of a kill."""


@pytest.mark.slow  # half a probe
def test_a_probe_killed_half_way_goes_on_and_leaves_the_same_folder(probe, copy, run_probes, monkeypatch):
    folder, (_, root, _, _, engine, _) = probe[0], copy
    shutil.rmtree(root / "probes")
    shutil.rmtree(root / "runs")
    for kind in ("evaluate", "gradient", "score", "train"):
        found = sorted((root / "stages" / kind).iterdir())
        for stage in found[: max(1, len(found) // 4)]:
            shutil.rmtree(stage)
    left, building = [3], Store.building

    def killed(store, kind, key):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return building(store, kind, key)

    monkeypatch.setattr(Store, "building", killed)
    with pytest.raises(Killed):
        run_probes(configs(), engine, gradients=True)
    assert not (root / "probes").exists()
    assert not list((root / "building").iterdir())
    monkeypatch.undo()
    again, computed = engine_on(root)
    (same_folder,) = run_probes(configs(), again, gradients=True)
    assert 0 < computed.total() < 12
    same(contents(same_folder), contents(folder))


def same(found, expected) -> None:
    """The same record but for what its stages took, and tables that are equal to the last bit."""
    for record in (found[0], expected[0]):
        record["stages"] = [{**stage, "seconds": 0} for stage in record["stages"]]
    assert found[0] == expected[0]
    for table, other in zip(found[1], expected[1], strict=True):
        pd.testing.assert_frame_equal(table, other, check_exact=True)


def test_what_is_measured_can_be_planned(tmp_path):
    engine = PlanEngine(Store(tmp_path))
    asked = jobs()
    plan_runs(asked, engine)
    before = len(engine.to_do)
    asyncio.run(measure_all(probes_of(asked), engine, gradients=True))
    kinds = Counter(stage.kind for stage in engine.to_do.values())
    assert (kinds["train"], kinds["evaluate"], kinds["score"], kinds["gradient"]) == (5, 22, 1, 5)
    assert len(engine.to_do) == before + 4 + 1 + 5
    assert not list(tmp_path.iterdir())
    asked = jobs(f"store.root='{tmp_path}'")
    planned = plan_jobs(asked, [(asked, True)])
    assert [(kind["kind"], kind["to_do"]) for kind in planned["trainings"]] == [
        ("train, task 1", 1),
        ("train, task 2", 4),
    ]


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
    assert [len(probe.prompts) for probe in probes_of(every)] == [21] * 15
    engine = PlanEngine(Store(tmp_path))
    with looked_at_once():
        plan_runs(every, engine)
        asyncio.run(measure_all(probes_of(every), engine))
    trainings = Counter(stage.state == BASE for stage in engine.to_do.values() if stage.kind == "train")
    assert trainings == {True: 9, False: 294}
    assert not any(config.evaluator.common_prompt for config in originals)
    # Two of the pairs are one and the same, and differ in their unseen tasks only.
    assert Counter(stage.kind for stage in engine.to_do.values())["score"] == 14
