"""The paper's own numbers (arXiv 2606.01967), as its tables print them."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import pandas as pd

BASE = "static"


class PaperTable(NamedTuple):
    """A table of the paper: its name, the files of its values, and where it is looked at for others' rows.

    `elsewhere` are the model and the sequence whose rows are shown where the table does not have ours.
    """

    title: str
    files: tuple[str, ...]
    elsewhere: tuple[str, str]


PAPER = {
    "table1": PaperTable("Tables 1 and 11", ("table1", "table11"), ("Qwen3-8B", "NI-Seq-M1")),
    "table2": PaperTable("Table 2", ("table2",), ("Qwen3-8B", "NI-Seq-C1")),
    "table3": PaperTable("Table 3", ("table3",), ("Qwen3-8B", "NI-Seq-M1")),
    "table11": PaperTable("Table 11", ("table11",), ("Qwen3-8B", "NI-Seq-M2")),
}


class Published(NamedTuple):
    """A row of the paper: the base's metrics, or the difference of another policy from them."""

    model: str
    sequence: str
    method: str
    policy: str
    cells: Mapping[str, float]


def published(table: str, model: str, sequence: str, method: str) -> list[Published]:
    """The rows of a method in a table of PAPER: of this model and sequence if there, else the nearest.

    The base comes first, if the table has it. A table with a column `paraphraser` has a row for each.
    """
    paper = PAPER[table]
    values = pd.concat(map(paper_csv, paper.files), ignore_index=True)
    name = method.partition(" (")[0]  # `inscl` of `inscl (lexical)`
    values = values[values["method"].map(plain) == plain(name)]
    is_model, is_sequence = (
        values[column].map(plain) == plain(ours)
        for column, ours in (("model", model), ("sequence", sequence))
    )
    other_model, other_sequence = paper.elsewhere
    # Our sequence and model, else our sequence in another model, else another sequence.
    if (is_model & is_sequence).any():
        values = values[is_model & is_sequence]
    else:
        elsewhere = is_sequence if is_sequence.any() else values["sequence"] == other_sequence
        values = values[elsewhere & (values["model"] == other_model)]
    if values.empty:
        return []
    first = values.iloc[0]
    names = (first["model"], first["sequence"], first["method"])
    columns = {BASE: "base"} if "base" in values else {}
    columns |= {name.removesuffix("_delta"): name for name in values if name.endswith("_delta")}
    by = values.groupby("paraphraser", sort=False) if "paraphraser" in values else [("", values)]
    return [
        Published(
            *names,
            f"{policy} ({pool})" if pool else policy,
            {metric: float(value) for metric, value in zip(rows["metric"], rows[column], strict=True)},
        )
        for pool, rows in by
        for policy, column in columns.items()
    ]


@cache
def paper_csv(name: str) -> pd.DataFrame:
    """A file of the paper's values, by its name without `.csv`."""
    with (files("sapo.analysis.paper") / f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def plain(name: str) -> str:
    """A name without case and punctuation: `NI-Seq-G1` is `niseqg1`, `O-LoRA` is `olora`."""
    return "".join(letter for letter in name.lower() if letter.isalnum())
