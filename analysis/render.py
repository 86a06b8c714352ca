"""Tables as text: for the terminal, Markdown, LaTeX (booktabs) and CSV."""

import re
from collections.abc import Iterator, Sequence

import pandas as pd
from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sapo.analysis.intervals import Interval
from sapo.analysis.metrics import DEFAULT_DEFINITION, DEFINITIONS, METRICS, continual_metrics, why_undefined
from sapo.analysis.results import DRAWN
from sapo.analysis.tables import Group, Row, ScoreTable
from sapo.data.tasks import short_name

NONE = "-"
NAMES = ("Model", "Sequence", "Method", "Policy", "Score")
COLUMNS = (*NAMES, *METRICS, "Examples", "Seeds")
PAPER_LABEL = "paper: "


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
    notes = [
        "* the definition that the paper's tables hold (by the size of their values), and ours beside them",
        *_reasons(scores),
    ]
    return Lines(table, *(Text(note) for note in notes))


def _reasons(scores: pd.DataFrame) -> Iterator[str]:
    """One line for each reason why metrics are missing."""
    for metric in METRICS:
        reasons = {name: why_undefined(scores, name, metric, list(scores.columns)) for name in DEFINITIONS}
        for reason in dict.fromkeys(filter(None, reasons.values())):
            which = ", ".join(name for name in DEFINITIONS if reasons[name] == reason)
            yield f"{NONE} {metric} ({which}): {reason}"


def terminal(table: ScoreTable) -> RenderableType:
    """The table for 80 columns or more: a block a group, intervals under values of the score asked for."""
    return Lines(*map(_block, table.groups), *(Text(note) for note in table.notes))


def _block(group: Group) -> Table:
    title = f"{group.title}: {group.rows[0].score}"
    block = Table(box=box.SIMPLE_HEAD, title=Text(title), title_justify="left", padding=0)
    block.add_column("policy", min_width=15)
    for name in (*METRICS, "n", "seeds"):
        block.add_column(name, justify="right", no_wrap=True)
    before = group.rows[0]
    for row, label in _labelled(group):
        if (row.score, row.source) != (before.score, before.source):
            block.add_section()
        if row.score != before.score:
            block.add_row(Text(f"{row.score}:".replace(", ", ",\n").replace(" (", "\n(")))
        # Of the scores beside the one asked for, the other that is drawn has intervals too; files hold all.
        has_intervals = row in group.rows or (row.measure in DRAWN and row.column == "trained")
        lines = [cell.replace(" [", "\n[") if has_intervals else cell.split(" [")[0] for cell in _cells(row)]
        block.add_row(Text(label), *map(Text, lines), *_counts(row))
        before = row
    if group.paper and not group.same_setting:
        row = group.paper[0]
        block.caption = f"* {row.model} · {row.sequence} · {row.method}"
        block.caption_justify = "left"
    return block


def markdown(table: ScoreTable) -> str:
    """The table as one Markdown table with its notes."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(NAMES)}{'---:|' * (len(COLUMNS) - len(NAMES))}"]
    for group in table.groups:
        for row, label in _labelled(group):
            fields = [
                row.model,
                row.sequence,
                _method(group, row),
                label,
                row.score,
                *_cells(row),
                *_counts(row),
            ]
            lines.append(f"| {' | '.join(map(_markdown, fields))} |")
    return "\n".join([*lines, "", *(f"{note}\n" for note in table.notes)])


def latex(table: ScoreTable) -> str:
    """The table as a LaTeX `table` for the booktabs package."""
    lines = [
        r"\begin{table}",
        r"\centering",
        r"\begin{tabular}{" + "l" * len(NAMES) + "r" * (len(COLUMNS) - len(NAMES)) + "}",
        r"\toprule",
    ]
    lines += [f"{' & '.join(COLUMNS)} {chr(92) * 2}"]
    for group in table.groups:
        lines.append(r"\midrule")
        score = group.rows[0].score
        for row, label in _labelled(group):
            lines += [r"\addlinespace"] if row.score != score else []
            score = row.score
            fields = [
                row.model,
                row.sequence,
                _method(group, row),
                label,
                row.score,
                *_cells(row),
                *_counts(row),
            ]
            # Braces keep a cell that begins with [ from being read as the optional argument of \\.
            lines.append(f"{' & '.join('{' + _tex(field) + '}' for field in fields)} {chr(92) * 2}")
    caption = " ".join(_tex(note) for note in table.notes)
    return "\n".join(
        [*lines, r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}", r"\end{table}", ""]
    )


def csv(table: ScoreTable) -> str:
    """The table in long form as CSV."""
    return long_frame(table).to_csv(index=False, lineterminator="\n")


def long_frame(table: ScoreTable) -> pd.DataFrame:
    """The table in long form: a row a line and metric, with definition, counts and demonstration mark."""
    demonstration = any(note.startswith("Demonstration") for note in table.notes)
    records = [
        {
            "source": row.source,
            "model": row.model,
            "sequence": row.sequence,
            "method": _method(group, row),
            "policy": row.policy,
            "quantity": "difference from static" if row.difference else "score",
            "metric": metric,
            **_numbers(row.cells[metric]),
            "n_examples": row.n_examples,
            "n_seeds": row.n_seeds,
            "pool_size": row.pool_size,
            "measure": row.measure,
            "tested_with": row.column,
            "definition": table.definition,
            "demonstration": demonstration and row.source == "ours",
        }
        for group in table.groups
        for row in group.all_rows
        for metric in METRICS
    ]
    counts = dict.fromkeys(("n_examples", "n_seeds", "pool_size"), "Int64")
    return pd.DataFrame(records).astype(counts)


def prompts_terminal(prompts: pd.DataFrame) -> RenderableType:
    """The chosen prompts for a terminal, a block a run."""
    blocks = []
    for run, rows in prompts.groupby("run", sort=False):
        block = Table(box=box.SIMPLE_HEAD, title=Text(f"Prompts of {run}"), title_justify="left")
        block.add_column("task", overflow="fold")
        for name in ("index", "loss", "original"):
            block.add_column(name, justify="right", no_wrap=True)
        block.add_column("text", ratio=1)
        for _, row in rows.iterrows():
            fields = [short_name(row["task"]), *_prompt_numbers(row), row["text"]]
            block.add_row(*map(Text, fields))
        blocks.append(block)
    return Lines(*blocks)


def prompts_markdown(prompts: pd.DataFrame) -> str:
    """The chosen prompts as a Markdown table."""
    lines = ["| Run | Task | Index | Loss | Loss of the original | Text |", "|---|---|---:|---:|---:|---|"]
    for _, row in prompts.iterrows():
        fields = [row["run"], short_name(row["task"]), *_prompt_numbers(row), row["text"]]
        lines.append(f"| {' | '.join(map(_markdown, fields))} |")
    return "\n".join([*lines, ""])


def prompts_latex(prompts: pd.DataFrame) -> str:
    """The chosen prompts as a LaTeX `tabular` for the booktabs package."""
    lines = [
        r"\begin{tabular}{llrrrp{0.5\linewidth}}",
        r"\toprule",
        r"Run & Task & Index & Loss & Original & Text \\",
    ]
    lines.append(r"\midrule")
    for _, row in prompts.iterrows():
        fields = [row["run"], short_name(row["task"]), *_prompt_numbers(row), row["text"]]
        lines.append(f"{' & '.join('{' + _tex(field) + '}' for field in fields)} {chr(92) * 2}")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def frame_terminal(frame: pd.DataFrame, title: str) -> RenderableType:
    """A table of texts for a terminal; all columns but the first are numbers."""
    facts, shown = told_once(frame)
    block = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in shown:
        is_first = name == shown.columns[0]
        block.add_column(Text(name), justify="left" if is_first else "right", overflow="fold")
    for row in shown.itertuples(index=False):
        block.add_row(*map(Text, row))
    # Not as the title of the table, which would be broken to its width.
    return Lines(Text(title), *([Text(facts)] if facts else []), block)


def told_once(frame: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """What is the same in all of several rows, as a line to stand above them; and the other columns."""
    same = [name for name in frame if len(frame) > 1 and frame[name].nunique() == 1]
    facts = [f"{name}: {' '.join(str(frame[name].iloc[0]).split())}" for name in same]
    return "; ".join(facts), frame.drop(columns=same)


def frame_markdown(frame: pd.DataFrame) -> str:
    """The same as a Markdown table."""
    lines = [f"| {' | '.join(frame.columns)} |", f"|---|{'---:|' * (len(frame.columns) - 1)}"]
    for row in frame.itertuples(index=False):
        lines.append(f"| {' | '.join(map(_markdown, row))} |")
    return "\n".join([*lines, ""])


def frame_latex(frame: pd.DataFrame) -> str:
    """The same as a LaTeX `tabular` for the booktabs package."""
    lines = [r"\begin{tabular}{l" + "r" * (len(frame.columns) - 1) + "}", r"\toprule"]
    lines += [f"{' & '.join(map(_tex, frame.columns))} {chr(92) * 2}", r"\midrule"]
    for row in frame.itertuples(index=False):
        lines.append(f"{' & '.join('{' + _tex(field) + '}' for field in row)} {chr(92) * 2}")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _prompt_numbers(row: pd.Series) -> list[str]:
    losses = [NONE if row[name] is None else f"{row[name]:.4f}" for name in ("loss", "original_loss")]
    return [NONE if row["index"] is None else str(row["index"]), *losses]


def _labelled(group: Group) -> Iterator[tuple[Row, str]]:
    """All rows, with what stands in the column `policy`."""
    mark = "" if group.same_setting else " *"
    for row in group.all_rows:
        yield row, row.label if row.source == "ours" else f"{PAPER_LABEL}{row.label}{mark}"


def _method(group: Group, row: Row) -> str:
    return group.method if row.source == "ours" else row.method


def _cells(row: Row) -> list[str]:
    return [_cell(row.cells[metric], row.difference, row.decimals) for metric in METRICS]


def _cell(value: Interval | float | None, signed: bool, decimals: int) -> str:
    """`76.00 [74.10, 77.90]`; signed for a difference."""

    def number(value: float) -> str:
        return f"{round(value, decimals) + 0.0:{'+' if signed else ''}.{decimals}f}"

    if value is None:
        return NONE
    if isinstance(value, Interval):
        return f"{number(value.value or 0.0)} [{number(value.low)}, {number(value.high)}]"
    return number(value)


def _counts(row: Row) -> list[str]:
    return [NONE if count is None else str(count) for count in (row.n_examples, row.n_seeds)]


def _numbers(value: Interval | float | None) -> dict[str, float | None]:
    if isinstance(value, Interval):
        return {"estimate": value.value, "low": value.low, "high": value.high}
    return {"estimate": value, "low": None, "high": None}


def _markdown(text: str) -> str:
    """A text as a cell: in one line, and without ending the cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _tex(text: str) -> str:
    specials: Sequence[tuple[str, str]] = [(character, "\\" + character) for character in "&%$#_{}"]
    table = str.maketrans(
        dict(specials) | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}
    )
    return re.sub("`([^`]*)`", r"\\texttt{\1}", text.translate(table)).replace("·", r"$\cdot$")
