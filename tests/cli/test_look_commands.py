"""Commands that look at things: `ls`, `show`, `eval`, `doctor`."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import yaml

from sapo.cli.ls import kinds
from sapo.conf.load import choices, load_one

# --- ls ----------------------------------------------------------------------------------------------------


def test_ls_has_one_described_line_each(sapo, trained):
    named = [entry["name"] for entry in sapo("ls", "--json").document["kinds"]]
    assert named == [*kinds(), "tasks", "runs"]
    for kind in named:
        entries = sapo("ls", kind, "--json").document[kind]
        assert entries
        assert all(entry["name"] and entry["description"] for entry in entries)
        if kind in kinds():
            assert [entry["name"] for entry in entries] == choices(kinds()[kind])
    lines = sapo("ls", kind).out.splitlines()
    assert [line.split()[0] for line in lines] == [entry["name"] for entry in entries]
    runs = {run["policy"]: run for run in entries}
    for document in (trained.static, trained.adaptive):
        listed = runs[document["policy"]]
        assert listed["name"] == document["id"]
        assert listed["AP"] == document["metrics"]["rougeL"]["reference"]["AP"]
    assert "policies" in sapo("ls", "policy", "--json").document  # the group's name, too


def test_ls_runs_with_none_with_a_damaged_one_and_one_that_is_not_analyzed_yet(sapo, tmp_path, monkeypatch):
    done = sapo("ls", "runs")
    assert (done.code, done.out) == (0, "")
    assert "no runs" in done.err
    monkeypatch.setenv("SAPO_STORE", str(tmp_path))
    facts = {"sequence": "s", "model": "m", "method": "ewc", "policy": "fixed", "seed": 3}
    for name, text in (("broken", "{"), ("fresh", json.dumps(facts))):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text(text)
    broken, fresh = sapo("ls", "runs", "--json").document["runs"]
    assert broken["description"].startswith("not readable")
    assert broken.keys() == fresh.keys() == {*facts, "name", "description", "date", "AP", "AP_nll", "dir"}
    assert {name: fresh[name] for name in facts} == facts
    assert fresh["description"] == f"{fresh['date']}  m, fixed"


def test_ls_runs_filters_and_is_a_table_of_pandas(sapo, trained):
    listed = sapo("ls", "runs", "policy=sapo", "seed=0", "--json")
    frame = pd.DataFrame(listed.document["runs"])
    assert list(frame["name"]) == [trained.adaptive["id"]]
    assert frame["AP_nll"][0] == trained.adaptive["metrics"]["nll"]["reference"]["AP"]
    assert "no runs with seed=9" in sapo("ls", "runs", "seed=9").err
    assert "Unknown key 'polcy'. Did you mean policy" in sapo("ls", "runs", "polcy=sapo").refused()


def test_ls_tasks_knows_what_is_at_hand(sapo, monkeypatch, benchmarks):
    without = {task["name"]: task for task in sapo("ls", "tasks", "--json").document["tasks"]}
    assert without["mini_city"]["at_hand"]
    assert not without["NI195"]["at_hand"]
    assert "sapo fetch benchmarks" in without["NI195"]["description"]
    monkeypatch.setenv("SAPO_DATA", str(benchmarks))
    tasks = {task["name"]: task for task in sapo("ls", "tasks", "--json").document["tasks"]}
    assert tasks["NI195"].items() >= {"benchmark": "superni", "paraphrases": 50, "at_hand": True}.items()
    assert (tasks["FOMC"]["benchmark"], tasks["FOMC"]["at_hand"]) == ("trace", True)
    assert not tasks["ScienceQA"]["at_hand"]
    assert tasks["Py150"]["paraphrases"] == 0


def test_ls_tasks_has_users_own(sapo, tmp_path, monkeypatch):
    (tmp_path / "tickets.yaml").write_text("instruction: Sort the ticket.\ndata: tickets.csv\n")
    monkeypatch.setenv("SAPO_DATA", str(tmp_path))
    (own,) = sapo("ls", "tasks", "benchmark=own", "--json").document["tasks"]
    facts = {"name": "tickets", "benchmark": "own", "instruction": "Sort the ticket.", "paraphrases": 0}
    assert own == {**facts, "at_hand": True, "description": "own, 0 paraphrases: Sort the ticket."}


# --- show --------------------------------------------------------------------------------------------------


def test_show_config_is_yaml_of_the_config_with_its_docs(sapo, small):
    text, document = sapo("show", "config", *small).out, sapo("show", "config", *small, "--json").document
    assert yaml.safe_load(text) == asdict(load_one(list(small))) == document
    assert "\n  rank: 8  # LoRA rank of the adapter that is trained" in text


def test_show_task(sapo, small):
    facts = sapo("show", "task", "task=mini_topic", *small, "--json").document
    assert (facts["train"], facts["test"], facts["paraphrases"]) == (8, 4, 20)
    assert facts["kind"] == "classification"
    assert set(facts["labels"]) == {"food", "sports", "music", "weather"}
    (finding,) = facts["findings"]
    assert (finding["check"], finding["rows"]) == ("small_test", 4)
    text = sapo("show", "task", "task=mini_topic", *small).out
    assert all(part in text for part in (facts["instruction"], "longest", finding["message"]))


def test_show_task_says_what_was_left_out_of_users_rows_and_what_is_amiss(sapo, small, tmp_path):
    answers = ["<|im_end|>", *["a"] * 3]
    rows = [{"context": f"c{i}", "question": "Which?", "answer": answer} for i, answer in enumerate(answers)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.yaml").write_text(f"instruction: Say which.\ndata: '{tmp_path}'\n")
    own = ("task=mine", "sequence.benchmark=own", f"data.root='{tmp_path}'")
    facts = sapo("show", "task", *small, *own, "--json").document
    assert "left out: column 'context'" in facts["notes"][1]
    found = {finding["check"]: finding["rows"] for finding in facts["findings"]}
    assert (found["contradictions"], found["control_tokens"], found["duplicates"]) == (4, 1, 2)


def test_show_model(sapo):
    document = sapo("show", "model", "tiny_llama", "--json").document
    expected = {"name": "tiny_llama", "source": "tiny:llama", "dtype": "float32"}
    assert document.items() >= expected.items()
    assert (Path(document["path"]) / "config.json").is_file()
    renamed = sapo("show", "model", f"model.path={document['path']}", "model.name=mine", "--json").document
    assert (renamed["name"], renamed["path"]) == ("mine", document["path"])
    assert document["path"] in sapo("show", "model", "tiny_llama").out


@pytest.mark.parametrize(("split", "prompt"), [("train", -1), ("test", 1)])
def test_show_example(sapo, small, prompt, split):
    from sapo.data.benchmarks import load_task
    from sapo.experiments.model.load import load_tokenizer

    config = load_one([*small, "task=mini_topic"])
    which = ("task=mini_topic", "index=2", f"prompt={prompt}", f"split={split}")
    arguments = ("show", "example", *which, *small)
    shown = sapo(*arguments, "--json").document
    task = load_task("mini_topic", config)
    example = (task.train if split == "train" else task.test)[2]
    tokenizer = load_tokenizer(config.model)
    assert shown["input_ids"][shown["target_start"] :] == shown["target_ids"]
    assert tokenizer.decode(shown["input_ids"]) == shown["text"] == "".join(shown["tokens"])
    assert tokenizer.decode(shown["target_ids"]).startswith(example.target)
    assert example.input in shown["text"]
    assert shown["prompt"]["text"] in shown["text"]
    assert (shown["prompt"]["text"] == task.instruction) == (prompt == -1)
    text = sapo(*arguments).out
    assert f"target: tokens {shown['target_start']} to {len(shown['input_ids']) - 1}" in text


@pytest.mark.parametrize("options", [(), ("data.truncation=end", "split=test")])
def test_show_example_of_a_shortened_input(sapo, small, options):
    """A test prompt that is cut at its end, as published, keeps its target."""
    arguments = ("show", "example", "task=mini_city", "index=0", *small, *options)
    whole = sapo(*arguments, "--json").document
    limit = whole["target_start"] - 5
    short = sapo(*arguments, f"data.max_input_tokens={limit}", "--json").document
    assert (whole["shortened"], short["shortened"], short["target_start"]) == (False, True, limit)
    assert short["target_ids"] == whole["target_ids"]
    assert "input shortened" in sapo(*arguments, f"data.max_input_tokens={limit}").out


def test_show_run(sapo, trained):
    shown = sapo("show", "run", trained.adaptive["id"], "--json").document
    assert shown["metrics"] == trained.adaptive["metrics"]
    assert shown["states"][0] == {"after": 0, "key": "base", "tasks": ["mini_city", "mini_topic"]}
    assert "13 stages" in sapo("show", "run", trained.adaptive["dir"]).out


# --- eval --------------------------------------------------------------------------------------------------


def test_eval_of_the_runs_own_tasks_comes_from_the_store(sapo, trained):
    done = sapo("eval", trained.adaptive["id"], "--json")
    assert done.err == ""  # nothing was computed
    matrix = pd.read_csv(trained.adaptive["matrix"], index_col="after")
    for row in done.document["evaluations"]:
        assert row["rougeL"] == pytest.approx(matrix.loc[row["after"], row["task"]], abs=1e-3)
    first = [row for row in done.document["evaluations"] if row["after"] == 1]
    learned = {row["task"] for row in first if row["prompt"]["index"] >= 0}
    assert learned == {c["task"] for c in trained.adaptive["choices"][:1] if c["index"] >= 0}


def test_eval_of_another_task_state_and_prompt(sapo, trained, copy):
    arguments = ("eval", trained.static["id"], "mini_price", "--state", "last", "--prompt", "1")
    (row,) = sapo(*arguments, "--json").document["evaluations"]
    assert (row["task"], row["after"], row["prompt"]["index"], row["examples"]) == ("mini_price", 2, 1, 4)
    assert row["nll"] > 0
    assert "mini_price" in sapo(*arguments).out
    base = sapo("eval", trained.static["id"], "--state", "base", "--prompt", "original", "--json").document
    assert {row["state"] for row in base["evaluations"]} == {"base"}


@pytest.mark.slow  # trains a run of its own
def test_eval_reads_data_and_pools_where_they_are_now(sapo, small, tmp_path, monkeypatch):
    before, now = tmp_path / "before", tmp_path / "now"
    before.mkdir()
    (before / "task1.csv").write_text("input,output\n" + "".join(f"x{i},y{i % 2}\n" for i in range(20)))
    (before / "task1.yaml").write_text("instruction: Odd or even?\ndata: task1.csv\n")
    own = ("sequence=own", "sequence.tasks=[task1]", f"data.root='{before}'", "policy=static")
    settings = [override for override in small if not override.startswith("sequence")]
    (run,) = sapo("train", *settings, *own, "--json").document["runs"]
    assert run["sequence"] == "own"
    expected = sapo("eval", run["id"], "--json").document["evaluations"]

    before.rename(now)
    assert f"say where it is: data.root=FOLDER (it was {before})" in sapo("eval", run["id"]).err
    assert sapo("eval", run["id"], f"data.root='{now}'", "--json").document["evaluations"] == expected
    monkeypatch.setenv("SAPO_DATA", str(now))
    assert sapo("eval", run["id"], "task1", "--json").document["evaluations"] == expected

    assert "The bank has no paraphrases of task task1" in sapo("eval", run["id"], "--prompt", "0").err
    pool = tmp_path / "pool.yaml"
    pool.write_text("prompts: [Tell whether this is odd or even.]")
    given = (f"paraphrases.file='{pool}'", "engine.device=cpu", "--prompt", "0", "--state", "last", "--json")
    (row,) = sapo("eval", run["id"], *given).document["evaluations"]
    assert row["prompt"]["text"] == "Tell whether this is odd or even."


def test_eval_of_lost_states(sapo, trained, tmp_path):
    moved = tmp_path / "elsewhere" / "runs" / trained.static["id"]
    shutil.copytree(trained.static["dir"], moved)
    assert "sapo train sequence=" in sapo("eval", moved).refused()


# --- doctor ------------------------------------------------------------------------------------------------


def test_doctor_finds_what_a_job_needs(sapo, small):
    document = sapo("doctor", *small, "--json").document
    checks = {check["name"]: check for check in document["checks"]}
    assert document["ready"] is True
    assert checks["torch"]["ok"]
    assert checks["model tiny_llama"]["ok"]
    lacking = {"ok": False, "mend": "sapo fetch benchmarks", "required": False}
    assert checks["benchmarks"].items() >= lacking.items()
    assert "Ready." in sapo("doctor", *small).out


def test_doctor_names_what_is_missing_and_the_mend(sapo):
    done = sapo("doctor", "model=qwen3_14b", "sequence=ni_seq_g1")
    assert done.code == 1
    for part in ("sapo fetch model qwen3_14b", "sapo fetch benchmarks", "Not ready"):
        assert part in done.out
