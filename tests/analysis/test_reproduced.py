"""Every target renders from made-up runs and probes, the paper's numbers beside ours."""

import json

import pandas as pd
import pytest
from made_up import edit_run, seal, write_probe

from sapo.analysis.page import Report
from sapo.analysis.probes.report import FIGURES
from sapo.analysis.report import draw
from sapo.conf.errors import UserError
from sapo.conf.load import choices
from sapo.experiments.targets import TARGETS, jobs_of, targets_of

# What a target's runs are, and a value that the paper prints for it.
POOLS = [{"name": name, "size": 10} for name in ("bank", "terse", "elaborate")]
SIZES = [{"name": "bank", "size": size} for size in (5, 10, 20)]
RUNS = {
    "table1": ([{"policy": policy} for policy in ("static", "sapo")], "65.41"),
    "table2": ([{"policy": policy} for policy in ("static", "sapo", "sapp")], "-1.38"),
    "table3": ([{"policy": "static"}, *({"policy": "sapo", "pool": pool} for pool in POOLS)], "+1.66"),
    "table10": ([{"policy": policy} for policy in ("static", "sapo")], "12.5 %"),
    "table11": (
        [{"policy": p, "method": m} for m in ("ewc", "inscl") for p in ("static", "sapo")],
        "NI-Seq-M2",
    ),
    "figure15": ([{"policy": "static"}, *({"policy": "sapo", "pool": pool} for pool in SIZES)], "65.41"),
}
FAILURE = "mini_three sapo seed 1 failed: out of memory"
STAGES = [{"kind": kind, "task": task, "seconds": 2.0} for kind in ("score", "train") for task in "ab"]


@pytest.fixture(autouse=True)
def _few(no_heat_maps, monkeypatch):
    monkeypatch.setattr("sapo.analysis.correlations.PERMUTATIONS", 99)


@pytest.fixture(scope="module")
def small_probe(tmp_path_factory):
    return write_probe(tmp_path_factory.mktemp("small"), n_prompts=5, unseen=["task618_x", "task511_x"])


def render(name: str, output, run_folder, probe=None, **facts) -> Report:
    folders = [probe]
    if not TARGETS[name].is_probe:
        facts |= {"tasks": "ab", "stages": STAGES, "n": 8}
        numbered = enumerate(RUNS[name][0])
        folders = [run_folder(f"{output.name}{number}", **changes, **facts) for number, changes in numbered]
    return draw(TARGETS[name].drawing, name, folders, output, warnings=[FAILURE])


def check_table3(shown, output):
    frame = shown.tables["table3"]
    paraphrasers = ("bank", "terse", "elaborate", "Gemini-2.5-Pro", "GPT-OSS-120B", "Qwen3-32B")
    assert list(dict.fromkeys(frame["policy"])) == ["static", *(f"sapo ({name})" for name in paraphrasers)]
    assert set(frame["pool_size"].dropna()) == {10}


def check_figure15(shown, output):
    assert {"sapo (K=5)", "sapo (K=10)", "sapo (K=20)"} <= set(shown.tables["figure15"]["policy"])
    for measure in ("nll", "rougeL"):
        points = pd.read_csv(output / f"figure15_{measure}.csv")
        assert (set(points["pool_size"]), len(points)) == ({5, 10, 20}, 3 * 3)
    drawn = [path.name for path in shown.files if path.suffix == ".pdf"]
    assert drawn == ["figure15_nll.pdf", "figure15_rougeL.pdf"]


CHECKS = {"table3": check_table3, "figure15": check_figure15}


@pytest.mark.parametrize("name", targets_of("all", "mini"))
def test_every_target_renders(name, run_folder, small_probe, tmp_path):
    output = tmp_path / "out"
    shown = render(name, output, run_folder, small_probe)
    assert all(path.is_file() for path in shown.files)
    names = {path.name for path in shown.files if path.parent == output}
    assert {f"{name}.md", f"{name}.tex", "report.html"} <= names
    kinds = {path.suffix for path in shown.files if path.parent == output}
    assert kinds >= {".csv", ".md", ".tex", ".html", *([".png", ".pdf"] if name.startswith("figure") else [])}
    text = (output / f"{name}.md").read_text()
    page = (output / "report.html").read_text()
    assert FAILURE in shown.remarks
    for said in ("Demonstration", FAILURE):
        assert said in text
        assert said in page.partition('id="warnings"')[2].partition("</section>")[0]
    assert RUNS.get(name, (None, ""))[1] in text
    assert not {"nan", "NaN"} & set(text.split())
    assert shown.parts
    for frame in shown.tables.values():
        json.dumps(json.loads(frame.to_json(orient="records")), allow_nan=False)
    CHECKS.get(name, lambda *_: None)(shown, output)


def test_demonstrations_lead_with_nll_and_the_papers_runs_with_rouge_l(run_folder, tmp_path):
    name = "figure15"
    for is_demonstration, order in ((True, ["nll", "rougeL"]), (False, ["rougeL", "nll"])):
        shown = render(name, tmp_path / order[0], run_folder, demonstration=is_demonstration)
        assert list(dict.fromkeys(shown.tables[name]["measure"])) == [*order, "exact_match"]
        pages = [(tmp_path / order[0] / file).read_text() for file in (f"{name}.md", "report.html")]
        assert all(("NLL leads" in text) == is_demonstration for text in pages)


def test_the_page_of_a_probe_shows_its_runs_and_its_prompts_with_losses(probe_folder, tmp_path):
    probe = probe_folder(n_prompts=5, unseen=["task618_x"])
    losses = pd.read_parquet(probe / "losses.parquet")
    lowest = losses.groupby("prompt")["nll"].sum().idxmin()
    losses.loc[losses["prompt"] == -1, "nll"] = losses.loc[losses["prompt"] == lowest, "nll"].to_numpy()
    losses.to_parquet(probe / "losses.parquet")
    seal(probe)
    edit_run(tmp_path / "runs" / "probe-0", shortened={"task618_x": 2})
    draw("figure1", "figure1", [probe], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    parts = ["5 runs", 'id="runs"', 'id="answers"', "Prompts of NI339 and their losses before training"]
    for part in (*parts, f"Wording {lowest}: ", "NI618: 2 inputs were too long and have been shortened."):
        assert part in page, part
    written = pd.read_csv(tmp_path / "out" / "prompts_probe.csv")
    assert list(written["prompt"][:2]) == ["original", f"prompt {lowest}"]
    assert written["loss"].is_monotonic_increasing
    assert list(written["against the original"][:2]) == [0.0, 0.0]


def test_no_pools_no_figure_15(run_folder, tmp_path):
    runs = [run_folder(policy, policy=policy) for policy in ("static", "random")]
    shown = draw("pool_sizes", "figure15", runs, tmp_path / "out")
    assert "No Figure 15: it needs runs of a policy that chooses from a pool." in shown.remarks
    assert not list((tmp_path / "out").glob("figure15_*"))


def test_every_target_has_an_experiment_at_each_scale():
    for target in TARGETS.values():
        assert {f"{target.experiment}_{scale}" for scale in target.scales} <= set(choices("experiment"))
        others = ("scores", "pool_sizes", "timings", "claims")
        assert target.drawing in ((*FIGURES,) if target.is_probe else others)


def test_probes_and_table_1_have_the_small_scale():
    assert targets_of("all", "small") == ["table1", "figure1", "figure2", "figure3", "figure4"]
    assert targets_of("figure9", "small") == ["figure9"]
    assert {"table1", "figure15", "figure1"} <= set(targets_of("all", "mini"))
    with pytest.raises(UserError, match=r"Unknown scale 'small'.*mini, paper"):
        targets_of("table2", "small")
    with pytest.raises(UserError, match="Unknown scale 'tiny'"):
        targets_of("all", "tiny")


def test_a_run_that_reads_no_pool_is_there_once():
    configs = [job.config for job in jobs_of("table3", "mini", [])]
    found = [(config.policy.name, config.paraphrases.name) for config in configs]
    assert found == [("static", "bank"), ("sapo", "bank"), ("sapo", "terse"), ("sapo", "elaborate")]
    assert {config.paraphrases.count for config in configs} == {10}
