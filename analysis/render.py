"""Tables as text: for the terminal, Markdown, LaTeX (booktabs) and CSV."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sapo.analysis.metrics import DEFAULT_DEFINITION, DEFINITIONS, METRICS, continual_metrics, why_undefined
from sapo.analysis.results import DRAWN, LOWER_IS_BETTER
from sapo.analysis.tables import ScoreTable
from sapo.conf.text import csv_safe, markdown_safe, printable
from sapo.data.tasks import short_name

NONE = "-"
NAMES = ("Model", "Sequence", "Method", "Policy", "Score")
VALUES = {"estimate": "value", "low": "low", "high": "high"}  # names in files -> attributes of Interval
# Cells that need no escape: numbers with their intervals, a dash, and names of our own such as `-loss`.
_NUMBER = r"[-+]?\d+(\.\d+)?"
_OWN = re.compile(rf"{_NUMBER}( %)?( \[{_NUMBER}, {_NUMBER}\])?|-|-[a-z_]+|")


# --- any table ---------------------------------------------------------------------------------------------


def markdown(frame: pd.DataFrame, n_left: int = 1, left_last: bool = False) -> str:
    """A table of texts in GitHub's Markdown; the first `n_left` columns, or the last too, are no numbers."""
    rules = ["---" if place < n_left else "---:" for place in range(len(frame.columns))]
    if left_last:
        rules[-1] = "---"
    lines = [f"| {' | '.join(map(markdown_safe, frame.columns))} |", f"|{'|'.join(rules)}|"]
    for row in frame.itertuples(index=False):
        cells = [cell if _OWN.fullmatch(cell) else markdown_safe(cell) for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def latex(frame: pd.DataFrame, columns: str | None = None, rules: Mapping[int, str] | None = None) -> str:
    """A table of texts as a LaTeX `tabular` for the booktabs package.

    `columns` aligns them (default: the first left, the others right); `rules` are drawn above rows by number.
    """
    columns = columns or "l" + "r" * (len(frame.columns) - 1)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rf"{' & '.join(map(_tex, frame.columns))} \\"]
    above = {0: r"\midrule", **(rules or {})}
    for place, row in enumerate(frame.itertuples(index=False)):
        # Braces keep a cell that begins with [ from being read as the optional argument of \\.
        cells = " & ".join("{" + _tex(cell) + "}" for cell in row)
        lines += [*filter(None, [above.get(place)]), rf"{cells} \\"]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _tex(text: str) -> str:
    escapes: dict[str, str | int | None] = {character: "\\" + character for character in "&%$#_{}"}
    escapes |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}
    escaped = printable(text).translate(str.maketrans(escapes))
    return re.sub("`([^`]*)`", r"\\texttt{\1}", escaped).replace("·", r"$\cdot$")


def csv(frame: pd.DataFrame, index: bool = False) -> str:
    """A table as CSV, in full precision; no spreadsheet takes a cell for a formula."""

    def cell(value: Any) -> Any:
        return value if isinstance(value, str) and _OWN.fullmatch(value) else csv_safe(value)

    texts = [name for name, column in frame.items() if column.dtype == object or column.dtype == "str"]
    safe = frame.assign(**{str(name): frame[name].map(cell) for name in texts})
    return safe.to_csv(index=index, lineterminator="\n")


def terminal(frame: pd.DataFrame, title: str) -> RenderableType:
    """A table of texts for a terminal; all columns but the first are numbers."""
    facts, shown = constant_columns(frame)
    block = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in shown:
        justify: Any = "left" if name == shown.columns[0] else "right"
        block.add_column(Text(name), justify=justify, overflow="fold")
    for row in shown.itertuples(index=False):
        block.add_row(*map(Text, row))
    # Not as the title of the table, which would be broken to its width.
    return Lines(Text(title), *([Text(facts)] if facts else []), block)


def constant_columns(frame: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """What is the same in all of several rows, as a line to stand above them; and the other columns."""
    same = [name for name in frame if len(frame) > 1 and frame[name].nunique() == 1]
    facts = [f"{name}: {' '.join(str(frame[name].iloc[0]).split())}" for name in same]
    return "; ".join(facts), frame.drop(columns=same)


# --- AP, BWT and FWT ---------------------------------------------------------------------------------------


def score_texts(table: ScoreTable) -> pd.DataFrame:
    """The table's cells as texts; the columns of NAMES, then numbers."""
    lines = table.lines
    texts = lines[["model", "sequence", "shown_method", "label", "score"]].set_axis(list(NAMES), axis=1)
    for metric in METRICS:
        texts[metric] = [" ".join(filter(None, cell_texts(line, metric))) for _, line in lines.iterrows()]
    for column, name in (("n_examples", "Examples"), ("n_seeds", "Seeds")):
        texts[name] = [NONE if pd.isna(count) else str(count) for count in lines[column]]
    return texts


def cell_texts(line: pd.Series, metric: str) -> tuple[str, str]:
    """A line's value of a metric and its interval, signed for a difference."""
    digits = 3 if line["measure"] in LOWER_IS_BETTER else 2
    return line[metric].texts(digits, signed=bool(line["difference"]))


def score_markdown(table: ScoreTable) -> str:
    """The table as one Markdown table with its notes."""
    return "\n".join([markdown(score_texts(table), len(NAMES)), *(f"{note}\n" for note in table.notes)])


def score_latex(table: ScoreTable) -> str:
    """The table as a LaTeX `table` for the booktabs package."""
    texts, lines = score_texts(table), table.lines
    is_group = lines["group"] != lines["group"].shift()
    is_score = lines["score"] != lines["score"].shift()
    rules = {
        place: r"\midrule" if is_group[place] else r"\addlinespace"
        for place in lines.index[is_group | is_score]
    }
    tabular = latex(texts, "l" * len(NAMES) + "r" * (len(texts.columns) - len(NAMES)), rules)
    caption = " ".join(map(_tex, table.notes))
    return "\n".join(
        [r"\begin{table}", r"\centering", tabular.rstrip(), rf"\caption{{{caption}}}", r"\end{table}", ""]
    )


def score_csv(table: ScoreTable) -> pd.DataFrame:
    """The table in long form: a row a line and metric, with definition, counts and demonstration mark."""
    demonstration = any(note.startswith("Demonstration") for note in table.notes)
    rows = [
        {
            **{name: line[name] for name in ("source", "model", "sequence")},
            "method": line["shown_method"],
            "policy": line["policy"],
            "quantity": "difference from static" if line["difference"] else "score",
            "metric": metric,
            **{name: getattr(line[metric], part) for name, part in VALUES.items()},
            **{name: line[name] for name in ("n_examples", "n_seeds", "pool_size", "measure")},
            "tested_with": line["column"],
            "definition": table.definition,
            "demonstration": demonstration and line["source"] == "ours",
        }
        for _, line in table.lines.iterrows()
        for metric in METRICS
    ]
    return pd.DataFrame(rows).astype(dict.fromkeys(("n_examples", "n_seeds", "pool_size"), "Int64"))


def score_json(table: ScoreTable) -> dict[str, Any]:
    """The table as plain JSON values: the rows of the score asked for, and those beside them."""

    def cell(interval: Any, source: str) -> Any:
        if interval.value is None or source != "ours":
            return interval.value
        values = {name: getattr(interval, part) for name, part in VALUES.items()}
        return values | {"n_examples": interval.n, "n_seeds": interval.n_seeds}

    names = ("source", "model", "sequence", "method", "policy", "difference")
    counts = ("n_examples", "n_seeds", "pool_size")
    rows: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for _, line in table.lines.iterrows():
        row = {name: line[name] for name in names}
        row |= {"cells": {metric: cell(line[metric], line["source"]) for metric in METRICS}}
        row |= {name: None if pd.isna(line[name]) else int(line[name]) for name in counts}
        rows[bool(line["is_first"])].append(row | {name: line[name] for name in ("measure", "column")})
    return {
        "measure": table.measure,
        "definition": table.definition,
        "rows": rows[True],
        "more_rows": rows[False],
        "notes": table.notes,
    }


def score_terminal(table: ScoreTable) -> RenderableType:
    """The table for 80 columns or more: a block a group, intervals under values of the score asked for."""
    texts = score_texts(table)
    blocks = [_block(lines, texts) for _, lines in table.lines.groupby("group", sort=False)]
    return Lines(*blocks, *map(Text, table.notes))


def _block(lines: pd.DataFrame, texts: pd.DataFrame) -> Table:
    """One group: the scores after the first are headed by their names, the paper's rows set apart."""
    first = lines.iloc[0]
    title = Text(f"{first['group']}: {first['score']}")
    block = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=0)
    block.add_column("policy", min_width=15)
    for name in (*METRICS, "n", "seeds"):
        block.add_column(name, justify="right", no_wrap=True)
    before = first
    for place, line in lines.iterrows():
        if (line["score"], line["source"]) != (before["score"], before["source"]):
            block.add_section()
        if line["score"] != before["score"]:
            block.add_row(Text(f"{line['score']}:".replace(", ", ",\n").replace(" (", "\n(")))
        # Of the scores beside the one asked for, the other that is drawn has intervals too; files hold all.
        has_intervals = line["is_first"] or (line["measure"] in DRAWN and line["column"] == "trained")
        cells = [texts.at[place, name] for name in METRICS]
        cells = [cell.replace(" [", "\n[") if has_intervals else cell.split(" [")[0] for cell in cells]
        counts = [texts.at[place, name] for name in ("Examples", "Seeds")]
        block.add_row(*map(Text, (line["label"], *cells, *counts)))
        before = line
    elsewhere = lines[lines["elsewhere"]]
    if len(elsewhere):
        block.caption = Text("* " + " · ".join(elsewhere.iloc[0][["model", "sequence", "method"]]))
        block.caption_justify = "left"
    return block


def metrics_terminal(scores: pd.DataFrame) -> RenderableType:
    """AP, BWT and FWT of a score matrix in three definitions, what they mean, and why a value is missing."""
    table = Table(box=box.SIMPLE_HEAD, title=f"Trained tasks: {len(scores) - 1}", title_justify="left")
    table.add_column("definition")
    for metric in METRICS:
        table.add_column(metric, justify="right")
    table.add_column("what BWT / FWT are", ratio=1)
    for definition, values in continual_metrics(scores).items():
        mark = " *" if definition == DEFAULT_DEFINITION else ""
        cells = [NONE if values[metric] is None else f"{values[metric]:.2f}" for metric in METRICS]
        table.add_row(definition + mark, *cells, DEFINITIONS[definition])
    note = "* the definition that the paper's tables hold (by the size of their values), and ours beside them"
    missing = []  # a line for each reason why metrics are missing
    for metric in METRICS:
        reasons = {name: why_undefined(scores, name, metric, list(scores.columns)) for name in DEFINITIONS}
        for reason in dict.fromkeys(filter(None, reasons.values())):
            which = ", ".join(name for name in DEFINITIONS if reasons[name] == reason)
            missing.append(f"{NONE} {metric} ({which}): {reason}")
    return Lines(table, *map(Text, [note, *missing]))


# --- chosen prompts ----------------------------------------------------------------------------------------


def prompt_texts(prompts: pd.DataFrame) -> pd.DataFrame:
    """The table of chosen prompts as texts."""
    texts = pd.DataFrame({"Run": prompts["run"], "Task": prompts["task"].map(short_name)})
    texts["Index"] = [NONE if index is None else str(index) for index in prompts["index"]]
    for column, name in (("loss", "Loss"), ("original_loss", "Loss of the original")):
        texts[name] = [NONE if loss is None else f"{loss:.4f}" for loss in prompts[column]]
    return texts.assign(Text=prompts["text"])


def prompts_terminal(prompts: pd.DataFrame) -> RenderableType:
    """The chosen prompts for a terminal, a block a run."""
    blocks = []
    for run, rows in prompt_texts(prompts).groupby("Run", sort=False):
        block = Table(box=box.SIMPLE_HEAD, title=Text(f"Prompts of {run}"), title_justify="left")
        block.add_column("task", overflow="fold")
        for name in ("index", "loss", "original"):
            block.add_column(name, justify="right", no_wrap=True)
        block.add_column("text", ratio=1)
        for row in rows.drop(columns="Run").itertuples(index=False):
            block.add_row(*map(Text, row))
        blocks.append(block)
    return Lines(*blocks)


def prompts_latex(prompts: pd.DataFrame) -> str:
    """The chosen prompts as a LaTeX `tabular` for the booktabs package."""
    texts = prompt_texts(prompts).rename(columns={"Loss of the original": "Original"})
    return latex(texts, r"llrrrp{0.5\linewidth}")


def notes_markdown(warnings: Sequence[str], notes: Sequence[str]) -> list[str]:
    """Warnings, marked as such, and notes as paragraphs of Markdown."""
    return [f"Warning: {markdown_safe(text)}\n" for text in warnings] + [f"{text}\n" for text in notes]
