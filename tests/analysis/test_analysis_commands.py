"""`sapo metrics` and `sapo analyze`: what the commands promise, and how `analyze` puts runs together."""

from pathlib import Path

import numpy as np
import pytest
from made_up import TASKS, edit_run, write_run
from tiny import call

from sapo.analysis.report import analyze, as_json
from sapo.conf.errors import UserError


def document(*arguments):
    return call(*arguments, "--json").document


def test_metrics_as_json_and_as_a_table(tmp_path):
    (tmp_path / "M.csv").write_text("after,a,b\n0,10,20\n1,50,26\n2,44,60\n")
    assert document("metrics", tmp_path / "M.csv") == {
        "paper": {"AP": 52.0, "BWT": -3.0, "FWT": 3.0},
        "reference": {"AP": 52.0, "BWT": -6.0, "FWT": 6.0},
        "gem": {"AP": 52.0, "BWT": -6.0, "FWT": 6.0},
    }
    table = call("metrics", tmp_path / "M.csv").out
    assert "reference *" in table
    assert "Lopez-Paz" in table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a store of static and SAPO runs of two seeds."""
    folder = tmp_path_factory.mktemp("analyzed")
    for policy, shift in (("static", 0.0), ("sapo", 2.0)):
        for seed in (0, 1):
            write_run(folder, f"store/runs/{policy}{seed}", policy=policy, seed=seed, shift=shift, n=8)
    return folder


@pytest.fixture
def store(folder, monkeypatch):
    monkeypatch.setenv("SAPO_STORE", str(folder / "store"))
    monkeypatch.chdir(folder)
    return folder / "store"


@pytest.fixture(autouse=True)
def _few_permutations(monkeypatch):
    monkeypatch.setattr("sapo.analysis.correlations.PERMUTATIONS", 99)


def test_analyze_several_runs(store, tmp_path):
    out = tmp_path / "out"
    result = document("analyze", "*", "--output", out, "--measure", "rougeL", "--report")
    assert [run["dir"].split("/")[-1] for run in result["runs"]] == ["sapo0", "sapo1", "static0", "static1"]
    first, more = (
        [(row["measure"], row["source"], row["policy"], row["difference"]) for row in result["table"][part]]
        for part in ("rows", "more_rows")
    )
    both = (("static", False), ("sapo", True))
    assert first == [("rougeL", source, *each) for source in ("ours", "paper") for each in both]
    assert more == [(measure, "ours", *each) for measure in ("nll", "exact_match") for each in both]
    assert result["table"]["rows"][1]["cells"]["AP"]["estimate"] == pytest.approx(2.0)
    names = {f"{name}.{kind}" for name in ("comparison", "prompts") for kind in ("csv", "md", "tex")}
    assert {path.name for path in out.iterdir()} == names | {"report.md", "report.html"}
    assert (store / "runs" / "sapo0" / "forgetting.png").is_file()
    assert all((store.parent / file).is_file() for file in result["files"])
    assert result["files"][-1] == str(out / "report.html")


def test_analyze_prints_tables_and_where_files_are(store, no_heat_maps):
    for names, parts in (
        (("static0", "sapo0"), ("sapo - static", "Demonstration", "Prompts of static0", "Written to")),
        (("sapo1",), ("NLL (lower", "ROUGE-L;", "exact match;", "Prompts of sapo1")),
    ):
        text = call("analyze", *names).out
        places = [text.index(part) for part in parts]
        assert places == sorted(places)


def test_each_set_of_runs_has_a_report_of_its_own(store, no_heat_maps):
    for names in (["static0", "sapo0"], ["sapo0", "static0"], ["static0", "static1"], ["sapo1"]):
        call("analyze", *names)
    several, other, alone = sorted((store / "reports").iterdir(), key=lambda path: path.name.count("sapo1"))
    assert alone.name == "analysis-sapo1"
    assert {several.name[:11], other.name[:11]} == {"analysis-2-"}


@pytest.mark.slow  # four figures of a probe in two measures
def test_analyze_draws_probes(tmp_path, probe_folder, monkeypatch):
    probe = probe_folder("p", n_prompts=5, unseen=["task618_x"])
    monkeypatch.setenv("SAPO_STORE", str(tmp_path))
    result = document("analyze", "p", "--output", tmp_path / "out", "--report")
    assert result["probes"] == [{"id": "p", "dir": str(probe)}]
    names = {f"figure{number}_p_{measure}.pdf" for number in (1, 2, 3) for measure in ("nll", "rougeL")}
    names |= {"figure4_p.png", "probes.md", "probes.tex", "report.html", "prompts_p.csv"}
    assert names <= {path.name for path in (tmp_path / "out").iterdir()}
    assert {Path(file) for file in result["files"]} == {*(tmp_path / "out").iterdir()}


@pytest.mark.slow  # draws six runs
def test_runs_that_differ_in_one_prompt_are_correlated(tmp_path, run_folder):
    rng = np.random.default_rng(1)
    folders = []
    for index in range(6):
        level, tasks = rng.normal(0, 10), ("T1", "T2", "X")
        scores = {(after, task): 50 + level + rng.normal(0, 1, 5) for after in range(3) for task in tasks}
        facts = {"policy": "fixed", "prompts": {"T1": "first", "T2": f"wording {index}"}}
        folders.append(run_folder(f"v{index}", scores, tasks=["T1", "T2"], unseen=["X"], **facts))
    out = tmp_path / "out"
    result = as_json(analyze(folders, out, "nll", "reference"))
    (correlation,) = result["correlations"]
    assert correlation["current_task"] == "T2"
    (cell,) = correlation["cells"]
    assert (cell["x_task"], cell["y_task"], cell["n_prompts"]) == ("T1", "X", 6)
    assert {path.suffix for path in out.glob("correlation_nll.*")} == {".csv", ".png", ".pdf"}
    assert (out / "prompt_effects_nll.csv").is_file()
    labels = [row["policy"] for row in result["table"]["rows"]]
    assert labels == [f"fixed, v{index}" for index in range(6)]
    (test,) = result["notes"]
    assert test.startswith("Test of a correlation map: prompts permuted")
    assert "Holm: over the 2 maps" in test


def test_a_map_of_nothing_is_not_drawn_and_why_is_said(run_folder, tmp_path, no_heat_maps):
    folders = []
    for policy in ("static", "sapo"):  # they differ in the last prompt only
        prompts = dict.fromkeys(TASKS, "Answer.") | {TASKS[-1]: policy}
        folders.append(run_folder(policy, policy=policy, prompts=prompts))
    report = analyze(folders, tmp_path / "out", "rougeL", "reference")
    assert not list((tmp_path / "out").glob("correlation*.p*"))
    reason = "2 prompts: a correlation needs 3 or more"
    where = "smollm2_135m · mini_three · lorainc · seed 0"
    assert report.remarks == [f"No correlation map of prompts of NI1343 ({where}): {reason}."]
    assert report.remarks[0] in (tmp_path / "out" / "report.md").read_text()


def test_what_is_wrong_is_refused_before_anything_is_written(run_folder, tmp_path):
    one, other = run_folder("one"), run_folder("other", policy="sapo")
    edit_run(other, tasks=list(reversed(TASKS)))
    for folders, measure, definition, message in (
        ([one], "rouge", "reference", "Unknown measure"),
        ([one], "nll", "gems", "Unknown metric definition"),
        ([one, other], "nll", "gem", "train different tasks.*one NI.*; other NI"),
    ):
        with pytest.raises(UserError, match=message):
            analyze(folders, tmp_path / "out", measure, definition)
    assert not (one / "metrics.json").exists()
    assert not (tmp_path / "out").exists()
