"""Loss reductions by hand."""

import pandas as pd

from sapo.data.losses import prompt_losses

# Under the original 6 nats over 2 tokens and 2 over 2; under the first paraphrase 1 over 1 and 8 over 5.
LOSSES = pd.DataFrame({"prompt": [-1, -1, 0, 0], "nll": [6.0, 2.0, 1.0, 8.0], "n_tokens": [2, 2, 1, 5]})


def test_reductions_to_total_over_total_and_to_the_mean_of_example_means():
    assert prompt_losses(LOSSES, "token")["loss"].tolist() == [8 / 4, 9 / 6]
    assert prompt_losses(LOSSES, "example")["loss"].tolist() == [2.0, (1.0 + 1.6) / 2]
    assert prompt_losses(LOSSES, "example")["n_examples"].tolist() == [2, 2]


def test_batch_reduction_is_the_mean_of_eights_without_the_rest():
    # Nine rows: eight of 1 nat over 1 token, where one has 9 nats over 2, and a ninth that falls away.
    rows = pd.DataFrame(
        {"prompt": -1, "example": range(9), "nll": [1.0] * 7 + [9.0, 50.0], "n_tokens": [1] * 7 + [2, 1]}
    )
    assert prompt_losses(rows, "batch")["loss"].tolist() == [16 / 9]
    sixteen = pd.concat([rows[:8], rows[:8].assign(example=range(8, 16), nll=1.0)])
    assert prompt_losses(sixteen, "batch")["loss"].tolist() == [(16 / 9 + 8 / 9) / 2]
    assert prompt_losses(rows[:3], "batch")["loss"].tolist() == [1.0]  # fewer than eight are one batch
