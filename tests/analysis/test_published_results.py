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


def test_every_pair_has_its_column():
    assert [f"ni_probe_{pair.lower()}, seed 0" for pair in PAIRS] == list(
        pd.read_csv(PAGE / "figure1.csv")["probe"]
    )


def test_verdicts_and_estimates_are_those_of_the_claims():
    claims = pd.read_csv(PAGE / "claims_claims.csv").set_index("id")
    said = {row[0].split(")")[0].strip("("): row for row in reversed(ROWS) if row[0].startswith("(")}
    for claim in ("a", "b", "c"):
        _, estimate, p, verdict = said[claim]
        row = claims.loc[claim]
        for text, value in zip(
            re.findall(r"-?[\d.]+", estimate), row[["estimate", "low", "high"]], strict=True
        ):
            assert float(text) == pytest.approx(value, abs=0.51 * 10 ** -len(text.partition(".")[2])), claim
        assert float(p) == pytest.approx(row["p_holm"], rel=0.05)
        assert verdict.strip("*").startswith(row["verdict"])


@pytest.mark.parametrize("pair", PAIRS)
def test_the_numbers_of_a_pair_are_those_of_its_prompts(pair):
    name, place = f"ni_probe_{pair.lower()}", 1 + PAIRS.index(pair)
    said = {row[0]: row[place] for row in ROWS if len(row) == len(HEADER)}
    (file,) = (path for path in PAGE.glob(f"figure1_{name}-*_nll.csv"))
    points = pd.read_csv(file)
    others = points[points["role"] != "training"].pivot(index="prompt", columns="task", values="score")
    trained = points[points["role"] == "training"].set_index("prompt")["score"]
    loss = points.drop_duplicates("prompt").set_index("prompt")["pre_update_loss"]
    cells = others.corr("spearman").to_numpy()[np.triu_indices(others.shape[1], 1)]
    means = others.mean(axis=1)
    found = {
        "(b) mean correlation between other tasks (Spearman)": cells.mean(),
        "(c) mean correlation of -loss with other tasks (Spearman)": others.corrwith(
            loss, method="spearman"
        ).mean(),
        "the same with the trained task": trained.corr(loss, "spearman"),
        "prompt of the lowest loss, behind the best (nats)": means[loss.idxmin()] - means.min(),
        "the original, behind the best": means[-1] - means.min(),
        "a prompt drawn at random, behind the best": means.mean() - means.min(),
        "mean loss before training; KL(untouched, trained) on the new task": loss.mean(),
    }
    for title, value in found.items():
        text = said[title].split(";")[0].split(" [")[0]
        assert float(text) == pytest.approx(value, abs=0.51 * 10 ** -len(text.partition(".")[2])), title
    spread = pd.read_csv(PAGE / "figure1.csv").set_index("probe").loc[f"{name}, seed 0"]
    maps = pd.read_csv(PAGE / "figure2.csv")
    (cell,) = maps[(maps["probe"] == f"{name}, seed 0") & (maps["coefficient"] == "Spearman")].to_dict(
        "records"
    )
    assert (
        said["(a) spread over prompts on the trained task (coefficient of variation, %)"]
        == spread["in-task CV (%)"]
    )
    assert said["the same on the other tasks"] == spread["cross-task CV (%)"]
    assert said["p that they are alike (permutation, Holm over the pairs)"] == str(spread["p (Holm)"])
    assert said["(b) mean correlation between other tasks (Spearman)"] == cell["mean off the diagonal"]
    assert said["p that they are unrelated (permutation, Holm)"] == str(cell["p (Holm)"])
