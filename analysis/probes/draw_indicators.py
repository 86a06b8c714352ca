"""Figures 3 and 4 of the paper: what is known before training, against what comes after it."""

import re
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from sapo.analysis.intervals import COEFFICIENTS, Interval
from sapo.analysis.probes import tables
from sapo.analysis.probes.figures import (
    coefficient_text,
    good_up,
    gradient_figure,
    indicator_figure,
    name_of,
    pairs_figure,
)
from sapo.analysis.probes.indicators import (
    INDICATORS,
    Pooled,
    Power,
    indicators_of,
    lowest_loss_choice,
    pooled,
    powers,
)
from sapo.analysis.probes.output import ProbeReport, facts, note_paper
from sapo.analysis.probes.results import ProbeResult, sign_of
from sapo.data.tasks import short_name


def figure3(report: ProbeReport, measures: Sequence[str]) -> None:
    """Figure 3 (11-14): indicators before training, and what the lowest loss chooses."""
    found = {(p.id, measure): powers(p, measure) for measure in measures for p in report.probes}
    groups: dict[tuple[str, str], list[ProbeResult]] = {}
    for probe in report.probes:
        groups.setdefault((probe.model, probe.method), []).append(probe)
    for measure in measures:
        for probe in report.probes:
            _draw_indicators(report, probe, measure, found[probe.id, measure])
        for (model, method), members in groups.items():
            if len(members) > 1:
                every = [power for probe in members for power in found[probe.id, measure]]
                _draw_pooled(report, (model, method), members, measure, every)
    pools = [
        (f"{model}, {method}", pooled([power for m in measures for p in members for power in found[p.id, m]]))
        for (model, method), members in groups.items()
    ]
    every = [power for members in found.values() for power in members]
    choices = {(p, m): lowest_loss_choice(p, m) for m in measures for p in report.probes}
    report.tell("figure3", "Figure 3: indicators before training", tables.indicator_table(pools))
    report.tell("figure3_loss", "Figure 3: -loss against scores after training", tables.loss_table(every))
    report.tell(
        "figure3_choice",
        "The prompt of the lowest loss: is it good?",
        tables.choice_table(choices),
    )
    for (probe, measure), choice in choices.items():
        for task in () if isinstance(choice, str) else choice.missing:
            where = f"Regret, {probe.sequence}, {name_of(measure)}"
            report.warn(f"{where}: without {short_name(task)}, which was not evaluated for every prompt.")
    _indicator_notes(report, every, pools, measures)


def _draw_indicators(report: ProbeReport, probe: ProbeResult, measure: str, found: Sequence[Power]) -> None:
    means = {(power.indicator, power.coefficient): power.mean for power in found}
    points = {
        (power.indicator, power.coefficient): {
            task: cell.value for task, cell in power.by_task.items() if cell.value is not None
        }
        for power in found
    }
    title = f"Indicators of {len(probe.prompts)} prompts of {short_name(probe.current)} before training\n"
    title += f"{facts(probe, measure)}\n{_what(means, 'prompts')}"
    drawing = indicator_figure(means, points, "a task that is not current", measure, title)
    report.draw(f"figure3_{probe.id}_{measure}", drawing, _power_rows(found))
    shown = list(tables.first_pairs(probe).values())
    scores = sign_of(measure) * probe.outcomes(measure)[shown]
    values = indicators_of(probe)
    report.draw(
        f"figure3_{probe.id}_{measure}_loss",
        _loss_scatter(probe, measure, values["-loss"], scores, found),
        values.join(scores.add_suffix(f" {'-' if sign_of(measure) < 0 else ''}{measure}")).reset_index(),
    )


def _loss_scatter(
    probe: ProbeResult, measure: str, loss: pd.Series, scores: pd.DataFrame, found: Sequence[Power]
) -> Figure:
    cells = {power.coefficient: power.by_task for power in found if power.indicator == "-loss"}
    captions = {
        task: "\n".join(coefficient_text(name, cell[task]) for name, cell in cells.items()) for task in scores
    }
    labels = {task: good_up(measure, task) for task in scores}
    labels |= {"-loss": "minus pre-update loss\n(nats per token)"}
    title = f"Pre-update loss of prompts of {short_name(probe.current)} and scores after training"
    title += f"\n{facts(probe, measure)}"
    return pairs_figure(loss, scores, labels, captions, title)


def _what(means: Mapping[tuple[str, str], Interval], unit: str) -> str:
    """What the error bars are, or that there are none."""
    if all(mean.value is None for mean in means.values()):
        return "no correlation is defined"
    has = any(mean.low is not None for mean in means.values())
    return f"intervals over {unit}" if has else f"too few {unit} for an interval"


def _power_rows(found: Sequence[Power]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "indicator": power.indicator,
            "coefficient": power.coefficient,
            "measure": power.measure,
            "task": task,
            "r": cell.value,
            "low": cell.low,
            "high": cell.high,
            "n_prompts": cell.n,
            "reason": cell.reason,
        }
        for power in found
        for task, cell in [*power.by_task.items(), ("mean", power.mean)]
    )


def _draw_pooled(
    report: ProbeReport,
    who: tuple[str, str],
    members: Sequence[ProbeResult],
    measure: str,
    every: Sequence[Power],
) -> None:
    pool = pooled(every)
    means = {(cell.indicator, cell.coefficient): cell.mean for cell in pool}
    points = {(cell.indicator, cell.coefficient): cell.points for cell in pool}
    pairs = len({probe.pair for probe in members})
    title = f"Indicators before training over {pairs} pair{'s' if pairs > 1 else ''} of tasks"
    title += f"\n{', '.join(who)}, {len(members)} probes"
    title += f"\n{_what(means, 'pairs')}"
    rows = [
        {
            "indicator": cell.indicator,
            "coefficient": cell.coefficient,
            "measure": measure,
            "pair": pair,
            "r": value,
        }
        for cell in pool
        for pair, value in [*cell.points.items(), ("mean", cell.mean.value)]
    ]
    drawing = indicator_figure(means, points, "a pair of tasks", measure, title)
    report.draw("_".join(["figure3", *map(_file_part, who), measure]), drawing, pd.DataFrame(rows))


def _file_part(name: str) -> str:
    """`inscl-lexical` of `inscl (lexical)`."""
    return "-".join(re.findall(r"[\w.+-]+", name))


def _gaps(power: Power) -> Iterator[str]:
    """Why a mean has no value or no interval, and which tasks it leaves out."""
    if power.mean.value is None:
        yield f"not defined: {power.mean.reason}"
        return
    if power.mean.reason:
        yield f"no interval: {power.mean.reason}"
    for cell in power.by_task.values():
        if cell.value is None:
            yield f"left out of means: {cell.reason}"


def _indicator_notes(
    report: ProbeReport,
    every: Sequence[Power],
    pools: Sequence[tuple[str, Sequence[Pooled]]],
    measures: Sequence[str],
) -> None:
    undefined: dict[str, list[str]] = {}
    for power in every:
        if power.coefficient == COEFFICIENTS[0]:  # what one lacks, both lack
            where = f"Figure 3, {power.probe.sequence}, {name_of(power.measure)}"
            for gap in _gaps(power):
                undefined.setdefault(f"{where}: {gap}", []).append(power.indicator)
    for text, names in undefined.items():
        report.warn(f"{text} ({'all indicators' if len(names) == len(INDICATORS) else ', '.join(names)}).")
    for who, pool in pools:
        reasons = dict.fromkeys(cell.mean.reason for cell in pool if cell.points and cell.mean.reason)
        for reason in reasons:
            report.warn(f"Figure 3, over the pairs of {who}: {reason}.")
    report.note("Indicators: " + "; ".join(f"{name}: {what}" for name, what in INDICATORS.items()) + ".")
    report.note(
        "sum_log_prob correlates as -loss does where all prompts are scored on the same target tokens and "
        "their loss is reduced by tokens: it is then a multiple of it."
    )
    report.note(
        f"Figure 3 has {len(INDICATORS) * len(COEFFICIENTS)} intervals a model and measure, each by itself: "
        "they are not adjusted for their number, and where nothing goes together about one of them lies "
        "beside 0 by chance. The paper's claim is of -loss alone."
    )
    if "nll" in measures:
        report.note("Correlations with NLL have its sign flipped: positive means that more is better.")
    report.note(
        "Regret: the best prompt's mean score over the tasks that are not current minus that of the prompt "
        "with the lowest loss; beside it that of the original and of a prompt drawn at random. Best is best "
        "on the same test examples, hence a regret errs to the high side. Above the median is strictly above "
        "that of all prompts, the chosen one included; by chance: what a prompt drawn at random would give. "
        "Behind a count over probes stands its share with the exact binomial interval."
    )
    note_paper(report)


def figure4(report: ProbeReport, measures: Sequence[str]) -> None:
    """Figure 4: cosines of gradients, where a probe has them; measures of scores play no part."""
    del measures
    for probe in report.probes:
        if probe.gradients is None or probe.gradients.empty:
            report.warn(f"Figure 4: probe {probe.id} has no gradients; make it again with them.")
            continue
        report.draw(f"figure4_{probe.id}", gradient_figure(probe, probe.gradients), probe.gradients)
    report.tell(
        "figure4", "Figure 4: cosines of gradients by loss rank", tables.gradient_table(report.probes)
    )
    report.note(
        "Figure 4: intervals are over modules (and tasks), which are not independent: they describe these "
        "modules and are no test."
    )
