"""`sapo train` and `sapo plan`."""

import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from sapo.cli import plan

RUN_KEYS = {"id", "dir", "sequence", "model", "method", "policy", "seed", "prompts", "matrix", "metrics"}


def rows_of(run):
    with Path(run["matrix"]).open() as file:
        return list(csv.DictReader(file))


def test_the_document_of_two_runs(trained):
    assert trained.done.document["failed"] == []
    for run, policy in ((trained.static, "static"), (trained.adaptive, "sapo")):
        assert run.keys() >= RUN_KEYS
        assert (run["policy"], run["model"], run["method"], run["seed"]) == (
            policy,
            "tiny_llama",
            "lorainc",
            0,
        )
        assert run["demonstration"] is True
        assert Path(run["dir"]) == trained.root / "runs" / run["id"]
        assert list(run["prompts"]) == ["mini_city", "mini_topic"]


def test_metrics_are_those_of_the_matrix(trained):
    rows = rows_of(trained.adaptive)
    assert [row["after"] for row in rows] == ["0", "1", "2"]
    last = (float(rows[2]["mini_city"]) + float(rows[2]["mini_topic"])) / 2
    assert trained.adaptive["metrics"]["rougeL"]["reference"]["AP"] == pytest.approx(last, abs=1e-3)


def test_sapo_takes_the_prompt_with_the_lowest_loss(trained):
    record = json.loads((Path(trained.adaptive["dir"]) / "run.json").read_text())
    for choice, said in zip(record["choices"], trained.adaptive["choices"], strict=True):
        losses = {candidate["index"]: candidate["loss"] for candidate in choice["candidates"]}
        assert set(losses) == {-1, 0, 1, 2}
        assert choice["index"] == min(losses, key=lambda index: losses[index])
        assert said["index"] == choice["index"]
        assert (said["loss"], said["original_loss"]) == (min(losses.values()), losses[-1])
    assert all(choice["index"] == -1 and choice["loss"] is None for choice in trained.static["choices"])


def test_stages_are_counted_and_shared(trained):
    # 2 trainings, 3 x 2 evaluations; sapo adds 2 scorings, and learned tasks are tested under the original
    # prompt too (3). The untouched model is evaluated once for both.
    assert trained.static["stages"]["computed"] + trained.static["stages"]["stored"] == 8
    assert trained.adaptive["stages"]["computed"] + trained.adaptive["stages"]["stored"] == 13
    assert trained.adaptive["stages"]["stored"] >= 2
    lines = [line for line in trained.done.err.splitlines() if line.startswith("[")]
    assert len(lines) == sum(run["stages"]["computed"] for run in (trained.static, trained.adaptive))
    assert lines[0].startswith("[1/21] training mini_city, original prompt: ")


def test_again_computes_nothing_and_says_the_same(sapo, small, trained):
    done = sapo("train", *small, "policy=sapo", "--json")
    (run,) = done.document["runs"]
    assert run["stages"] == {"computed": 0, "stored": 13}
    assert run | {"stages": None} == trained.adaptive | {"stages": None}
    assert (
        done.err
        == "sapo: 8 of 1,000 training rows a task, 4 of 200 test rows (scale=mini, data.train_examples)\n"
    )


def test_people_see_matrix_metrics_prompts_and_place(sapo, small, trained):
    done = sapo("train", *small, "policy=sapo")
    assert done.code == 0
    for part in (
        "ROUGE-L",
        "AP ",
        "definition `reference`",
        "demonstration",
        "0 computed, 13 from the store",
    ):
        assert part in done.out
    assert str(trained.root) in done.out.replace("\n", "")


def test_force_computes_again_and_finds_the_same(sapo, small, trained):
    (run,) = sapo("train", *small, "policy=static", "--json", "--force").document["runs"]
    assert run["stages"] == {"computed": 8, "stored": 0}
    assert run["metrics"] == trained.static["metrics"]


def test_dry_run_and_plan_compute_nothing(sapo, small, tmp_path):
    root = tmp_path / "planned"
    document = sapo("train", *small, "policy=static", f"store.root='{root}'", "--dry-run", "--json").document
    assert document == sapo("plan", *small, "policy=static", f"store.root='{root}'", "--json").document
    assert {kind["kind"]: (kind["done"], kind["to_do"]) for kind in document["kinds"]} == {
        "score": (0, 0),
        "train": (0, 2),
        "evaluate": (0, 6),
    }
    assert document["seconds"] is None  # nothing of this model was ever timed here
    assert document["weight_bytes"] == {"tiny_llama": None}
    assert not root.exists()


@pytest.mark.parametrize(
    ("seconds", "gpu_hours", "is_timed"),
    [(None, 2.5, False), (None, None, True), (9000.0, 2.5, True)],
)
def test_a_plan_has_no_times_where_only_gpu_hours_are_known(seconds, gpu_hours, is_timed):
    kinds = [
        {"kind": "score", "done": 0, "to_do": 0, "tokens": 0, "seconds": 0.0},
        {"kind": "train", "done": 1, "to_do": 2, "tokens": 30, "seconds": seconds},
    ]
    model = {"stages": 2, "tokens": 30, "gpu_hours": gpu_hours, "rates": ["stated"], "disk_bytes": 10**9}
    document = {
        "runs": 1,
        "unplanned": [],
        "kinds": kinds,
        "trainings": [],
        "asked": 3,
        "shared": 0,
        "seconds": seconds,
        "models": {"m": model},
        "disk_bytes": 10**9,
        "weight_bytes": {"m": 10**9},
    }
    console = Console(file=io.StringIO(), width=100)
    plan.render_plan(console, document)
    first = console.file.getvalue().split("The runs ask for")[0]
    assert (" time" in first) is is_timed
    assert ("unknown" in first) is (is_timed and seconds is None)
    assert "train" in first


def test_a_plan_of_what_is_done(sapo, small, trained):
    document = sapo("plan", *small, "policy=sapo", "--json").document
    assert [(kind["done"], kind["to_do"], kind["tokens"]) for kind in document["kinds"]] == [
        (2, 0, 0),
        (2, 0, 0),
        (9, 0, 0),
    ]
    assert document["seconds"] == 0
    assert "memory" in sapo("plan", *small, "policy=random", "seed=range(2)").out


def test_weights_are_parameters_times_bytes(sapo, small):
    document = sapo("plan", *small, "model.parameters=0.5", "model.dtype=bfloat16", "--json").document
    assert document["weight_bytes"] == {"tiny_llama": 1_000_000_000}


DIVERGES = (
    "trainer.learning_rate=1e-3,1e30",
    "trainer.max_grad_norm=1e30",
    "policy=static",
    "trainer.epochs=3",
)


def test_a_failed_run_does_not_stop_the_others(sapo, small, trained):
    done = sapo("train", *small, *DIVERGES, "--json")
    assert done.code == 1
    assert "static seed 0 failed: Training of mini_" in done.err
    document = json.loads(done.out)
    assert len(document["runs"]) == 1
    assert "Nothing was stored" in document["failed"][0]["error"]


def test_a_prompt_that_is_not_there_is_refused_before_anything_runs(sapo, small, tmp_path):
    store = f"store.root='{tmp_path / 'none'}'"
    done = sapo("train", *small, "policy=fixed", "policy.index=-1,50", store, "--json")
    assert (done.code, done.out) == (2, "")
    assert "No prompt 50: the pool of mini_city has paraphrases 0 to 2" in done.err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", [("train",), ("train", "--dry-run"), ("plan",)])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("task=mini_city",), "sequence.tasks=[mini_city]"),
        (("method=ewc", "sequence.tasks=[mini_price]"), "has only one"),
        (("method=replay", "method.buffer=100000"), "method.buffer=100000"),
        (("method=inscl", "method.unit=instance"), "method.unit=lexical or quota needs none"),
        (("method=ewc", "method.weight=inf"), "method.weight=inf"),
        (("method=ewc", "method.fisher_decay=2"), "method.fisher_decay=2"),
        (("method=olora", "method.weight=-1"), "must be at least 0"),
    ],
)
def test_methods_that_cannot_do_their_work_are_refused_at_once(
    sapo, small, tmp_path, command, wrong, message
):
    store = f"store.root='{tmp_path / 'none'}'"
    done = sapo(*command, *small, *wrong, "policy=static", store)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not (tmp_path / "none").exists()


def test_fail_fast_stops(sapo, small, tmp_path):
    store = f"store.root='{tmp_path / 'fast'}'"
    swapped = ("trainer.learning_rate=1e30,1e-3", *DIVERGES[1:])
    done = sapo("train", *small, *swapped, store, "--fail-fast", "--json")
    assert (done.code, done.out) == (1, "")
    assert not list((tmp_path / "fast").glob("runs/*"))


def test_a_failure_that_is_nobodys_fault_is_named(sapo, small, trained, monkeypatch):
    from sapo.experiments.stages import Train

    def fail(*_):
        raise MemoryError("too small a machine")

    monkeypatch.setattr(Train, "compute", fail)
    done = sapo("train", *small, "policy=random", "seed=1", "trainer.learning_rate=0.5", "--json")
    assert (done.code, done.out) == (1, "")
    assert "MemoryError: too small a machine" in done.err
