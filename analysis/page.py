"""The report as one HTML page that needs nothing else: no network, no other file, no script to be read.

The template `page.jinja` shows tables of texts, and escapes every text.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from rich.console import RenderableType

from sapo.analysis import ledger, render, results
from sapo.analysis.correlations import PromptEffects
from sapo.analysis.figures import drawn, loss_figure, save
from sapo.analysis.matrices import EFFECTS
from sapo.analysis.metrics import DEFAULT_DEFINITION, DEFINITIONS, METRICS, continual_metrics
from sapo.analysis.results import LOWER_IS_BETTER, MEASURES, RunResult
from sapo.analysis.tables import DEMONSTRATION, ScoreTable, comparable_losses, varying
from sapo.conf.text import markdown_safe
from sapo.data.files import write_result
from sapo.data.prompts import ORIGINAL
from sapo.data.tasks import short_name

NONE = "–"
COMPARISON = "comparison"  # the table of runs that nobody has named
MOST_ROWS, FEWEST_ROWS = 50, 5  # answers of one task and run
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
    def pictures(self) -> list[Path]:
        """The PNGs of its files, but for those in the folders of runs."""
        folders = {run.path for run in self.runs}
        return [path for path in self.files if path.suffix == ".png" and path.parent not in folders]

    @property
    def document(self) -> dict[str, Any]:
        """Files, tables and notes as JSON values; None for what is undefined."""
        tables = {title: json.loads(frame.to_json(orient="records")) for title, frame in self.tables.items()}
        return {"files": list(map(str, self.files)), "tables": tables, "notes": self.remarks}

    def write(self, name: str, text: str) -> None:
        """Writes a file."""
        self.files.append(write_result(self.output / name, text))

    def draw(self, name: str, figure: Figure | None, data: pd.DataFrame | None = None) -> None:
        """Writes a figure (PNG and PDF) and its data as CSV beside it, or one of them."""
        if figure is not None:
            self.files += save(figure, self.output / name)
        if data is not None:
            self.write(f"{name}.csv", render.csv(data))

    def keep(self, name: str, title: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Keeps a table, a dash where a row has no such cell, under its title and as `name`.csv."""
        if rows:
            self.tables[title] = pd.DataFrame(rows).fillna("-")
            self.draw(name, None, self.tables[title])

    def finish(self, texts: dict[str, pd.DataFrame]) -> None:
        """Writes texts by their titles as Markdown and LaTeX, there without those of prompts: they are wider
        than a printed page.
        """
        self.texts = texts
        parts = [f"## {markdown_safe(title)}\n\n{render.markdown(frame)}" for title, frame in texts.items()]
        remarks = render.notes_markdown(self.warnings, self.notes)
        self.write(f"{self.name}.md", "\n".join([*parts, *remarks]))
        printed = [render.latex(frame) for frame in texts.values() if "text" not in frame]
        self.write(f"{self.name}.tex", "\n".join(printed))


def _code(text: str) -> Markup:
    """A text of ours, in which `this` is code."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704


def prompt_name(index: int) -> str:
    """`original`, or the number of a paraphrase."""
    return "original" if index == ORIGINAL else str(index)


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "short": short_name,
    "cut": lambda text: text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} letters)",
    "prompt": prompt_name,
    "losses": comparable_losses,
    "code": _code,
    "base64": lambda content: base64.b64encode(content).decode(),
    "digest": lambda text: hashlib.sha256(text.encode()).digest(),
    "are_numbers": render.are_numbers,
    "dash": lambda text: NONE if text == "-" else text,
    "score": lambda score: NONE if pd.isna(score) else f"{score:.1f}",
}
_ENVIRONMENT.tests |= {"missing": pd.isna, "hash": lambda text: re.fullmatch("[0-9a-f]{64}", text)}


def html(report: Report) -> str:
    """The report as one page.

    Text from data and models is escaped, and the page's policy lets the browser load nothing and run no
    script but its own.
    """
    runs, table = report.runs, report.table
    labels = run_labels(runs) if runs else []
    labelled = list(zip(labels, runs, strict=True))
    correlations = []
    for effects in report.correlations:
        title = f"{len(effects.scores)} prompts of {short_name(effects.current)}, {MEASURES[effects.measure]}"
        cells = effects.correlations
        cells = cells.assign(**{name: cells[name].map(short_name) for name in ("x_task", "y_task")})
        correlations.append((f"{title} ({effects.run.setting})", ledger.as_texts(cells)))
    order = sorted(MEASURES, key=lambda name: name != report.measure)  # the one asked for first
    losses = loss_figure(runs, labels) if runs else None
    facts = pd.DataFrame([_facts(run) for run in runs], index=labels).T.fillna(NONE)
    is_shared = facts.nunique(axis=1) == 1
    return _ENVIRONMENT.get_template("page.jinja").render(
        report=report,
        runs=[(run.id, label) for label, run in labelled],
        warnings=list(dict.fromkeys([*run_warnings(runs, labels), *report.warnings])),
        overview=pd.DataFrame([_overview(run, label) for label, run in labelled]),
        shared=list(facts[is_shared].iloc[:, :1].itertuples()),
        differing=facts[~is_shared].rename_axis("setting").reset_index(),
        table=table,
        texts=render.score_texts(table) if table else None,
        metrics=table.metrics if table else [],
        definition_text=DEFINITIONS[report.definition],
        tables={
            title: render.constant_columns(ledger.as_texts(frame)) for title, frame in report.texts.items()
        },
        correlations=correlations,
        losses=drawn(losses, dpi=130) if losses else None,
        matrices=[
            (label, [(MEASURES[name], found) for name in order if (found := list(matrix_tables(run, name)))])
            for label, run in labelled
        ],
        choices=[(label, run.record.choices) for label, run in labelled],
        answers=answers(runs, labels),
        changes=CHANGES,
    )


# --- what ran ----------------------------------------------------------------------------------------------


def run_labels(runs: Sequence[RunResult]) -> list[str]:
    """Short names of runs, of what tells them apart: settings, else prompts too, else the run's id too."""
    others = varying(runs)
    settings = pd.DataFrame(
        {
            **{name: [getattr(run, name) for run in runs] for name in ("model", "sequence", "method")},
            "pool": [run.record.pool.name if run.record.pool else "" for run in runs],
            "size": [f"K={run.pool_size}" if run.pool_size else "" for run in runs],
            **{name: f"{name.rpartition('.')[2]} " + others[name].replace("-", NONE) for name in others},
        }
    )
    labels = [
        " · ".join([*filter(None, own), run.policy, f"seed {run.seed}"])
        for run, own in zip(runs, settings.loc[:, settings.nunique() > 1].to_numpy(), strict=True)
    ]
    prompts = ["prompts " + ", ".join(prompt_name(c.index) for c in run.record.choices) for run in runs]
    for more in (prompts, [run.id for run in runs]):
        labels = [
            label if labels.count(label) == 1 else f"{label} · {own}"
            for label, own in zip(labels, more, strict=True)
        ]
    return labels


def _overview(run: RunResult, label: str) -> dict[str, str]:
    """What was run, on how many tasks, and how long its stages took."""
    seconds = sum(stage.seconds for stage in run.record.stages)
    return {
        "run": label,
        **{name: str(getattr(run, name)) for name in ("sequence", "model", "method", "policy", "seed")},
        "tasks": str(len(run.tasks)),
        "unseen": str(len(run.unseen)),
        "stages took": f"{seconds:.0f} s" if seconds else NONE,
        "id": run.id,
    }


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
        **results.settings_of(run),
    }
    data = {"test data": record.comparable.get("data"), "training data": record.identity.get("train")}
    for name, of_task in data.items():
        facts |= {f"{name}, {task}": digest for task, digest in (of_task or {}).items()}
    return results.flat(facts)


def run_warnings(runs: Sequence[RunResult], labels: Sequence[str]) -> list[str]:
    """What a reader must know before believing a number, each followed by the runs that it is about."""
    found: dict[str, list[str]] = {}
    for run, label in zip(runs, labels, strict=True):
        texts = [DEMONSTRATION] if run.demonstration else []
        texts += [
            f"{short_name(task)}: {count} inputs were too long and have been shortened."
            for task, count in run.record.shortened.items()
            if count
        ]
        texts += [*results.row_remarks([run]), *run.record.notes]
        if run.record.environment.get("dirty"):
            texts.append("Run with uncommitted changes: the git commit does not say all of the code.")
        for text in texts:
            found.setdefault(text, []).append(label)
    return [
        text if len(about) == len(runs) else f"{text} ({'; '.join(about)})" for text, about in found.items()
    ]


# --- matrices ----------------------------------------------------------------------------------------------


def matrix_tables(run: RunResult, measure: str) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """The score matrix of a measure, forgetting, generalization, and metrics; none where no task has it.

    Each with its caption, and how it is coloured: by `amount`, or for changes by what is better, `higher` or
    `lower`; metrics are texts, without a colour.
    """
    scores = results.score_matrix(run, measure)
    if scores.isna().all(axis=None):
        return
    digits, better = (3, "lower") if measure in LOWER_IS_BETTER else (2, "higher")
    changes = [
        (f"{title} ({better} is better)", compute(scores), better) for compute, title in EFFECTS.values()
    ]
    for caption, frame, kind in [("Scores", scores, "amount"), *changes]:
        if frame.notna().any(axis=None):
            yield caption, frame.rename(lambda after: state_name(run, after)), kind
    values = pd.DataFrame(continual_metrics(scores), dtype=float).T.rename_axis("definition")
    values = values[list(METRICS if len(run.tasks) > 1 else METRICS[:1])]
    texts = values.map(lambda value: NONE if math.isnan(value) else f"{value:.{digits}f}")
    yield ", ".join(values), texts.reset_index(), ""


def state_name(run: RunResult, after: int) -> str:
    """A state of a run, for people."""
    return f"after {short_name(run.tasks[after - 1])}" if after else "untouched model"


# --- predictions to browse ---------------------------------------------------------------------------------


def answers(runs: Sequence[RunResult], labels: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """By task a block a run: each test example's answer when its task was learned, and at the end of the run.

    A task that was never trained, or last, is compared with the untouched model; `before` is None where only
    the last state was tested. `counts` are over all `total` rows; of `rows`, the changed ones first, there
    are as many as a page can hold.
    """
    n_blocks = sum(len(run.tasks) + len(run.unseen) for run in runs)
    most = max(FEWEST_ROWS, min(MOST_ROWS, PAGE_ROWS // max(n_blocks, 1)))
    blocks: dict[str, list[dict[str, Any]]] = {}
    for run, label in zip(runs, labels, strict=True):
        tested = results.column_rows(run, "trained").set_index("example").groupby(["task", "after"])
        cells = {key: rows[["target", "prediction", "rougeL"]] for key, rows in tested}
        for place, task in enumerate((*run.tasks, *run.unseen), start=1):
            *earlier, last = sorted(after for name, after in cells if name == task) or [None]
            if last is None:
                continue
            trained = place if task in run.tasks else 0
            first = next((state for state in (trained, 0) if state in earlier), None)
            before = cells[task, last if first is None else first]
            rows = cells[task, last].join(before.add_suffix("_before")).reset_index()
            gain = rows["rougeL"] - rows["rougeL_before"]
            is_other = rows["prediction"] != rows["prediction_before"]
            changes = np.select([gain < 0, gain > 0, is_other], CHANGES[:3], CHANGES[3])
            rows = rows.assign(change=pd.Categorical(changes, CHANGES), size=-gain.abs())
            counts = {} if first is None else rows["change"].value_counts(sort=False).to_dict()
            # The largest losses first, then gains, then other texts of the same score.
            rows = rows.sort_values(["change", "size", "example"])
            block = {"run": run.id, "label": label, "counts": counts, "total": len(rows)}
            block |= {"before": None if first is None else state_name(run, first)}
            block |= {"after": state_name(run, last), "rows": rows.head(most).to_dict("records")}
            blocks.setdefault(task, []).append(block)
    return blocks
