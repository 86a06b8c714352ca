"""Heat maps of effects and correlations: red is worse, blue better, legible to colour-blind readers."""

import textwrap
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from sapo.analysis.correlations import PromptEffects
from sapo.analysis.intervals import COEFFICIENTS
from sapo.analysis.metrics import METRICS
from sapo.analysis.results import LOWER_IS_BETTER, RunResult, measure_name
from sapo.data.files import write_result
from sapo.data.tasks import short_name

UNITS = {
    "rougeL": "ROUGE-L points",
    "exact_match": "percentage points",
    "label_match": "percentage points",
    "nll": "nats per target token",
}
# Okabe and Ito's colours for colour-blind readers, with a marker each for print without colour.
STYLES = tuple(zip(("#0072B2", "#D55E00", "#009E73", "#CC79A7"), "os^D", strict=True))
DASHES = ("-", "--", ":")


def effect_heatmap(changes: pd.DataFrame, run: RunResult, title: str, measure: str) -> Figure:
    """A signed matrix (states x tasks, NaN = no such cell) centred on 0, without empty rows and columns."""
    shown = changes.dropna(how="all").dropna(how="all", axis="columns")
    columns = [short_name(task) for task in shown.columns]
    rows = [f"after {short_name(run.tasks[after - 1])}" for after in shown.index]
    figure, axes = _cells(columns, rows, panels=1)
    limit = max(float(np.nanmax(np.abs(shown))), 1e-6)
    better, colours, digits = ("lower", "RdBu_r", 2) if measure in LOWER_IS_BETTER else ("higher", "RdBu", 1)
    texts = shown.map(lambda value: f"{round(value, 2) + 0.0:+.{digits}f}")
    image = heat(axes[0], shown, texts, rows, columns, colours, limit)
    figure.colorbar(image, ax=axes, shrink=0.9, label=f"{UNITS[measure]}\n({better} is better)")
    put_title(figure, f"{title}\n{run.facts}")
    return figure


def correlation_heatmap(
    effects: PromptEffects, captions: Mapping[str, str] | None = None, remark: str = ""
) -> Figure:
    """Pearson and Spearman matrices side by side; grey cells are undefined (the table says why).

    `captions` says something of a whole matrix, by coefficient; `remark` ends the title.
    """
    tasks = [short_name(task) for task in effects.scores.columns]
    figure, axes = _cells(tasks, tasks, panels=2)
    for panel, coefficient in zip(axes, COEFFICIENTS, strict=True):
        matrix = effects.matrix(coefficient)
        texts = matrix.map(lambda value: f"{round(value, 2) + 0.0:.2f}")
        image = heat(panel, matrix, texts, tasks, tasks, "RdBu", 1.0)
        for task in effects.no_variance:
            place = list(effects.scores).index(task)
            panel.text(place, place, "no\nvariance", ha="center", va="center", fontsize=8)
        caption = (captions or {}).get(coefficient)
        panel.set_title("\n".join(filter(None, [coefficient.capitalize(), caption])), fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.9, label="correlation over prompts")
    what = f"Effects of {len(effects.scores)} prompts of {short_name(effects.current)} on other tasks"
    facts = [effects.run.setting, "demonstration" if effects.run.demonstration else "", remark]
    put_title(figure, f"{what} ({measure_name(effects.measure)})\n{' · '.join(filter(None, facts))}")
    return figure


def size_figure(points: pd.DataFrame, measure: str, title: str) -> Figure:
    """A panel a metric, a line a group and policy, over the size of the pool; bars are 95 % intervals.

    n: test examples of a metric.
    """
    figure, panels = canvas(9.0, 3.4, columns=len(METRICS))
    lines = list(points.groupby(["group", "policy"], sort=False))
    sizes = sorted(points["pool_size"].unique())
    for axes, metric in zip(panels, METRICS, strict=True):
        axes.axhline(0, color="#999999", linewidth=1, zorder=0)
        for number, (names, rows) in enumerate(lines):
            colour, marker = STYLES[number % len(STYLES)]
            own = rows[rows["metric"] == metric].sort_values("pool_size")
            bars = [own["estimate"] - own["low"], own["high"] - own["estimate"]]
            # Lines stand beside each other, so that bars of one size do not hide each other.
            beside = (number - (len(lines) - 1) / 2) * 0.02 * (sizes[-1] - sizes[0] or 1)
            places, label = own["pool_size"] + beside, " · ".join(names)
            axes.errorbar(places, own["estimate"], bars, label=label, color=colour, marker=marker, capsize=3)
        counts = points.loc[points["metric"] == metric, "n_examples"]
        most = f" to {counts.max()}" if counts.min() < counts.max() else ""
        axes.set_title(f"{metric} (n = {counts.min()}{most})", fontsize=10)
        axes.set_xticks(sizes)
        axes.set_xlabel("paraphrases in the pool")
    against = f"difference from {', '.join(points['base'].unique())}"
    unit = f"{UNITS[measure]}; {'lower' if measure in LOWER_IS_BETTER else 'higher'} is better"
    panels[0].set_ylabel(f"{measure_name(measure)}: {against}\n({unit})", fontsize=9)
    lines_of_one = panels[0].get_legend_handles_labels()
    figure.legend(*lines_of_one, title=title, loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return figure


def loss_figure(runs: Sequence[RunResult], labels: Sequence[str]) -> Figure | None:
    """The loss of every step, task after task, a line a run; None if no run knows its losses.

    A line is the mean of neighbouring steps, a twentieth of a task's; behind a few lines stand the steps.
    """
    found = ((label, run.losses) for run, label in zip(runs, labels, strict=True))
    known = [(label, losses) for label, losses in found if losses is not None][: len(STYLES) * len(DASHES)]
    if not known:
        return None
    figure, (axes,) = canvas(9.0, 3.4 + 0.1 * len(known))  # with room for the legend's two columns
    for number, (label, losses) in enumerate(known):
        (colour, _), dashes, begin = STYLES[number % len(STYLES)], DASHES[number // len(STYLES)], 0
        for task, steps in losses.groupby("task", sort=False)["loss"]:
            places = range(begin + 1, begin + len(steps) + 1)
            smooth = steps.rolling(max(1, len(steps) // 20), min_periods=1, center=True).mean()
            if len(known) <= len(STYLES):
                axes.plot(places, steps, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(places, smooth, dashes, color=colour, label=None if begin else label)
            if number == 0:
                axes.axvline(begin + 0.5, color="#bbbbbb", linewidth=1, zorder=0)
                name, at_top = "+".join(map(short_name, str(task).split("+"))), axes.get_xaxis_transform()
                axes.text(begin + 1, 1.01, name, fontsize=8, transform=at_top)
            begin += len(steps)
    axes.set_xlabel("optimizer step", fontsize=9)
    axes.set_ylabel("training loss (nats a target token)", fontsize=9)
    some = f"{len(known)} of {len(runs)} runs" if len(known) < len(runs) else None
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False, title=some)
    return figure


def remark(demonstration: bool, measure: str) -> str:
    """What a demonstration's figure says of its measure, on its face."""
    return ("NLL leads" if measure == "nll" else "NLL leads, see its figure") if demonstration else ""


def save(figure: Figure, stem: Path) -> list[Path]:
    """The figure as `stem`.png and `stem`.pdf; returns both paths."""
    # Drawn in memory first: a full disk is then an error of one write, and says so.
    return [write_result(stem.with_name(f"{stem.name}.{k}"), drawn(figure, k)) for k in ("png", "pdf")]


def drawn(figure: Figure, kind: str = "png", dpi: int = 160) -> bytes:
    """The figure as the content of a file: without a creation date, so that equal figures are equal files."""
    content = BytesIO()
    figure.savefig(content, format=kind, dpi=dpi, metadata={"CreationDate": None} if kind == "pdf" else None)
    return content.getvalue()


def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """An empty figure (inches) and its panels, row by row; `options` as of Figure.subplots."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    return figure, panels


def _cells(columns: list[str], rows: list[str], panels: int) -> tuple[Figure, list[Axes]]:
    """An empty figure sized so that the cells of heat maps, their labels and a title have room."""
    letter = 0.085  # inches a letter of a 9 point label takes
    width = panels * (0.85 * len(columns) + letter * max(map(len, rows))) + 1.6
    height = 0.5 * len(rows) + 0.75 * letter * max(map(len, columns)) + 1.3
    return canvas(max(width, 6.0), max(height, 2.8), columns=panels)


def heat(
    axes: Axes,
    values: pd.DataFrame,
    texts: pd.DataFrame,
    rows: Sequence[str],
    columns: Sequence[str],
    colours: str,
    limit: float | None = None,
) -> AxesImage:
    """A heat map of values with a text in each cell; from -limit to limit, or as far as the values go."""
    axes.set_facecolor("#e6e6e6")  # of what has no value
    low = None if limit is None else -limit
    array = values.to_numpy(dtype=float)
    image = axes.imshow(array, cmap=colours, vmin=low, vmax=limit, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    for (row, column), value in np.ndenumerate(array):
        if np.isfinite(value):
            brightness = np.dot(image.cmap(image.norm(value))[:3], (0.299, 0.587, 0.114))
            text, colour = texts.iat[row, column], "white" if brightness < 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    return image


def put_title(figure: Figure, text: str) -> None:
    """A title above the whole figure, its lines wrapped to the figure's width."""
    letters = int(figure.get_figwidth() / 0.085)
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, letters)]
    figure.suptitle("\n".join(lines), fontsize=10)
