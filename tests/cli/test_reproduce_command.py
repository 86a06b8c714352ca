"""`sapo reproduce`."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sapo.conf.errors import WorkError
from sapo.experiments import plan, run, targets
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store
from sapo.experiments.run import Outcome

PROBE = ("sequence.unseen=[mini_price]", "policy.index=-1,0,1")


@pytest.fixture
def only(monkeypatch):
    """`only(NAMES)`: the targets that there are."""
    known = targets.TARGETS
    return lambda *names: monkeypatch.setattr(targets, "TARGETS", {name: known[name] for name in names})


@pytest.mark.slow  # whole reproductions of a trained model
def test_all_goes_on_after_a_failure_and_shares_stages(sapo, small, only, tmp_path, monkeypatch):
    """Table 3 has no pools for these tasks; Table 10 needs nothing that Table 1 has not."""
    only("table3", "table1", "table10")
    done = sapo("reproduce", "all", *small, "--json")
    assert done.code == 1
    assert "table3 failed: " in done.err
    document = json.loads(done.out)
    table1, timed = document["targets"]
    (failure,) = document["failed"]
    assert failure["target"] == "table3"
    assert "The bank 'terse' has no paraphrases of task mini_city" in failure["error"]
    assert table1.items() >= {"target": "table1", "scale": "mini", "failed": []}.items()
    assert len(table1["runs"]) == 3
    assert table1["command"].startswith("sapo reproduce table1 --scale mini model=tiny_llama")
    reports = tmp_path / "store" / "reports" / "table1-mini"
    names = {Path(file).name for file in table1["files"] if Path(file).parent == reports}
    assert {"table1.md", "table1.tex", "table1.csv", "prompts.md", "report.md"} <= names
    assert all(Path(file).is_file() for file in table1["files"])
    policies = {(row["source"], row["policy"]) for row in table1["tables"]["table1"]}
    assert policies >= {("ours", "static"), ("ours", "sapo"), ("paper", "static"), ("paper", "sapo")}
    text = (reports / "table1.md").read_text()
    assert "Demonstration" in text
    assert "sapo - static" in text
    assert (timed["target"], timed["stages"]["computed"]) == ("table10", 0)
    ours, *papers = timed["tables"]["table10"]
    assert (ours["source"], ours["n_tasks"], ours["n_seeds"]) == ("ours", 2, 1)
    assert ours["extra_seconds"] > 0
    assert [row["overhead_percent"] for row in papers] == [12.5]
    again = sapo("reproduce", "table1", *small)
    assert "0 computed" in again.out
    assert "Again with: sapo reproduce table1 --scale mini" in again.out

    # A run that failed is named in all that is left.
    run_sequence = run.run_sequence

    async def run_or_fail(config, engine):
        if config.policy.name == "random" and isinstance(engine, LocalEngine):
            raise WorkError("out of memory")
        return await run_sequence(config, engine)

    monkeypatch.setattr(run, "run_sequence", run_or_fail)
    done = sapo("reproduce", "table1", *small, "--json")
    assert done.code == 1
    document = json.loads(done.out)
    (failed,) = document["failed"]
    line = f"{failed['run']} failed: out of memory"
    assert line in document["notes"]
    for file in ("table1.md", "report.md", "report.html"):
        assert line in (reports / file).read_text(), file


@pytest.mark.slow  # plans of four targets
def test_a_plan_of_all_counts_shared_stages_once_and_names_what_has_none(sapo, small, only, tmp_path):
    only("table1", "table10", "table3", "figure4")
    document = sapo("reproduce", "all", *small, *PROBE, "--dry-run", "--json").document
    assert not (tmp_path / "store").exists()

    def to_do(described):
        return sum(kind["to_do"] for kind in described["kinds"])

    each = document["targets"]
    # Two of its four policies and pools read pools that these tasks do not have; three runs of each.
    assert each["table3"]["runs"] == 6
    unplanned = [(left["runs"], "mini_city" in left["reason"]) for left in each["table3"]["unplanned"]]
    assert unplanned == [(3, True)] * 2
    unknown = {"paper": None, "peak": None}
    assert {name: alone["gpu_hours"] for name, alone in each.items()} == dict.fromkeys(each, unknown)
    assert to_do(document) < sum(to_do(each[name]) for name in ("table1", "table10", "figure4"))
    assert to_do(document) >= max(to_do(each[name]) for name in ("table1", "figure4"))
    gradients = {kind["kind"]: kind["to_do"] for kind in each["figure4"]["kinds"]}["gradient"]
    assert gradients > 0


def test_a_plan_of_all_describes_the_same_probes_once(monkeypatch):
    names = ("figure1", "figure2", "figure4", "table1")
    runs_of = {what: [SimpleNamespace(key=f"run of {what}")] for what in ("probe", "table1")}
    jobs = {name: runs_of[targets.TARGETS[name].experiment] for name in names}
    asked = []

    def planned(runs, probes):
        asked.append((runs, probes))
        return {"runs": len(runs), "asked": 0}

    monkeypatch.setattr(plan, "plan_jobs", planned)
    document = plan.plan_targets(jobs)
    assert document["targets"] == {name: {"runs": 1} for name in names}
    probe_runs, table_runs = runs_of["probe"], runs_of["table1"]
    *alone, together = asked
    assert alone == [
        (probe_runs, [(probe_runs, False)]),
        (probe_runs, [(probe_runs, True)]),
        (table_runs, []),
    ]
    assert together == ([*probe_runs, *table_runs], [(probe_runs, False), (probe_runs, True)])


@pytest.mark.slow  # whole reproductions of a trained model
def test_figures_of_one_probe_compute_its_stages_once_by_force(sapo, small, only, tmp_path, monkeypatch):
    """Three prompts of a pair of tasks, from training to drawing: runs, probes, next target on one engine."""
    only("figure1", "figure2")
    begun, building = Counter(), Store.building
    monkeypatch.setattr(Store, "building", lambda self, *key: begun.update([key]) or building(self, *key))
    done = sapo("reproduce", "all", *small, *PROBE, f"store.root='{tmp_path / 's'}'", "--force", "--json")
    assert done.code == 0, done.err
    assert [one["stages"]["computed"] > 0 for one in done.document["targets"]] == [True, False]
    assert {kind for kind, _ in begun} == {"score", "train", "evaluate"}
    assert set(begun.values()) == {1}
    assert len(list((tmp_path / "s" / "probes").iterdir())) == 1
    for document in done.document["targets"]:
        assert (len(document["runs"]), document["failed"]) == (3, [])
        names = {Path(file).name for file in document["files"]}
        assert {f"{document['target']}.md", f"{document['target']}.tex", "report.html"} <= names
        assert all(Path(file).is_file() for file in document["files"])


def test_a_figure_is_drawn_without_a_probe_that_failed(tmp_path, monkeypatch):
    settings = ["policy.index=-1,0,1", "seed=0,1", "model=tiny_llama", f"store.root='{tmp_path}'"]
    jobs = targets.jobs_of("figure2", "mini", settings)
    written = ([Path("folder")] * 2, [("a probe", "why")])  # two that turn out to be one

    def outcomes(jobs, engine):
        error = WorkError("It broke.")
        return [Outcome(job, error if job.config.seed else Path(str(n)), 1, 0) for n, job in enumerate(jobs)]

    monkeypatch.setattr(run, "run", outcomes)
    monkeypatch.setattr(run, "write_probes", lambda *_: written)
    found = run.reproduce("figure2", "mini", settings)
    lost = [(str(job), "It broke.") for job in jobs if job.config.seed]
    assert lost[0][0] == "mini_probe tiny_llama lorainc fixed seed 1"
    assert (found.folders, found.failed, len(found.finished)) == ([Path("folder")], [*lost, *written[1]], 3)
    written = ([], [("a probe", "too many of its runs failed")])
    with pytest.raises(WorkError, match="a probe: too many of its runs failed"):
        run.reproduce("figure2", "mini", settings)


@pytest.mark.slow  # plans of real benchmarks
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_papers_scale_without_a_gpu_is_refused_with_a_plan(sapo, benchmarks):
    done = sapo("reproduce", "table1", "--scale", "paper", "model=qwen3_8b", "sequence=trace", "--json")
    assert (done.code, done.out) == (2, "")
    assert "needs a GPU" in done.err
    assert "No plan: " in done.err  # no data here
    small = ("model=llama2_7b_chat", "sequence=ni_seq_c1", "seed=0", f"data.root={benchmarks}")
    few = ("data.train_examples=2", "data.test_examples=2", "method.buffer=4")
    done = sapo("reproduce", "table1", "--scale", "paper", *small, *few)
    assert done.code == 2
    assert "Runs: 8" in done.err
    assert "llama2_7b_chat" in done.err
    assert "H100 h" in done.err
    assert not done.out
