"""`sapo plan` on the random tiny model: what is left out, and rates that later plans tell time by."""

import pytest
from test_compare_command import MINE

from sapo.cli import plan
from sapo.experiments import costs

ONE = ("sequence.tasks=[mini_city]", "policy=static", "method=sequential")


def test_trainings_by_place_and_runs_that_are_left_out(sapo, small):
    asked = ("plan", *small, "policy=sapo", "paraphrases=bank,terse")
    document = sapo(*asked, "--json").document
    assert document["runs"] == 1
    trainings = [(kind["kind"], kind["to_do"]) for kind in document["trainings"]]
    assert trainings == [("train, task 1", 1), ("train, task 2", 1)]
    (left_out,) = document["unplanned"]
    assert left_out["runs"] == 1
    assert "The bank 'terse' has no paraphrases of task mini_city" in left_out["reason"]
    text = sapo(*asked).out
    assert "train, task 2" in text
    assert "No plan of 1 more: The bank 'terse' has no" in text
    assert "The bank 'terse' has no" in sapo("plan", *small, "policy=sapo", "paraphrases=terse").refused()


def test_measured_rates_give_time_to_every_plan(sapo, small, tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "SECONDS", 1.0)
    settings = (*(each for each in small if not each.startswith("sequence.tasks")), *ONE)
    assert "sapo plan --measure" in sapo("plan", *settings).out
    done = sapo("plan", *settings, "--measure", "--json")
    assert "tiny_llama: training" in done.err
    low, high = done.document["seconds"]
    assert 0 < low < high
    assert sum(kind["seconds"][1] for kind in done.document["kinds"]) == pytest.approx(high)
    assert not (tmp_path / "store").exists()  # what was measured leaves nothing but its rates
    assert sapo("train", *settings, "--dry-run", "--json").document["seconds"] == [low, high]
    assert plan._UNMEASURED not in sapo("plan", *settings).out
    compared = sapo("compare", *MINE, "--dry-run", "--json").document
    assert 0 < compared["seconds"][0] < compared["seconds"][1]
    (file,) = (tmp_path / "cache" / "rates").iterdir()
    file.write_text("{}")
    again = sapo("plan", *settings, "--json").document
    assert again["seconds"] is None
    assert str(file) in again["notes"][0]
    (line,) = (note for note in sapo("compare", *MINE, "--dry-run").err.splitlines() if str(file) in note)
    assert "is not used" in line


def test_answers_without_a_step_are_taken_for_readings(sapo, small, monkeypatch):
    monkeypatch.setattr(costs, "SECONDS", 0.1)
    settings = (*small, "policy=static", "evaluator.max_new_tokens=1", "--measure", "--json")
    assert sapo("plan", *settings).document["seconds"][0] > 0
