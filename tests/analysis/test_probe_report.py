"""The probe study's figures: legible, whole, with their data, and plain about what is not defined."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_up import edit_run
from matplotlib.text import Text
from test_figures import assert_legible

from sapo.analysis import page
from sapo.analysis.correlations import probe_effects
from sapo.analysis.figures import correlation_heatmap
from sapo.analysis.probes import report as reports
from sapo.analysis.probes.figures import spread_figure
from sapo.analysis.probes.report import choice_rows, paper_values, probe_report
from sapo.analysis.probes.statistics import lowest_loss_choice, spread
from sapo.conf.errors import UserError
from sapo.data.files import write_result

ALL = ("figure1", "figure2", "figure3", "figure4")


@pytest.fixture(scope="module")
def report(mini_probe, tmp_path_factory):
    """All figures of the mini probe in NLL: `report.drawn`, and files in their place."""
    drawn = []

    def save(figure, stem):
        drawn.append(figure)
        return [write_result(stem.with_suffix(end), "drawn") for end in (".png", ".pdf")]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "save", save)
        found = probe_report([mini_probe], ALL, tmp_path_factory.mktemp("drawn"), ["nll"])
    found.drawn = drawn
    return found


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn from now on; they are not written."""
    figures = []
    monkeypatch.setattr(page, "save", lambda figure, stem: figures.append(figure) or [])
    return figures


@pytest.mark.slow  # lays out seven figures
def test_no_text_lies_on_other_text_or_outside(report, stored_probe, drawn, tmp_path):
    probe_report([stored_probe], ["figure1"], tmp_path, ["nll"])  # which grows with the tasks
    assert (len(drawn), len(report.drawn)) == (1, 6)
    for figure in (*drawn, *report.drawn):
        assert_legible(figure)


def test_every_figure_is_there_as_png_pdf_and_csv_and_tables_are_ready_to_print(report):
    assert len(set(report.files)) == len(report.files)
    assert all(path.stat().st_size > 0 for path in report.files)
    stems = {path.stem for path in report.files if path.suffix == ".png"}
    assert {report.output / f"{stem}{end}" for stem in stems for end in (".pdf", ".csv")} <= {*report.files}
    kinds = {stem.replace("_probe", "").replace("_nll", "") for stem in stems}
    assert kinds == {"figure1", "figure2", "figure2_pairs", "figure3", "figure3_loss", "figure4"}
    assert len(report.tables) == 8
    texts = [(report.output / f"probes.{end}").read_text() for end in ("md", "tex")]
    assert ["Wording 3: answer well" in text for text in texts] == [True, False]  # prompts are not printed
    for title, table in report.tables.items():
        assert len(table) > 0, title
        assert "nan" not in table.to_string().lower(), title
    notes = " ".join([*report.warnings, *report.notes])
    for part in ("Demonstration", "Holm", "Brown-Forsythe", "permuted", "sign flipped"):
        assert part in notes
    # Data files hold every point.
    assert len(pd.read_csv(report.output / "figure1_probe_nll.csv")) == 6 * 5
    cells = pd.read_csv(report.output / "figure3_probe_nll.csv")
    assert len(cells) == 10 * 2 * (4 + 1)
    assert cells.loc[cells["r"].isna(), "reason"].notna().all()
    assert len(pd.read_csv(report.output / "figure4_probe.csv")) == 4 * 4 * 12


@pytest.mark.parametrize("is_demonstration", [True, False])
def test_a_demonstration_leads_with_nll_whatever_the_order(probe_folder, drawn, tmp_path, is_demonstration):
    facts = {"n_prompts": 5, "unseen": ("task618_x",), "n": 4, "demonstration": is_demonstration}
    folder = probe_folder("p", gradients=False, **facts)
    found = probe_report([folder], ["figure1"], tmp_path / "out", ["nll", "rougeL"])
    (table,) = found.tables.values()
    assert table["measure"].tolist() == ["NLL", "ROUGE-L"][:: 1 if is_demonstration else -1]
    titles = [" ".join(figure.get_suptitle().split()) for figure in drawn]
    assert ["NLL leads" in title for title in titles] == [is_demonstration] * 2
    assert any(note.startswith("NLL leads") for note in found.notes) == is_demonstration


def test_the_papers_values_stand_beside_the_same_pair_in_its_measure_only(whole):
    def paper(measure, sequence="ni_probe_g1"):
        probe = replace(whole, sequence=sequence)
        return paper_values("figure3", probe, measure, "pearson", "T3_1")

    assert paper("rougeL")["paper: Llama-2-7b-chat"] == "0.82"
    assert set(paper("nll").values()) == set(paper("rougeL", "mini_probe").values()) == {"-"}
    found = paper_values("figure2", whole, "rougeL", "pearson", "T3_3")
    assert found == {"paper: Llama-2-7b-chat": "0.51", "paper: Qwen3-8B": "0.35"}


def test_choices_are_averaged_over_seeds_within_a_pair_and_never_over_models(whole):
    choice = lowest_loss_choice(whole, "nll")
    regrets = {("a", 0, "m"): 1.0, ("a", 1, "m"): 3.0, ("b", 0, "m"): 8.0, ("a", 0, "other"): 100.0}
    found = {}
    for (pair, seed, model), regret in regrets.items():
        probe = replace(whole, current=pair, seed=seed, model=model)
        found[probe, "nll"] = replace(choice, probe=probe, regret=replace(choice.regret, value=regret))
    *rows, last = choice_rows(found)
    assert [row["prompts"] for row in rows] == ["21"] * 4
    names = ("probe", "model, method", "regret")  # ((1 + 3) / 2 + 8) / 2
    assert [last[name] for name in names] == ["3 probes of 2 pairs", "m, lorainc", "5.000"]
    (none,) = choice_rows({(whole, "nll"): "all prompts score alike"})
    assert none["best"] == "all prompts score alike"


def test_what_a_probe_lacks_is_a_warning_and_pairs_that_are_one_a_note(probe_folder, drawn, tmp_path):
    first = probe_folder("cut", n_prompts=5, unseen=("task618_x",), n=4, n_cut=2, missing=[7, 9])
    again = {"sequence": "ni_probe_g2", "n_prompts": 5, "unseen": ("task511_x",), "n": 4}
    found = probe_report([first, probe_folder("again", **again)], ["figure3"], tmp_path / "out", ["nll"])
    assert len(drawn) == 2 * 2 + 1
    warnings = " ".join(found.warnings)
    assert "Probe cut: 2 of 6 scored examples of NI339 are left out" in warnings
    assert "Probe cut lacks prompt 7, 9" in warnings
    assert "Probe again" not in warnings
    assert any(note.startswith("Probes of one pair of tasks") for note in found.notes)
    choices = found.tables["The prompt of the lowest loss: is it good?"]
    assert choices["probe"].tolist()[-1] == "2 probes of 1 pair"


def test_scores_without_variance_and_missing_gradients_are_named(probe_folder, drawn, tmp_path):
    folder = probe_folder("gap", n_prompts=6, unseen=("task618_x", "task511_x"), n=3, gradients=False)
    for path in (tmp_path / "runs").glob("gap-*"):
        edit_run(path, lambda f: f.assign(rougeL=f["rougeL"].mask(f["task"] == "task618_x", 7.0)))
    found = probe_report([folder], ["figure2", "figure3", "figure4"], tmp_path / "out", ["rougeL"])
    assert set(found.tables["Figure 3: indicators before training"]["tasks"]) == {"2 of 3"}
    gap = "task618_x is the same for all prompts."
    assert f"Figure 3, ni_probe_g1, ROUGE-L: left out of means: {gap}" in found.warnings
    assert f"Figure 2, ni_probe_g1, ROUGE-L: left out: {gap}" in found.warnings
    (row, _) = found.tables["Figure 2: mean correlation between tasks"].to_dict("records")
    assert row["pairs of tasks"] == "1 of 3"
    assert any("gap has no gradients" in warning for warning in found.warnings)
    assert not list((tmp_path / "out").glob("figure4*"))
    words = [" ".join(" ".join(text.get_text() for text in figure.findobj(Text)).split()) for figure in drawn]
    assert ["no variance" in text for text in words] == [True, True, False, True]


def test_what_was_not_generated_is_left_out_in_one_line(whole, drawn, tmp_path, monkeypatch):
    nothing = dict.fromkeys(("rougeL", "exact_match"), float("nan"))
    probe = replace(whole, finals=whole.finals.assign(**nothing), answers=whole.answers.assign(**nothing))
    monkeypatch.setattr(reports, "load_probe", lambda folder: probe)
    found = probe_report([tmp_path], ["figure1", "figure3"], tmp_path / "out", ["rougeL", "nll"])
    assert f"Without ROUGE-L, which was not measured in {probe.id}." in found.warnings
    assert any("without the indicators exact_match and rougeL" in line for line in found.warnings)
    assert set(found.tables["Figure 3: indicators before training"]["measure"]) == {"NLL"}
    with pytest.raises(UserError, match="Choose another measure"):
        probe_report([tmp_path], ["figure1"], tmp_path / "none", ["rougeL"])
    assert not (tmp_path / "none").exists()


def test_an_interval_far_wider_than_others_is_cut_and_who_makes_one_alone_is_said(
    whole, tmp_path, monkeypatch
):
    finals = whole.finals.copy()
    others = {task: finals["task"] == task for task in whole.unseen}
    broken, alike, other, zero = list(others.values())[:4]
    finals.loc[broken, "rougeL"] = 40 + 0.1 * (finals["prompt"] % 3) - 30 * (finals["prompt"] == 3)
    finals.loc[alike, "rougeL"] = 100 / 3
    finals.loc[other, "rougeL"] = 25.0 + (finals["prompt"] == -1)
    finals.loc[zero, "rougeL"] = 0.0
    probe = replace(whole, finals=finals)
    result = spread(probe, "rougeL")
    high = result.variation[whole.unseen[0]].high
    figure = spread_figure(result, "a test", "facts")
    assert_legible(figure)
    bars = figure.axes[1]
    assert max(cell.value or 0 for cell in result.variation.values()) < bars.get_ylim()[1] < high / 4
    words = [text.get_text() for text in bars.texts if text.get_text()]
    assert words == [f"to {high:,.0f} %", "no variance", "0 under every prompt"]
    monkeypatch.setattr(reports, "load_probe", lambda folder: probe)
    found = probe_report([tmp_path], ["figure1"], tmp_path / "out", ["rougeL"])
    first, second = (line for line in found.warnings if "alone makes" in line)
    assert "NI618: prompt 3 alone makes" in first
    assert ": original alone makes" in second
    assert second.endswith("nothing varies without it.")
    effects = probe_effects(probe, "rougeL")
    texts = correlation_heatmap(effects).axes[0].texts
    assert [text.get_position() for text in texts if text.get_text() == "no\nvariance"] == [(2, 2), (4, 4)]
    assert np.isnan(effects.matrix("pearson")[whole.unseen[1]]).all()

    finals.loc[finals["task"].isin(probe.others), "rougeL"] = 40 + 0.1 * (finals["prompt"] % 3)
    finals.loc[broken & (finals["prompt"] == 3), "rougeL"] = 10.0
    found = probe_report([tmp_path], ["figure1"], tmp_path / "again", ["rougeL"])
    lines = [line.partition(" alone makes")[0] for line in found.warnings if "alone makes" in line]
    assert lines == [f"Figure 1, ni_probe_g1, ROUGE-L, {what}: prompt 3" for what in ("NI618", "cross-task")]


def test_what_cannot_be_drawn_is_refused_before_anything_is_written(mini_probe, tmp_path):
    out = tmp_path / "out"
    for folders, measure, message in (
        ([mini_probe], "bleu", "bleu"),
        ([], "nll", "at least one probe"),
        ([mini_probe, tmp_path / "none"], "nll", "not a finished probe"),
        ([mini_probe, mini_probe], "nll", "are both probe"),
    ):
        with pytest.raises(UserError, match=message):
            probe_report(folders, ["figure1"], out, [measure])
    assert not out.exists()
