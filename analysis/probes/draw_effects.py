"""Figures 1 and 2 of the paper: how prompts move tasks, and whether the moves go together."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from sapo.analysis.correlations import (
    MAP_TEST,
    PromptEffects,
    correlation_table,
    map_caption,
    pair_estimate,
    probe_effects,
    summarize_map,
)
from sapo.analysis.figures import correlation_heatmap, remark
from sapo.analysis.intervals import COEFFICIENTS, holm
from sapo.analysis.probes import tables
from sapo.analysis.probes.figures import coefficient_text, name_of, pairs_figure, spread_figure
from sapo.analysis.probes.output import ProbeReport, facts, note_paper
from sapo.analysis.probes.results import ProbeResult
from sapo.analysis.probes.spread import SPREAD_TEST, Spread, change_rows, spread
from sapo.data.tasks import short_name


def figure1(report: ProbeReport, measures: Sequence[str]) -> None:
    """Figure 1 (5, 6 of the paper): relative changes and spreads, with the test of the spreads."""
    results = [spread(probe, measure) for measure in measures for probe in report.probes]
    adjusted = holm([result.p for result in results])
    for result, p in zip(results, adjusted, strict=True):
        name = f"figure1_{result.probe.id}_{result.measure}"
        drawing = spread_figure(result, _test_line(result, p), facts(result.probe, result.measure))
        report.draw(name, drawing, change_rows(result))
        report.draw(f"{name}_spread", None, _variation_rows(result))
        for task, reason in result.no_change.items():
            who = f"{result.probe.sequence}, {name_of(result.measure)}, {short_name(task)}"
            report.warn(f"{who}: no relative change ({reason}).")
        where = f"Figure 1, {result.probe.sequence}, {name_of(result.measure)}"
        for what in ("in_task", "cross_task", "ratio"):
            report.note_missing(f"{where}, {what.replace('_', '-')}", getattr(result, what))
    report.tell(
        "figure1", "Figure 1: spread over prompts, in-task against cross-task", tables.spread_table(results)
    )
    report.note(f"Spread: coefficient of variation over prompts. Test of Figure 1: {SPREAD_TEST}.")
    report.note(
        f"p (Holm) of Figure 1: over the {sum(r.p is not None for r in results)} tests of this report."
    )


def _test_line(result: Spread, p: float | None) -> str:
    if result.p is None:
        return f"no test: {result.why_no_p}"
    cells = f"in-task {result.in_task.text(2)} %, cross-task {result.cross_task.text(2)} %"
    return f"{cells}\ntest that they differ: p = {result.p:.2g}, after Holm {p:.2g} (permutation test)"


def _variation_rows(result: Spread) -> pd.DataFrame:
    cells = [(t, result.probe.role(t), cell) for t, cell in result.variation.items()]
    cells += [
        (name, name, cell) for name, cell in (("cross-task", result.cross_task), ("ratio", result.ratio))
    ]
    return pd.DataFrame(
        {
            "task": task,
            "role": role,
            "measure": result.measure,
            "coefficient_of_variation": cell.value,
            "low": cell.low,
            "high": cell.high,
            "n_prompts": cell.n,
            "reason": cell.reason,
        }
        for task, role, cell in cells
    )


def figure2(report: ProbeReport, measures: Sequence[str]) -> None:
    """Figure 2 (7-10): correlation maps and scatter plots, with a test a map."""
    effects = [(probe, probe_effects(probe, measure)) for measure in measures for probe in report.probes]
    maps = [
        (probe, found, summarize_map(found, coefficient))
        for probe, found in effects
        for coefficient in COEFFICIENTS
    ]
    adjusted = holm([found.p for *_, found in maps])
    captions: dict[int, dict[str, str]] = {}
    for (_, found, summary), p in zip(maps, adjusted, strict=True):
        captions.setdefault(id(found), {})[summary.coefficient] = map_caption(summary, p)
        where = f"Figure 2, {found.run.sequence}, {name_of(found.measure)}, {summary.coefficient}"
        report.note_missing(where, summary.mean)
        for reason in summary.undefined if summary.n_pairs else ():
            report.warn(f"Figure 2, {found.run.sequence}, {name_of(found.measure)}: left out: {reason}.")
    for probe, found in effects:
        name = f"figure2_{probe.id}_{found.measure}"
        drawing = (
            correlation_heatmap(found, captions[id(found)], remark(probe.demonstration, found.measure))
            if len(found.scores.columns) > 1
            else None
        )
        report.draw(name, drawing, correlation_table([found]))
        if probe.unseen:
            report.draw(f"{name}_pairs", _pairs(probe, found), found.scores.reset_index())
    report.tell("figure2", "Figure 2: mean correlation between tasks", tables.map_table(maps, adjusted))
    report.tell("figure2_pairs", "Figure 2: the trained task against unseen ones", tables.pair_table(effects))
    report.note(f"Test of Figure 2: {MAP_TEST}. Cells are not tested: a cell rests on one point a prompt.")
    report.note(f"p (Holm) of Figure 2: over the {sum(p is not None for p in adjusted)} maps of this report.")
    note_paper(report)


def _pairs(probe: ProbeResult, found: PromptEffects) -> Figure:
    shown = [task for key, task in tables.first_pairs(probe).items() if key != "T1"]
    unit = "nats per token; higher is worse" if found.measure == "nll" else "0-100"
    labels = {task: f"{name_of(found.measure)} of {short_name(task)}\n({unit})" for task in probe.others}
    captions = {
        task: "\n".join(
            coefficient_text(name, pair_estimate(found.scores, probe.trained, task, name))
            for name in COEFFICIENTS
        )
        for task in shown
    }
    title = (
        f"{short_name(probe.trained)} (trained before) against unseen tasks, a point a prompt of "
        f"{short_name(probe.current)}\n{facts(probe, found.measure)}"
    )
    return pairs_figure(found.scores[probe.trained], found.scores[shown], labels, captions, title)
