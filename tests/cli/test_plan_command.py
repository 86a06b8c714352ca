"""`sapo plan --measure` on the random tiny model: rates that later plans and comparisons tell time by."""

import pytest
from test_compare_command import MINE

from sapo.cli import plan
from sapo.experiments import measure as measuring

ONE = ("sequence.tasks=[mini_city]", "policy=static", "method=sequential")


def test_measured_rates_give_time_to_every_plan(sapo, small, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "SECONDS", 1.0)
    settings = (*(each for each in small if not each.startswith("sequence.tasks")), *ONE)
    unmeasured = sapo("plan", *settings)
    assert "sapo plan --measure" in unmeasured.out
    done = sapo("plan", *settings, "--measure", "--json")
    assert "tiny_llama: training" in done.err
    low, high = done.document["seconds"]
    assert 0 < low < high
    assert sum(kind["seconds"][1] for kind in done.document["kinds"]) == pytest.approx(high)
    assert not (tmp_path / "store").exists()  # what was measured leaves nothing but its rates
    assert sapo("train", *settings, "--dry-run", "--json").document["seconds"] == [low, high]
    shown = sapo("plan", *settings)
    assert plan._UNMEASURED not in shown.out
    compared = sapo("compare", *MINE, "--dry-run", "--json").document
    assert 0 < compared["seconds"][0] < compared["seconds"][1]
    (file,) = (tmp_path / "cache" / "rates").iterdir()
    file.write_text("{}")
    again = sapo("plan", *settings, "--json").document
    assert again["seconds"] is None
    assert str(file) in again["notes"][0]
    (line,) = (note for note in sapo("compare", *MINE, "--dry-run").err.splitlines() if str(file) in note)
    assert "is not used" in line


def test_what_is_not_there_is_refused_before_anything_is_measured(sapo, small):
    message = sapo("plan", *small, "model.path=/nowhere", "--measure").refused()
    assert "/nowhere" in message


def test_answers_without_a_step_are_taken_for_readings(sapo, small, monkeypatch):
    monkeypatch.setattr(measuring, "SECONDS", 0.1)
    settings = (*small, "policy=static", "evaluator.max_new_tokens=1", "--measure", "--json")
    assert sapo("plan", *settings).document["seconds"][0] > 0
