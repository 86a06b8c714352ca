"""AP, BWT and FWT against the size of the pool."""

import pytest
from test_figures import assert_legible

from sapo.analysis.pool_sizes import size_figure, size_points
from sapo.analysis.results import load_run
from sapo.analysis.tables import score_table


@pytest.fixture
def table(run_folder):
    """Static, and SAPO with 10 and 20 paraphrases, which score 1 and 2 points more."""
    runs = [run_folder("static")]
    runs += [
        run_folder(f"sapo{size}", policy="sapo", pool={"name": "bank", "size": size}, shift=size / 10)
        for size in (20, 10)
    ]
    return score_table([load_run(run) for run in runs], draws=50)


def test_points_are_differences_by_size(table):
    points = size_points(table, "rougeL")
    assert len(points) == 2 * 3
    assert points["is_difference"].all()
    assert set(points["policy"]) == {"sapo"}
    ap = points[points["metric"] == "AP"].set_index("pool_size")["estimate"]
    assert dict(ap) == pytest.approx({20: 2.0, 10: 1.0})
    nll = size_points(table, "nll").query("metric == 'AP'").set_index("pool_size")["estimate"]
    assert dict(nll) == pytest.approx({20: -0.08, 10: -0.04})  # the made-up NLL is 5 - ROUGE-L / 25
    assert (points["low"] <= points["estimate"]).all()
    assert (points["estimate"] <= points["high"]).all()


def test_runs_without_pools_make_no_points(run_folder):
    runs = [load_run(run_folder(name, policy=name)) for name in ("static", "random")]
    assert size_points(score_table(runs, draws=20), "rougeL").empty


def test_the_figure_has_a_panel_a_metric_and_a_tick_a_size(table):
    figure = size_figure(size_points(table, "rougeL"), "rougeL", "Sizes")
    assert [axes.get_title() for axes in figure.axes] == [
        "AP (n = 60)",
        "BWT (n = 40)",
        "FWT (n = 40)",
    ]
    for axes in figure.axes:
        assert list(axes.get_xticks()) == [10, 20]
    assert list(figure.axes[0].containers[0].lines[0].get_ydata()) == pytest.approx([1.0, 2.0])
    assert figure.legends[0].get_title().get_text() == "Sizes"
    assert figure.axes[0].get_ylabel() == (
        "ROUGE-L: difference from static\n(ROUGE-L points; higher is better)"
    )


def test_pools_of_two_paraphrasers_are_two_lines(run_folder):
    runs = [run_folder("static")]
    for name in ("bank", "terse"):
        for size in (10, 20):
            pool = {"name": name, "size": size}
            runs.append(run_folder(f"{name}{size}", policy="sapo", pool=pool))
    points = size_points(score_table([load_run(run) for run in runs], draws=20), "nll")
    assert set(points["policy"]) == {"sapo (bank)", "sapo (terse)"}
    assert (points.groupby(["policy", "metric"])["pool_size"].nunique() == 2).all()


@pytest.mark.parametrize("measure", ["rougeL", "nll"])
def test_no_text_of_the_figure_lies_on_other_text_or_outside(run_folder, measure):
    runs = []
    for method in ("lorainc", "inscl (lexical)"):
        runs.append(run_folder(f"static {method}", method=method, n=4))
        for name in ("bank", "elaborate"):
            for size in (5, 10, 20, 30, 40, 50):
                pool = {"name": name, "size": size}
                facts = {"policy": "sapo", "method": method, "pool": pool}
                runs.append(run_folder(f"{method} {name} {size}", n=4, **facts))
    points = size_points(score_table([load_run(run) for run in runs], measure, draws=20), measure)
    figure = size_figure(points, measure, "Size of the prompt pool\nseeds 0, 1 · demonstration · NLL leads")
    assert_legible(figure)
