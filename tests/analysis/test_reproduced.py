"""Every target renders from made-up runs and probes, the paper's numbers beside ours."""

import json

import pandas as pd
import pytest

from sapo.analysis.reproduced import DRAWINGS, Reproduced, probes
from sapo.conf.load import choices
from sapo.experiments.targets import SCALES, TARGETS, configs_of, targets_of

# What a target's runs are, and a value that the paper prints for it.
POOLS = [{"name": name, "size": 10} for name in ("bank", "terse", "elaborate")]
SIZES = [{"name": "bank", "size": size} for size in (5, 10, 20)]
RUNS = {
    "table1": ([{"policy": policy} for policy in ("static", "sapo")], "65.41"),
    "table2": ([{"policy": policy} for policy in ("static", "sapo", "sapp")], "-1.38"),
    "table3": ([{"policy": "static"}, *({"policy": "sapo", "pool": pool} for pool in POOLS)], "+1.66"),
    "table10": ([{"policy": policy} for policy in ("static", "sapo")], "12.5 %"),
    "table11": (
        [
            {"policy": p, "method": m}
            for m in ("lorainc", "olora", "ewc", "inscl")
            for p in ("static", "sapo")
        ],
        "NI-Seq-M2",
    ),
    "figure15": ([{"policy": "static"}, *({"policy": "sapo", "pool": pool} for pool in SIZES)], "65.41"),
}
STAGES = [{"kind": kind, "task": task, "seconds": 2.0} for kind in ("score", "train") for task in "ab"]


@pytest.fixture(autouse=True)
def _without_heat_maps(monkeypatch):
    """The matrices and heat maps of single runs have tests of their own."""
    summary = {"metrics": {}, "metrics_common": None, "files": []}
    monkeypatch.setattr("sapo.analysis.report.summarize_run", lambda *_: summary)


def render(name: str, output, run_folder, probe_folder) -> Reproduced:
    target = TARGETS[name]
    if target.is_probe:
        probe = probe_folder(n_prompts=5, unseen=["task618_x", "task511_x"])
        return probes(name, target.drawing, [probe], output)
    folders = [
        run_folder(f"run{number}", tasks="ab", stages=STAGES, **changes)
        for number, changes in enumerate(RUNS[name][0])
    ]
    return DRAWINGS[target.drawing](name, folders, output, "reference")


def check_table3(shown, output):
    frame = shown.tables["table3"]
    paraphrasers = ("bank", "terse", "elaborate", "Gemini-2.5-Pro", "GPT-OSS-120B", "Qwen3-32B")
    assert list(dict.fromkeys(frame["policy"])) == ["static", *(f"sapo ({name})" for name in paraphrasers)]
    assert set(frame["pool_size"].dropna()) == {10}


def check_figure15(shown, output):
    assert {"sapo (K=5)", "sapo (K=10)", "sapo (K=20)"} <= set(shown.tables["figure15"]["policy"])
    points = pd.read_csv(output / "figure15_points.csv")
    assert set(points["pool_size"]) == {5, 10, 20}


CHECKS = {"table3": check_table3, "figure15": check_figure15}


@pytest.mark.parametrize("name", targets_of("all"))
def test_every_target_renders(name, run_folder, probe_folder, tmp_path):
    output = tmp_path / "out"
    shown = render(name, output, run_folder, probe_folder)
    names = {path.name for path in shown.files if path.parent == output}
    assert {f"{name}.md", f"{name}.tex", "report.html"} <= names
    assert {path.suffix for path in shown.files} >= {".csv", ".md", ".tex", ".html"}
    assert all(path.is_file() for path in shown.files)
    if name.startswith("figure"):
        assert {path.suffix for path in shown.files if path.parent == output} >= {".png", ".pdf"}
    text = (output / f"{name}.md").read_text()
    assert "Demonstration" in text
    assert RUNS.get(name, (None, ""))[1] in text
    assert not {"nan", "NaN"} & set(text.split())
    assert shown.parts
    for frame in shown.tables.values():
        json.dumps(json.loads(frame.to_json(orient="records")), allow_nan=False)
    CHECKS.get(name, lambda *_: None)(shown, output)


def test_no_pools_no_figure_15(run_folder, tmp_path):
    runs = [run_folder(policy, policy=policy) for policy in ("static", "random")]
    shown = DRAWINGS["pool_sizes"]("figure15", runs, tmp_path / "out", "reference")
    assert "No Figure 15: it needs runs of a policy that chooses from a pool." in shown.notes
    assert not (tmp_path / "out" / "figure15.png").exists()


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("scale", SCALES)
def test_every_target_has_an_experiment_at_each_scale(name, scale):
    assert f"{TARGETS[name].experiment}_{scale}" in choices("experiment")
    assert TARGETS[name].is_probe or TARGETS[name].drawing in DRAWINGS


def test_a_run_that_reads_no_pool_is_there_once():
    configs = configs_of("table3", "mini", [])
    assert [(config.policy.name, config.paraphrases.name) for config in configs] == [
        ("static", "bank"),
        ("sapo", "bank"),
        ("sapo", "terse"),
        ("sapo", "elaborate"),
    ]
    assert {config.paraphrases.count for config in configs} == {10}
