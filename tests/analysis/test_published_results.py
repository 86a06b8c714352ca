"""The page of what real data have shown says what its files hold."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "results"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (PAGE / "README.md").read_text().splitlines()
    if line.startswith("|")
]
HEADER = next(row for row in ROWS if row[-1] == "paper")
PAIRS = [title.partition(":")[0] for title in HEADER[1:-1]]


def assert_said(text: str, value: float, what: str) -> None:
    """The text is the value, rounded to as many decimals as it has."""
    assert float(text) == pytest.approx(value, abs=0.51 * 10 ** -len(text.partition(".")[2])), what


def test_pairs_verdicts_and_estimates_are_those_of_the_files():
    probes = [f"ni_probe_{pair.lower()}, seed 0" for pair in PAIRS]
    assert probes == list(pd.read_csv(PAGE / "figure1.csv")["probe"])
    claims = pd.read_csv(PAGE / "claims_claims.csv").set_index("id")
    said = {row[0].split(")")[0].strip("("): row for row in reversed(ROWS) if row[0].startswith("(")}
    for claim in ("a", "b", "c"):
        _, estimate, p, verdict = said[claim]
        row = claims.loc[claim]
        texts = re.findall(r"-?[\d.]+", estimate)
        for text, value in zip(texts, row[["estimate", "low", "high"]], strict=True):
            assert_said(text, value, claim)
        assert float(p) == pytest.approx(row["p_holm"], rel=0.05)
        assert verdict.strip("*").startswith(row["verdict"])


@pytest.mark.parametrize("pair", PAIRS)
def test_the_numbers_of_a_pair_are_those_of_its_prompts(pair):
    name = f"ni_probe_{pair.lower()}"
    said = {row[0]: row[1 + PAIRS.index(pair)] for row in ROWS if len(row) == len(HEADER)}
    (file,) = PAGE.glob(f"figure1_{name}-*_nll.csv")
    points = pd.read_csv(file)
    others = points[points["role"] != "training"].pivot(index="prompt", columns="task", values="score")
    trained = points[points["role"] == "training"].set_index("prompt")["score"]
    loss = points.drop_duplicates("prompt").set_index("prompt")["pre_update_loss"]
    cells = others.corr("spearman").to_numpy()[np.triu_indices(others.shape[1], 1)]
    means, of_loss = others.mean(axis=1), others.corrwith(loss, method="spearman")
    for title, value in {
        "(b) mean correlation between other tasks (Spearman)": cells.mean(),
        "(c) mean correlation of -loss with other tasks (Spearman)": of_loss.mean(),
        "the same with the trained task": trained.corr(loss, "spearman"),
        "prompt of the lowest loss, behind the best (nats)": means[loss.idxmin()] - means.min(),
        "the original, behind the best": means[-1] - means.min(),
        "a prompt drawn at random, behind the best": means.mean() - means.min(),
        "mean loss before training; KL(untouched, trained) on the new task": loss.mean(),
    }.items():
        assert_said(said[title].split(";")[0].split(" [")[0], value, title)
    spread = pd.read_csv(PAGE / "figure1.csv").set_index("probe").loc[f"{name}, seed 0"]
    maps = pd.read_csv(PAGE / "figure2.csv").query("coefficient == 'Spearman'").set_index("probe")
    cell = maps.loc[f"{name}, seed 0"]
    for title, text in {
        "(a) spread over prompts on the trained task (coefficient of variation, %)": spread["in-task CV (%)"],
        "the same on the other tasks": spread["cross-task CV (%)"],
        "p that they are alike (permutation, Holm over the pairs)": spread["p (Holm)"],
        "(b) mean correlation between other tasks (Spearman)": cell["mean off the diagonal"],
        "p that they are unrelated (permutation, Holm)": cell["p (Holm)"],
    }.items():
        assert said[title] == str(text)
