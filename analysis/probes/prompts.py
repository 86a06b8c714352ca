"""The prompts of a probe with their losses before training."""

import numpy as np
import pandas as pd

from sapo.analysis.probes.results import ProbeResult
from sapo.analysis.probes.tables import prompt_name
from sapo.data.prompts import ORIGINAL
from sapo.data.tasks import short_name


def prompts_title(probe: ProbeResult) -> str:
    """The title of `prompt_table`."""
    where = f"{probe.sequence}, {probe.model}, {probe.method}, seed {probe.seed}"
    return f"Prompts of {short_name(probe.current)} and their losses before training: {where}"


def prompt_table(probe: ProbeResult) -> pd.DataFrame:
    """Every prompt of the current task, the lowest loss first; cells are ready to print.

    Losses are in nats, of the scored training examples in the state before the task.
    """
    losses = probe.pre_update_losses().sort_values(kind="stable")
    examples = probe.losses.groupby("prompt")["example"].nunique()
    return pd.DataFrame(
        {
            "prompt": prompt_name(index),
            "loss": f"{loss:.4f}",
            "against the original": f"{loss - losses[ORIGINAL]:+.4f}",
            "examples": str(examples[index]),
            "text": probe.prompts[index],
        }
        for index, loss in losses.items()
    )


def tie_of(probe: ProbeResult) -> str | None:
    """A warning if prompts share the lowest loss of those that SAPO can choose from."""
    losses = probe.pre_update_losses()[probe.candidates]
    tied = losses.index[np.isclose(losses, losses.min(), rtol=1e-12, atol=0)]
    if len(tied) == 1:
        return None
    names = ", ".join(map(prompt_name, tied))
    where = f"{probe.sequence}, seed {probe.seed}, {short_name(probe.current)}"
    return f"{where}: {names} tie: one lowest loss, of which the first was taken."
