"""What runs and probes say together, drawn into a folder: an analysis, or a table or figure of the paper."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from sapo.analysis import ledger, render
from sapo.analysis.claims import decided
from sapo.analysis.correlations import (
    MAP_TEST,
    PromptEffects,
    correlation_table,
    map_caption,
    prompt_effects,
    prompt_variants,
    summarize_map,
)
from sapo.analysis.evidence import load_evidence
from sapo.analysis.figures import correlation_heatmap, remark, save, size_figure
from sapo.analysis.intervals import COEFFICIENTS, holm
from sapo.analysis.matrices import summarize_run
from sapo.analysis.metrics import DEFAULT_DEFINITION, check_definition
from sapo.analysis.page import COMPARISON, Report, write_page
from sapo.analysis.probes.report import FIGURES, probe_report
from sapo.analysis.published import PAPER
from sapo.analysis.results import (
    DRAWN,
    MEASURES,
    NUMBERS,
    check_measure,
    leading_measure,
    load_run,
    measure_name,
)
from sapo.analysis.tables import (
    DEMONSTRATION,
    chosen_prompts,
    score_table,
    size_points,
    timing_text,
    timings,
)
from sapo.conf.errors import UserError
from sapo.conf.text import markdown_safe
from sapo.data.files import write_result
from sapo.data.tasks import short_name

# --- runs --------------------------------------------------------------------------------------------------


def analyze(
    folders: Sequence[Path],
    output: Path,
    measure: str | None,
    definition: str,
    name: str = COMPARISON,
    warnings: Sequence[str] = (),
) -> Report:
    """Summarizes each run in its own folder and, into `output`, what several runs say together.

    `measure` leads; without it the paper's ROUGE-L does, or NLL where a run is a demonstration or without
    answers. The table is called `name` and holds the rows of the paper's table of that name, or of Table 1 if
    that one is not of scores; `warnings` are kept with the report. Raises UserError, before anything is
    written, if a run is damaged or has no such measure, or runs that would stand together train other tasks.
    """
    if measure is not None:
        check_measure(measure)
    check_definition(definition)
    runs = [load_run(folder) for folder in folders]
    without = [run.id for run in runs if not run.has(measure or "rougeL")]
    if measure and without:
        reason = "has no labels, or is older" if measure == "label_match" else "evaluator.answers=false"
        raise UserError(f"No {MEASURES[measure]} in {', '.join(without)} ({reason}).")
    leading = measure or leading_measure(bool(without) or any(run.demonstration for run in runs))
    report = Report(runs, output, measure=leading, definition=definition, name=name, warnings=[*warnings])
    report.correlations = [
        prompt_effects(group, leading)
        for group in prompt_variants(runs)
        if len(group[0].tasks) + len(group[0].unseen) > 1
    ]
    paper = name if name in PAPER else "table1"
    report.table = score_table(runs, leading, definition, paper=paper)
    report.tables[name] = render.score_csv(report.table)
    report.parts.append(render.score_terminal(report.table))
    report.prompts.append(render.prompts_terminal(chosen_prompts(runs)))
    for run in runs:
        summary = summarize_run(run, leading)
        report.metrics.append({name: summary[name] for name in ("metrics", "metrics_common")})
        report.files += summary["files"]
    _write(report, output)
    return report


def _write(report: Report, output: Path) -> None:
    """Tables, correlations and the summary `report.md` in `output`."""
    # A map for each set of prompts with a defined correlation; a warning says why others have none.
    maps = [[summarize_map(effects, name) for name in COEFFICIENTS] for effects in report.correlations]
    adjusted = iter(holm([found.p for pair in maps for found in pair]))
    figures: list[Path] = []
    for (effects, suffix), pair in zip(_numbered(report), maps, strict=True):
        captions = {found.coefficient: map_caption(found, next(adjusted)) for found in pair}
        if pair[0].n_pairs:
            drawing = correlation_heatmap(effects, captions)
            figures += save(drawing, output / f"correlation_{report.measure}{suffix}")
            continue
        report.warnings.append(
            f"No correlation map of prompts of {short_name(effects.current)} ({effects.run.setting}): "
            f"{pair[0].mean.reason}."
        )
    if figures:
        tests = sum(found.p is not None for pair in maps for found in pair)
        report.notes.append(
            f"Test of a correlation map: {MAP_TEST}; Holm: over the {tests} maps of this report."
        )
    prompts = chosen_prompts(report.runs)
    prompt_texts = render.prompt_texts(prompts)
    texts = {
        "prompts.csv": render.csv(prompts),
        "prompts.md": render.markdown(prompt_texts, 2, left_last=True),
        "prompts.tex": render.latex(prompt_texts, r"llrrrp{0.5\linewidth}"),
    }
    remarks = render.notes_markdown(report.warnings, report.notes)
    parts = ["# Analysis", ""]
    parts += [*(f"- {markdown_safe(run.id)}: {markdown_safe(run.facts)}" for run in report.runs), ""]
    if report.table:
        table = render.score_markdown(report.table)
        texts |= {
            f"{report.name}.csv": render.csv(report.tables[report.name]),
            f"{report.name}.md": "\n".join([table, *remarks]),
            f"{report.name}.tex": render.latex(render.score_texts(report.table), notes=report.table.notes),
        }
        parts += [f"## {report.title}", "", table]
    if report.correlations:
        texts[f"correlation_{report.measure}.csv"] = render.csv(correlation_table(report.correlations))
        for effects, suffix in _numbered(report):
            scores = effects.scores.to_csv(lineterminator="\n")
            texts[f"prompt_effects_{report.measure}{suffix}.csv"] = scores
    if figures:
        parts += ["## Correlation of prompt effects across tasks", ""]
        parts += [f"![{path.stem}]({path.name})\n" for path in figures if path.suffix == ".png"]
    texts["report.md"] = "\n".join([*parts, *remarks, "## Prompts", "", texts["prompts.md"]])
    report.files += [write_result(output / name, text) for name, text in texts.items()] + figures


def _numbered(report: Report) -> list[tuple[PromptEffects, str]]:
    """The correlations, each with what ends the names of its files."""
    several = len(report.correlations) > 1
    return [(effects, f"_{n}" if several else "") for n, effects in enumerate(report.correlations, start=1)]


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain JSON values: no NaN, None for what is undefined."""
    return {
        "runs": [
            {"id": run.id, "dir": str(run.path), **metrics}
            for run, metrics in zip(report.runs, report.metrics, strict=True)
        ],
        "table": render.score_json(report.table) if report.table else None,
        "prompts": chosen_prompts(report.runs).to_dict("records"),
        "correlations": [
            {
                "runs": {name: getattr(effects.run, name) for name in ("model", "sequence", "method")},
                "seed": effects.run.seed,
                "current_task": effects.current,
                "measure": effects.measure,
                "cells": render.records(effects.correlations),
            }
            for effects in report.correlations
        ],
        "files": list(map(str, report.files)),
        "notes": report.remarks,
    }


# --- the paper's tables and figures ------------------------------------------------------------------------


def draw(
    drawing: str,
    target: str,
    folders: Sequence[Path],
    output: Path,
    definition: str = DEFAULT_DEFINITION,
    warnings: Sequence[str] = (),
) -> Report:
    """A target's `drawing`, as `experiments.targets` names it, of its runs or probes, into `output`.

    `warnings` are what went wrong on the way: they are kept with the rest.
    """
    if drawing in FIGURES:
        report = probe_report(folders, [drawing], output, DRAWN, target, warnings)
    elif drawing == "claims":
        return claims(target, folders, output, definition, warnings)
    elif drawing == "timings":
        # Table 10: wall time with and without selection.
        runs = [load_run(folder) for folder in folders]
        frame, left_out, notes = timings(runs)
        report = Report(runs, output, warnings=[*warnings, *left_out], notes=notes, name=target)
        report.tables[target] = frame
        report.measure = leading_measure(any(run.demonstration for run in runs))
        text = timing_text(frame)
        where = dict.fromkeys(f"{run.model} · {run.sequence}" for run in runs)
        report.parts.append(render.terminal(text, f"{report.title}: {', '.join(where)}"))
        report.finish({target: frame}, {report.title: text})
    else:
        report = analyze(folders, output, None, definition, target, warnings)
    if drawing == "pool_sizes":
        _draw_sizes(report)
    report.files.append(write_page(report, output))
    return report


def _draw_sizes(report: Report) -> None:
    """Figure 15: the table against the size of the pool, drawn for NLL and for ROUGE-L."""
    seeds = sorted({run.seed for run in report.runs})
    is_demonstration = any(run.demonstration for run in report.runs)
    n_before = len(report.files)
    for measure in sorted(DRAWN, key=lambda measure: measure != report.measure):
        points = pd.DataFrame() if report.table is None else size_points(report.table, measure)
        if points.empty:
            continue
        facts = [
            f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}",
            "demonstration" if is_demonstration else "",
            remark(is_demonstration, measure),
        ]
        title = f"Size of the prompt pool (bars: 95 % intervals)\n{' · '.join(filter(None, facts))}"
        report.draw(f"{report.name}_{measure}", size_figure(points, measure, title), points)
    if len(report.files) > n_before:
        report.notes.append("The paper's rows are of 20 paraphrases; of its Figure 15 no values are at hand.")
    else:
        report.warnings.append(f"No {report.title}: it needs runs of a policy that chooses from a pool.")


def claims(
    name: str, folders: Sequence[Path], output: Path, definition: str, warnings: Sequence[str] = ()
) -> Report:
    """The paper's claims with their verdicts, and pair by pair what lies behind them, of runs and probes.

    Beside the files called `name` lies `badges.md`, a short table for a README.
    """
    evidence = load_evidence(folders, definition)
    found = decided(evidence.probes, evidence.contrasts, evidence.measures)
    found = [replace(claim, paper=evidence.paper_of(claim)) for claim in found]
    pairs = ledger.pair_table(evidence.probes, evidence.measures)
    report = Report([], output, definition=definition, name=name, notes=[*ledger.NOTES])
    if absent := [measure_name(each) for each in NUMBERS if each not in evidence.measures]:
        report.notes.append(
            f"Without {' and '.join(absent)}: nothing was generated (evaluator.answers=false)."
        )
    report.warnings = [*warnings, *([DEMONSTRATION] if evidence.is_demonstration else [])]
    report.tables = {"claims": pd.DataFrame([asdict(each) for each in found]), "pairs": pairs}
    shown = {"The paper's claims": ledger.claim_texts(found)}
    report.parts = [
        render.terminal(rows.drop(columns=["id", "claim"]), f"({key}) {rows['claim'].iloc[0]}")
        for key, rows in shown["The paper's claims"].groupby("id", sort=False)
    ]
    if len(pairs):
        report.notes.insert(0, ledger.exploratory(pairs))
        shown["Exploratory, pair by pair"] = texts = ledger.as_texts(pairs)
        few = texts[texts["measure"] == "nll"].drop(columns=["kind", "probe", "prompts", "measure"])
        report.parts.append(render.terminal(few, "Exploratory, pair by pair, NLL (files have all measures)"))
    report.finish({f"{name}_{what}": frame for what, frame in report.tables.items()}, shown, n_left=3)
    badges = render.markdown(ledger.badges(found, evidence.measures))
    report.files.append(write_result(output / "badges.md", badges))
    report.files.append(write_page(report, output))
    return report
