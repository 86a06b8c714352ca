"""A run whose batches do not fit in memory ends with the same numbers, and says what it did."""

import pandas as pd
import pytest
import torch
from transformers import LlamaForCausalLM

from sapo.conf.errors import WorkError
from sapo.experiments.batch import complete
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store

SMALL = (
    "sequence.tasks=[mini_city]",
    "data.max_input_tokens=512",
    "paraphrases.count=2",
    "method.dropout=0.0",
    "policy=sapo",
)


def finished(config, root) -> tuple[pd.DataFrame, dict[str, list]]:
    """Predictions of a run, and what its trainings and scorings measured."""
    store = Store(root)
    (folder,) = complete([config], LocalEngine(store), keep_going=False)
    measured = {
        "score": [s.examples()["nll"].tolist() for kind, s in store.stages() if kind == "score"],
        "train": [s.result["losses"] for kind, s in store.stages() if kind == "train"],
    }
    return pd.read_parquet(folder / "predictions.parquet"), measured


def with_room_for(rows, monkeypatch):
    forward = LlamaForCausalLM.forward

    def limited(self, input_ids, *args, **kwargs):
        if len(input_ids) > rows:
            raise torch.OutOfMemoryError("the batch is too large")
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", limited)


def test_smaller_batches_give_the_same_run(tiny_config, tmp_path, monkeypatch, caplog):
    config = tiny_config(*SMALL)
    predictions, stages = finished(config, tmp_path / "whole")
    assert not caplog.records
    with_room_for(2, monkeypatch)
    others, other_stages = finished(config, tmp_path / "small")
    assert "halves" in caplog.text  # scoring, evaluation
    assert "micro-batches of" in caplog.text  # training
    assert all(record.levelname == "WARNING" for record in caplog.records)
    for kind, values in stages.items():
        assert len(values) == len(other_stages[kind]) == 1
        assert other_stages[kind][0] == pytest.approx(values[0], rel=1e-4)
    measured = ["nll", "rougeL"]
    pd.testing.assert_frame_equal(others.drop(columns=measured), predictions.drop(columns=measured))
    pd.testing.assert_frame_equal(others[measured], predictions[measured], rtol=1e-4)


@pytest.mark.parametrize("policy", ["sapo", "static"])
def test_one_example_that_does_not_fit_is_said_and_nothing_stored(tiny_config, tmp_path, monkeypatch, policy):
    """In scoring, and in training where nothing is scored."""
    with_room_for(0, monkeypatch)
    with pytest.raises(WorkError, match=r"[Oo]ne example of \d+ tokens (or more )?does not fit"):
        finished(tiny_config(*SMALL, f"policy={policy}"), tmp_path / "store")
    assert not list(Store(tmp_path / "store").stages())
