"""Would racing have chosen the same? Stored full scores, raced again in many random orders."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sapo.conf.errors import UserError
from sapo.data.files import stored_json
from sapo.experiments.engine.store import Store
from sapo.experiments.model.racing import look_sizes, race, weights

TOLERANCE = 1e-3  # losses that differ by less are as good as equal


def study(store: Store, n_orders: int, confidence: float, reduction: str) -> list[dict[str, Any]]:
    """A row for each full Score stage of the store that is large enough to race, as `replay` has it.

    UserError if there is none.
    """
    rows = [
        {"task": task, "stage": key, **replay(table, n_orders, confidence, reduction)}
        for task, key, table in _full_scores(store)
    ]
    if not rows:
        raise UserError(
            f"{store.root} holds no pool that was scored in full on enough examples to race. Make one with: "
            "sapo train policy=sapo scorer=full scorer.examples=250 data.train_examples=1000"
        )
    return rows


def replay(table: pd.DataFrame, n_orders: int, confidence: float, reduction: str) -> dict[str, Any]:
    """Races over a full loss table (`prompt`, `example`, `nll`, `n_tokens`) in random orders.

    `agreement` is the share of orders whose choice is the full winner or within 0.1 % of its loss, `worst`
    the largest relative excess loss of a choice, `read` the mean share of (prompt, example) pairs that were
    read, and `gap` the relative excess loss of the second-best prompt.
    """
    values = _values(table, reduction)
    losses = values.mean(axis=1)
    best = losses.min()
    chosen, read = _choices(values, losses, n_orders, confidence)
    excess = losses[chosen] / best - 1
    ranked = np.sort(losses)
    return {
        "prompts": len(values),
        "examples": values.shape[1],
        "winner": int(sorted(set(table["prompt"]))[losses.argmin()]),
        "loss": float(best),
        "gap": float(ranked[1] / best - 1) if len(ranked) > 1 else None,
        "near_ties": int((losses <= best * (1 + TOLERANCE)).sum()) - 1,
        "same_winner": float((excess == 0).mean()),
        "agreement": float((excess < TOLERANCE).mean()),
        "worst": float(excess.max()),
        "read": float(read.mean()),
    }


def _choices(
    values: NDArray[np.float64], losses: NDArray[np.float64], n_orders: int, confidence: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The candidate chosen in each order, and the share of pairs that was read."""
    draw = np.random.default_rng(0)
    chosen, read = [], []
    for _ in range(n_orders):
        order = draw.permutation(values.shape[1]).tolist()
        seen = race(lambda c, e: values[np.ix_(c, e)], len(values), order, confidence)
        left = np.flatnonzero(seen == len(order))
        chosen.append(left[losses[left].argmin()])
        read.append(seen.sum() / values.size)
    return np.array(chosen), np.array(read)


def _values(table: pd.DataFrame, reduction: str) -> NDArray[np.float64]:
    """Weighted losses, a row a prompt in ascending order, a column an example; a row's mean is its loss."""
    nll = table.pivot(index="prompt", columns="example", values="nll").to_numpy()
    tokens = table.pivot(index="prompt", columns="example", values="n_tokens").to_numpy()
    return nll * np.array([weights(counts, reduction) for counts in tokens])


def _full_scores(store: Store) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Task, key and table of each Score stage that read every prompt on every example."""
    for kind, stored in store.stages():
        if kind != "score" or stored_json(stored.folder / "identity.json")["scorer"]["name"] != "full":
            continue
        table = stored.examples()
        if look_sizes(table["example"].nunique()):
            yield stored.result.task, stored.key, table
