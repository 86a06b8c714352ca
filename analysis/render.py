"""Tables as text: for the terminal, Markdown, LaTeX (booktabs) and CSV."""

import re
from collections.abc import Sequence
from itertools import compress
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group as Lines
from rich.console import JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from sapo.analysis.intervals import Interval
from sapo.analysis.metrics import DEFAULT_DEFINITION, DEFINITIONS, METRICS, continual_metrics, why_undefined
from sapo.analysis.results import LOWER_IS_BETTER
from sapo.analysis.tables import COUNTS, ScoreTable, count_texts
from sapo.conf.text import csv_safe, markdown_safe, printable
from sapo.data.tasks import short_name

NONE = "-"
NAMES = ("Model", "Sequence", "Method", "Policy", "Score")  # Policy: the settings that differ, if others do
CSV_COLUMNS = (
    *("source", "model", "sequence", "method", "policy", "quantity", "metric", "estimate", "low", "high"),
    *(*COUNTS, "measure", "tested_with", "definition", "demonstration"),
)
# A number with its unit and interval, a dash, or nothing.
_VALUE = r"[-+]?\d+(\.\d+)?"
_NUMBER = re.compile(rf"{_VALUE}(e-\d+)?( (%|s|h))?( \[{_VALUE}, {_VALUE}\])?|[-–]|")


# --- any table ---------------------------------------------------------------------------------------------


def are_numbers(frame: pd.DataFrame) -> list[bool]:
    """Of each column of a table of texts whether it holds nothing but numbers and dashes."""
    are_own = frame.map(lambda text: bool(_NUMBER.fullmatch(text.replace("\n", " "))))
    return list(are_own.all())


def _is_own(text: str) -> bool:
    """Whether a cell needs no escape: a number, or a name of our own such as `-loss`."""
    return bool(_NUMBER.fullmatch(text) or re.fullmatch("-[a-z_]+", text))


def markdown(frame: pd.DataFrame) -> str:
    """A table of texts in GitHub's Markdown, numbers right."""
    rules = ["---:" if is_number else "---" for is_number in are_numbers(frame)]
    lines = [f"| {' | '.join(map(markdown_safe, frame.columns))} |", f"|{'|'.join(rules)}|"]
    for row in frame.itertuples(index=False):
        cells = [cell if _is_own(cell) else markdown_safe(cell) for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def latex(frame: pd.DataFrame, columns: str | None = None, notes: Sequence[str] = ()) -> str:
    """A table of texts as LaTeX for the booktabs package: a `tabular`, or with notes a `table`.

    `columns` aligns them (default: numbers right, others left).
    """

    def safe(text: str) -> str:
        escapes: dict[str, str | int | None] = {character: "\\" + character for character in "&%$#_{}"}
        escapes |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}
        escaped = printable(text).translate(str.maketrans(escapes))
        return re.sub("`([^`]*)`", r"\\texttt{\1}", escaped).replace("·", r"$\cdot$")

    # Braces keep a cell that begins with [ from being read as the optional argument of \\.
    cells = frame.map(lambda text: f"{{{safe(text)}}}").set_axis(list(map(safe, frame.columns)), axis=1)
    columns = columns or "".join("r" if is_number else "l" for is_number in are_numbers(frame))
    caption, place = (" ".join(map(safe, notes)), "centering") if notes else (None, None)
    style = cells.style.hide(axis="index")
    return style.to_latex(hrules=True, column_format=columns, position_float=place, caption=caption)


def csv(frame: pd.DataFrame) -> str:
    """A table as CSV, in full precision; no spreadsheet takes a cell for a formula."""
    safe = frame.copy()
    for name in frame.select_dtypes(exclude=["number", "bool"]):
        safe[name] = [v if isinstance(v, str) and _is_own(v) else csv_safe(v) for v in frame[name]]
    return safe.to_csv(index=False, lineterminator="\n")


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as JSON values, None where nothing is known."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def terminal(frame: pd.DataFrame, title: str, is_narrow: bool = False) -> RenderableType:
    """A table of texts for a terminal, with what is the same in all rows above it; one row as a list.

    One that is narrow, which fits in 80 columns, stays whole: no column is taken out. Its numbers are broken
    where they have blanks, on a terminal that has no room for them.
    """
    facts, shown = ("", frame) if is_narrow else constant_columns(frame)
    as_list = len(frame) == 1 and not is_narrow
    if as_list:
        shown = frame.T.reset_index()
        shown.columns = pd.Index(["", " "])
    block = Table(box=box.SIMPLE_HEAD, padding=0 if is_narrow else (0, 1, 0, 0), show_header=not as_list)
    for name, is_number in zip(shown, are_numbers(shown), strict=True):
        words = [word for text in shown[name] for word in text.split()] if is_narrow else []
        least = min(max(map(len, words), default=1), 12)
        side: JustifyMethod = "right" if is_number else "left"
        block.add_column(Text(str(name)), justify=side, overflow="fold", min_width=least)
    for row in shown.itertuples(index=False):
        block.add_row(*map(Text, row))
    # Not as the title of the table, which would be broken to its width.
    return Lines(Text(title), *([Text(facts)] if facts else []), block)


def constant_columns(frame: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """What is the same in all of several rows, as a line to stand above them; and the other columns."""
    same = [name for name in frame if len(frame) > 1 and frame[name].nunique() == 1]
    facts = [f"{name}: {' '.join(str(frame[name].iloc[0]).split())}" for name in same]
    return "; ".join(facts), frame.drop(columns=same)


def notes_markdown(warnings: Sequence[str], notes: Sequence[str]) -> list[str]:
    """Warnings, marked as such, and notes as paragraphs of Markdown."""
    return [f"Warning: {markdown_safe(text)}\n" for text in warnings] + [f"{text}\n" for text in notes]


# --- AP, BWT and FWT ---------------------------------------------------------------------------------------


def score_texts(table: ScoreTable) -> pd.DataFrame:
    """The table's cells as texts; the columns of NAMES, then numbers with their intervals, then counts."""
    lines, what = table.lines, ", ".join(table.settings)
    names = [what if name == "Policy" and what != "policy" else name for name in NAMES]
    texts = lines[["model", "sequence", "method", "label", "score"]].set_axis(names, axis=1)
    for metric in table.metrics:
        cells = zip(lines[metric], lines["measure"].isin(LOWER_IS_BETTER), lines["difference"], strict=True)
        texts[metric] = [
            NONE if cell.value is None else cell.text(3 if is_lower else 2, signed)
            for cell, is_lower, signed in cells
        ]
    return texts.assign(Examples=count_texts(lines["n_examples"]), Seeds=count_texts(lines["n_seeds"]))


def score_markdown(table: ScoreTable) -> str:
    """The table as one Markdown table with its notes."""
    return "\n".join([markdown(score_texts(table)), *(f"{note}\n" for note in table.notes)])


def score_csv(table: ScoreTable) -> pd.DataFrame:
    """The table in long form: a row a line and metric, with definition, counts and demonstration mark."""
    return table.long()[list(CSV_COLUMNS)]


def score_json(table: ScoreTable) -> dict[str, Any]:
    """The table as plain JSON values: the rows of the score asked for, and those beside them."""

    def cell(interval: Interval) -> Any:  # of the paper there is the value alone
        values = {"estimate": interval.value, "low": interval.low, "high": interval.high}
        return (
            values | {"n_examples": interval.n, "n_seeds": interval.n_seeds} if interval.n else interval.value
        )

    names = ("source", "model", "sequence", "method", "policy", "difference")
    rows = [
        {name: line[name] for name in names}
        | {"cells": {metric: cell(line[metric]) for metric in METRICS}}
        | {name: None if pd.isna(line[name]) else int(line[name]) for name in COUNTS}
        | {"measure": line["measure"], "column": line["tested_with"]}
        for line in table.lines.to_dict("records")
    ]
    is_first = table.lines["is_first"]
    facts = {"measure": table.measure, "definition": table.definition, "settings": list(table.settings)}
    parts = {"rows": list(compress(rows, is_first)), "more_rows": list(compress(rows, ~is_first))}
    return facts | parts | {"notes": table.notes}


def score_terminal(table: ScoreTable) -> RenderableType:
    """The table for 80 columns or more: a block a group and score, intervals under their values."""
    what = ", ".join(table.settings)
    texts = score_texts(table).drop(columns=[name for name in NAMES if name != "Policy"], errors="ignore")
    # Settings that differ are too long to stand above a column.
    texts = texts.rename(columns={"Examples": "n", "Seeds": "seeds", what: ""})
    texts = texts.map(lambda text: text.replace(" [", "\n["))
    blocks: list[RenderableType] = []
    for (group, score), lines in table.lines.groupby(["group", "score"], sort=False):
        ours, shown = lines.index[lines["source"] == "ours"], texts.loc[lines.index]
        same = [name for name in ("n", "seeds") if shown.loc[ours, name].nunique() == 1]
        counts = "".join(f"; {name} {shown.at[ours[0], name]}" for name in same)
        title = f"{group}: {score}{counts}{f'; {what}:' if '' in texts else ''}"
        blocks.append(terminal(shown.drop(columns=same), title, is_narrow=True))
        for row in lines[lines["elsewhere"]].head(1).itertuples():
            blocks.append(Text(f"* {row.model} · {row.sequence} · {row.method}\n"))
    return Lines(*blocks, *map(Text, table.notes))


def metrics_terminal(scores: pd.DataFrame) -> RenderableType:
    """AP, BWT and FWT of a score matrix in three definitions, what they mean, and why a value is missing."""
    rows = [
        {
            "definition": name + (" *" if name == DEFAULT_DEFINITION else ""),
            **{metric: NONE if value is None else f"{value:.2f}" for metric, value in values.items()},
            "what BWT / FWT are": DEFINITIONS[name],
        }
        for name, values in continual_metrics(scores).items()
    ]
    notes = [
        "* the definition that the paper's tables hold (by the size of their values), and ours beside them"
    ]
    for metric in METRICS:
        reasons = {name: why_undefined(scores, name, metric, list(scores.columns)) for name in DEFINITIONS}
        for reason in dict.fromkeys(filter(None, reasons.values())):
            which = ", ".join(name for name in DEFINITIONS if reasons[name] == reason)
            notes.append(f"{NONE} {metric} ({which}): {reason}")
    title = f"Trained tasks: {len(scores) - 1}"
    return Lines(terminal(pd.DataFrame(rows), title, is_narrow=True), *map(Text, notes))


# --- chosen prompts ----------------------------------------------------------------------------------------


def prompt_texts(prompts: pd.DataFrame) -> pd.DataFrame:
    """The table of chosen prompts as texts."""
    texts = pd.DataFrame({"Run": prompts["run"], "Task": prompts["task"].map(short_name)})
    texts["Index"] = [NONE if index is None else str(index) for index in prompts["index"]]
    for column, name in (("loss", "Loss"), ("original_loss", "Loss of the original")):
        texts[name] = [NONE if loss is None else f"{loss:.4f}" for loss in prompts[column]]
    return texts.assign(Text=prompts["text"])


def prompts_terminal(prompts: pd.DataFrame) -> RenderableType:
    """The chosen prompts for a terminal, a block for the runs that have the same."""
    texts = prompt_texts(prompts).rename(columns={"Loss of the original": "Original"})
    alike: dict[str, tuple[list[str], pd.DataFrame]] = {}
    for run, rows in texts.groupby("Run", sort=False):
        own = rows.drop(columns="Run")
        alike.setdefault(own.to_csv(index=False), ([], own))[0].append(str(run))
    return Lines(
        *(terminal(rows, f"Prompts of {', '.join(runs)}", is_narrow=True) for runs, rows in alike.values())
    )
