"""`sapo metrics` and `sapo analyze` through a small Typer app."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from made_up import TASKS, edit_run
from typer.testing import CliRunner

from sapo.cli import analyze, metrics
from sapo.conf.errors import UserError

app = typer.Typer()
app.command("metrics")(metrics.command)
app.command("analyze")(analyze.command)
MATRIX = "after,a,b\n0,10,20\n1,50,26\n2,44,60\n"


def call(*arguments: object):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refuse_nan(name: str):
    raise AssertionError(f"{name} in JSON")


def document(result) -> dict:
    return json.loads(result.stdout, parse_constant=refuse_nan)


def test_metrics_as_json_and_as_a_table(tmp_path):
    (tmp_path / "M.csv").write_text(MATRIX)
    assert document(call("metrics", tmp_path / "M.csv", "--json")) == {
        "paper": {"AP": 52.0, "BWT": -3.0, "FWT": 3.0},
        "reference": {"AP": 52.0, "BWT": -6.0, "FWT": 6.0},
        "gem": {"AP": 52.0, "BWT": -6.0, "FWT": 6.0},
    }
    table = call("metrics", tmp_path / "M.csv").stdout
    assert "reference *" in table
    assert "Lopez-Paz" in table


def test_metrics_of_one_task_are_null(tmp_path):
    (tmp_path / "M.csv").write_text("after,a\n0,10\n1,50\n")
    assert document(call("metrics", tmp_path / "M.csv", "--json"))["gem"] == {
        "AP": 50.0,
        "BWT": None,
        "FWT": None,
    }


def test_a_wrong_matrix_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="Cannot read"):
        call("metrics", tmp_path / "none.csv")


@pytest.fixture
def store(tmp_path, run_folder, monkeypatch):
    """A store with static and SAPO runs of two seeds; the working folder is beside it."""
    for policy, shift in (("static", 0.0), ("sapo", 2.0)):
        for seed in (0, 1):
            run_folder(f"store/runs/{policy}{seed}", policy=policy, seed=seed, shift=shift)
    monkeypatch.setenv("SAPO_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "store"


def test_analyze_several_runs(store, tmp_path):
    result = document(call("analyze", "*", "--output", tmp_path / "out", "--json"))
    assert [run["dir"].split("/")[-1] for run in result["runs"]] == ["sapo0", "sapo1", "static0", "static1"]
    labels = [(row["source"], row["policy"], row["difference"]) for row in result["table1"]["rows"]]
    ours = [("ours", "static", False), ("ours", "sapo", True)]
    assert labels == [*ours, ("paper", "static", False), ("paper", "sapo", True)]
    more = [(row["source"], row["policy"], row["difference"]) for row in result["table1"]["more_rows"]]
    assert more == ours * 2
    assert {row["measure"] for row in result["table1"]["rows"]} == {"rougeL"}
    measures = [row["measure"] for row in result["table1"]["more_rows"]]
    assert measures == ["nll", "nll", "exact_match", "exact_match"]
    assert result["table1"]["rows"][1]["cells"]["AP"]["estimate"] == pytest.approx(2.0)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        f"{name}.{kind}" for name in ("table1", "prompts") for kind in ("csv", "md", "tex")
    } | {"report.md"}
    assert (store / "runs" / "sapo0" / "forgetting.png").is_file()
    assert all((tmp_path / file).is_file() for file in result["files"])


def test_analyze_prints_the_table_and_where_files_are(store):
    text = call("analyze", "static0", "sapo0").stdout
    for part in ("mini_three", "sapo", "Demonstration", "Prompts of static0", "results/analysis"):
        assert part in text


def test_analyze_one_run_shows_its_metrics(store):
    text = call("analyze", "sapo1").stdout
    assert "By ROUGE-L" in text
    assert "By exact match" in text
    assert "reference *" in text
    assert document(call("analyze", "sapo1", "--json"))["table1"] is None


def test_analyze_runs_that_differ_in_one_prompt(tmp_path, run_folder):
    rng = np.random.default_rng(1)
    for index in range(6):
        level, tasks = rng.normal(0, 10), ("T1", "T2", "X")
        scores = {(after, task): 50 + level + rng.normal(0, 1, 5) for after in range(3) for task in tasks}
        facts = {"policy": "fixed", "prompts": {"T1": "first", "T2": f"wording {index}"}}
        run_folder(f"runs/probe/v{index}", scores, tasks=["T1", "T2"], unseen=["X"], **facts)
    folder, out = tmp_path / "runs" / "probe", tmp_path / "out"
    result = document(call("analyze", folder, "-o", out, "--measure", "nll", "--json"))
    (correlation,) = result["correlations"]
    assert correlation["current_task"] == "T2"
    (cell,) = correlation["cells"]
    assert (cell["x_task"], cell["y_task"], cell["n_prompts"]) == ("T1", "X", 6)
    suffixes = {path.suffix for path in out.glob("correlation_nll.*")}
    assert suffixes == {".csv", ".png", ".pdf"}
    assert (out / "prompt_effects_nll.csv").is_file()
    assert result["table1"] is None
    left_out, test = result["notes"]
    assert left_out.endswith("lorainc is not in Table 1: several fixed runs have one seed.")
    assert test.startswith("Test of a correlation map: prompts permuted")
    assert "Holm: over the 2 maps" in test


def test_a_map_of_nothing_is_not_drawn_and_why_is_said(store, tmp_path):
    folders = [store / "runs" / name for name in ("static0", "sapo0")]
    for folder in folders:
        prompts = json.loads((folder / "run.json").read_text())["prompts"]
        edit_run(folder, prompts=prompts | {TASKS[-1]: folder.name})  # they differ in the last prompt only
    result = document(call("analyze", *folders, "--output", tmp_path / "out", "--json"))
    assert not list((tmp_path / "out").glob("correlation*.p*"))
    reason = "2 prompts: a correlation needs 3 or more"
    where = "smollm2_135m · mini_three · lorainc · seed 0"
    assert result["notes"] == [f"No correlation map of prompts of NI1343 ({where}): {reason}."]
    assert result["notes"][0] in (tmp_path / "out" / "report.md").read_text()


def test_analyze_draws_probes(tmp_path, probe_folder, run_folder, monkeypatch):
    probe = probe_folder("p", n_prompts=5, unseen=["task618_x"])
    monkeypatch.setenv("SAPO_STORE", str(tmp_path))
    result = document(call("analyze", "p", "--output", tmp_path / "out", "--report", "--json"))
    assert result["probes"] == [{"id": "p", "dir": str(probe)}]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    for number in (1, 2, 3):
        assert {f"figure{number}_p_{measure}.pdf" for measure in ("nll", "rougeL")} <= names
    assert {"figure4_p.png", "probes.md", "probes.tex", "report.html", "prompts_p.csv"} <= names
    assert {path.name for path in map(Path, result["files"])} == names
    run_folder("runs/r")
    with pytest.raises(UserError, match="Not of a probe: r"):
        call("analyze", "p", "r")


def test_analyze_refuses_before_it_writes(store, run_folder):
    run_folder("store/runs/other", policy="random", comparable={"model": "another"})
    with pytest.raises(UserError, match="cannot be compared"):
        call("analyze", "*")
    assert not (store / "runs" / "sapo0" / "metrics.json").exists()


@pytest.mark.parametrize("options", [["--measure", "rouge"], ["--definition", "gems"]])
def test_unknown_measures_and_definitions_are_refused_before_anything_is_written(store, options):
    for names in (["sapo0"], ["sapo0", "static0"]):
        with pytest.raises(UserError, match="Unknown"):
            call("analyze", *names, *options)
    assert not (store / "runs" / "sapo0" / "metrics.json").exists()


def test_the_command_modules_are_light():
    heavy = "('pandas', 'numpy', 'matplotlib', 'torch')"
    code = f"import sys, sapo.cli.metrics, sapo.cli.analyze; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
