"""The report as one HTML page that needs nothing else: no network, no other file, no script to be read.

The template `page.jinja` shows tables of texts, and escapes every text.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from pandas.api.types import is_bool, is_bool_dtype, is_numeric_dtype
from rich.console import RenderableType

from sapo.analysis.correlations import PromptEffects
from sapo.analysis.figures import drawn, loss_figure, save
from sapo.analysis.matrices import EFFECTS
from sapo.analysis.metrics import DEFAULT_DEFINITION, DEFINITIONS, METRICS, continual_metrics
from sapo.analysis.render import (
    are_numbers,
    constant_columns,
    csv,
    latex,
    markdown,
    notes_markdown,
    score_texts,
)
from sapo.analysis.results import (
    LOWER_IS_BETTER,
    MEASURES,
    RunResult,
    column_rows,
    flat,
    row_remarks,
    score_matrix,
    settings_of,
)
from sapo.analysis.tables import DEMONSTRATION, ScoreTable, comparable_losses, varying
from sapo.conf.text import markdown_safe
from sapo.data.files import write_result
from sapo.data.prompts import ORIGINAL
from sapo.data.records import ChoiceRecord
from sapo.data.tasks import short_name

NONE = "–"
COMPARISON = "comparison"  # the table of runs that nobody has named
FEW = 1e-3  # a number below this is written with an exponent
MOST_ROWS = 50  # answers of one task and run
FEWEST_ROWS = 5
PAGE_ROWS = 8000  # answers of a whole page, so that a browser opens it
LONGEST = 600  # letters of one answer
CHANGES = ("lost", "gained", "reworded", "same")


@dataclass
class Report:
    """What was read out of some runs, and the files that hold it.

    `metrics` has a run's `metrics` and `metrics_common`, as summarize_run returns them. `warnings` say what
    to beware of and what is left out, `notes` how to read the rest; `parts` are for a terminal, before the
    remarks, and `prompts` after them; `tables` (by title) for other programs, `texts` (by title) for Markdown
    and the page. Files are written into the folder `output`, those of the table under `name`.
    """

    runs: list[RunResult]
    output: Path = Path()
    metrics: list[dict[str, Any]] = field(default_factory=list)
    table: ScoreTable | None = None
    correlations: list[PromptEffects] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    measure: str = "rougeL"
    definition: str = DEFAULT_DEFINITION
    name: str = COMPARISON
    parts: list[RenderableType] = field(default_factory=list)
    prompts: list[RenderableType] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    texts: dict[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The table's name for people: `Table 1`."""
        return " ".join(re.findall("[a-z]+|[0-9]+", self.name)).capitalize()

    @property
    def remarks(self) -> list[str]:
        """The warnings, then the notes."""
        return [*self.warnings, *self.notes]

    @property
    def shown(self) -> list[RenderableType]:
        """What people see of it on a terminal, the texts of prompts last."""
        return [*self.parts, *self.remarks, *self.prompts]

    @property
    def document(self) -> dict[str, Any]:
        """Files, tables and notes as JSON values; None for what is undefined."""
        tables = {title: json.loads(frame.to_json(orient="records")) for title, frame in self.tables.items()}
        return {"files": list(map(str, self.files)), "tables": tables, "notes": self.remarks}

    def draw(self, name: str, figure: Figure | None, data: pd.DataFrame) -> None:
        """Writes a figure (PNG and PDF) and its data as CSV beside it."""
        if figure is not None:
            self.files += save(figure, self.output / name)
        self.files.append(write_result(self.output / f"{name}.csv", csv(data)))

    def keep(self, name: str, title: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Keeps a table, a dash where a row has no such cell, under its title and as `name`.csv."""
        if rows:
            self.tables[title] = pd.DataFrame(rows).fillna("-")
            self.draw(name, None, self.tables[title])

    def finish(
        self,
        frames: Mapping[str, pd.DataFrame],
        shown: Mapping[str, pd.DataFrame],
        n_left: int = 1,
        prompts: Mapping[str, pd.DataFrame] | None = None,
    ) -> None:
        """Writes tables by their files' names as CSV, and texts by their titles as Markdown and LaTeX.

        `prompts`, whose texts are wider than a printed page, are left out of the LaTeX.
        """
        texts = {**shown, **(prompts or {})}
        self.texts |= texts
        for name, frame in frames.items():
            self.draw(name, None, frame)
        parts = [f"## {markdown_safe(title)}\n\n{markdown(frame, n_left)}" for title, frame in texts.items()]
        whole = "\n".join([*parts, *notes_markdown(self.warnings, self.notes)])
        tex = "\n".join(map(latex, shown.values()))
        self.files.append(write_result(self.output / f"{self.name}.md", whole))
        self.files.append(write_result(self.output / f"{self.name}.tex", tex))


def write_page(report: Report, output: Path, tables: Mapping[str, pd.DataFrame] | None = None) -> Path:
    """Writes `output`/report.html and returns its path.

    `tables` (by title) stand beside what the report itself holds, and the PNGs of its files, but for those in
    the folders of runs. Text from data and models is escaped, and the page's policy lets the browser load
    nothing and run no script but its own.
    """
    return write_result(output / "report.html", html(report, tables or {}))


def html(report: Report, tables: Mapping[str, pd.DataFrame] | None = None) -> str:
    """The page of write_page."""
    runs, table, shown = report.runs, report.table, report.texts | dict(tables or {})
    labels = run_labels(runs)
    correlations = []
    for effects in report.correlations:
        title = f"{len(effects.scores)} prompts of {short_name(effects.current)}, {MEASURES[effects.measure]}"
        cells = effects.correlations
        cells = cells.assign(**{name: cells[name].map(short_name) for name in ("x_task", "y_task")})
        correlations.append((f"{title} ({effects.run.setting})", texts_of(cells)))
    folders = {run.path for run in runs}
    pictures = [path for path in report.files if path.suffix == ".png" and path.parent not in folders]
    order = sorted(MEASURES, key=lambda name: name != report.measure)  # the one asked for first
    losses = loss_figure(runs, labels) if runs else None
    facts = pd.DataFrame([_facts(run) for run in runs], index=labels).T.fillna(NONE)
    is_shared = facts.nunique(axis=1) == 1
    return _template().render(
        title=report.title,
        runs=list(zip((run.id for run in runs), labels, strict=True)),
        warnings=list(dict.fromkeys([*run_warnings(runs, labels), *report.warnings])),
        overview=overview(runs, labels) if runs else None,
        shared=list(facts[is_shared].iloc[:, :1].itertuples()),
        differing=facts[~is_shared].rename_axis("setting").reset_index(),
        table=table,
        texts=score_texts(table) if table else None,
        metrics=table.metrics if table else [],
        definition=report.definition,
        definition_text=DEFINITIONS[report.definition],
        tables={title: constant_columns(texts_of(frame)) for title, frame in shown.items()},
        figures=[(path.stem, base64.b64encode(path.read_bytes()).decode()) for path in pictures],
        correlations=correlations,
        losses=base64.b64encode(drawn(losses, dpi=130)).decode() if losses else None,
        notes=report.notes,
        matrices=[
            (label, [(MEASURES[name], found) for name in order if (found := matrix_tables(run, name))])
            for label, run in zip(labels, runs, strict=True)
        ],
        choices=[
            (label, list(map(choice_facts, run.record.choices)))
            for label, run in zip(labels, runs, strict=True)
        ],
        answers=answers(runs, labels),
        changes=CHANGES,
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def code(text: str) -> Markup:
        """A text of ours, in which `this` is code."""
        return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    environment.filters |= {"short": short_name, "code": code, "digest": digest, "are_numbers": are_numbers}
    environment.filters["dash"] = lambda text: NONE if text == "-" else text
    environment.tests |= {
        "missing": pd.isna,
        "hash": lambda text: re.fullmatch("[0-9a-f]{64}", text) is not None,
    }
    return environment.get_template("page.jinja")


def texts_of(frame: pd.DataFrame) -> pd.DataFrame:
    """A table as texts, its index too where that says something; what is missing is a dash.

    Numbers have as many decimals as the size of their column needs.
    """
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()

    def text(value: Any, digits: int | None) -> str:
        if value is None or (not isinstance(value, list | tuple | dict) and pd.isna(value)):
            return NONE
        if digits is None:
            return ("yes" if value else "no") if is_bool(value) else str(value)
        return f"{value:.1e}" if 0 < abs(value) < FEW else f"{float(value):.{digits}f}"

    def column(values: pd.Series) -> list[str]:
        digits = None
        if is_numeric_dtype(values.dtype) and not is_bool_dtype(values.dtype):
            known = values.dropna().astype(float)
            digits = 0 if (known % 1 == 0).all() else 3 if known.abs().max() < 10 else 2
        return [text(value, digits) for value in values]

    return pd.DataFrame({str(name): column(values) for name, values in frame.items()}, dtype=object)


# --- what ran ----------------------------------------------------------------------------------------------


def run_labels(runs: Sequence[RunResult]) -> list[str]:
    """Short names of runs, of what tells them apart: settings, else prompts too, else the run's id too."""
    others = varying(runs)
    facts = [settings_of(run) if others else {} for run in runs]
    settings = pd.DataFrame(
        [
            {
                **{name: getattr(run, name) for name in ("model", "sequence", "method")},
                "pool": run.record.pool.name if run.record.pool else "",
                "size": f"K={run.pool_size}" if run.pool_size else "",
                **{name: f"{name.rpartition('.')[2]} {own.get(name, NONE)}" for name in others},
            }
            for run, own in zip(runs, facts, strict=True)
        ]
    )
    apart = settings.loc[:, settings.nunique() > 1].to_numpy()
    labels = [
        " · ".join([*filter(None, own), run.policy, f"seed {run.seed}"])
        for run, own in zip(runs, apart, strict=True)
    ]
    prompts = ["prompts " + ", ".join(prompt_name(c.index) for c in run.record.choices) for run in runs]
    for more in (prompts, [run.id for run in runs]):
        labels = [
            label if labels.count(label) == 1 else f"{label} · {own}"
            for label, own in zip(labels, more, strict=True)
        ]
    return labels


def overview(runs: Sequence[RunResult], labels: Sequence[str]) -> pd.DataFrame:
    """A row a run: what was run, on how many tasks, and how long its stages took."""
    rows = []
    for run, label in zip(runs, labels, strict=True):
        seconds = sum(stage.seconds for stage in run.record.stages)
        rows.append(
            {
                "run": label,
                **{name: getattr(run, name) for name in ("sequence", "model", "method", "policy", "seed")},
                "tasks": len(run.tasks),
                "unseen": len(run.unseen),
                "stages took": f"{seconds:.0f} s" if seconds else NONE,
                "id": run.id,
            }
        )
    return texts_of(pd.DataFrame(rows))


def _facts(run: RunResult) -> dict[str, str]:
    """Settings, versions and data of a run by name: `trainer.epochs`, `3`."""
    record, environment = run.record, run.record.environment
    changed = " with uncommitted changes" if environment.get("dirty") else ""
    facts: dict[str, Any] = {
        "tasks": ", ".join(run.tasks),
        "unseen tasks": ", ".join(run.unseen) or "none",
        "parity": record.parity,
        "device": "; ".join(sorted(run.devices())) or environment.get("device", NONE),
        "git commit": str(environment.get("commit") or NONE) + changed,
        "python": environment.get("python", NONE),
        **(environment.get("packages") or {}),
        "pool": record.pool.model_dump() if record.pool else None,
    }
    facts |= settings_of(run)
    data = {"test data": record.comparable.get("data"), "training data": record.identity.get("train")}
    for name, of_task in data.items():
        facts |= {f"{name}, {task}": digest for task, digest in (of_task or {}).items()}
    return flat(facts)


def run_warnings(runs: Sequence[RunResult], labels: Sequence[str]) -> list[str]:
    """What a reader must know before believing a number, each followed by the runs that it is about."""
    found: dict[str, list[str]] = {}
    for run, label in zip(runs, labels, strict=True):
        texts = [DEMONSTRATION] if run.demonstration else []
        for task, count in run.record.shortened.items():
            if count:
                texts.append(f"{short_name(task)}: {count} inputs were too long and have been shortened.")
        texts += [*row_remarks([run]), *run.record.notes]
        if run.record.environment.get("dirty"):
            texts.append("Run with uncommitted changes: the git commit does not say all of the code.")
        for text in texts:
            found.setdefault(text, []).append(label)
    return [
        text if len(about) == len(runs) else f"{text} ({'; '.join(about)})" for text, about in found.items()
    ]


# --- matrices ----------------------------------------------------------------------------------------------


def matrix_tables(run: RunResult, measure: str) -> list[dict[str, Any]]:
    """The score matrix of a measure, forgetting, generalization, and metrics; none where no task has it.

    The cells of a matrix (`values`, written as `form`) are coloured by their size against `top`: as an
    `amount`, or for changes by what is better, `higher` or `lower` (`kind`).
    """
    scores = score_matrix(run, measure)
    if scores.isna().all(axis=None):
        return []
    is_lower = measure in LOWER_IS_BETTER
    digits, better = (3, "lower") if is_lower else (1, "higher")
    top = float(scores.max(axis=None)) if is_lower else 100.0
    tables: list[dict[str, Any]] = [
        {"caption": "Scores", "values": scores, "form": f"%.{digits}f", "top": top, "kind": "amount"}
    ]
    for compute, title in EFFECTS.values():
        changes = compute(scores)
        if not changes.isna().all(axis=None):
            limit = float(changes.abs().max(axis=None))
            shown = {"form": f"%+.{digits}f", "top": limit, "kind": better}
            tables.append({"caption": f"{title} ({better} is better)", "values": changes, **shown})
    for table in tables:
        table["states"] = [state_name(run, after) for after in table["values"].index]
    values = pd.DataFrame(continual_metrics(scores), dtype=float).T.rename_axis("definition")
    values = values[list(METRICS if len(run.tasks) > 1 else METRICS[:1])]
    texts = values.map(lambda value: NONE if math.isnan(value) else f"{value:.{3 if is_lower else 2}f}")
    return [*tables, {"caption": ", ".join(values), "texts": texts.reset_index()}]


def state_name(run: RunResult, after: int) -> str:
    """A state of a run, for people."""
    return f"after {short_name(run.tasks[after - 1])}" if after else "untouched model"


# --- prompts -----------------------------------------------------------------------------------------------


def prompt_name(index: int) -> str:
    """`original`, or the number of a paraphrase."""
    return "original" if index == ORIGINAL else str(index)


def choice_facts(choice: ChoiceRecord) -> dict[str, Any]:
    """The prompt that a task was trained with, and all that could have been, the lowest loss first.

    A candidate's `change` is against the original's loss; one read on fewer examples (`is_partial`) has none.
    """
    whole = comparable_losses(choice)
    original = whole.get(ORIGINAL)
    rows = [
        {
            "name": prompt_name(candidate.index),
            "text": candidate.text,
            "loss": f"{candidate.loss:.4f}",
            "change": NONE if is_partial or original is None else f"{candidate.loss - original:+.4f}",
            "n_examples": candidate.n_examples or NONE,
            "is_chosen": candidate.index == choice.index,
            "is_partial": is_partial,
        }
        for candidate in sorted(choice.candidates or (), key=lambda each: (each.loss, each.index))
        for is_partial in [candidate.index not in whole]
    ]
    name = prompt_name(choice.index)
    return {"task": short_name(choice.task), "name": name, "text": choice.text, "candidates": rows}


# --- predictions to browse ---------------------------------------------------------------------------------


def answers(runs: Sequence[RunResult], labels: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """By task a block a run: each test example's answer when its task was learned, and at the end of the run.

    A task that was never trained, or last, is compared with the untouched model; `before` is None where only
    the last state was tested. `counts` are over all `total` rows; of `rows`, the changed ones first, there
    are as many as a page can hold.
    """
    cells = sum(len(run.tasks) + len(run.unseen) for run in runs)
    most = max(FEWEST_ROWS, min(MOST_ROWS, PAGE_ROWS // max(cells, 1)))
    blocks: dict[str, list[dict[str, Any]]] = {}
    for run, label in zip(runs, labels, strict=True):
        by_task = dict(list(column_rows(run, "trained").groupby("task")))
        for task in (*run.tasks, *run.unseen):
            if task not in by_task:
                continue
            tested = by_task[task]
            last = int(tested["after"].max())
            trained = run.tasks.index(task) + 1 if task in run.tasks else 0
            states = set(tested["after"]) - {last}
            first = next((state for state in (trained, 0) if state in states), None)
            rows = tested[tested["after"] == last][["example", "target", "prediction", "rougeL"]]
            rows = rows.set_axis(["example", "target", "after", "after_score"], axis=1)
            rows = rows.assign(before=rows["after"], before_score=rows["after_score"], change="reworded")
            if first is not None:
                before = tested[tested["after"] == first].set_index("example").loc[rows["example"]]
                rows["before"], rows["before_score"] = before["prediction"].array, before["rougeL"].array
            difference = rows["after_score"] - rows["before_score"]
            rows.loc[(difference == 0) & (rows["after"] == rows["before"]), "change"] = "same"
            rows.loc[difference > 0, "change"] = "gained"
            rows.loc[difference < 0, "change"] = "lost"
            # The largest losses first, then gains, then other texts of the same score.
            counts = rows["change"].value_counts()
            rows = rows.assign(place=rows["change"].map(CHANGES.index), size=-difference.abs())
            rows = rows.sort_values(["place", "size", "example"])
            kept = rows.drop(columns=["place", "size"]).head(most)
            for column in ("target", "before", "after"):
                kept[column] = [
                    text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} letters)"
                    for text in kept[column]
                ]
            blocks.setdefault(task, []).append(
                {
                    "run": run.id,
                    "label": label,
                    "before": None if first is None else state_name(run, first),
                    "after": state_name(run, last),
                    "counts": {change: int(counts.get(change, 0)) for change in CHANGES if first is not None},
                    "total": len(rows),
                    "rows": kept.to_dict("records"),
                }
            )
    return blocks
