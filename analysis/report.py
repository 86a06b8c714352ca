"""What a set of runs says: matrices, a table, chosen prompts, correlations, and a page of all that."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from sapo.analysis import render
from sapo.analysis.correlations import PromptEffects, correlation_table, prompt_effects, prompt_variants
from sapo.analysis.figures import correlation_heatmap, save
from sapo.analysis.files import write_text
from sapo.analysis.matrices import summarize_run
from sapo.analysis.metrics import DEFAULT_DEFINITION, check_definition
from sapo.analysis.published import PAPER
from sapo.analysis.results import RunResult, check_measure, load_run
from sapo.analysis.tables import ScoreTable, chosen_prompts, grouped, score_table


@dataclass
class Report:
    """What was read out of some runs, and the files that hold it."""

    runs: list[RunResult]
    metrics: list[dict[str, Any]]  # a run: `metrics` and `metrics_common`, as summarize_run returns them
    prompts: pd.DataFrame
    table: ScoreTable | None = None
    correlations: list[PromptEffects] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    measure: str = "rougeL"
    definition: str = DEFAULT_DEFINITION
    name: str = "table1"  # of the table's files

    @property
    def title(self) -> str:
        """The table's name for people: `Table 1`."""
        return " ".join(re.findall("[a-z]+|[0-9]+", self.name)).capitalize()


def analyze(
    folders: Sequence[Path], output: Path, measure: str, definition: str, name: str = "table1"
) -> Report:
    """Summarizes each run in its own folder and, into `output`, what several runs say together.

    Their table is called `name`; beside it stand the rows of the paper's table of that name, or of Table 1 if
    that one is not of scores. Raises UserError before anything is written if a run is damaged, or runs of one
    model and sequence cannot be compared.
    """
    check_measure(measure)
    check_definition(definition)
    runs = [load_run(folder) for folder in folders]
    report = Report(runs, [], chosen_prompts(runs), measure=measure, definition=definition, name=name)
    _compare(report, measure, definition)
    for run in runs:
        summary = summarize_run(run.path, measure)
        report.metrics.append({name: summary[name] for name in ("metrics", "metrics_common")})
        report.files += summary["files"]
    _write(report, output, measure)
    return report


def _compare(report: Report, measure: str, definition: str) -> None:
    """Fills in the table and the correlations, where the runs allow them."""
    variants = prompt_variants(report.runs)
    report.correlations = [prompt_effects(group, measure) for group in variants if _has_other_tasks(group[0])]
    for_table = []
    for (model, sequence, method, _), policies in grouped(report.runs).items():
        twice = [policy for policy, runs in policies.items() if len({run.seed for run in runs}) < len(runs)]
        for_table += [] if twice else [run for runs in policies.values() for run in runs]
        report.notes += [
            f"{model} · {sequence} · {method} is not in {report.title}: several {policy} runs have one seed."
            for policy in twice
        ]
    if len(for_table) > 1:
        paper = report.name if report.name in PAPER else "table1"
        report.table = score_table(for_table, measure, definition, paper=paper)


def _has_other_tasks(run: RunResult) -> bool:
    return len(run.tasks) + len(run.unseen) > 1


def _write(report: Report, output: Path, measure: str) -> None:
    """Tables, correlations and the page `report.md` in `output`."""
    texts = {
        "prompts.csv": report.prompts.to_csv(index=False, lineterminator="\n"),
        "prompts.md": render.prompts_markdown(report.prompts),
        "prompts.tex": render.prompts_latex(report.prompts),
    }
    if report.table:
        texts |= {
            f"{report.name}.csv": render.csv(report.table),
            f"{report.name}.md": render.markdown(report.table),
            f"{report.name}.tex": render.latex(report.table),
        }
    figures = []
    if report.correlations:
        texts[f"correlation_{measure}.csv"] = correlation_table(report.correlations).to_csv(
            index=False, lineterminator="\n"
        )
    for number, effects in enumerate(report.correlations, start=1):
        suffix = f"_{number}" if len(report.correlations) > 1 else ""
        texts[f"prompt_effects_{measure}{suffix}.csv"] = effects.scores.to_csv(lineterminator="\n")
        if len(effects.scores.columns) > 1:
            figures += save(correlation_heatmap(effects), output / f"correlation_{measure}{suffix}")
    texts["report.md"] = page(report, measure, figures)
    report.files += [write_text(output / name, text) for name, text in texts.items()] + figures


def page(report: Report, measure: str, figures: Sequence[Path]) -> str:
    """The report as Markdown, with links to the figures beside it."""
    parts = ["# Analysis", "", *(f"- {run.id}: {run.facts}" for run in report.runs), ""]
    if report.table:
        parts += [f"## {report.title}", "", render.markdown(report.table)]
    else:
        names = ["rougeL", "exact_match"] if measure == "rougeL" else [measure]
        for name in names:
            lines = json.dumps([values["metrics"][name] for values in report.metrics], indent=2)
            parts += [f"## AP, BWT, FWT ({name})", "", "```json", lines, "```", ""]
    parts += ["## Prompts", "", render.prompts_markdown(report.prompts)]
    pictures = [path for path in figures if path.suffix == ".png"]
    if pictures:
        parts += ["## Correlation of prompt effects across tasks", ""]
        parts += [f"![{path.stem}]({path.name})\n" for path in pictures]
    return "\n".join([*parts, *(f"{note}\n" for note in report.notes)])


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain JSON values: no NaN, None for what is undefined."""
    return {
        "runs": [
            {"id": run.id, "dir": str(run.path), **metrics}
            for run, metrics in zip(report.runs, report.metrics, strict=True)
        ],
        "table1": _table_json(report.table) if report.table else None,
        "prompts": report.prompts.to_dict("records"),
        "correlations": [
            {
                "runs": {
                    "model": effects.run.model,
                    "sequence": effects.run.sequence,
                    "method": effects.run.method,
                },
                "seed": effects.run.seed,
                "current_task": effects.current,
                "measure": effects.measure,
                "cells": [asdict(cell) for cell in effects.correlations],
            }
            for effects in report.correlations
        ],
        "files": [str(path) for path in report.files],
        "notes": report.notes,
    }


def _table_json(table: ScoreTable) -> dict[str, Any]:
    return {
        "measure": table.measure,
        "definition": table.definition,
        "rows": [asdict(row) for group in table.groups for row in (*group.rows, *group.paper)],
        "more_rows": [asdict(row) for group in table.groups for row in group.more],
        "notes": table.notes,
    }
