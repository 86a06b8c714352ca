"""The report as one HTML page that needs nothing else: no network, no other file, no script to be read."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape
from pandas.api.types import is_bool, is_bool_dtype, is_numeric_dtype

from sapo.analysis.correlations import PromptEffects
from sapo.analysis.files import write_text
from sapo.analysis.intervals import Interval
from sapo.analysis.metrics import DEFINITIONS, METRICS
from sapo.analysis.page.answers import CHANGES, answers
from sapo.analysis.page.sections import (
    NONE,
    Cell,
    Grid,
    RunPage,
    choices,
    matrix_grids,
    metrics_grid,
    other_facts,
    overview,
    run_pages,
    shared_facts,
    warnings,
)
from sapo.analysis.render import PAPER_LABEL, told_once
from sapo.analysis.report import Report
from sapo.analysis.results import MEASURES
from sapo.analysis.tables import Row, ScoreTable, score_table
from sapo.data.tasks import short_name

TEMPLATES = Path(__file__).parent / "templates"
PICTURES = {".svg": "image/svg+xml", ".png": "image/png"}
FEW = 1e-3  # a number below this is written with an exponent


def write_report(
    report: Report,
    output: Path,
    figures: Sequence[Path] = (),
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> Path:
    """Writes `output`/report.html and returns its path.

    `figures` (SVG or PNG; other files are passed over) and `tables` (by title) stand beside what the report
    itself holds. Text from data and models is escaped, and the page's policy lets the browser load nothing
    and run no script but its own.
    """
    return write_text(output / "report.html", html(report, figures, tables or {}))


def html(
    report: Report,
    figures: Sequence[Path] = (),
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> str:
    """The page of write_report."""
    pages = run_pages(report.runs)
    script = (TEMPLATES / "report.js.jinja").read_text(encoding="utf-8")
    return _template().render(
        style=Markup((TEMPLATES / "report.css.jinja").read_text(encoding="utf-8")),  # noqa: S704
        script=Markup(script),  # noqa: S704
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        warnings=list(dict.fromkeys([*warnings(pages), *report.warnings])),
        notes=report.notes,
        figures=pictures([*report.files, *figures], {run.path for run in report.runs}),
        tables={title: _table_grid(frame) for title, frame in (tables or {}).items()},
        correlations=[_correlations(effects) for effects in report.correlations],
        **_of_runs(pages, report),
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"interval": interval, "short": short_name, "code": code}
    return environment.get_template("report.html.jinja")


def _of_runs(pages: Sequence[RunPage], report: Report) -> dict[str, Any]:
    """What the template shows of the runs; nothing of a report without runs."""
    constant = {
        "metrics": METRICS,
        "definition": report.definition,
        "definition_text": DEFINITIONS[report.definition],
        "changes": CHANGES,
        "title": report.title,
        "paper_label": PAPER_LABEL,
        "pages": pages,
    }
    if not pages:
        return constant
    return constant | {
        "overview": overview(pages),
        "shared": shared_facts(pages),
        "differing": other_facts(pages),
        "table": _table(report),
        "matrices": [(page, _matrices(page, report.measure)) for page in pages],
        "choices": [(page, choices(page)) for page in pages],
        "answers": answers(pages),
    }


def _table(report: Report) -> ScoreTable | None:
    """The table; of a single run too, which analyze() prints as plain metrics."""
    if report.table or len(report.runs) > 1:
        return report.table
    return score_table(report.runs, report.measure, report.definition)


def _matrices(page: RunPage, measure: str) -> list[tuple[str, list[Grid]]]:
    """The measure asked for and then the others, as far as the run has them."""
    order = [measure, *(name for name in MEASURES if name != measure)]
    found = [(name, matrix_grids(page.run, name)) for name in order]
    return [(MEASURES[name], [*grids, metrics_grid(page.run, name)]) for name, grids in found if grids]


def interval(row: Row, metric: str) -> tuple[str, str]:
    """A cell of the table: the value, signed for a difference, and its interval or an empty text."""

    def number(value: float) -> str:
        return f"{round(value, row.decimals) + 0.0:{'+' if row.difference else ''}.{row.decimals}f}"

    value = row.cells[metric]
    if value is None:
        return NONE, ""
    if isinstance(value, Interval):
        return number(value.value), f"[{number(value.low)}, {number(value.high)}]"
    return number(value), ""


def code(text: str) -> Markup:
    """A text of ours, in which `this` is code."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704


def _correlations(effects: PromptEffects) -> tuple[str, Grid]:
    run = effects.run
    facts = f"{run.model} · {run.sequence} · {run.method} · seed {run.seed}"
    frame = pd.DataFrame([asdict(cell) for cell in effects.correlations])
    for column in ("x_task", "y_task"):
        frame[column] = frame[column].map(short_name) if len(frame) else []
    title = f"{len(effects.scores)} prompts of {short_name(effects.current)}, {MEASURES[effects.measure]}"
    return f"{title} ({facts})", frame_grid(frame)


def pictures(paths: Iterable[Path], passed_over: Iterable[Path] = ()) -> list[tuple[str, str]]:
    """(name, data URI) of the SVG and PNG files, one of each name, none from the folders `passed_over`."""
    skipped = set(passed_over)
    best: dict[Path, Path] = {}
    for path in paths:
        if path.suffix in PICTURES and path.parent not in skipped:
            stem = path.with_suffix("")
            best[stem] = path if path.suffix == ".svg" else best.get(stem, path)
    return [
        (stem.name, f"data:{PICTURES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}")
        for stem, path in best.items()
    ]


def _table_grid(frame: pd.DataFrame) -> Grid:
    facts, shown = told_once(frame)
    return replace(frame_grid(shown), caption=facts)


def frame_grid(frame: pd.DataFrame) -> Grid:
    """A table as it is, its index too where that says something; what is missing is a dash."""
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    kinds = [is_numeric_dtype(kind) and not is_bool_dtype(kind) for kind in frame.dtypes]
    columns = [
        _texts(frame.iloc[:, place]) if is_number else [_text(value) for value in frame.iloc[:, place]]
        for place, is_number in enumerate(kinds)
    ]
    head = tuple(Cell(str(name), is_number=kind) for name, kind in zip(frame.columns, kinds, strict=True))
    rows = (
        tuple(Cell(text, is_number=kind) for text, kind in zip(row, kinds, strict=True))
        for row in zip(*columns, strict=True)
    )
    return Grid(head, tuple(rows))


def _text(value: Any) -> str:
    if value is None or (not isinstance(value, list | tuple | dict) and pd.isna(value)):
        return NONE
    return ("yes" if value else "no") if is_bool(value) else str(value)


def _texts(values: pd.Series) -> list[str]:
    """Numbers of one column with as many decimals as its size needs."""
    known = values.dropna().astype(float)
    whole = bool((known % 1 == 0).all())
    digits = 0 if whole else 3 if known.abs().max() < 10 else 2

    def text(value: float) -> str:
        return f"{value:.1e}" if 0 < abs(value) < FEW else f"{value:.{digits}f}"

    return [NONE if pd.isna(value) else text(float(value)) for value in values]
