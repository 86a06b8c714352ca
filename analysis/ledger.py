"""Claims as tables: all of them, a badge table for a README, and what lies behind (c) pair by pair."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from scipy import stats

from sapo.analysis.claims import ALPHA, COEFFICIENT, FEWEST_UNITS, NO_RUNS, Claim, ProbeData, probe_values
from sapo.analysis.results import NUMBERS, measure_name
from sapo.analysis.tables import score_name

NOTES = (
    "Positive speaks for the claim: NLL counts with its sign turned round. Shown, or refuted (the opposite "
    f"holds): p, two-sided and adjusted by Holm over all claims here, is at most {ALPHA}, and the 95 % "
    "interval lies on one side. Else undecided, with about what would decide at the present effect.",
    f"(a) to (c) and KL: Student's t over pairs of tasks, {FEWEST_UNITS} or more, each the mean over its "
    "seeds; (b) also permutes prompts within tasks. (d) and the other rivals: t over sequences; with fewer "
    f"than {FEWEST_UNITS} over seeds and test rows, and of these sequences only.",
    "Paper: means of the numbers that it prints for ROUGE-L, whatever our model.",
)


def claim_texts(claims: Sequence[Claim]) -> pd.DataFrame:
    """The claims for people: a row a claim, measure and column; without runs, that."""
    rows = []
    for claim in claims:
        estimate = f"{claim.estimate:.3g} [{claim.low:.3g}, {claim.high:.3g}]" if claim.p is not None else "-"
        counts = (f"{count} {unit if count > 1 else unit[:-1]}" for unit, count in claim.n.items())
        value = claim.paper.get("value")
        rows.append(
            {
                "id": claim.id,
                "claim": claim.claim,
                "score": score_name(claim.measure, claim.column or "") if claim.measure else "-",
                "estimate": estimate,
                "n": ", ".join(counts) or "-",
                "p (Holm)": "-" if claim.p_holm is None else f"{claim.p_holm:.2g}",
                "verdict": NO_RUNS if claim.reason == NO_RUNS else claim.verdict,
                "what would decide": claim.more or claim.reason or "-",
                "paper": claim.paper.get("place", "-") + ("" if value is None else f": {value:g}"),
            }
        )
    return pd.DataFrame(rows)


def badges(claims: Sequence[Claim], measures: Sequence[str] = NUMBERS) -> pd.DataFrame:
    """A row a claim and a column a measure, of the prompts that were trained with: verdicts only."""
    rows: dict[str, dict[str, str]] = {}
    for claim in claims:
        row = rows.setdefault(claim.id, {"claim": f"({claim.id}) {claim.claim}"})
        if claim.measure is None:
            row |= dict.fromkeys(
                map(measure_name, measures), NO_RUNS if claim.reason == NO_RUNS else "no data"
            )
        elif claim.column == "trained":
            row[measure_name(claim.measure)] = claim.verdict
    return pd.DataFrame(list(rows.values()))


def pair_table(probes: Sequence[ProbeData], measures: Sequence[str] = NUMBERS) -> pd.DataFrame:
    """What (a) to (c) say in each probe and measure, beside the kind of tasks, the loss before, and KL."""
    rows = []
    for data, measure in product(probes, measures):
        values = probe_values(data, measure)
        rows.append(
            {
                "pair": data.pair,
                "kind": data.kind,
                "probe": data.label,
                "prompts": len(data.losses),
                "measure": measure,
                "ratio (a)": np.exp(values["a"]),
                "r (b)": values["b"],
                "r (c)": values["c"],
                "r in-task": values["c-in-task"],
                "regret": values["regret"],
                "original's": values["regret"] + values["c-original"],
                "random's": values["regret"] + values["c-random"],
                "loss": float(data.losses.mean()),
                "KL": np.nan if data.kl is None else float(data.kl.mean()),
            }
        )
    return pd.DataFrame(rows)


def as_texts(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells as texts, numbers with three digits."""
    return frame.map(
        lambda cell: "-" if pd.isna(cell) else f"{cell:.3g}" if isinstance(cell, float) else str(cell)
    )


def exploratory(pairs: pd.DataFrame, measure: str = "nll") -> str:
    """What the sign of (c) goes with over pairs, in words: no test, and no part of the claims."""
    of_measure = pairs[(pairs["measure"] == measure) & pairs["r (c)"].notna()]
    table = of_measure.groupby(["pair", "kind"])[["r (c)", "loss", "KL"]].mean().reset_index()
    signs = [
        f"{kind} {int((group['r (c)'] > 0).sum())} of {len(group)}" for kind, group in table.groupby("kind")
    ]
    parts = []
    for column, what in (("loss", "the loss before training"), ("KL", "KL on the new task")):
        known = table.dropna(subset=[column])
        if len(known) <= FEWEST_UNITS or min(known[column].nunique(), known["r (c)"].nunique()) < 2:
            parts.append(f"with {what}: too few pairs" if len(known) else f"with {what}: not stored")
        else:
            value = float(stats.spearmanr(known[column], known["r (c)"]).statistic)
            parts.append(f"with {what}: {value:.2f} over {len(known)} pairs")
    n_positive = int((table["r (c)"] > 0).sum())
    return (
        f"Exploratory, pair by pair (no test, apart from the claims): in {measure_name(measure)} (c) is "
        f"positive in {n_positive} of {len(table)} pairs (by kind of task: {', '.join(signs)}). "
        f"Its size goes ({COEFFICIENT}) {'; '.join(parts)}."
    )
