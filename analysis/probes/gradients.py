"""Does a low loss mean a gradient that points the way of other tasks? (The paper's Figure 4.)"""

from dataclasses import dataclass

import pandas as pd

from sapo.analysis.intervals import Interval, mean_interval
from sapo.analysis.probes.results import ProbeResult

ROLES = {"trained": "T1, trained before", "unseen": "T3, unseen"}


@dataclass(frozen=True)
class Alignment:
    """Mean cosine between the current task's gradient under one prompt and other tasks' gradients.

    `rank`: place of the prompt by loss, 1 = lowest. `cosine` is over (task, module); modules of one model are
    not independent, hence its interval describes these modules and is not a test.
    """

    role: str
    rank: int
    prompt: int
    cosine: Interval


def alignments(probe: ProbeResult) -> list[Alignment]:
    """The mean cosine for each role of ROLES and each ranked prompt; empty without gradients."""
    if probe.gradients is None:
        return []
    groups = probe.gradients.groupby(["role", "rank", "prompt"], sort=True)["cosine"]
    found = {key: mean_interval(list(values), "modules") for key, values in groups}
    return [
        Alignment(role, int(rank), int(prompt), cosine)
        for role in ROLES
        for (of_role, rank, prompt), cosine in found.items()
        if of_role == role
    ]


def rank_difference(probe: ProbeResult, role: str) -> Interval:
    """Mean cosine of the lowest loss minus that of the highest loss, paired over (task, module)."""
    frame = probe.gradients if probe.gradients is not None else pd.DataFrame(columns=["role"])
    frame = frame[frame["role"] == role]
    if frame.empty or frame["rank"].nunique() < 2:
        return Interval(None, reason="a difference needs two ranked prompts")
    wide = frame.pivot_table(index=["task", "module"], columns="rank", values="cosine")
    difference = (wide[wide.columns.min()] - wide[wide.columns.max()]).dropna()
    return mean_interval(list(difference), "modules")
