"""`sapo train` and `sapo plan`."""

import csv
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from test_compare_command import MINE

from sapo.cli.console import Progress
from sapo.data.records import PROGRESS
from sapo.experiments.model import memory


def record_of(run):
    return json.loads((Path(run["dir"]) / "run.json").read_text())


def test_the_document_of_two_runs(trained):
    assert trained.done.document["failed"] == []
    for run, policy in ((trained.static, "static"), (trained.adaptive, "sapo")):
        facts = {"sequence": "mini_three", "model": "tiny_llama", "method": "lorainc", "seed": 0}
        assert run.items() >= {"policy": policy, "demonstration": True, **facts}.items()
        assert Path(run["dir"]) == trained.root / "runs" / run["id"]
        assert list(run["prompts"]) == ["mini_city", "mini_topic"]
        with Path(run["matrix"]).open() as file:
            rows = list(csv.DictReader(file))
        assert [row["after"] for row in rows] == ["0", "1", "2"]
        last = (float(rows[2]["mini_city"]) + float(rows[2]["mini_topic"])) / 2
        assert run["metrics"]["rougeL"]["reference"]["AP"] == pytest.approx(last, abs=1e-3)


def test_runs_say_what_they_chose_from_and_what_scoring_it_took(trained):
    static, sapo = record_of(trained.static), record_of(trained.adaptive)
    assert static["pool"] is None
    assert "pool" not in static["identity"]
    assert (sapo["pool"]["name"], sapo["pool"]["size"]) == ("bank", 3)
    assert sapo["identity"]["pool"] == sapo["pool"]["digest"]
    assert [stage["kind"] for stage in sapo["stages"]].count("score") == 2
    assert all(stage["seconds"] > 0 for stage in sapo["stages"])
    assert {stage["device"] for stage in sapo["stages"]} == {sapo["environment"]["device"]}
    for choice, said in zip(sapo["choices"], trained.adaptive["choices"], strict=True):
        losses = {candidate["index"]: candidate["loss"] for candidate in choice["candidates"]}
        assert losses[said["index"]] == said["loss"] == min(losses.values())
        assert said["original_loss"] == losses[-1]
    assert all(choice["index"] == -1 and choice["loss"] is None for choice in trained.static["choices"])


def test_stages_are_counted_and_shared(trained):
    # 2 trainings, 3 x 2 evaluations; sapo adds 2 scorings, and learned tasks are tested under the original
    # prompt too (3). The untouched model is evaluated once for both.
    static, sapo = trained.static["stages"], trained.adaptive["stages"]
    assert (sum(static.values()), sum(sapo.values())) == (8, 13)
    assert sapo["stored"] >= 2
    lines = [line for line in trained.done.err.splitlines() if line.startswith("[")]
    assert len(lines) == static["computed"] + sapo["computed"]
    assert lines[0].startswith("[1/21] training mini_city, original prompt: ")


def test_again_computes_nothing_and_says_the_same(sapo, small, trained):
    done = sapo("train", *small, "policy=sapo", "--json")
    (run,) = done.document["runs"]
    assert run["stages"] == {"computed": 0, "stored": 13}
    assert run | {"stages": None} == trained.adaptive | {"stages": None}
    rows = "8 of 1,000 training rows a task, 4 of 200 test rows (scale=mini, data.train_examples)"
    assert done.err == f"sapo: {rows}\n"
    file = Path(run["dir"]) / "config.yaml"  # is the same run
    assert sapo("train", file, "--json").document["runs"] == [run]
    assert "scale= would change none" in sapo("train", file, "scale=paper").refused()


def test_own_rows_are_a_sequence_of_one_task(sapo, small, tmp_path):
    rows, root = tmp_path / "rows.csv", tmp_path / "store"
    rows.write_text("text,label\n" + "".join(f"x{i},{'ab'[i % 2]}\n" for i in range(20)))
    settings = [override for override in small if not override.startswith("sequence")]
    arguments = ("train", f"data={rows}", "instruction=Sort it.", "labels=[a,b]", *settings)
    document = sapo(*arguments, "policy=static", f"store.root={root}", "--dry-run", "--json").document
    kinds = {kind["kind"]: kind["to_do"] for kind in document["kinds"]}
    assert kinds == {"score": 0, "train": 1, "evaluate": 2}
    facts = yaml.safe_load((root / "tasks" / "rows.yaml").read_text())
    assert facts == {"instruction": "Sort it.", "data": str(rows), "labels": ["a", "b"]}


def test_people_see_matrix_metrics_prompts_and_place(sapo, small, trained):
    done = sapo("train", *small, "policy=sapo")
    assert done.code == 0
    parts = ("AP ", "definition `reference`", "demonstration", "0 computed, 13 from the store")
    assert all(part in done.out for part in parts)
    assert str(trained.root) in done.out.replace("\n", "")
    assert done.out.index("NLL after each task") < done.out.index("ROUGE-L after each task")


def test_how_long_it_goes_on_is_shown(capsys, tmp_path):
    """One of two trainings took 4 s, and each of three evaluations takes 1 s."""
    now = 0.0
    first, second, *others = (
        SimpleNamespace(kind=kind, key="k") for kind in ("train", "train", "evaluate", "evaluate", "evaluate")
    )
    progress = Progress(tmp_path)
    progress._bar.get_time = lambda: now
    (row,) = progress._bar.tasks
    progress.expect(Counter(train=2, evaluate=3))
    rests = [row.description]
    for stage, seconds in ((first, 4.0), (others[0], 1.0), (others[1], 1.0)):
        progress(stage, "begin")
        now += seconds
        progress(stage, "done")
        rests.append(row.description)
    assert rests == ["starting", "", "about 6 s left", "about 5 s left"]
    progress(second, "begin")
    now += 3.0
    progress(second, "begin")  # its worker had died
    now += 1.5
    progress._show()
    assert [task.description for task in progress._bar.tasks] == [f"about 4 s left; {second}", f"{second}"]
    told = tmp_path / "checkpoints" / "k" / PROGRESS
    told.parent.mkdir(parents=True)
    told.write_text(json.dumps({"step": 3, "steps": 9, "loss": 0.5, "left": 61.0}))
    progress.show_trainings()
    assert capsys.readouterr().err.endswith(f"{second}: step 3 of 9, loss 0.500, 61 s left\n")


def test_what_a_run_cannot_have_is_not_printed(sapo, small):
    one = [override for override in small if not override.startswith("sequence.tasks")]
    settings = ("sequence.tasks=[mini_city]", "policy=static", "method=sequential", "evaluator.answers=false")
    done = sapo("train", *one, *settings)
    assert done.code == 0, done.err
    assert "NLL after each task" in done.out
    for absent in ("ROUGE-L", "exact match", "Label match", "BWT"):
        assert absent not in done.out


def test_dry_run_and_plan_compute_nothing(sapo, small, tmp_path):
    asked = (*small, "policy=static", f"store.root='{tmp_path / 'planned'}'", "--json")
    document = sapo("train", *asked, "--dry-run").document
    assert document == sapo("plan", *asked).document
    kinds = {kind["kind"]: (kind["done"], kind["to_do"]) for kind in document["kinds"]}
    assert kinds == {"score": (0, 0), "train": (0, 2), "evaluate": (0, 6)}
    assert document["seconds"] is None  # nothing of this model was ever timed here
    assert document["memory"]["tiny_llama"]["fits"] is True
    assert not (tmp_path / "planned").exists()


def test_a_plan_of_what_is_done(sapo, small, trained):
    document = sapo("plan", *small, "policy=sapo", "--json").document
    found = [(kind["done"], kind["to_do"], kind["tokens"]) for kind in document["kinds"]]
    assert found == [(2, 0, 0), (2, 0, 0), (9, 0, 0)]
    assert document["seconds"] == [0, 0]


def test_what_does_not_fit_is_said_before_anything_starts(sapo, small, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda config: 50_000.0)
    root = f"store.root='{tmp_path / 'tight'}'"
    for command in (("train", *small), ("compare", *MINE)):
        assert "tiny_llama cannot be trained here" in sapo(*command, root).refused()
        assert not (tmp_path / "tight" / "stages").exists()
    need = sapo("plan", *small, "policy=static", "--json").document["memory"]["tiny_llama"]
    assert need["weights"] < need["training"]
    shown = sapo("plan", *small, "policy=static", "--card-gb", 24).out
    assert "tiny_llama: weights" in shown
    assert "fits in 24.0 GB" in shown


def test_a_run_in_4_bits_exports_its_adapter_and_no_merged_model(sapo, small, tmp_path):
    pytest.importorskip("bitsandbytes", reason="no bitsandbytes (extra `quant`)")
    settings = [each for each in small if not each.startswith("sequence.tasks")]
    one = ("sequence.tasks=[mini_city]", "policy=static", "method=sequential", "model.load=nf4")
    (run,) = sapo("train", *settings, *one, "--json").document["runs"]
    message = sapo("export", run["id"], "--to", tmp_path / "merged", "--merge").refused()
    assert "4 bits" in message
    assert "--merge" in message
    assert not (tmp_path / "merged").exists()
    assert sapo("export", run["id"], "--to", tmp_path / "adapter").code == 0
    assert "4 bits" in (tmp_path / "adapter" / "README.md").read_text()


DIVERGES = ("trainer.max_grad_norm=1e30", "policy=static", "trainer.epochs=3")


@pytest.mark.slow  # trains until it diverges
def test_a_failed_run_does_not_stop_the_others(sapo, small):
    done = sapo("train", *small, *DIVERGES, "trainer.learning_rate=1e-3,1e30", "--json")
    assert done.code == 1
    assert "static seed 0 failed: Training of mini_" in done.err
    document = json.loads(done.out)
    assert len(document["runs"]) == 1
    assert "Nothing was stored" in document["failed"][0]["error"]


def test_fail_fast_stops(sapo, small, tmp_path):
    done = sapo("train", *small, *DIVERGES, "trainer.learning_rate=1e30,1e-3", "--fail-fast", "--json")
    assert (done.code, done.out) == (1, "")
    assert not list((tmp_path / "store").glob("runs/*"))


def test_a_failure_that_is_nobodys_fault_is_named(sapo, small, trained, monkeypatch):
    from sapo.experiments.stages import Train

    def fail(*_):
        raise MemoryError("too small a machine")

    monkeypatch.setattr(Train, "compute", fail)
    done = sapo("train", *small, "policy=random", "seed=1", "trainer.learning_rate=0.5", "--json")
    assert (done.code, done.out) == (1, "")
    assert "MemoryError: too small a machine" in done.err
