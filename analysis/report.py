"""What runs and probes say together, drawn into a folder: an analysis, or a table or figure of the paper."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from sapo.analysis import correlations as maps
from sapo.analysis import ledger, render, results, tables
from sapo.analysis.claims import decided
from sapo.analysis.evidence import load_evidence
from sapo.analysis.figures import correlation_heatmap, remark, size_figure
from sapo.analysis.intervals import COEFFICIENTS, holm
from sapo.analysis.matrices import summarize_run
from sapo.analysis.metrics import DEFAULT_DEFINITION
from sapo.analysis.page import COMPARISON, Report, html
from sapo.analysis.probes.report import FIGURES, probe_report
from sapo.analysis.published import PAPER
from sapo.analysis.results import DRAWN, leading_measure, load_run
from sapo.conf.errors import UserError
from sapo.conf.text import markdown_safe
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
        results.check_measure(measure)
    runs = [load_run(folder) for folder in folders]
    without = [run.id for run in runs if not run.has(measure or "rougeL")]
    if measure and without:
        reason = "has no labels, or is older" if measure == "label_match" else "evaluator.answers=false"
        raise UserError(f"No {results.MEASURES[measure]} in {', '.join(without)} ({reason}).")
    leading = measure or leading_measure(bool(without) or any(run.demonstration for run in runs))
    report = Report(runs, output, measure=leading, definition=definition, name=name, warnings=[*warnings])
    report.correlations = [
        maps.prompt_effects(group, leading)
        for group in maps.prompt_variants(runs)
        if len(group[0].tasks) + len(group[0].unseen) > 1
    ]
    table = tables.score_table(runs, leading, definition, paper=name if name in PAPER else "table1")
    report.table, report.tables[name] = table, render.score_csv(table)
    prompts = tables.chosen_prompts(runs)
    report.parts, report.prompts = [render.score_terminal(table)], [render.prompts_terminal(prompts)]
    for run in runs:
        summary = summarize_run(run, leading)
        report.files += summary["files"]
        report.metrics.append({part: summary[part] for part in ("metrics", "metrics_common")})
    _draw_maps(report)
    remarks = render.notes_markdown(report.warnings, report.notes)
    texts = render.prompt_texts(prompts)
    markdown = render.markdown(texts)
    report.draw("prompts", None, prompts)
    report.write("prompts.md", markdown)
    report.write("prompts.tex", render.latex(texts, r"llrrrp{0.5\linewidth}"))
    report.draw(name, None, report.tables[name])
    report.write(f"{name}.md", "\n".join([render.score_markdown(table), *remarks]))
    report.write(f"{name}.tex", render.latex(render.score_texts(table), notes=table.notes))
    parts = ["# Analysis", "", *(f"- {markdown_safe(run.id)}: {markdown_safe(run.facts)}" for run in runs)]
    parts += ["", f"## {report.title}", "", render.score_markdown(table)]
    if report.pictures:
        parts += ["## Correlation of prompt effects across tasks", ""]
        parts += [f"![{path.stem}]({path.name})\n" for path in report.pictures]
    report.write("report.md", "\n".join([*parts, *remarks, "## Prompts", "", markdown]))
    return report


def _draw_maps(report: Report) -> None:
    """A map for each set of prompts with a defined correlation; a warning says why others have none."""
    if not report.correlations:
        return
    several, name = len(report.correlations) > 1, f"correlation_{report.measure}"
    report.draw(name, None, maps.correlation_table(report.correlations))
    found = [[maps.summarize_map(each, which) for which in COEFFICIENTS] for each in report.correlations]
    p_values = [summary.p for pair in found for summary in pair]
    adjusted = iter(holm(p_values))
    for place, (effects, pair) in enumerate(zip(report.correlations, found, strict=True), start=1):
        suffix = f"_{place}" if several else ""
        scores = effects.scores.to_csv(lineterminator="\n")
        report.write(f"prompt_effects_{report.measure}{suffix}.csv", scores)
        captions = {summary.coefficient: maps.map_caption(summary, next(adjusted)) for summary in pair}
        if pair[0].n_pairs:
            report.draw(f"{name}{suffix}", correlation_heatmap(effects, captions))
            continue
        report.warnings.append(
            f"No correlation map of prompts of {short_name(effects.current)} ({effects.run.setting}): "
            f"{pair[0].mean.reason}."
        )
    if report.pictures:
        tests = sum(p is not None for p in p_values)
        over = f"Holm: over the {tests} maps of this report"
        report.notes.append(f"Test of a correlation map: {maps.MAP_TEST}; {over}.")


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain JSON values: no NaN, None for what is undefined."""
    return {
        "runs": [
            {"id": run.id, "dir": str(run.path), **metrics}
            for run, metrics in zip(report.runs, report.metrics, strict=True)
        ],
        "table": render.score_json(report.table) if report.table else None,
        "prompts": tables.chosen_prompts(report.runs).to_dict("records"),
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
    if drawing == "claims":
        return claims(target, folders, output, definition, warnings)
    if drawing in FIGURES:
        report = probe_report(folders, [drawing], output, DRAWN, target, warnings)
    elif drawing == "timings":
        # Table 10: wall time with and without selection.
        runs = [load_run(folder) for folder in folders]
        frame, left_out, notes = tables.timings(runs)
        report = Report(runs, output, warnings=[*warnings, *left_out], notes=notes, name=target)
        report.measure = leading_measure(any(run.demonstration for run in runs))
        text, report.tables[target] = tables.timing_text(frame), frame
        where = dict.fromkeys(f"{run.model} · {run.sequence}" for run in runs)
        report.parts.append(render.terminal(text, f"{report.title}: {', '.join(where)}"))
        report.draw(target, None, frame)
        report.finish({report.title: text})
    else:
        report = analyze(folders, output, None, definition, target, warnings)
    if drawing == "pool_sizes" and report.table:
        _draw_sizes(report, report.table)
    report.write("report.html", html(report))
    return report


def _draw_sizes(report: Report, table: tables.ScoreTable) -> None:
    """Figure 15: the table against the size of the pool, drawn for NLL and for ROUGE-L."""
    seeds = sorted({run.seed for run in report.runs})
    is_demonstration = any(run.demonstration for run in report.runs)
    facts = [f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"]
    facts += ["demonstration"] if is_demonstration else []
    points = {measure: tables.size_points(table, measure) for measure in DRAWN}
    for measure in sorted(DRAWN, key=lambda measure: measure != report.measure):
        if not points[measure].empty:
            said = " · ".join(filter(None, [*facts, remark(is_demonstration, measure)]))
            title = f"Size of the prompt pool (bars: 95 % intervals)\n{said}"
            figure = size_figure(points[measure], measure, title)
            report.draw(f"{report.name}_{measure}", figure, points[measure])
    if all(each.empty for each in points.values()):
        report.warnings.append(f"No {report.title}: it needs runs of a policy that chooses from a pool.")
    else:
        report.notes.append("The paper's rows are of 20 paraphrases; of its Figure 15 no values are at hand.")


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
    if absent := [results.measure_name(each) for each in results.NUMBERS if each not in evidence.measures]:
        report.notes.append(
            f"Without {' and '.join(absent)}: nothing was generated (evaluator.answers=false)."
        )
    report.warnings = [*warnings, *([tables.DEMONSTRATION] if evidence.is_demonstration else [])]
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
    for what, frame in report.tables.items():
        report.draw(f"{name}_{what}", None, frame)
    report.finish(shown)
    report.write("badges.md", render.markdown(ledger.badges(found, evidence.measures)))
    report.write("report.html", html(report))
    return report
