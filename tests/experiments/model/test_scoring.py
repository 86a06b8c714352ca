"""The pre-update loss of each prompt."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from sapo.conf.errors import WorkError
from sapo.data.mini import generate
from sapo.data.prompts import Prompt
from sapo.experiments.model.forward import shared_prefix
from sapo.experiments.model.load import load_model
from sapo.experiments.model.scoring import example_losses, require_finite


def test_a_target_that_was_cut_off_counts_nothing(tiny_config):
    model = load_model(tiny_config())
    task = generate("mini_price", 3, 2, 0)
    first, *others = model.renderer(512).render(task, task.instruction, task.train)
    cut = replace(first, input_ids=first.prompt_ids)
    found = example_losses(model.base, [cut, *others], 1000)
    assert found.loc[0, ["nll", "entropy", "n_tokens"]].tolist() == [0, 0, 0]
    assert found["nll"][1:].tolist() == example_losses(model.base, others, 1000)["nll"].tolist()


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("budget", [1, 100, 10_000])
def test_losses_equal_a_plain_computation_whatever_the_batches(tiny_config, budget, share):
    model = load_model(tiny_config())
    task = generate("mini_price", 6, 2, 0)
    rendered = model.renderer(512).render(task, task.instruction, task.train)
    with torch.inference_mode():
        prefix = shared_prefix(model.base, rendered)
    assert prefix is not None
    found = example_losses(model.base, rendered, budget, prefix if share else None)
    for i, example in enumerate(rendered):
        ids = torch.tensor([example.input_ids])
        labels = ids.clone()
        labels[:, : example.target_start] = -100
        with torch.inference_mode():
            mean = model.base(input_ids=ids, labels=labels).loss.item()
        assert found["nll"][i] == pytest.approx(mean * len(example.target_ids), rel=1e-5)
        assert found["n_tokens"][i] == len(example.target_ids)
        assert 0 < found["entropy"][i] <= len(example.target_ids) * math.log(len(model.tokenizer))


def test_a_loss_that_is_not_finite_is_refused_with_task_and_prompt():
    losses = pd.DataFrame({"example": [0, 1], "nll": [1.0, float("nan")]})
    with pytest.raises(WorkError, match=r"mini_price under prompt 3 .*example 1"):
        require_finite(losses, generate("mini_price", 2, 2, 0), Prompt("…", 3))
