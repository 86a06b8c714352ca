"""The probe study's figures: legible, whole, with their data, and plain about what is not defined."""

from dataclasses import replace

import pandas as pd
import pytest
from made_up import edit_run
from scipy import stats
from test_figures import assert_legible

from sapo.analysis.correlations import probe_effects
from sapo.analysis.probes import report as probe_figures
from sapo.analysis.probes.report import probe_report
from sapo.analysis.probes.results import load_probe
from sapo.analysis.probes.statistics import lowest_loss_choice, powers
from sapo.analysis.probes.tables import choice_table, loss_table, pair_table
from sapo.conf.errors import UserError

ALL = ("figure1", "figure2", "figure3", "figure4")


@pytest.fixture(scope="module")
def whole(stored_probe):
    return load_probe(stored_probe)


@pytest.fixture(scope="module")
def mini(mini_probe):
    return load_probe(mini_probe)


@pytest.fixture(scope="module")
def report(mini_probe, tmp_path_factory):
    return probe_report([mini_probe], ALL, tmp_path_factory.mktemp("drawn"), ["nll"])


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn from now on; they are not written."""
    figures = []
    monkeypatch.setattr(probe_figures, "save", lambda figure, stem: figures.append(figure) or [])
    return figures


@pytest.mark.parametrize("name", ["stored_probe", "mini_probe"])
def test_no_text_lies_on_other_text_or_outside(request, name, drawn, tmp_path):
    probe_report([request.getfixturevalue(name)], ALL, tmp_path, ["nll"])
    assert len(drawn) == 6
    for figure in drawn:
        assert_legible(figure)


def test_every_figure_is_there_as_png_pdf_and_csv(report):
    assert report.files
    assert len(set(report.files)) == len(report.files)
    assert all(path.stat().st_size > 0 for path in report.files)
    stems = {path.stem for path in report.files if path.suffix == ".png"}
    for stem in stems:
        for suffix in (".pdf", ".csv"):
            assert report.output / f"{stem}{suffix}" in report.files
    kinds = {stem.replace("_probe", "").replace("_nll", "") for stem in stems}
    assert kinds == {"figure1", "figure2", "figure2_pairs", "figure3", "figure3_loss", "figure4"}


def test_tables_are_ready_to_print(report):
    assert len(report.tables) == 7
    for title, table in report.tables.items():
        assert len(table) > 0, title
        assert not table.isna().any(axis=None), title
        assert "nan" not in table.to_string().lower(), title
    notes = " ".join([*report.warnings, *report.notes])
    for part in ("Demonstration", "Holm", "Brown-Forsythe", "permuted", "sign flipped"):
        assert part in notes


def test_a_demonstration_leads_with_nll_whatever_the_order(mini_probe, tmp_path):
    report = probe_report([mini_probe, mini_probe], ["figure1"], tmp_path, ["rougeL", "nll"])
    (table,) = report.tables.values()
    assert table["measure"].tolist() == ["NLL", "ROUGE-L"]
    assert any(note.startswith("NLL leads") for note in report.notes)
    assert {path.stem for path in report.files if path.suffix == ".pdf"} == {
        "figure1_probe_nll",
        "figure1_probe_rougeL",
    }


def test_data_files_hold_every_point(report):
    points = pd.read_csv(report.output / "figure1_probe_nll.csv")
    assert len(points) == 6 * 5
    cells = pd.read_csv(report.output / "figure3_probe_nll.csv")
    assert len(cells) == 10 * 2 * (4 + 1)
    assert cells.loc[cells["r"].isna(), "reason"].notna().all()
    assert len(pd.read_csv(report.output / "figure4_probe.csv")) == 4 * 4 * 12


@pytest.mark.parametrize("is_demonstration", [True, False])
def test_a_face_says_what_leads(probe_folder, drawn, tmp_path, is_demonstration):
    facts = {"n_prompts": 5, "unseen": ("task618_x",), "n": 4, "demonstration": is_demonstration}
    probe_report([probe_folder("p", gradients=False, **facts)], ["figure2"], tmp_path / "out", ["nll"])
    titles = [" ".join(figure.get_suptitle().split()) for figure in drawn]
    assert ["NLL leads" in title for title in titles] == [is_demonstration] * 2


def test_the_papers_values_stand_beside_the_same_pair_in_its_measure_only(whole):
    table = pair_table([(whole, probe_effects(whole, m)) for m in ("nll", "rougeL")])
    ours = table[(table["measure"] == "ROUGE-L") & (table["coefficient"] == "Pearson")]
    assert ours["paper: Llama-2-7b-chat"].tolist() == ["0.68", "0.51", "0.51"]
    assert ours["paper: Qwen3-8B"].tolist() == ["0.51", "0.57", "0.35"]
    assert (table.loc[table["measure"] == "NLL", "paper: Qwen3-8B"] == "-").all()
    losses = loss_table([power for power in powers(whole, "rougeL") if power.indicator == "-loss"])
    assert losses["paper: Llama-2-7b-chat"].tolist()[:4] == ["0.61", "0.82", "0.58", "0.53"]
    assert losses["task"].tolist()[:4] == ["NI589", "NI618", "NI511", "NI1290"]
    elsewhere = replace(whole, sequence="mini_probe")
    table = pair_table([(elsewhere, probe_effects(elsewhere, "rougeL"))])
    assert (table["paper: Llama-2-7b-chat"] == "-").all()


def test_several_probes_are_pooled_and_counted(whole, mini):
    choices = {(probe, "nll"): lowest_loss_choice(probe, "nll") for probe in (whole, mini)}
    table = choice_table(choices)
    above = sum(choice.above_median for choice in choices.values())
    by_chance = sum(choice.above_by_chance for choice in choices.values())
    assert table["probe"].tolist()[-1] == "2 probes of 2 pairs"
    interval = stats.binomtest(above, 2).proportion_ci(0.95, method="exact")
    assert table["above the median"].tolist()[-1] == (
        f"{above} of 2 (by chance {by_chance:.1f}): {above / 2:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
    )
    lone = choice_table({(mini, "nll"): "all prompts score alike"})
    assert lone["best"].tolist() == ["all prompts score alike"]


def test_choices_are_averaged_over_seeds_within_a_pair_and_never_over_models(whole):
    choice = lowest_loss_choice(whole, "nll")
    regrets = {("a", 0, "m"): 1.0, ("a", 1, "m"): 3.0, ("b", 0, "m"): 8.0, ("a", 0, "other"): 100.0}
    found = {}
    for (pair, seed, model), regret in regrets.items():
        probe = replace(whole, current=pair, seed=seed, model=model)
        found[probe, "nll"] = replace(choice, probe=probe, regret=replace(choice.regret, value=regret))
    *_, last = choice_table(found).to_dict("records")
    assert (last["probe"], last["model, method"]) == ("3 probes of 2 pairs", "m, lorainc")
    assert last["regret"] == "5.000"  # ((1 + 3) / 2 + 8) / 2
    assert " of 3 (by chance " in last["above the median"]


def test_what_a_probe_lacks_is_a_warning_and_pairs_that_are_one_a_note(probe_folder, tmp_path):
    first = probe_folder("cut", n_prompts=5, unseen=("task618_x",), n=4, n_cut=2, missing=[7, 9])
    again = {"sequence": "ni_probe_g2", "n_prompts": 5, "unseen": ("task511_x",), "n": 4}
    report = probe_report([first, probe_folder("again", **again)], ["figure3"], tmp_path / "out", ["nll"])
    said = " ".join(report.warnings)
    assert "Probe cut: 2 of 6 scored examples of NI339 are left out" in said
    assert "Probe cut lacks prompt 7, 9" in said
    assert "Probe again" not in said
    assert any(note.startswith("Probes of one pair of tasks") for note in report.notes)
    choices = report.tables["The prompt of the lowest loss: is it good?"]
    assert choices["probe"].tolist()[-1] == "2 probes of 1 pair"


def test_tasks_that_a_mean_leaves_out_are_named(probe_folder, tmp_path):
    folder = probe_folder("gap", n_prompts=6, unseen=("task618_x", "task511_x"), n=3, gradients=False)
    for path in (tmp_path / "runs").glob("gap-*"):
        edit_run(path, lambda f: f.assign(rougeL=f["rougeL"].mask(f["task"] == "task618_x", 7.0)))
    report = probe_report([folder], ["figure3"], tmp_path / "out", ["rougeL"])
    assert set(report.tables["Figure 3: indicators before training"]["tasks"]) == {"2 of 3"}
    assert (
        "Figure 3, ni_probe_g1, ROUGE-L: left out of means: task618_x is the same for all prompts "
        "(all indicators)." in report.warnings
    )


def test_constant_scores_and_missing_gradients_say_so_in_place_of_numbers(probe_folder, tmp_path):
    folder = probe_folder("flat", n_prompts=4, unseen=("task618_x",), n=3, gradients=False)
    for path in (tmp_path / "runs").glob("flat-*"):
        edit_run(path, lambda frame: frame.assign(rougeL=0.0))
    report = probe_report([folder], ["figure2", "figure4"], tmp_path / "out", ["rougeL"])
    (row, _) = report.tables["Figure 2: mean correlation between tasks"].to_dict("records")
    assert row["mean off the diagonal"].startswith("scores of task589_amazon are the same")
    assert (row["p"], row["pairs of tasks"]) == ("-", "0 of 1")
    assert any("flat has no gradients" in warning for warning in report.warnings)
    assert not list((tmp_path / "out").glob("figure4*"))


def test_what_cannot_be_drawn_is_refused_before_anything_is_written(mini_probe, tmp_path):
    out = tmp_path / "out"
    for folders, figures, measures, said in (
        ([mini_probe], ["figure9"], ["nll"], "figure9"),
        ([mini_probe], ["figure1"], ["bleu"], "bleu"),
        ([], ["figure1"], ["nll"], "at least one probe"),
        ([mini_probe, tmp_path / "none"], ["figure1"], ["nll"], "not a finished probe"),
    ):
        with pytest.raises(UserError, match=said):
            probe_report(folders, figures, out, measures)
    assert not out.exists()
