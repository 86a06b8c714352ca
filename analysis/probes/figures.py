"""Drawings of a probe: points a prompt, bars, violins, in colours that colour-blind readers tell apart.

The colours are Okabe & Ito's.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sapo.analysis.figures import canvas, put_title
from sapo.analysis.intervals import COEFFICIENTS, SAME, Interval
from sapo.analysis.probes.results import ROLES, ProbeResult
from sapo.analysis.probes.statistics import GRADIENT_ROLES, Power, Spread, alignments
from sapo.analysis.results import LOWER_IS_BETTER, MEASURES, measure_name
from sapo.data.prompts import ORIGINAL
from sapo.data.tasks import short_name

COLOURS = dict(zip(ROLES, ("#D55E00", "#0072B2", "#009E73"), strict=True))
PROJECTION_COLOURS = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9")
GREY, BLACK = "#7f7f7f", "black"
MARKED = {"original prompt": BLACK}  # by a diamond
NO_VARIANCE = "no variance"


def axis_label(measure: str, task: str, good_up: bool = False) -> str:
    """An axis label for a task's scores; where good is up, NLL has its sign flipped, and that is said."""
    name, unit = MEASURES[measure].replace("target ", "").removesuffix(")").split(" (")  # room for short ones
    if measure in LOWER_IS_BETTER:
        name, unit = (f"-{name}", f"{unit}; up is better") if good_up else (name, f"{unit}; higher is worse")
    return f"{name} of {short_name(task)}\n({unit})"


def spread_figure(result: Spread, test: str, facts: str) -> Figure:
    """Relative changes a prompt and task, and beneath them each task's coefficient of variation."""
    probe, tasks = result.probe, list(result.changes)
    figure, (points, bars) = canvas(
        max(7.2, 0.9 * len(tasks) + 1.6), 6.8, rows=2, sharex=True, height_ratios=(3, 2)
    )
    order = probe.pre_update_losses().sort_values(kind="stable").index
    offsets = pd.Series(np.linspace(-0.32, 0.32, len(order)), index=order)
    # An interval that a single prompt makes may be hundreds of times as wide as the others.
    highest = max(cell.value or 0.0 for cell in result.variation.values())
    top = min(1.05 * max(cell.high or cell.value or 0.0 for cell in result.variation.values()), 3 * highest)
    for place, task in enumerate(tasks):
        colour, variation = COLOURS[probe.role(task)], result.variation[task]
        if reason := result.no_change.get(task):
            _words(points, place, 0.5, f"no relative change:\n{reason}")
        else:
            changes = result.changes[task]
            others = changes.drop(ORIGINAL)
            points.scatter(place + offsets[others.index], others, s=16, color=colour, alpha=0.8, linewidths=0)
            of_original = ([place + offsets[ORIGINAL]], [changes[ORIGINAL]])
            points.scatter(*of_original, s=34, marker="D", color=BLACK, zorder=3)
        if variation.value:
            bars.bar(place, variation.value, width=0.66, color=colour, alpha=0.75)
            if variation.low is not None and variation.high is not None:
                end = variation.high if variation.high <= top else 0.9 * top
                bars.vlines(place, variation.low, end, color=BLACK, linewidth=1.2)
                if end < variation.high:
                    bars.text(place, end, f"to {variation.high:,.0f} %", fontsize=7, ha="center")
        else:
            _words(bars, place, 0.05, variation.text() if variation.value is None else NO_VARIANCE)
    points.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    direction = "up is worse" if result.measure in LOWER_IS_BETTER else "up is better"
    points.set_ylabel(f"relative change of {measure_name(result.measure)} (%)\n({direction})", fontsize=9)
    bars.set_ylabel("coefficient of\nvariation (%)", fontsize=9)
    bars.set_title(test, fontsize=9)
    if set(tasks) <= result.no_change.keys():
        points.set_yticks([])
    bars.set(ylim=(0, top)) if top else bars.set_yticks([])
    names = [short_name(task) for task in tasks]
    slant: dict[str, Any] = (
        {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 8 else {}
    )
    bars.set_xticks(range(len(tasks)), names, **slant)
    bars.set_xlim(-0.6, len(tasks) - 0.4)
    _legend(figure, COLOURS | MARKED)
    title = (
        f"{len(result.changes)} prompts of {short_name(probe.current)}: change against the original prompt"
    )
    order_text = "left to right in a column: from the lowest pre-update loss to the highest"
    put_title(figure, f"{title}\n{facts}\n{order_text}")
    return figure


def _words(axes: Axes, place: int, height: float, words: str) -> None:
    """Upright words in place of a task's points or bar, and not on the line of no change behind them."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 2.0}
    text = axes.text(place, height, words, transform=axes.get_xaxis_transform(), fontsize=8, bbox=box)
    text.set(rotation=90, ha="center", va="center" if height == 0.5 else "bottom")


def pairs_figure(
    x: pd.Series,
    ys: pd.DataFrame,
    labels: Mapping[str, str],
    cells: Mapping[tuple[str, str], Interval],
    title: str,
) -> Figure:
    """A panel a column of `ys` against `x`, a point a prompt, the original marked.

    `cells` holds the coefficients by their name and column.
    """
    figure, panels = canvas(max(3.0 * len(ys.columns) + 0.4, 5.0), 4.0, columns=len(ys.columns))
    for axes, task in zip(panels, ys, strict=True):
        known = ys[task].notna() & x.notna()
        others, marked = known & (x.index != ORIGINAL), known & (x.index == ORIGINAL)
        axes.scatter(x[others], ys.loc[others, task], s=18, color=COLOURS["training"], linewidths=0)
        axes.scatter(x[marked], ys.loc[marked, task], s=34, marker="D", color=BLACK)
        axes.set_xlabel(labels[str(x.name)], fontsize=9)
        axes.set_ylabel(labels[str(task)], fontsize=9)
        captions = [f"{name.capitalize()} {cells[name, task].text()}" for name in COEFFICIENTS]
        first = cells[COEFFICIENTS[0], task]
        axes.set_title("\n".join(captions) if first.value is not None else _why_none(first), fontsize=9)
        axes.locator_params(nbins=5)
    _legend(figure, {"paraphrases": COLOURS["training"]} | MARKED)
    put_title(figure, title)
    return figure


def indicator_figure(cells: Sequence[Power], what: str, title: str, unit: str) -> Figure:
    """Bars of mean correlations by indicator and coefficient, intervals over `unit`, `what` as points."""
    known, measure = [cell.mean for cell in cells if cell.mean.value is not None], cells[0].measure
    shown = list(dict.fromkeys(cell.indicator for cell in cells))
    bars = f"too few {unit} for an interval" if known else "no correlation is defined"
    if any(mean.low is not None for mean in known):
        bars = f"intervals over {unit}"
    figure, panels = canvas(9.6, 5.2, columns=2, sharey=True)
    for axes, coefficient in zip(panels, COEFFICIENTS, strict=True):
        for cell in cells:
            if cell.coefficient != coefficient:
                continue
            place, mean, values = shown.index(cell.indicator), cell.mean, [*cell.points.values()]
            if mean.value is None:
                axes.text(0.02, place, _why_none(mean), fontsize=8, va="center", color=GREY)
                continue
            axes.barh(place, mean.value, height=0.62, color="#56B4E9", alpha=0.6)
            offsets = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(1)
            axes.scatter(values, place + offsets, s=13, color=BLACK, alpha=0.6, linewidths=0)
            axes.plot([mean.value], [place], marker="|", markersize=12, color="#D55E00", markeredgewidth=2.2)
            if mean.low is not None and mean.high is not None:
                axes.hlines(place, mean.low, mean.high, color="#D55E00", linewidth=2)
        axes.axvline(0, color=BLACK, linewidth=0.8)
        axes.set(xlim=(-1.05, 1.05), ylim=(len(shown) - 0.4, -0.6), axisbelow=True)
        axes.set_yticks(range(len(shown)), shown)
        axes.set_title(coefficient.capitalize(), fontsize=10)
        axes.grid(axis="x", color="#e0e0e0", linewidth=0.6)
        flipped = " (sign flipped)" if measure in LOWER_IS_BETTER else ""
        label = f"correlation with {measure_name(measure)}{flipped} after training"
        axes.set_xlabel(f"{label}\n(right: the higher, the better)", fontsize=9)
    dot = Line2D([], [], linestyle="", marker="o", markersize=5, color=BLACK, alpha=0.6, label=what)
    line = Line2D([], [], color="#D55E00", linewidth=2, label="mean and its 95 % interval")
    figure.legend(handles=[dot, line], loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    put_title(figure, f"{title}\n{bars}")
    return figure


def _why_none(cell: Interval) -> str:
    return NO_VARIANCE if SAME in (cell.reason or "") else "not defined"


def gradient_figure(probe: ProbeResult, gradients: pd.DataFrame) -> Figure:
    """Violins of cosines by loss rank, a panel a role, a colour a projection; a bar marks the mean."""
    roles = [role for role in GRADIENT_ROLES if (gradients["role"] == role).any()]
    figure, panels = canvas(max(4.4 * len(roles) + 0.8, 5.0), 4.6, columns=len(roles), sharey=True)
    ranks, cosines = sorted(gradients["rank"].unique()), alignments(gradients)
    colours = dict(zip(sorted(gradients["projection"].unique()), cycle(PROJECTION_COLOURS), strict=False))
    width = 0.8 / len(colours)
    for axes, role in zip(panels, roles, strict=True):
        of_role = gradients[gradients["role"] == role]
        for number, (projection, colour) in enumerate(colours.items()):
            by_rank = dict(list(of_role[of_role["projection"] == projection].groupby("rank")["cosine"]))
            places = [ranks.index(rank) + (number - (len(colours) - 1) / 2) * width for rank in by_rank]
            shown: dict[str, Any] = {"widths": 0.9 * width, "showmeans": True, "showextrema": False}
            parts = axes.violinplot(list(by_rank.values()), places, **shown)
            for body in parts["bodies"]:  # type: ignore[attr-defined]
                body.set(facecolor=colour, edgecolor=colour, alpha=0.6)
            parts["cmeans"].set(color=BLACK, linewidth=1.4)
        labels = [f"rank {rank}\n{cosines[role, rank].text()}".replace(" [", "\n[") for rank in ranks]
        axes.set_xticks(range(len(ranks)), labels, fontsize=8)
        axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
        axes.set_xlabel("prompt by pre-update loss (1 = lowest), mean cosine [95 %]", fontsize=9)
        tasks = [short_name(task) for task in of_role["task"].unique()]
        which = tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks"
        axes.set_title(f"{GRADIENT_ROLES[role]} ({which})", fontsize=10)
    panels[0].set_ylabel("cosine of gradients", fontsize=9)
    _legend(figure, colours)
    title = f"Gradients of {short_name(probe.current)} by prompt against those of other tasks, per module"
    put_title(figure, f"{title}, in the state before it\n{probe.facts}")
    return figure


def _legend(figure: Figure, colours: Mapping[str, str]) -> None:
    handles = [
        Line2D([], [], linestyle="", marker="D" if label in MARKED else "o", color=colour, label=label)
        for label, colour in colours.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
