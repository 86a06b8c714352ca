"""Heat maps: what they say, and that no text lies on other text."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from sapo.analysis.correlations import PromptEffects
from sapo.analysis.figures import DASHES, STYLES, correlation_heatmap, effect_heatmap, loss_figure, save
from sapo.analysis.matrices import forgetting, generalization
from sapo.analysis.results import load_run, score_matrix

SAVEFIG = Figure.savefig  # which other tests go without


def texts_of(figure):
    """Every visible text of a figure with its box in pixels."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    # Matplotlib keeps labels for ticks just outside of an axis, but does not draw them.
    undrawn = {
        label
        for axes in figure.axes
        for place, axis in enumerate((axes.xaxis, axes.yaxis))
        for label in axis.get_ticklabels()
        if not min(axis.get_view_interval()) <= label.get_position()[place] <= max(axis.get_view_interval())
    }
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible() and text not in undrawn:
            yield text, text.get_window_extent(renderer)


def assert_legible(figure):
    """No text lies on another, or ends more than a pixel outside of the figure.

    Slanted labels overlap by their boxes only.
    """
    texts = list(texts_of(figure))
    level = [(text, box) for text, box in texts if text.get_rotation() % 90 == 0]
    for (first, one), (second, two) in combinations(level, 2):
        is_wide = min(one.x1, two.x1) - max(one.x0, two.x0) > 1
        assert not (is_wide and min(one.y1, two.y1) - max(one.y0, two.y0) > 1), (first, second)
    width, height = figure.canvas.get_width_height()
    for text, box in texts:
        assert min(box.x0, box.y0) >= -1, text
        assert box.x1 <= width + 1, text
        assert box.y1 <= height + 1, text


@pytest.mark.parametrize(("name", "n"), [("task{}_x", 3), ("task{}_x", 8), ("mini_reverse_words_{}", 5)])
def test_effects_are_legible(run_folder, name, n):
    run = load_run(run_folder(tasks=[name.format(1000 + task) for task in range(n)]))
    scores = score_matrix(run, "rougeL")
    for changes in (forgetting(scores), generalization(scores)):
        assert_legible(effect_heatmap(changes, run, "Change since the task was trained", "rougeL"))


def test_a_heat_map_says_values_units_tasks_and_run(run_folder):
    run = load_run(run_folder())
    changes = pd.DataFrame([[np.nan, 1.25], [-3.0, np.nan]], index=[1, 2], columns=list(run.tasks[:2]))
    figure = effect_heatmap(changes, run, "Forgetting", "nll")
    said = " ".join(text.get_text() for text, _ in texts_of(figure))
    for part in ("+1.25", "-3.00", "NI195", "after NI363", "lorainc", "seed 0", "demonstration", "nats"):
        assert part in said
    assert "lower is" in said
    image = figure.axes[0].images[0]
    assert (image.get_clim(), image.get_cmap().name) == ((-3.0, 3.0), "RdBu_r")
    no_change = pd.DataFrame([[0.0]], index=[1], columns=[run.tasks[0]])
    figure = effect_heatmap(no_change, run, "Forgetting", "rougeL")
    assert "+0.0" in {text.get_text() for text, _ in texts_of(figure)}


def test_correlations_are_legible_and_undefined_cells_empty(run_folder):
    values = np.random.default_rng(0).normal(size=(10, 9))
    values[:, 4] = 1.0
    scores = pd.DataFrame(values, columns=[f"task{task}_x" for task in range(1300, 1309)])
    effects = PromptEffects(load_run(run_folder()), "rougeL", scores)
    figure = correlation_heatmap(effects)
    assert_legible(figure)
    assert len(figure.axes[0].texts) == 81 - 16


def test_equal_figures_are_equal_files(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", SAVEFIG)
    run = load_run(run_folder())
    files = []
    for name in ("one", "two"):
        figure = effect_heatmap(forgetting(score_matrix(run, "rougeL")), run, "Forgetting", "rougeL")
        files.append([path.read_bytes() for path in save(figure, tmp_path / name)])
    assert files[0] == files[1]
    assert files[0][0].startswith(b"\x89PNG")
    assert files[0][1].startswith(b"%PDF")


def test_loss_curves_are_told_apart_and_stand_where_their_steps_do():
    """A line is the mean over a twentieth of a task's steps, half of them on either side."""
    losses = pd.DataFrame({"task": ["a"] * 60 + ["b"] * 20, "loss": [*np.arange(60.0), *[5.0] * 20]})
    runs = [SimpleNamespace(losses=losses)] * 13
    figure = loss_figure(runs, [f"run {n}" for n in range(13)])
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "12 of 13 runs"
    looks = {(line.get_color(), line.get_linestyle()) for line in legend.get_lines()}
    assert len(looks) == len(STYLES) * len(DASHES) == 12
    alone = loss_figure(runs[:1], ["run"]).axes[0]
    assert [text.get_text() for text in alone.texts] == ["a", "b"]
    assert [len(line.get_ydata()) for line in alone.lines if line.get_linewidth() == 0.8] == [60, 20]
    first, second = (line.get_ydata() for line in alone.lines if line.get_linewidth() == 1.5)
    np.testing.assert_allclose(first, [0.5, *np.arange(1.0, 59.0), 58.5])
    np.testing.assert_allclose(second, 5.0)
    assert_legible(figure)
