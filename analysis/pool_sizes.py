"""AP, BWT and FWT against the number of paraphrases that a policy chooses from (the paper's Figure 15)."""

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sapo.analysis.figures import UNITS
from sapo.analysis.intervals import Interval
from sapo.analysis.metrics import METRICS
from sapo.analysis.results import LOWER_IS_BETTER, MEASURES
from sapo.analysis.tables import ScoreTable

# Okabe and Ito's colours for colour-blind readers, with a marker each for print without colour.
STYLES = tuple(zip(("#0072B2", "#D55E00", "#009E73", "#CC79A7"), "os^D", strict=True))


def size_points(table: ScoreTable, measure: str) -> pd.DataFrame:
    """A row for each group, policy, pool size and metric of `measure`: difference from `static`, interval.

    Without a `static` run the metric itself. Empty where no policy of the table reads a pool.
    """
    rows = [
        {
            "group": group.title,
            "policy": _without_size(row.policy, row.pool_size),
            "pool_size": row.pool_size,
            "is_difference": row.difference,
            "metric": metric,
            "estimate": cell.value,
            "low": cell.low,
            "high": cell.high,
            "n_examples": cell.n,
            "n_seeds": cell.n_seeds,
        }
        for group in table.groups
        for row in (*group.rows, *group.more)
        if row.pool_size and (row.measure, row.column) == (measure, "trained")
        for metric, cell in row.cells.items()
        if isinstance(cell, Interval)
    ]
    return pd.DataFrame(rows)


def _without_size(policy: str, size: int) -> str:
    """`sapo` of `sapo (K=10)`, and `sapo (terse)` of `sapo (terse, K=10)`: pools keep a line each."""
    return policy.replace(f" (K={size})", "").replace(f", K={size})", ")")


def _counts(points: pd.DataFrame) -> str:
    """`n = 96`: the test examples of the points, from the fewest to the most."""
    counts = points["n_examples"]
    return f"n = {counts.min()}" + (f" to {counts.max()}" if counts.min() < counts.max() else "")


def size_figure(points: pd.DataFrame, measure: str, title: str) -> Figure:
    """A panel a metric, a line a group and policy, over the size of the pool; bars are 95 % intervals.

    n: test examples of a metric.
    """
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    lines = list(points.groupby(["group", "policy"], sort=False))
    sizes = sorted(points["pool_size"].unique())
    for place, metric in enumerate(METRICS):
        axes = figure.add_subplot(1, len(METRICS), place + 1)
        axes.axhline(0, color="#999999", linewidth=1, zorder=0)
        for number, ((group, policy), rows) in enumerate(lines):
            colour, marker = STYLES[number % len(STYLES)]
            own = rows[rows["metric"] == metric].sort_values("pool_size")
            bars = [own["estimate"] - own["low"], own["high"] - own["estimate"]]
            # Lines stand beside each other, so that bars of one size do not hide each other.
            beside = (number - (len(lines) - 1) / 2) * 0.02 * (sizes[-1] - sizes[0] or 1)
            axes.errorbar(
                own["pool_size"] + beside,
                own["estimate"],
                yerr=bars,
                color=colour,
                marker=marker,
                capsize=3,
                linewidth=1.5,
                label=f"{group} · {policy}",
            )
        axes.set_title(f"{metric} ({_counts(points[points['metric'] == metric])})", fontsize=10)
        axes.set_xticks(sizes)
        axes.set_xlabel("paraphrases in the pool")
        axes.spines[["top", "right"]].set_visible(False)
    name = MEASURES[measure].split(" (")[0]
    against = "difference from static" if points["is_difference"].all() else "score"
    better = "lower is better" if measure in LOWER_IS_BETTER else "higher is better"
    figure.axes[0].set_ylabel(f"{name}: {against}\n({UNITS[measure]}; {better})", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=2, title=title, fontsize=9, frameon=False
    )
    return figure
