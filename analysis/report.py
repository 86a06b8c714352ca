"""What a set of runs says: matrices, a table, chosen prompts, correlations, and a page of all that."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from sapo.analysis import render
from sapo.analysis.correlations import (
    MAP_TEST,
    PromptEffects,
    correlation_table,
    map_caption,
    prompt_effects,
    prompt_variants,
    summarize_map,
)
from sapo.analysis.figures import correlation_heatmap, save
from sapo.analysis.files import write_text
from sapo.analysis.intervals import COEFFICIENTS, Interval, holm
from sapo.analysis.matrices import summarize_run
from sapo.analysis.metrics import DEFAULT_DEFINITION, check_definition
from sapo.analysis.published import PAPER
from sapo.analysis.results import RunResult, check_measure, leading_measure, load_run, shown_measures
from sapo.analysis.tables import Row, ScoreTable, chosen_prompts, grouped, score_table
from sapo.data.tasks import short_name


@dataclass
class Report:
    """What was read out of some runs, and the files that hold it.

    `warnings` say what to beware of and what is left out, `notes` how to read the rest.
    """

    runs: list[RunResult]
    metrics: list[dict[str, Any]]  # a run: `metrics` and `metrics_common`, as summarize_run returns them
    prompts: pd.DataFrame
    table: ScoreTable | None = None
    correlations: list[PromptEffects] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    measure: str = "rougeL"
    definition: str = DEFAULT_DEFINITION
    name: str = "table1"  # of the table's files

    @property
    def title(self) -> str:
        """The table's name for people: `Table 1`."""
        return " ".join(re.findall("[a-z]+|[0-9]+", self.name)).capitalize()


def analyze(
    folders: Sequence[Path],
    output: Path,
    measure: str | None,
    definition: str,
    name: str = "table1",
    warnings: Sequence[str] = (),
) -> Report:
    """Summarizes each run in its own folder and, into `output`, what several runs say together.

    `measure` leads; None: the paper's ROUGE-L, or NLL where a run is a demonstration. The table is called
    `name` and holds the rows of the paper's table of that name, too, or of Table 1 if that one is not of
    scores. `warnings` are kept with the report. Raises UserError before anything is written if a run is
    damaged, or runs of one model and sequence cannot be compared.
    """
    if measure is not None:
        check_measure(measure)
    check_definition(definition)
    runs = [load_run(folder) for folder in folders]
    leading = measure or leading_measure(any(run.demonstration for run in runs))
    report = Report(runs, [], chosen_prompts(runs), measure=leading, definition=definition, name=name)
    report.warnings += warnings
    _compare(report)
    for run in runs:
        summary = summarize_run(run.path, leading)
        report.metrics.append({name: summary[name] for name in ("metrics", "metrics_common")})
        report.files += summary["files"]
    _write(report, output)
    return report


def _compare(report: Report) -> None:
    """Fills in the table and the correlations, where the runs allow them."""
    variants = prompt_variants(report.runs)
    report.correlations = [
        prompt_effects(group, report.measure) for group in variants if _has_other_tasks(group[0])
    ]
    for_table = []
    for (model, sequence, method, _), policies in grouped(report.runs).items():
        twice = [policy for policy, runs in policies.items() if len({run.seed for run in runs}) < len(runs)]
        for_table += [] if twice else [run for runs in policies.values() for run in runs]
        report.warnings += [
            f"{model} · {sequence} · {method} is not in {report.title}: several {policy} runs have one seed."
            for policy in twice
        ]
    if len(for_table) > 1:
        paper = report.name if report.name in PAPER else "table1"
        report.table = score_table(for_table, report.measure, report.definition, paper=paper)


def _has_other_tasks(run: RunResult) -> bool:
    return len(run.tasks) + len(run.unseen) > 1


def _write(report: Report, output: Path) -> None:
    """Tables, correlations and the page `report.md` in `output`."""
    figures = _draw_correlations(report, output)
    texts = {
        "prompts.csv": report.prompts.to_csv(index=False, lineterminator="\n"),
        "prompts.md": render.prompts_markdown(report.prompts),
        "prompts.tex": render.prompts_latex(report.prompts),
    }
    if report.table:
        texts |= {
            f"{report.name}.csv": render.csv(report.table),
            f"{report.name}.md": "\n".join([render.markdown(report.table), *remarks(report)]),
            f"{report.name}.tex": render.latex(report.table),
        }
    if report.correlations:
        correlations = correlation_table(report.correlations)
        texts[f"correlation_{report.measure}.csv"] = correlations.to_csv(index=False, lineterminator="\n")
    for effects, suffix in _numbered(report):
        scores = effects.scores.to_csv(lineterminator="\n")
        texts[f"prompt_effects_{report.measure}{suffix}.csv"] = scores
    texts["report.md"] = page(report, figures)
    report.files += [write_text(output / name, text) for name, text in texts.items()] + figures


def _numbered(report: Report) -> list[tuple[PromptEffects, str]]:
    """The correlations, each with what ends the names of its files."""
    several = len(report.correlations) > 1
    return [(effects, f"_{n}" if several else "") for n, effects in enumerate(report.correlations, start=1)]


def _draw_correlations(report: Report, output: Path) -> list[Path]:
    """A map for each set of prompts with a defined correlation; a warning says why others have none."""
    maps = [[summarize_map(effects, name) for name in COEFFICIENTS] for effects in report.correlations]
    adjusted = iter(holm([found.p for pair in maps for found in pair]))
    figures = []
    for (effects, suffix), pair in zip(_numbered(report), maps, strict=True):
        captions = {found.coefficient: map_caption(found, next(adjusted)) for found in pair}
        if not pair[0].n_pairs:
            run = effects.run
            where = f"{run.model} · {run.sequence} · {run.method} · seed {run.seed}"
            report.warnings.append(
                f"No correlation map of prompts of {short_name(effects.current)} ({where}): "
                f"{pair[0].mean.reason}."
            )
            continue
        drawing = correlation_heatmap(effects, captions)
        figures += save(drawing, output / f"correlation_{report.measure}{suffix}")
    if figures:
        tests = sum(found.p is not None for pair in maps for found in pair)
        report.notes.append(
            f"Test of a correlation map: {MAP_TEST}; Holm: over the {tests} maps of this report."
        )
    return figures


def remarks(report: Report) -> list[str]:
    """The warnings and the notes as paragraphs of Markdown, the warnings marked as such."""
    return [f"{line}\n" for line in [*(f"Warning: {text}" for text in report.warnings), *report.notes]]


def page(report: Report, figures: Sequence[Path]) -> str:
    """The report as Markdown, with links to the figures beside it."""
    parts = ["# Analysis", "", *(f"- {run.id}: {run.facts}" for run in report.runs), ""]
    if report.table:
        parts += [f"## {report.title}", "", render.markdown(report.table)]
    else:
        for name in shown_measures(report.measure):
            lines = json.dumps([values["metrics"][name] for values in report.metrics], indent=2)
            parts += [f"## AP, BWT, FWT ({name})", "", "```json", lines, "```", ""]
    parts += ["## Prompts", "", render.prompts_markdown(report.prompts)]
    pictures = [path for path in figures if path.suffix == ".png"]
    if pictures:
        parts += ["## Correlation of prompt effects across tasks", ""]
        parts += [f"![{path.stem}]({path.name})\n" for path in pictures]
    return "\n".join([*parts, *remarks(report)])


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
        "notes": [*report.warnings, *report.notes],
    }


def _row_json(row: Row) -> dict[str, Any]:
    cells = {
        metric: {
            "estimate": cell.value,
            "low": cell.low,
            "high": cell.high,
            "n_examples": cell.n,
            "n_seeds": cell.n_seeds,
        }
        if isinstance(cell, Interval)
        else cell
        for metric, cell in row.cells.items()
    }
    return asdict(row) | {"cells": cells}


def _table_json(table: ScoreTable) -> dict[str, Any]:
    return {
        "measure": table.measure,
        "definition": table.definition,
        "rows": [_row_json(row) for group in table.groups for row in group.blocks[0]],
        "more_rows": [_row_json(row) for group in table.groups for rows in group.blocks[1:] for row in rows],
        "notes": table.notes,
    }
