"""The page of what real data have shown says what its files hold."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize(("name", "place"), [("ni_probe_c3", 0), ("ni_probe_m3", 1)])
def test_the_numbers_of_a_pair_are_those_of_its_prompts(name, place):
    rows = (
        line.strip("|").split("|") for line in (PAGE / "README.md").read_text().splitlines() if "|" in line
    )
    said = {title.strip(): values[place].strip() for title, *values in rows if len(values) == 3}
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
    assert said["the same on the nine other tasks"] == spread["cross-task CV (%)"]
    assert said["p that they are alike (permutation, Holm over the two)"] == str(spread["p (Holm)"])
    assert said["(b) mean correlation between other tasks (Spearman)"] == cell["mean off the diagonal"]
    assert said["p that they are unrelated (permutation, Holm)"] == str(cell["p (Holm)"])
