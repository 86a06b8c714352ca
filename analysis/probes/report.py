"""The figures of the probe study (the paper's 1 to 14) from finished probes, with their data and tables."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from sapo.analysis.correlations import (
    MAP_TEST,
    PromptEffects,
    correlation_table,
    map_caption,
    pair_interval,
    probe_effects,
    summarize_map,
)
from sapo.analysis.figures import correlation_heatmap, remark, save
from sapo.analysis.files import write_file
from sapo.analysis.intervals import COEFFICIENTS, FEWEST_FOR_INTERVAL, Interval, holm
from sapo.analysis.probes import tables
from sapo.analysis.probes.figures import (
    coefficient_text,
    good_up,
    gradient_figure,
    indicator_figure,
    pairs_figure,
    spread_figure,
)
from sapo.analysis.probes.results import ProbeResult, load_probe, require_poolable, sign_of
from sapo.analysis.probes.statistics import (
    INDICATORS,
    SPREAD_TEST,
    Pooled,
    Power,
    change_rows,
    indicators_of,
    lowest_loss_choice,
    pooled,
    powers,
    spread,
)
from sapo.analysis.render import csv
from sapo.analysis.results import check_measure, leading_measure, measure_name
from sapo.analysis.tables import DEMONSTRATION, NLL_LEADS
from sapo.conf.errors import UserError, unknown
from sapo.data.tasks import short_name


@dataclass
class ProbeReport:
    """What was drawn: the files, and the tables by their titles (cells are ready to print).

    `warnings` say what to beware of and what is left out, `notes` how to read the rest.
    """

    probes: list[ProbeResult]
    output: Path
    files: list[Path] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Adds a warning once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def note(self, text: str) -> None:
        """Adds a note once."""
        if text not in self.notes:
            self.notes.append(text)

    def note_missing(self, where: str, estimate: Interval) -> None:
        """Warns that an estimate has no value, or no interval, and why."""
        if estimate.reason:
            what = "not defined" if estimate.value is None else "no interval"
            self.warn(f"{where}: {what}: {estimate.reason}.")

    def draw(self, name: str, figure: Figure | None, data: pd.DataFrame) -> None:
        """Writes a figure (PNG and PDF) and its data as CSV beside it."""
        if figure is not None:
            self.files += save(figure, self.output / name)
        self.files.append(write_file(self.output / f"{name}.csv", csv(data)))

    def keep(self, name: str, title: str, table: pd.DataFrame) -> None:
        """Keeps a table under its title and writes it as `name`.csv."""
        if len(table):
            self.tables[title] = table
            self.files.append(write_file(self.output / f"{name}.csv", csv(table)))


def _columns(interval: Interval, value: str) -> dict[str, Any]:
    """An interval over prompts as the columns of a data file, its value under the name `value`."""
    numbers = {value: interval.value, "low": interval.low, "high": interval.high}
    return {**numbers, "n_prompts": interval.n, "reason": interval.reason}


def facts(probe: ProbeResult, measure: str) -> str:
    """The line under a figure's title: the probe's facts and the remark."""
    return " · ".join(filter(None, [probe.facts, remark(probe.demonstration, measure)]))


PAPER_NOTE = (
    "The paper's coefficients are of ROUGE-L, for some pairs of tasks and models, and stand beside the "
    "same pair whatever our model; it does not name its three unseen tasks: ours are the first listed."
)


# --- how prompts move tasks, and whether the moves go together (Figures 1 and 2) ---------------------------


def figure1(report: ProbeReport, measures: Sequence[str]) -> None:
    """Figure 1 (5, 6 of the paper): relative changes and spreads, with the test of the spreads."""
    results = [spread(probe, measure) for measure in measures for probe in report.probes]
    adjusted = holm([result.p for result in results])
    for result, p in zip(results, adjusted, strict=True):
        probe, measure = result.probe, result.measure
        test = f"no test: {result.why_no_p}"
        if result.p is not None:
            test = f"in-task {result.in_task.text(2)} %, cross-task {result.cross_task.text(2)} %\n"
            test += f"test that they differ: p = {result.p:.2g}, after Holm {p:.2g} (permutation test)"
        cells = [(task, probe.role(task), cell) for task, cell in result.variation.items()]
        cells += [("cross-task", "cross-task", result.cross_task), ("ratio", "ratio", result.ratio)]
        variations = pd.DataFrame(
            {
                "task": task,
                "role": role,
                "measure": measure,
                **_columns(cell, "coefficient_of_variation"),
            }
            for task, role, cell in cells
        )
        name = f"figure1_{probe.id}_{measure}"
        report.draw(name, spread_figure(result, test, facts(probe, measure)), change_rows(result))
        report.draw(f"{name}_spread", None, variations)
        where = f"{probe.sequence}, {measure_name(measure)}"
        for task, reason in result.no_change.items():
            report.warn(f"{where}, {short_name(task)}: no relative change ({reason}).")
        for what in ("in_task", "cross_task", "ratio"):
            report.note_missing(f"Figure 1, {where}, {what.replace('_', '-')}", getattr(result, what))
    title = "Figure 1: spread over prompts, in-task against cross-task"
    report.keep("figure1", title, tables.spread_table(results))
    report.note(f"Spread: coefficient of variation over prompts. Test of Figure 1: {SPREAD_TEST}.")
    n_tests = sum(result.p is not None for result in results)
    report.note(f"p (Holm) of Figure 1: over the {n_tests} tests of this report.")


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
        where = f"Figure 2, {found.run.sequence}, {measure_name(found.measure)}, {summary.coefficient}"
        report.note_missing(where, summary.mean)
        for reason in summary.undefined if summary.n_pairs else ():
            report.warn(f"Figure 2, {found.run.sequence}, {measure_name(found.measure)}: left out: {reason}.")
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
    report.keep("figure2", "Figure 2: mean correlation between tasks", tables.map_table(maps, adjusted))
    report.keep("figure2_pairs", "Figure 2: the trained task against unseen ones", tables.pair_table(effects))
    report.note(f"Test of Figure 2: {MAP_TEST}. Cells are not tested: a cell rests on one point a prompt.")
    report.note(f"p (Holm) of Figure 2: over the {sum(p is not None for p in adjusted)} maps of this report.")
    report.note(PAPER_NOTE)


def _pairs(probe: ProbeResult, found: PromptEffects) -> Figure:
    shown = [task for key, task in tables.first_pairs(probe).items() if key != "T1"]
    unit = "nats per token; higher is worse" if found.measure == "nll" else "0-100"
    labels = {task: f"{measure_name(found.measure)} of {short_name(task)}\n({unit})" for task in probe.others}
    captions = {
        task: "\n".join(
            coefficient_text(name, pair_interval(found.scores, probe.trained, task, name))
            for name in COEFFICIENTS
        )
        for task in shown
    }
    title = (
        f"{short_name(probe.trained)} (trained before) against unseen tasks, a point a prompt of "
        f"{short_name(probe.current)}\n{facts(probe, found.measure)}"
    )
    return pairs_figure(found.scores[probe.trained], found.scores[shown], labels, captions, title)


# --- what is known before training, against what comes after it (Figures 3 and 4) --------------------------


def figure3(report: ProbeReport, measures: Sequence[str]) -> None:
    """Figure 3 (11-14): indicators before training, and what the lowest loss chooses."""
    found = {(p.id, measure): powers(p, measure) for measure in measures for p in report.probes}
    groups: dict[tuple[str, str], list[ProbeResult]] = {}
    for probe in report.probes:
        groups.setdefault((probe.model, probe.method), []).append(probe)
    for measure in measures:
        for probe in report.probes:
            _draw_probe(report, probe, measure, found[probe.id, measure])
        for who, members in groups.items():
            if len(members) > 1:
                _draw_pooled(report, who, members, [power for p in members for power in found[p.id, measure]])
    pools = [
        (", ".join(who), pooled([power for m in measures for p in members for power in found[p.id, m]]))
        for who, members in groups.items()
    ]
    every = [power for members in found.values() for power in members]
    choices = {(p, m): lowest_loss_choice(p, m) for m in measures for p in report.probes}
    report.keep("figure3", "Figure 3: indicators before training", tables.indicator_table(pools))
    report.keep("figure3_loss", "Figure 3: -loss against scores after training", tables.loss_table(every))
    title = "The prompt of the lowest loss: is it good?"
    report.keep("figure3_choice", title, tables.choice_table(choices))
    for (probe, measure), choice in choices.items():
        for task in () if isinstance(choice, str) else choice.missing:
            where = f"Regret, {probe.sequence}, {measure_name(measure)}"
            report.warn(f"{where}: without {short_name(task)}, which was not evaluated for every prompt.")
    _warn_of_gaps(report, every, pools)
    for note in INDICATOR_NOTES:
        if note is not FLIPPED or "nll" in measures:
            report.note(note)
    report.note(PAPER_NOTE)


FLIPPED = "Correlations with NLL have its sign flipped: positive means that more is better."
INDICATOR_NOTES = (
    "Indicators: " + "; ".join(f"{name}: {what}" for name, what in INDICATORS.items()) + ".",
    "sum_log_prob correlates as -loss does where all prompts are scored on the same target tokens and "
    "their loss is reduced by tokens: it is then a multiple of it.",
    f"Figure 3 has {len(INDICATORS) * len(COEFFICIENTS)} intervals a model and measure, each by itself: "
    "they are not adjusted for their number, and where nothing goes together about one of them lies "
    "beside 0 by chance. The paper's claim is of -loss alone.",
    FLIPPED,
    "Regret: the best prompt's mean score over the tasks that are not current minus that of the prompt "
    "with the lowest loss; beside it that of the original and of a prompt drawn at random. Best is best "
    "on the same test examples, hence a regret errs to the high side. Above the median is strictly above "
    "that of all prompts, the chosen one included; by chance: what a prompt drawn at random would give. "
    "Behind a count over probes stands its share with the exact binomial interval.",
)


def _draw_probe(report: ProbeReport, probe: ProbeResult, measure: str, found: Sequence[Power]) -> None:
    """The indicators of one probe, and a point a prompt of -loss against scores."""
    means = {(power.indicator, power.coefficient): power.mean for power in found}
    points = {
        (power.indicator, power.coefficient): {
            task: cell.value for task, cell in power.by_task.items() if cell.value is not None
        }
        for power in found
    }
    rows = pd.DataFrame(
        {
            **{name: getattr(power, name) for name in ("indicator", "coefficient", "measure")},
            "task": task,
            **_columns(cell, "r"),
        }
        for power in found
        for task, cell in [*power.by_task.items(), ("mean", power.mean)]
    )
    current, line = short_name(probe.current), facts(probe, measure)
    title = f"Indicators of {len(probe.prompts)} prompts of {current} before training\n{line}"
    drawing = indicator_figure(means, points, "a task that is not current", measure, title, "prompts")
    report.draw(f"figure3_{probe.id}_{measure}", drawing, rows)

    scores = sign_of(measure) * probe.outcomes(measure)[list(tables.first_pairs(probe).values())]
    values = indicators_of(probe)
    cells = {power.coefficient: power.by_task for power in found if power.indicator == "-loss"}
    captions = {
        task: "\n".join(coefficient_text(name, cell[task]) for name, cell in cells.items()) for task in scores
    }
    labels = {task: good_up(measure, task) for task in scores}
    labels |= {"-loss": "minus pre-update loss\n(nats per token)"}
    title = f"Pre-update loss of prompts of {current} and scores after training\n{line}"
    drawing = pairs_figure(values["-loss"], scores, labels, captions, title)
    sign = "-" if sign_of(measure) < 0 else ""
    beside = values.join(scores.add_suffix(f" {sign}{measure}")).reset_index()
    report.draw(f"figure3_{probe.id}_{measure}_loss", drawing, beside)


def _draw_pooled(
    report: ProbeReport, who: tuple[str, str], members: Sequence[ProbeResult], every: Sequence[Power]
) -> None:
    """The indicators of several probes of one model and method: a point a pair of tasks."""
    pool = pooled(every)
    means = {(cell.indicator, cell.coefficient): cell.mean for cell in pool}
    points = {(cell.indicator, cell.coefficient): cell.points for cell in pool}
    pairs, measure = len({probe.pair for probe in members}), pool[0].measure
    title = f"Indicators before training over {pairs} pair{'s' if pairs > 1 else ''} of tasks"
    title += f"\n{', '.join(who)}, {len(members)} probes"
    rows = [
        {
            **{name: getattr(cell, name) for name in ("indicator", "coefficient", "measure")},
            "pair": pair,
            "r": value,
        }
        for cell in pool
        for pair, value in [*cell.points.items(), ("mean", cell.mean.value)]
    ]
    drawing = indicator_figure(means, points, "a pair of tasks", measure, title, "pairs")
    names = ["-".join(re.findall(r"[\w.+-]+", name)) for name in who]  # `inscl-lexical` of `inscl (lexical)`
    report.draw("_".join(["figure3", *names, measure]), drawing, pd.DataFrame(rows))


def _warn_of_gaps(
    report: ProbeReport, every: Sequence[Power], pools: Sequence[tuple[str, Sequence[Pooled]]]
) -> None:
    """Why means have no value or no interval, and which tasks they leave out."""
    undefined: dict[str, list[str]] = {}
    for power in every:
        if power.coefficient != COEFFICIENTS[0]:  # what one lacks, both lack
            continue
        if power.mean.value is None:
            gaps = [f"not defined: {power.mean.reason}"]
        else:
            gaps = [f"no interval: {power.mean.reason}"] if power.mean.reason else []
            cells = power.by_task.values()
            gaps += [f"left out of means: {cell.reason}" for cell in cells if cell.value is None]
        for gap in gaps:
            where = f"Figure 3, {power.probe.sequence}, {measure_name(power.measure)}: {gap}"
            undefined.setdefault(where, []).append(power.indicator)
    for text, names in undefined.items():
        report.warn(f"{text} ({'all indicators' if len(names) == len(INDICATORS) else ', '.join(names)}).")
    for who, pool in pools:
        for reason in dict.fromkeys(cell.mean.reason for cell in pool if cell.points and cell.mean.reason):
            report.warn(f"Figure 3, over the pairs of {who}: {reason}.")


def figure4(report: ProbeReport, measures: Sequence[str]) -> None:
    """Figure 4: cosines of gradients, where a probe has them; measures of scores play no part."""
    del measures
    for probe in report.probes:
        if probe.gradients is None or probe.gradients.empty:
            report.warn(f"Figure 4: probe {probe.id} has no gradients; make it again with them.")
            continue
        report.draw(f"figure4_{probe.id}", gradient_figure(probe, probe.gradients), probe.gradients)
    report.keep(
        "figure4", "Figure 4: cosines of gradients by loss rank", tables.gradient_table(report.probes)
    )
    report.note(
        "Figure 4: intervals are over modules (and tasks), which are not independent: they describe these "
        "modules and are no test."
    )


# --- all of them -------------------------------------------------------------------------------------------

FIGURES: dict[str, Callable[[ProbeReport, Sequence[str]], None]] = {
    "figure1": figure1,
    "figure2": figure2,
    "figure3": figure3,
    "figure4": figure4,
}
PROBE_MEASURES = ("nll", "rougeL")
INTERVALS = (
    "In brackets: 95 % intervals over prompts (of a regret: over test examples; of a mean over pairs: over "
    f"pairs), none for fewer than {FEWEST_FOR_INTERVAL}. Of a coefficient of variation, its mean over tasks "
    "and a ratio: jackknife on the logarithm, with Student's t; of all others: percentiles of the bootstrap, "
    "somewhat narrow with few prompts. Those over prompts speak of other prompts for these tasks, model and "
    "seed only."
)


def probe_report(
    folders: Sequence[Path],
    figures: Sequence[str],
    output: Path,
    measures: Sequence[str] = PROBE_MEASURES,
) -> ProbeReport:
    """Draws `figures` (of FIGURES) of the probes in `folders` into `output`, each for every measure.

    Demonstrations lead with NLL, others with the paper's ROUGE-L. Raises UserError, before anything is
    written, for unknown names, damaged probes, and probes of one model and method that cannot be compared.
    """
    for figure in figures:
        if figure not in FIGURES:
            raise unknown("probe figure", figure, FIGURES)
    for measure in measures:
        check_measure(measure)
    if not folders or not figures or not measures:
        raise UserError("Name at least one probe, one figure and one measure.")
    probes = [load_probe(folder) for folder in {folder.resolve(): folder for folder in folders}.values()]
    require_poolable(probes)
    report = ProbeReport(probes, output)
    leads = leading_measure(any(probe.demonstration for probe in probes))
    ordered = sorted(dict.fromkeys(measures), key=lambda measure: measure != leads)
    _notes(report, ordered)
    for figure in dict.fromkeys(figures):
        FIGURES[figure](report, ordered)
    return report


def _notes(report: ProbeReport, measures: Sequence[str]) -> None:
    """What holds for all figures, and what a probe lacks: examples that are left out, runs that failed."""
    if any(probe.demonstration for probe in report.probes):
        report.warn(DEMONSTRATION)
        if len(measures) > 1:
            report.note(NLL_LEADS)
    for probe in report.probes:
        if probe.n_cut:
            n_all = probe.losses["example"].nunique() + probe.n_cut
            report.warn(
                f"Probe {probe.id}: {probe.n_cut} of {n_all} scored examples of {short_name(probe.current)} "
                "are left out of losses and answers: their targets are cut off under some prompt."
            )
        if probe.missing:
            missing = ", ".join(map(str, probe.missing))
            report.warn(
                f"Probe {probe.id} lacks prompt {missing}, whose run failed: the same command tries again."
            )
    pairs = Counter((probe.model, probe.method, probe.pair) for probe in report.probes)
    if max(pairs.values()) > 1:
        report.note(
            "Probes of one pair of tasks (NI-Probe-M1 and M2 share theirs; seeds do too) are averaged to one "
            "where pairs are averaged. Counts over probes and Holm's adjustment count each: the intervals of "
            "such counts are somewhat narrow."
        )
    report.note(INTERVALS)
