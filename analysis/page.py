"""The report as one HTML page that needs nothing else: no network, no other file, no script to be read.

The template `page.jinja` shows plain dicts and lists; it escapes every text.
"""

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape
from pandas.api.types import is_bool, is_bool_dtype, is_numeric_dtype

from sapo.analysis.files import write_file
from sapo.analysis.matrices import EFFECTS
from sapo.analysis.metrics import DEFINITIONS, METRICS, continual_metrics
from sapo.analysis.render import cell_texts, constant_columns
from sapo.analysis.results import (
    LOWER_IS_BETTER,
    MEASURES,
    RunResult,
    column_rows,
    row_remarks,
    score_matrix,
)
from sapo.analysis.tables import DEMONSTRATION, score_table
from sapo.data.prompts import ORIGINAL
from sapo.data.records import ChoiceRecord
from sapo.data.tasks import short_name

if TYPE_CHECKING:
    from sapo.analysis.report import Report

NONE = "–"
DIGEST = 64  # letters of a SHA-256
PICTURES = {".svg": "image/svg+xml", ".png": "image/png"}
FEW = 1e-3  # a number below this is written with an exponent
MOST_ROWS = 50  # answers of one task and run
FEWEST_ROWS = 5
PAGE_ROWS = 8000  # answers of a whole page, so that a browser opens it
LONGEST = 600  # letters of one answer
CHANGES = ("lost", "gained", "reworded", "same")
Table = dict[str, Any]  # `caption`, `columns` and `rows` of cells; see `shown`


def write_page(
    report: "Report",
    output: Path,
    figures: Sequence[Path] = (),
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> Path:
    """Writes `output`/report.html and returns its path.

    `figures` (SVG or PNG; other files are passed over) and `tables` (by title) stand beside what the report
    itself holds. Text from data and models is escaped, and the page's policy lets the browser load nothing
    and run no script but its own.
    """
    return write_file(output / "report.html", html(report, figures, tables or {}))


def html(
    report: "Report", figures: Sequence[Path] = (), tables: Mapping[str, pd.DataFrame] | None = None
) -> str:
    """The page of write_page."""
    runs = report.runs
    labels = run_labels(runs)
    correlations = []
    for effects in report.correlations:
        rows = [
            vars(cell) | {"x_task": short_name(cell.x_task), "y_task": short_name(cell.y_task)}
            for cell in effects.correlations
        ]
        title = f"{len(effects.scores)} prompts of {short_name(effects.current)}, {MEASURES[effects.measure]}"
        correlations.append((f"{title} ({effects.run.setting})", shown(pd.DataFrame(rows))))
    titled = {}
    for title, frame in (tables or {}).items():
        caption, rest = constant_columns(frame)
        titled[title] = shown(rest) | {"caption": caption}
    return _template().render(
        **(_of_runs(report, labels) if runs else {}),
        runs=list(zip((run.id for run in runs), labels, strict=True)),
        warnings=list(dict.fromkeys([*run_warnings(runs, labels), *report.warnings])),
        notes=report.notes,
        figures=pictures([*report.files, *figures], {run.path for run in runs}),
        tables=titled,
        correlations=correlations,
        metrics=METRICS,
        definition=report.definition,
        definition_text=DEFINITIONS[report.definition],
        changes=CHANGES,
        title=report.title,
    )


def _of_runs(report: "Report", labels: Sequence[str]) -> dict[str, Any]:
    """What the template shows of the runs."""
    runs, table = report.runs, report.table
    if table is None and len(runs) == 1:  # which analyze() prints as plain metrics
        table = score_table(runs, report.measure, report.definition)
    groups = table.lines.groupby("group", sort=False) if table else ()
    labelled = list(zip(labels, runs, strict=True))
    order = sorted(MEASURES, key=lambda name: name != report.measure)  # the one asked for first
    return {
        "table": table,
        "groups": [
            (title, [lines for _, lines in group.groupby("score", sort=False)]) for title, group in groups
        ],
        "overview": overview(runs, labels),
        "shared": shared_facts(runs),
        "differing": other_facts(runs, labels),
        "matrices": [
            (label, [(MEASURES[name], tables) for name in order if (tables := matrix_tables(run, name))])
            for label, run in labelled
        ],
        "choices": [(label, list(map(choice_facts, run.record.choices))) for label, run in labelled],
        "answers": answers(runs, labels),
    }


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

    environment.filters |= {"interval": cell_texts, "short": short_name, "code": code, "digest": digest}
    environment.tests["missing"] = pd.isna
    return environment.get_template("page.jinja")


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


def shown(frame: pd.DataFrame) -> Table:
    """A table of texts, its index too where that says something; what is missing is a dash.

    A column is `text`, `is_number` and `title`; so is a cell. Numbers have as many decimals as the size of
    their column needs.
    """
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    columns = [{"text": str(name), "is_number": False, "title": ""} for name in frame]
    cells = []
    for place, column in enumerate(columns):
        values = frame.iloc[:, place]
        column["is_number"] = is_numeric_dtype(values.dtype) and not is_bool_dtype(values.dtype)
        known = values.dropna().astype(float) if column["is_number"] else values
        digits = (
            0 if not column["is_number"] or (known % 1 == 0).all() else 3 if known.abs().max() < 10 else 2
        )
        texts = []
        for value in values:
            if value is None or (not isinstance(value, list | tuple | dict) and pd.isna(value)):
                texts.append(NONE)
            elif column["is_number"]:
                is_small = 0 < abs(value) < FEW
                texts.append(f"{value:.1e}" if is_small else f"{float(value):.{digits}f}")
            else:
                texts.append(("yes" if value else "no") if is_bool(value) else str(value))
        cells.append(texts)
    rows = [
        [{**column, "text": text, "title": ""} for column, text in zip(columns, row, strict=True)]
        for row in zip(*cells, strict=True)
    ]
    return {"caption": "", "columns": columns, "rows": rows}


# --- what ran ----------------------------------------------------------------------------------------------


def run_labels(runs: Sequence[RunResult]) -> list[str]:
    """Short names of runs, of what tells them apart: settings, else prompts too, else the run's id too."""

    def settings(run: RunResult) -> dict[str, Any]:
        size = f"K={run.pool_size}" if run.pool_size else None
        pool = run.record.pool.name if run.record.pool else None
        return {
            "model": run.model,
            "sequence": run.sequence,
            "method": run.method,
            "pool": pool,
            "size": size,
        }

    def prompts(run: RunResult) -> str:
        return "prompts " + ", ".join(prompt_name(choice.index) for choice in run.record.choices)

    every = [settings(run) for run in runs]
    varying = [name for name in (every[0] if runs else ()) if len({facts[name] for facts in every}) > 1]
    labels = []
    for run, facts in zip(runs, every, strict=True):
        labels.append(
            " · ".join([*filter(None, (facts[n] for n in varying)), run.policy, f"seed {run.seed}"])
        )
    for more in (prompts, lambda run: run.id):
        labels = [
            label if labels.count(label) == 1 else f"{label} · {more(run)}"
            for run, label in zip(runs, labels, strict=True)
        ]
    return labels


def overview(runs: Sequence[RunResult], labels: Sequence[str]) -> Table:
    """A row a run: what was run, on how many tasks, and how long its stages took."""
    rows = []
    for run, label in zip(runs, labels, strict=True):
        row: dict[str, Any] = {"run": label}
        row |= {name: getattr(run, name) for name in ("sequence", "model", "method", "policy", "seed")}
        row |= {"tasks": len(run.tasks), "unseen": len(run.unseen)}
        stages = run.record.stages
        row["stages took"] = f"{sum(stage.seconds for stage in stages):.0f} s" if stages else NONE
        rows.append(row | {"id": run.id})
    table = shown(pd.DataFrame(rows))
    place = [column["text"] for column in table["columns"]].index("stages took")
    for cells in (table["columns"], *table["rows"]):
        cells[place]["is_number"] = True
    return table


def shared_facts(runs: Sequence[RunResult]) -> list[tuple[str, Table]]:
    """Settings, versions and data that all the runs have in common, by name."""
    first, *others = [_facts(run) for run in runs]
    return [
        (name, _cell(value))
        for name, value in first.items()
        if all(facts.get(name) == value for facts in others)
    ]


def other_facts(runs: Sequence[RunResult], labels: Sequence[str]) -> Table | None:
    """The settings, versions and data in which the runs differ; None where there is no such thing."""
    every = [_facts(run) for run in runs]
    names = list(dict.fromkeys(name for facts in every for name in facts))
    rows = [
        [_cell(name), *(_cell(facts.get(name, NONE)) for facts in every)]
        for name in names
        if any(facts.get(name) != every[0].get(name) for facts in every)
    ]
    heads = [_cell(label) | {"title": run.id} for run, label in zip(runs, labels, strict=True)]
    return {"caption": "", "columns": [_cell("setting"), *heads], "rows": rows} if rows else None


def _cell(text: str) -> Table:
    """A text as a cell. Digests are cut; the page shows them whole where the pointer rests."""
    is_digest = len(text) == DIGEST and " " not in text
    return {
        "text": f"{text[:12]}…" if is_digest else text,
        "title": text if is_digest else "",
        "is_number": False,
    }


def _facts(run: RunResult) -> dict[str, str]:
    record, environment = run.record, run.record.environment
    changed = " with uncommitted changes" if environment.get("dirty") else ""
    facts = {
        "tasks": ", ".join(run.tasks),
        "unseen tasks": ", ".join(run.unseen) or "none",
        "parity": record.parity,
        "device": "; ".join(sorted(run.devices())) or environment.get("device", NONE),
        "git commit": str(environment.get("commit") or NONE) + changed,
        "python": environment.get("python", NONE),
        **(environment.get("packages") or {}),
    }
    groups = ("model", "method", "policy", "scorer", "trainer", "evaluator", "common_prompt")
    facts |= dict(_flat(record.pool.model_dump() if record.pool else None, "pool"))
    facts |= {name: text for group in groups for name, text in _flat(record.identity.get(group), group)}
    data = {"test data": record.comparable.get("data"), "training data": record.identity.get("train")}
    for name, of_task in data.items():
        facts |= {f"{name}, {task}": str(digest) for task, digest in (of_task or {}).items()}
    return facts


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """`trainer.epochs`, `3` and so on of nested settings."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}")
    elif value is not None:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def run_warnings(runs: Sequence[RunResult], labels: Sequence[str]) -> list[str]:
    """What a reader must know before believing a number, each followed by the runs that it is about."""
    found: dict[str, list[str]] = {}
    for run, label in zip(runs, labels, strict=True):
        texts = [DEMONSTRATION] if run.demonstration else []
        for task, count in run.record.shortened.items():
            if count:
                texts.append(f"{short_name(task)}: {count} inputs were too long and have been shortened.")
        for choice in run.record.choices:
            tied = ", ".join(map(prompt_name, ties(choice)))
            if "," in tied:
                texts.append(
                    f"{short_name(choice.task)}: candidates {tied} tie: one loss, of which one was taken."
                )
        texts += [*row_remarks([run]), *run.record.notes]
        if run.record.environment.get("dirty"):
            texts.append("Run with uncommitted changes: the git commit does not say all of the code.")
        for text in texts:
            found.setdefault(text, []).append(label)
    return [
        text if len(about) == len(runs) else f"{text} ({'; '.join(about)})" for text, about in found.items()
    ]


# --- matrices ----------------------------------------------------------------------------------------------


def matrix_tables(run: RunResult, measure: str) -> list[Table]:
    """The score matrix of a measure, forgetting, generalization, and metrics; none where no task has it."""
    scores = score_matrix(run, measure)
    if scores.isna().all(axis=None):
        return []
    is_lower = measure in LOWER_IS_BETTER
    digits = 3 if is_lower else 1
    top = float(scores.max(axis=None)) if is_lower else 100.0
    tables = [_heat(run, scores, "Scores", f".{digits}f", top, "amount")]
    for compute, title in EFFECTS.values():
        changes = compute(scores)
        if not changes.isna().all(axis=None):
            better, limit = "lower" if is_lower else "higher", float(changes.abs().max(axis=None))
            caption = f"{title} ({better} is better)"
            tables.append(_heat(run, changes, caption, f"+.{digits}f", limit, better))
    number = {"is_number": True, "title": ""}
    rows = [
        [
            _cell(definition),
            *(
                number | {"text": NONE if value is None else f"{value:.{3 if is_lower else 2}f}"}
                for value in values.values()
            ),
        ]
        for definition, values in continual_metrics(scores).items()
    ]
    columns = [_cell("definition"), *(number | {"text": metric} for metric in METRICS)]
    return [*tables, {"caption": "AP, BWT and FWT", "columns": columns, "rows": rows}]


def _heat(run: RunResult, values: pd.DataFrame, caption: str, form: str, top: float, kind: str) -> Table:
    """A matrix whose cells have a `tone` (good, bad, amount) and a `shade`, 0 to 1.

    `kind`: amount, or for changes what is better, `higher` or `lower`.
    """

    def cell(value: float) -> Table:
        if math.isnan(value):
            return {"text": "", "is_number": True, "title": ""}
        tone = kind if kind == "amount" else "good" if (value > 0) == (kind == "higher") else "bad"
        shade = round(min(abs(value) / top, 1.0) if top > 0 else 0.0, 3)
        return {"text": format(value, form), "is_number": True, "title": "", "tone": tone, "shade": shade}

    columns = [{"text": short_name(task), "is_number": True, "title": task} for task in values.columns]
    rows = [[_cell(state_name(run, after)), *map(cell, row)] for after, *row in values.itertuples()]
    return {"caption": caption, "columns": [_cell("state"), *columns], "rows": rows}


def state_name(run: RunResult, after: int) -> str:
    """A state of a run, for people."""
    return f"after {short_name(run.tasks[after - 1])}" if after else "untouched model"


# --- prompts -----------------------------------------------------------------------------------------------


def prompt_name(index: int | None) -> str:
    """`original`, or the number of a paraphrase."""
    if index is None:
        return NONE
    return "original" if index == ORIGINAL else str(index)


def ties(choice: ChoiceRecord) -> list[int]:
    """The candidates whose loss is the chosen one's, read on as many examples; itself among them."""
    candidates = choice.candidates or ()
    chosen = next((c for c in candidates if c.index == choice.index), None)
    return [
        c.index
        for c in candidates
        if chosen and c.n_examples == chosen.n_examples and math.isclose(c.loss, chosen.loss, rel_tol=1e-12)
    ]


def choice_facts(choice: ChoiceRecord) -> dict[str, Any]:
    """The prompt that a task was trained with, and all that could have been, the lowest loss first.

    A candidate's `change` is against the original's loss; one read on fewer examples (`is_partial`) has none.
    """
    candidates = choice.candidates or ()
    most = max((c.n_examples for c in candidates), default=0)
    whole = {c.index: c.loss for c in candidates if c.n_examples == most}
    original = whole.get(ORIGINAL)
    rows = [
        {
            "name": prompt_name(c.index),
            "text": c.text,
            "loss": f"{c.loss:.4f}",
            "change": f"{c.loss - original:+.4f}" if original is not None and c.index in whole else NONE,
            "n_examples": c.n_examples or NONE,
            "is_chosen": c.index == choice.index,
            "is_partial": c.index not in whole,
        }
        for c in sorted(candidates, key=lambda c: (c.loss, c.index))
    ]
    return {
        "task": short_name(choice.task),
        "name": prompt_name(choice.index),
        "text": choice.text,
        "candidates": rows,
        "n_tied": len(ties(choice)),
    }


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
            found = blocks.setdefault(task, [])
            if task in by_task:
                found.append({"run": run.id, "label": label, **_answers(run, task, by_task[task], most)})
    return {task: found for task, found in blocks.items() if found}


def _answers(run: RunResult, task: str, tested: pd.DataFrame, most: int) -> dict[str, Any]:
    last = int(tested["after"].max())
    trained = run.tasks.index(task) + 1 if task in run.tasks else 0
    states = set(tested["after"]) - {last}
    first = next((state for state in (trained, 0) if state in states), None)
    rows = tested[tested["after"] == last][["example", "target", "prediction", "rougeL"]]
    rows = rows.set_axis(["example", "target", "after", "after_score"], axis=1)
    if first is None:
        rows = rows.assign(before="", before_score=rows["after_score"], change="same")
    else:
        before = tested[tested["after"] == first].set_index("example").loc[rows["example"]]
        rows["before"], rows["before_score"] = before["prediction"].array, before["rougeL"].array
        rows["change"] = "reworded"
        difference = rows["after_score"] - rows["before_score"]
        rows.loc[(difference == 0) & (rows["after"] == rows["before"]), "change"] = "same"
        rows.loc[difference > 0, "change"] = "gained"
        rows.loc[difference < 0, "change"] = "lost"
    # The largest losses first, then gains, then other texts of the same score.
    place = rows["change"].map(CHANGES.index)
    size = -(rows["after_score"] - rows["before_score"]).abs()
    counts = rows["change"].value_counts()
    rows = rows.assign(place=place, size=size).sort_values(["place", "size", "example"])
    kept = rows.drop(columns=["place", "size"]).head(most)
    for column in ("target", "before", "after"):
        kept[column] = [
            text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} letters)"
            for text in kept[column]
        ]
    return {
        "before": None if first is None else state_name(run, first),
        "after": state_name(run, last),
        "counts": {change: int(counts.get(change, 0)) for change in CHANGES if first is not None},
        "total": len(rows),
        "rows": kept.to_dict("records"),
    }
