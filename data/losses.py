"""The pre-update loss of a prompt from the losses of its examples."""

import numpy as np
import pandas as pd

PUBLISHED_BATCH = 8


def prompt_losses(losses: pd.DataFrame, reduction: str) -> pd.DataFrame:
    """Loss of each prompt from per-example sums: `prompt`, `loss`, `n_examples`, `n_tokens`, `is_complete`.

    Prompts that a race has dropped have fewer examples than the others: they are not complete, and their
    losses cannot be compared.

    `token`: total NLL over total target tokens. `example`: mean over examples of their own token means.
    `batch`: mean over full batches of eight rows of their token means, as the published code has it on eight
    devices, which drops the rows that are left (D8, D9).
    """
    grouped = losses.groupby("prompt")
    totals = grouped.agg(nll=("nll", "sum"), n_tokens=("n_tokens", "sum"), n_examples=("nll", "size"))
    if reduction == "token":
        totals["loss"] = totals["nll"] / totals["n_tokens"]
    elif reduction == "example":
        totals["loss"] = (losses["nll"] / losses["n_tokens"]).groupby(losses["prompt"]).mean()
    else:
        batches = []
        for _, rows in grouped:
            n_whole = len(rows) // PUBLISHED_BATCH * PUBLISHED_BATCH or len(rows)
            whole = rows.sort_values("example").iloc[:n_whole]
            sums = whole.groupby(np.arange(n_whole) // PUBLISHED_BATCH)[["nll", "n_tokens"]].sum()
            batches.append(float((sums["nll"] / sums["n_tokens"]).mean()))
        totals["loss"] = batches
    totals["is_complete"] = totals["n_examples"] == totals["n_examples"].max()
    return totals.reset_index()[["prompt", "loss", "n_examples", "n_tokens", "is_complete"]]
