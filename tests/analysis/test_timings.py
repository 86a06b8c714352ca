"""Wall time with and without selection, worked by hand."""

from dataclasses import replace

import pandas as pd
import pytest

from sapo.analysis.results import load_run
from sapo.analysis.timings import timing_text, timings

TASKS = ("a", "b")


def stages_of(kind: str, *seconds: float) -> list[dict]:
    return [
        {"kind": kind, "task": task, "seconds": value, "tokens": 1}
        for task, value in zip(TASKS, seconds, strict=True)
    ]


@pytest.fixture
def pair(run_folder):
    """`pair(method, seed, train, score)`: a static and a SAPO run with the times of their stages."""

    def write(method, seed, train, score):
        tested = [{"kind": "evaluate", "task": "a", "seconds": 7.0, "tokens": 1}]
        environment = {"device": "cuda (a GPU)"}
        common = {"tasks": TASKS, "method": method, "seed": seed, "environment": environment}
        static = run_folder(f"static-{method}{seed}", stages=stages_of("train", *train) + tested, **common)
        # The training of another prompt takes another time, which is not selection's.
        sapo_stages = stages_of("score", *score) + stages_of("train", 500.0, 500.0) + tested
        sapo = run_folder(f"sapo-{method}{seed}", policy="sapo", stages=sapo_stages, **common)
        return [load_run(static), load_run(sapo)]

    return write


def test_selection_over_training_of_equal_seeds(pair):
    runs = [*pair("ewc", 0, (10, 30), (1, 3)), *pair("ewc", 1, (20, 20), (4, 8))]
    frame, _, notes = timings(runs, draws=200)
    ours, paper = frame.to_dict("records")
    assert (ours["base_seconds"], ours["extra_seconds"], ours["test_seconds"]) == (40.0, 8.0, 14.0 / 2)
    assert ours["overhead_percent"] == 20.0
    # Task a and b have 10 % each in the one seed, 20 and 40 % in the other: a mean of 15 to 25 %.
    assert ours["low"] == pytest.approx(40 * 100 / 3 / 80, rel=0.5)
    assert 10 <= ours["low"] < 20 < ours["high"] <= 30
    assert (ours["n_tasks"], ours["n_seeds"]) == (2, 2)
    assert (paper["base_seconds"], paper["extra_seconds"]) == (3.0 * 3600, 0.25 * 3600)
    assert (paper["method"], paper["overhead_percent"], paper["sequence"]) == ("EWC", 8.3, "NI-Seq-M1")
    assert notes[-1].startswith("Hardware: cuda (a GPU).")


def test_equal_shares_have_no_width(pair):
    frame, *_ = timings(pair("lorainc", 0, (10, 30), (1, 3)), draws=50)
    assert (frame["low"][0], frame["high"][0]) == pytest.approx((10.0, 10.0))


def test_runs_without_a_partner_are_named_and_the_paper_stands_alone(pair):
    _, sapo = pair("olora", 0, (1, 1), (1, 1))
    frame, warnings, _ = timings([sapo], draws=50)
    assert list(frame["source"]) == ["paper"]
    assert f"Left out, since no static run has their seed: {sapo.id}." in warnings
    assert any(warning.startswith("No run here has both") for warning in warnings)


def test_a_method_that_the_paper_does_not_run(pair):
    static, _ = pair("replay", 0, (1, 1), (1, 1))
    frame, *_ = timings([static], draws=50)
    assert frame.empty
    assert timing_text(frame).empty


def test_text_has_units_and_dashes(pair):
    text = timing_text(timings(pair("lorainc", 0, (10, 30), (1, 3)), draws=50)[0])
    assert text.to_dict("split")["data"] == [
        ["lorainc, sapo", "40.0 s", "4.0 s", "10.0 % [10.0, 10.0]", "7.0 s", "2", "1"],
        ["paper: LoraInc *", "2.00 h", "0.25 h", "12.5 %", "-", "-", "-"],
    ]
    assert not pd.isna(text).any(axis=None)


def with_device(run, kind: str, device: str):
    """The run with its stages of a kind computed on `device`."""
    stages = [stage | {"device": device} if stage["kind"] == kind else stage for stage in run.stages]
    return replace(run, stages=stages)


@pytest.mark.parametrize("kind", ["score", "evaluate"])
def test_times_of_different_hardware_are_not_divided(pair, kind):
    static, sapo = pair("lorainc", 0, (10, 30), (1, 3))
    frame, warnings, notes = timings([static, with_device(sapo, kind, "cpu")], draws=50)
    assert list(frame["source"]) == ["paper"]
    reason = "they or their static run were computed on several kinds of hardware"
    assert f"Left out, since {reason}: {sapo.id}." in warnings
    assert notes[-1].startswith("Hardware: cpu; cuda (a GPU).")


def test_trainings_that_are_not_timed_may_have_been_elsewhere(pair):
    static, sapo = pair("lorainc", 0, (10, 30), (1, 3))
    frame, *_ = timings([static, with_device(sapo, "train", "cpu")], draws=50)
    assert frame["hardware"][0] == "cuda (a GPU)"
