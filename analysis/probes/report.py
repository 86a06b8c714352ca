"""The figures of the probe study (the paper's 1 to 14) from finished probes, with their data and tables."""

import re
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import pandas as pd

from sapo.analysis import correlations as maps
from sapo.analysis.figures import correlation_heatmap, remark
from sapo.analysis.intervals import COEFFICIENTS, FEWEST_FOR_INTERVAL, Interval, holm, lone_row, mean_interval
from sapo.analysis.page import Report
from sapo.analysis.probes import figures, statistics
from sapo.analysis.probes.results import ProbeResult, load_probe, prompt_name, require_poolable
from sapo.analysis.probes.statistics import INDICATORS, Choice, Power
from sapo.analysis.published import paper_csv, plain
from sapo.analysis.render import NONE, terminal
from sapo.analysis.results import DRAWN, LOWER_IS_BETTER, check_measure, leading_measure, measure_name
from sapo.analysis.tables import DEMONSTRATION, NLL_LEADS
from sapo.conf.errors import UserError
from sapo.data.prompts import ORIGINAL
from sapo.data.tasks import short_name

Row = dict[str, object]
PAPER_NOTE = (
    "The paper's coefficients are of ROUGE-L, for some pairs of tasks and models, and stand beside the "
    "same pair whatever our model; it does not name its three unseen tasks: ours are the first listed."
)


def _who(probe: ProbeResult, measure: str = "") -> Row:
    """The first cells of a row, of scores in `measure`."""
    who = {"probe": f"{probe.sequence}, seed {probe.seed}", "model, method": f"{probe.model}, {probe.method}"}
    return {**who, **({"measure": measure_name(measure)} if measure else {})}


def _columns(interval: Interval, value: str, **about: str) -> Row:
    """An interval over prompts as the columns of a data file, its value under the name `value`."""
    numbers = {value: interval.value, "low": interval.low, "high": interval.high}
    return {**about, **numbers, "n_prompts": interval.n, "reason": interval.reason}


def _gap(interval: Interval) -> str:
    """Why an estimate has no value, or no interval; empty where it has both."""
    what = "not defined" if interval.value is None else "no interval"
    return f"{what}: {interval.reason}" if interval.reason else ""


def _p_text(p: float | None) -> str:
    return NONE if p is None else f"{p:.2g}"


def _facts(probe: ProbeResult, measure: str) -> str:
    """The line under a figure's title: the probe's facts and the remark."""
    return " · ".join(filter(None, [probe.facts, remark(probe.demonstration, measure)]))


def first_pairs(probe: ProbeResult) -> dict[str, str]:
    """The tasks that scatter plots show, by the paper's names: the trained one, and three unseen ones."""
    shown = probe.unseen[:3]
    return {"T1": probe.trained} | {f"T3_{place}": task for place, task in enumerate(shown, start=1)}


def paper_values(figure: str, probe: ProbeResult, measure: str, coefficient: str, key: str) -> Row:
    """The paper's coefficients by model; a dash where it has none, or for a measure that it does not have."""
    paper = paper_csv(f"{figure}_correlations")
    *_, task, _, value = paper.columns
    rows = paper[(paper["sequence"].map(plain) == plain(probe.sequence)) & (paper[task] == key)]
    rows = rows[(rows["coefficient"] == coefficient) & (measure == "rougeL")].set_index("model")[value]
    return {f"paper: {m}": f"{rows[m]:.2f}" if m in rows else NONE for m in paper["model"].unique()}


# --- how prompts move tasks, and whether the moves go together (Figures 1 and 2) ---------------------------


def figure1(report: Report, probes: Sequence[ProbeResult], measures: Sequence[str]) -> None:
    """Figure 1 (5, 6 of the paper): relative changes and spreads, with the test of the spreads."""
    results = [statistics.spread(probe, measure) for measure in measures for probe in probes]
    adjusted, rows = holm([result.p for result in results]), []
    for result, p in zip(results, adjusted, strict=True):
        probe, measure = result.probe, result.measure
        in_task, cross_task = result.in_task.text(2), result.cross_task.text(2)
        test = f"no test: {result.why_no_p}"
        if result.p is not None:
            test = f"in-task {in_task} %, cross-task {cross_task} %\n"
            test += f"test that they differ: p = {result.p:.2g}, after Holm {p:.2g} (permutation test)"
        name = f"figure1_{probe.id}_{measure}"
        drawing = figures.spread_figure(result, test, _facts(probe, measure))
        report.draw(name, drawing, statistics.change_rows(result))
        cells = result.variation | {"cross-task": result.cross_task, "ratio": result.ratio}
        roles = {task: probe.role(task) if task in result.variation else task for task in cells}
        variations = [
            _columns(cell, "coefficient_of_variation", task=task, role=roles[task], measure=measure)
            for task, cell in cells.items()
        ]
        report.draw(f"{name}_spread", None, pd.DataFrame(variations))
        usable = [task for task in probe.others if result.variation[task].value is not None]
        rows.append(
            _who(probe, measure)
            | {"in-task CV (%)": in_task, "cross-task CV (%)": cross_task, "cross / in": result.ratio.text(2)}
            | {"p": result.why_no_p or _p_text(result.p), "p (Holm)": _p_text(p)}
            | {"prompts": len(result.changes), "other tasks": len(usable)}
        )
        # Which changes and intervals are not there, and which intervals a single prompt makes.
        where, scores = f"{probe.sequence}, {measure_name(measure)}", probe.outcomes(measure)
        for task, reason in result.no_change.items():
            report.warnings.append(f"{where}, {short_name(task)}: no relative change ({reason}).")
        of_tasks = [(short_name(task), [task], cell) for task, cell in result.variation.items()]
        for what, tasks, cell in [*of_tasks, ("cross-task", usable, result.cross_task)]:
            if alone := lone_row(scores[tasks].to_numpy(dtype=float), statistics.mean_variation, cell):
                prompt, without = prompt_name(int(scores.index[alone[0]])), alone[1]
                rest = f"it is {without.text(2)} %" if without.value else "nothing varies"
                report.warnings.append(
                    f"Figure 1, {where}, {what}: {prompt} alone makes the coefficient of "
                    f"variation what it is, {cell.text(2)} %: {rest} without it."
                )
        whole = {"in-task": result.in_task, "cross-task": result.cross_task, "ratio": result.ratio}
        gaps = [f"{what}: {gap}" for what, cell in whole.items() if (gap := _gap(cell))]
        report.warnings += [f"Figure 1, {where}, {gap}." for gap in gaps]
    report.keep("figure1", "Figure 1: spread over prompts, in-task against cross-task", rows)
    n_tests = sum(result.p is not None for result in results)
    report.notes += [
        f"Spread: coefficient of variation over prompts. Test of Figure 1: {statistics.SPREAD_TEST}.",
        f"p (Holm) of Figure 1: over the {n_tests} tests of this report.",
    ]


def figure2(report: Report, probes: Sequence[ProbeResult], measures: Sequence[str]) -> None:
    """Figure 2 (7-10): correlation maps and scatter plots, with a test a map."""
    effects = [(probe, maps.probe_effects(probe, m)) for m in measures for probe in probes]
    summaries = [maps.summarize_map(found, name) for _, found in effects for name in COEFFICIENTS]
    adjusted = holm([found.p for found in summaries])
    tests, rows, pairs = iter(zip(summaries, adjusted, strict=True)), [], []
    for probe, found in effects:
        where, captions = f"Figure 2, {probe.sequence}, {measure_name(found.measure)}", {}
        for summary, p in (next(tests) for _ in COEFFICIENTS):
            captions[summary.coefficient] = maps.map_caption(summary, p)
            if gap := _gap(summary.mean):
                report.warnings.append(f"{where}, {summary.coefficient}: {gap}.")
            for reason in summary.undefined if summary.n_pairs else ():
                report.warnings.append(f"{where}: left out: {reason}.")
            row = _who(probe, found.measure) | {"coefficient": summary.coefficient.capitalize()}
            row |= {"mean off the diagonal": summary.mean.text(), "p": _p_text(summary.p)}
            row |= {
                "p (Holm)": _p_text(p),
                "pairs of tasks": f"{summary.n_pairs} of {len(found.correlations)}",
            }
            rows.append(row | {"prompts": len(found.scores)})
        line = remark(probe.demonstration, found.measure)
        drawing = correlation_heatmap(found, captions, line) if probe.unseen else None
        report.draw(f"figure2_{probe.id}_{found.measure}", drawing, maps.correlation_table([found]))
        if probe.unseen:
            pairs += _pairs(report, probe, found)
    report.keep("figure2", "Figure 2: mean correlation between tasks", rows)
    report.keep("figure2_pairs", "Figure 2: the trained task against unseen ones", pairs)
    report.notes += [
        f"Test of Figure 2: {maps.MAP_TEST}. Cells are not tested: a cell rests on one point a prompt.",
        f"p (Holm) of Figure 2: over the {sum(p is not None for p in adjusted)} maps of this report.",
        PAPER_NOTE,
    ]


def _pairs(report: Report, probe: ProbeResult, found: maps.PromptEffects) -> list[Row]:
    """Draws the trained task against the first unseen ones; their rows with the paper's coefficients."""
    measure, trained = found.measure, probe.trained
    shown = {key: task for key, task in first_pairs(probe).items() if key != "T1"}
    cells = {
        (name, task): maps.pair_interval(found.scores, trained, task, name)
        for name in COEFFICIENTS
        for task in shown.values()
    }
    labels = {task: figures.axis_label(measure, task) for task in probe.others}
    title = f"{short_name(trained)} (trained before) against unseen tasks, a point a prompt of "
    title += f"{short_name(probe.current)}\n{_facts(probe, measure)}"
    scores = found.scores[list(shown.values())]
    drawing = figures.pairs_figure(found.scores[trained], scores, labels, cells, title)
    report.draw(f"figure2_{probe.id}_{measure}_pairs", drawing, found.scores.reset_index())
    return [
        _who(probe, measure)
        | {"tasks": f"{short_name(trained)} / {short_name(task)}", "coefficient": name.capitalize()}
        | {"ours": cells[name, task].text(), "prompts": len(found.scores)}
        | paper_values("figure2", probe, measure, name, key)
        for name in COEFFICIENTS
        for key, task in shown.items()
    ]


# --- what is known before training, against what comes after it (Figures 3 and 4) --------------------------

FLIPPED = "Correlations with NLL have its sign flipped: positive means that more is better."
INDICATOR_NOTES = (
    "Indicators: " + "; ".join(f"{name}: {what}" for name, what in INDICATORS.items()) + ".",
    "sum_log_prob correlates as -loss does where all prompts are scored on the same target tokens and "
    "their loss is reduced by tokens: it is then a multiple of it.",
    "Intervals of Figure 3 stand each by itself: they are not adjusted for their number, and where nothing "
    "goes together about one in twenty lies beside 0 by chance. The paper's claim is of -loss alone.",
    "Regret: the best prompt's mean score over the tasks that are not current minus that of the prompt "
    "with the lowest loss; beside it that of the original and of a prompt drawn at random. Best is best "
    "on the same test examples, hence a regret errs to the high side.",
    "Gain: the mean score over the tasks that are not current, good up, of the prompt of the lowest loss "
    "minus that of a random one: exact over all pools of a size; the mean over "
    f"{statistics.SUBSETS} draws of so many scored rows.",
)


def figure3(report: Report, probes: Sequence[ProbeResult], measures: Sequence[str]) -> None:
    """Figure 3 (11-14): indicators before training, and what the lowest loss chooses."""
    found = {(p, measure): statistics.powers(p, measure) for measure in measures for p in probes}
    losses = []
    for (probe, measure), powers in found.items():
        of_loss = {power.coefficient: power for power in powers if power.indicator == "-loss"}
        _draw_probe(report, probe, measure, powers, of_loss)
        first, where = of_loss[COEFFICIENTS[0]], f"Figure 3, {probe.sequence}, {measure_name(measure)}"
        lost = [cell.reason for cell in first.cells.values() if first.points and cell.value is None]
        gaps = [_gap(first.mean), *(f"left out of means: {reason}" for reason in lost)]
        report.warnings += [f"{where}: {gap}." for gap in gaps if gap]
        losses += [
            _who(probe, measure)
            | {"task": short_name(task), "coefficient": coefficient.capitalize()}
            | {"ours": power.cells[task].text(), "prompts": power.cells[task].n}
            | paper_values("figure3", probe, measure, coefficient, key)
            for coefficient, power in of_loss.items()
            for key, task in first_pairs(probe).items()
        ]
    known = {power.indicator for powers in found.values() for power in powers}
    if lacking := [name for name in INDICATORS if name not in known]:
        why = "nothing was generated (evaluator.answers=false)"
        report.warnings.append(f"Figure 3: without the indicators {' and '.join(lacking)}: {why}.")
    rows = []
    for who in dict.fromkeys((probe.model, probe.method) for probe in probes):
        members = [probe for probe in probes if (probe.model, probe.method) == who]
        for measure in measures:
            rows += _pool(report, who, members, [power for p in members for power in found[p, measure]])
    report.keep("figure3", "Figure 3: indicators before training", rows)
    report.keep("figure3_loss", "Figure 3: -loss against scores after training", losses)
    choices = {key: statistics.lowest_loss_choice(*key) for key in found}
    report.keep("figure3_choice", "The prompt of the lowest loss: is it good?", choice_rows(choices))
    sizes = []
    for (probe, measure), choice in choices.items():
        if isinstance(choice, str):
            continue
        where = f"Regret, {probe.sequence}, {measure_name(measure)}"
        why = "which was not evaluated for every prompt"
        report.warnings += [f"{where}: without {short_name(task)}, {why}." for task in choice.missing]
        sizes += [
            _who(probe, measure)
            | {"prompts": f"{row.prompts}", "scored rows": f"{row.rows}"}
            | {"gain": f"{row.gain:+.3f}", "of the best prompt": f"{row.best:+.3f}"}
            for row in statistics.smaller_choices(probe, measure).itertuples()
        ]
    report.keep("figure3_sizes", "Fewer prompts or scored rows: what the lowest loss gains", sizes)
    report.notes += [*INDICATOR_NOTES, *([FLIPPED] if "nll" in measures else []), PAPER_NOTE]


def _draw_probe(
    report: Report, probe: ProbeResult, measure: str, powers: Sequence[Power], of_loss: dict[str, Power]
) -> None:
    """The indicators of one probe, and a point a prompt of -loss against scores."""
    rows = [
        _columns(cell, "r", indicator=p.indicator, coefficient=p.coefficient, measure=measure, task=task)
        for p in powers
        for task, cell in [*p.cells.items(), ("mean", p.mean)]
    ]
    name, current, line = f"figure3_{probe.id}_{measure}", short_name(probe.current), _facts(probe, measure)
    title = f"Indicators of {len(probe.prompts)} prompts of {current} before training\n{line}"
    drawing = figures.indicator_figure(powers, "a task that is not current", title, "prompts")
    report.draw(name, drawing, pd.DataFrame(rows))
    scores = probe.good(measure)[list(first_pairs(probe).values())]
    values = statistics.indicators_of(probe)
    cells = {(which, task): power.cells[task] for which, power in of_loss.items() for task in scores}
    labels = {task: figures.axis_label(measure, task, good_up=True) for task in scores}
    labels |= {"-loss": "minus pre-update loss\n(nats per token)"}
    title = f"Pre-update loss of prompts of {current} and scores after training\n{line}"
    drawing = figures.pairs_figure(values["-loss"], scores, labels, cells, title)
    sign = "-" if measure in LOWER_IS_BETTER else ""
    report.draw(f"{name}_loss", drawing, values.join(scores.add_suffix(f" {sign}{measure}")).reset_index())


def _pool(
    report: Report, who: tuple[str, str], members: Sequence[ProbeResult], powers: Sequence[Power]
) -> list[Row]:
    """The indicators of the probes of one model and method: drawn if there are several; a row each."""
    pool, measure, both = statistics.pooled(powers), powers[0].measure, ", ".join(who)
    if len(members) > 1:
        n_pairs = len({probe.pair for probe in members})
        title = f"Indicators before training over {n_pairs} pair{'s' if n_pairs > 1 else ''} of tasks"
        title += f"\n{both}, {len(members)} probes"
        points = [
            (cell.indicator, cell.coefficient, measure, pair, value)
            for cell in pool
            for pair, value in [*cell.points.items(), ("mean", cell.mean.value)]
        ]
        drawing = figures.indicator_figure(pool, "a pair of tasks", title, "pairs")
        # `inscl-lexical` of `inscl (lexical)`
        names = ["-".join(re.findall(r"[\w.+-]+", name)) for name in who]
        frame = pd.DataFrame(points, columns=["indicator", "coefficient", "measure", "pair", "r"])
        report.draw("_".join(["figure3", *names, measure]), drawing, frame)
        for reason in dict.fromkeys(cell.mean.reason for cell in pool if cell.points and cell.mean.reason):
            report.warnings.append(f"Figure 3, over the pairs of {both}: {reason}.")
    rows: dict[str, Row] = {}
    for cell in pool:
        about: Row = {"model, method": both, "measure": measure_name(measure), "indicator": cell.indicator}
        row = rows.setdefault(cell.indicator, about | {name.capitalize(): "" for name in COEFFICIENTS})
        row[cell.coefficient.capitalize()] = cell.mean.text()
        own = [p for p in powers if (p.indicator, p.coefficient) == (cell.indicator, cell.coefficient)]
        n_defined, n_tasks = sum(len(power.points) for power in own), sum(len(power.cells) for power in own)
        row |= {"pairs": len(cell.points), "tasks": f"{n_defined} of {n_tasks}"}
    return list(rows.values())


def choice_rows(choices: dict[tuple[ProbeResult, str], Choice | str]) -> list[Row]:
    """What the lowest loss chooses, by probe and measure: a row each, and over a model's and method's."""
    rows: list[Row] = []
    for measure, of_measure in groupby(choices.items(), key=lambda item: item[0][1]):
        digits = 3 if measure in LOWER_IS_BETTER else 2
        groups: dict[tuple[str, str], list[Choice]] = {}
        for (probe, _), choice in of_measure:
            row = _who(probe, measure)
            if isinstance(choice, str):
                row["best"] = choice
            else:
                row |= {"lowest loss": prompt_name(choice.chosen), "best": prompt_name(choice.best)}
                row |= {"regret": choice.regret.text(digits)}
                row |= {"of the original": f"{choice.of_original:.{digits}f}"}
                row |= {"of a random prompt": f"{choice.of_random:.{digits}f}"}
                groups.setdefault((probe.model, probe.method), []).append(choice)
            rows.append(row | {"prompts": str(len(probe.prompts))})
        for members in groups.values():
            # Each pair of tasks counts once, as the mean of its probes.
            values = [(found.regret.value, found.of_original, found.of_random) for found in members]
            frame = pd.DataFrame(values, columns=["regret", "of the original", "of a random prompt"])
            by_pair = frame.groupby([found.probe.pair for found in members], sort=False).mean()
            n_pairs = f"{len(by_pair)} pair{'s' if len(by_pair) > 1 else ''}"
            row = _who(members[0].probe, measure) | {"probe": f"{len(members)} probes of {n_pairs}"}
            row |= {name: mean_interval(list(by_pair[name]), "pairs").text(digits) for name in by_pair}
            rows += [row] if len(members) > 1 else []
    return rows


def figure4(report: Report, probes: Sequence[ProbeResult], _: Sequence[str]) -> None:
    """Figure 4: cosines of gradients, where a probe has them; measures of scores play no part."""
    rows = []
    for probe in probes:
        if probe.gradients is None or probe.gradients.empty:
            report.warnings.append(f"Figure 4: probe {probe.id} has no gradients; make it again with them.")
            continue
        report.draw(f"figure4_{probe.id}", figures.gradient_figure(probe, probe.gradients), probe.gradients)
        cells = statistics.alignments(probe.gradients)
        for role in dict.fromkeys(role for role, _ in cells):
            by_rank = {rank: cosine for (of_role, rank), cosine in cells.items() if of_role == role}
            row = _who(probe) | {"other tasks": statistics.GRADIENT_ROLES[role]}
            row |= {f"rank {rank}": cosine.text(3, signed=True) for rank, cosine in by_rank.items()}
            difference = statistics.rank_difference(probe.gradients, role).text(3, signed=True)
            n = next(iter(by_rank.values())).n
            rows.append(row | {"lowest - highest loss": difference, "modules x tasks": n})
    report.keep("figure4", "Figure 4: cosines of gradients by loss rank", rows)
    report.notes.append(
        "Figure 4: intervals are over modules (and tasks), which are not independent: they describe these "
        "modules and are no test."
    )


# --- all of them -------------------------------------------------------------------------------------------

FIGURES: dict[str, Callable[[Report, Sequence[ProbeResult], Sequence[str]], None]] = {
    drawing.__name__: drawing for drawing in (figure1, figure2, figure3, figure4)
}
INTERVALS = (
    "In brackets: 95 % intervals over prompts (of a regret: over test examples; of a mean over pairs: over "
    f"pairs), none for fewer than {FEWEST_FOR_INTERVAL}. Of a coefficient of variation, its mean over tasks "
    "and a ratio: jackknife on the logarithm, with Student's t; of all others: percentiles of the bootstrap, "
    "somewhat narrow with few prompts. Those over prompts speak of other prompts for these tasks, model and "
    "seed only."
)
SHARED_PAIRS = (
    "Probes of one pair of tasks (NI-Probe-M1 and M2 share theirs; seeds do too) are averaged to one "
    "where pairs are averaged. Holm's adjustment counts each."
)


def probe_report(
    folders: Sequence[Path],
    names: Sequence[str],
    output: Path,
    measures: Sequence[str] = DRAWN,
    name: str = "probes",
    warnings: Sequence[str] = (),
) -> Report:
    """Draws the figures `names` (of FIGURES) of the probes in `folders` into `output`, for every measure.

    Files of texts are called `name`; `warnings` are kept with the rest. Demonstrations lead with NLL, others
    with the paper's ROUGE-L. Raises UserError, before anything is written, for unknown measures, damaged
    probes, and probes of one model and method that cannot be compared.
    """
    for measure in measures:
        check_measure(measure)
    if not folders:
        raise UserError("Name at least one probe.")
    probes = [load_probe(folder) for folder in folders]
    require_poolable(probes)
    is_demonstration = any(probe.demonstration for probe in probes)
    report = Report([run for probe in probes for run in probe.runs.values()], output, name=name)
    report.measure = leading_measure(is_demonstration)
    ordered = sorted(dict.fromkeys(measures), key=lambda measure: measure != report.measure)
    # Without answers (evaluator.answers=false) there is NLL alone.
    lacking = {m: ", ".join(p.id for p in probes if p.finals[m].isna().all()) for m in ordered}
    ordered = [measure for measure in ordered if not lacking[measure]]
    which = [
        f"Without {measure_name(m)}, which was not measured in {ids}." for m, ids in lacking.items() if ids
    ]
    if not ordered:
        raise UserError(" ".join(which) + " Choose another measure.")
    report.warnings = [*warnings, *which, *([DEMONSTRATION] if is_demonstration else [])]
    report.warnings += [remark for probe in probes for remark in probe.remarks]
    pairs = {(probe.model, probe.method, probe.pair) for probe in probes}
    report.notes += [NLL_LEADS] * (is_demonstration and len(ordered) > 1)
    report.notes += [SHARED_PAIRS] * (len(pairs) < len(probes)) + [INTERVALS]
    for figure in names:
        FIGURES[figure](report, probes, ordered)
    report.warnings = [*dict.fromkeys(report.warnings)]
    report.notes = [*dict.fromkeys(report.notes)]
    texts = {title: frame.astype(str) for title, frame in report.tables.items()}
    report.parts += [terminal(frame, title) for title, frame in texts.items()]
    for probe in probes:
        where = f"{probe.sequence}, {probe.model}, {probe.method}, seed {probe.seed}"
        title = f"Prompts of {short_name(probe.current)} and their losses before training: {where}"
        losses = probe.pre_update_losses().sort_values(kind="stable")
        examples = probe.losses.groupby("prompt")["example"].nunique()
        columns = {
            "prompt": losses.index.map(prompt_name),
            "loss": losses.map("{:.4f}".format),
            "against the original": (losses - losses[ORIGINAL]).map("{:+.4f}".format),
            "examples": examples[losses.index].astype(str),
            "text": losses.index.map(probe.prompts),
        }
        texts[title] = pd.DataFrame(columns, index=losses.index)
        report.draw(f"prompts_{probe.id}", None, texts[title])
    report.finish(texts)
    return report
