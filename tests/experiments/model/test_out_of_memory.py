"""A run whose batches do not fit in memory ends with the same numbers, and says what it did."""

from functools import wraps

import pandas as pd
import pytest
import torch
from transformers import LlamaForCausalLM, LlamaModel

from sapo.conf.errors import WorkError
from sapo.data.render import Rendered
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store
from sapo.experiments.jobs import Job
from sapo.experiments.methods import ewc
from sapo.experiments.model.budgets import is_out_of_memory
from sapo.experiments.model.forward import in_batches
from sapo.experiments.paraphrase.local import LocalChat
from sapo.experiments.run import run

SMALL = ("sequence.tasks=[mini_city]", "data.max_input_tokens=512", "paraphrases.count=2", "policy=sapo")
SMALL += ("method.dropout=0.0",)

NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB)."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


def finished(config, root) -> tuple[pd.DataFrame, dict[str, list]]:
    """Predictions of a run, and what its trainings and scorings measured."""
    store = Store(root)
    folder = run([Job(config)], LocalEngine(store), keep_going=False)[0].folder
    measured = {
        "score": [s.examples()["nll"].tolist() for kind, s in store.stages() if kind == "score"],
        "train": [s.result.losses for kind, s in store.stages() if kind == "train"],
    }
    return pd.read_parquet(folder / "predictions.parquet"), measured


def no_room(*_, **__):
    raise torch.OutOfMemoryError("too large")


def without_room(condition, monkeypatch, model=LlamaForCausalLM):
    """Forward passes of which `condition` is true run out of memory."""
    forward = model.forward

    @wraps(forward)
    def limited(self, *args, **kwargs):
        return no_room() if condition(kwargs) else forward(self, *args, **kwargs)

    monkeypatch.setattr(model, "forward", limited)


def test_smaller_batches_give_the_same_run(tiny_config, tmp_path, monkeypatch, caplog):
    config = tiny_config(*SMALL)
    predictions, stages = finished(config, tmp_path / "whole")
    assert not caplog.records
    without_room(lambda given: len(given["input_ids"]) > 2, monkeypatch)
    others, other_stages = finished(config, tmp_path / "small")
    assert "halves" in caplog.text  # scoring, evaluation
    assert "micro-batches of" in caplog.text  # training
    assert all(record.levelname == "WARNING" for record in caplog.records)
    for kind, values in stages.items():
        assert len(values) == len(other_stages[kind]) == 1
        assert other_stages[kind][0] == pytest.approx(values[0], rel=1e-4)
    measured = ["nll", "kl", "rougeL"]
    pd.testing.assert_frame_equal(others.drop(columns=measured), predictions.drop(columns=measured))
    pd.testing.assert_frame_equal(others[measured], predictions[measured], rtol=1e-3)


@pytest.mark.parametrize("policy", ["sapo", "static"])
def test_one_example_that_does_not_fit_is_said_and_nothing_stored(tiny_config, tmp_path, monkeypatch, policy):
    """In scoring, and in training where nothing is scored."""
    without_room(lambda _: True, monkeypatch)
    with pytest.raises(WorkError, match=r"mini_city.*[Oo]ne example of \d+ tokens does not fit"):
        finished(tiny_config(*SMALL, f"policy={policy}"), tmp_path / "store")
    assert not list(Store(tmp_path / "store").stages())


def test_whatever_device_says_so():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**57, dtype=torch.uint8)  # more than there are addresses: this machine's CPU says so
    for error in (*NO_MEMORY, caught.value):
        assert is_out_of_memory(error), error
    assert not is_out_of_memory(RuntimeError("size mismatch"))


@pytest.mark.parametrize(
    ("error", "found", "message"),
    [
        (RuntimeError("size mismatch"), RuntimeError, "size mismatch"),
        (MemoryError(), WorkError, "One example of 33 tokens"),  # the whole example, its beginning included
    ],
)
def test_what_no_halving_mends(error, found, message):
    def work(batch):
        raise error

    with pytest.raises(found, match=message):
        in_batches([Rendered([0] * 33, 30)], 100, 0, work, skip=30)


def trained(tiny_config, root, *overrides):
    two = ("sequence.tasks=[mini_city,mini_topic]", "data.max_input_tokens=512", "policy=static")
    config = tiny_config(*two, "trainer.shared_prefix=false", *overrides)
    with pytest.raises(WorkError, match=r"One example of \d+ tokens does not fit") as caught:
        finished(config, root)
    kinds = [kind for kind, _ in Store(root).stages()]
    return str(caught.value), kinds.count("train")


def test_fisher_information_of_an_example_that_does_not_fit(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(ewc, "target_logits", no_room)
    message, n_trained = trained(tiny_config, tmp_path, "method=ewc")
    assert message.startswith("Task mini_city (train): ")
    assert n_trained == 0


def test_an_instruction_whose_embedding_does_not_fit(tiny_config, tmp_path, monkeypatch):
    """InsCL compares instructions before the second training."""
    without_room(lambda given: given.keys() == {"input_ids"}, monkeypatch, LlamaModel)
    message, n_trained = trained(tiny_config, tmp_path, "method=inscl", "method.buffer=4")
    assert message.startswith("Task mini_topic (train): ")
    assert n_trained == 1


def test_an_answer_of_a_local_model_that_does_not_fit(tiny_config, monkeypatch):
    without_room(lambda _: True, monkeypatch)
    with pytest.raises(WorkError, match=r"One example of \d+ tokens does not fit"):
        LocalChat(tiny_config()).ask(["Sort it."], print)
