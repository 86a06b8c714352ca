"""The paper's own numbers (arXiv 2606.01967), as its tables print them."""

from functools import cache
from importlib.resources import files

import pandas as pd

BASE = "static"
# A table's name, the files of its values, and the model and sequence whose rows stand in for others' rows.
PAPER = {
    "table1": ("Tables 1 and 11", ("table1", "table11"), ("Qwen3-8B", "NI-Seq-M1")),
    "table2": ("Table 2", ("table2",), ("Qwen3-8B", "NI-Seq-C1")),
    "table3": ("Table 3", ("table3",), ("Qwen3-8B", "NI-Seq-M1")),
    "table11": ("Table 11", ("table11",), ("Qwen3-8B", "NI-Seq-M2")),
}


def published(table: str, model: str, sequence: str, method: str) -> pd.DataFrame:
    """The rows of a method in a table of PAPER: of this model and sequence if there, else the nearest.

    A row a policy, with its metrics: those of the base, which comes first if the table has it, and the
    others' differences from them. A table with a column `paraphraser` has a row for each. `elsewhere` says
    whether they are of another model or sequence.
    """
    _, names, (other_model, other_sequence) = PAPER[table]
    values = pd.concat(map(paper_csv, names), ignore_index=True)
    values = values[values["method"].map(plain) == plain(method_name(method))]
    is_model = values["model"].map(plain) == plain(model)
    is_sequence = values["sequence"].map(plain) == plain(sequence)
    elsewhere = not (is_model & is_sequence).any()
    if elsewhere:  # our sequence in another model, else another sequence
        is_sequence = is_sequence if is_sequence.any() else values["sequence"] == other_sequence
        is_model = values["model"] == other_model
    values = values[is_model & is_sequence].rename(columns={"base": f"{BASE}_delta"})
    pools = ["paraphraser"] if "paraphraser" in values else []
    rows = values.melt(["model", "sequence", "method", *pools, "metric"], var_name="policy")
    rows["policy"] = rows["policy"].str.removesuffix("_delta")
    if pools:
        rows["policy"] += " (" + rows["paraphraser"] + ")"
    rows = rows.set_index(["model", "sequence", "method", "policy", "metric"])["value"]
    return rows.unstack("metric", sort=False).reset_index().assign(elsewhere=elsewhere)


@cache
def paper_csv(name: str) -> pd.DataFrame:
    """A file of the paper's values, by its name without `.csv`."""
    with (files("sapo.analysis.paper") / f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def method_name(method: str) -> str:
    """`inscl` of `inscl (lexical)`."""
    return method.partition(" (")[0]


def plain(name: str) -> str:
    """A name without case and punctuation: `NI-Seq-G1` is `niseqg1`, `O-LoRA` is `olora`."""
    return "".join(filter(str.isalnum, name.lower()))
