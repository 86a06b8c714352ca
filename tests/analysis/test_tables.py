"""Table 1 and the table of chosen prompts, in four renderings."""

import io

import pandas as pd
import pytest
from rich.console import Console

from sapo.analysis import render
from sapo.analysis.published import plain, published
from sapo.analysis.results import load_run
from sapo.analysis.tables import DEMONSTRATION, NLL_LEADS, chosen_prompts, grouped, score_table
from sapo.conf.errors import UserError


@pytest.fixture
def runs(run_folder):
    """Static, SAPO and random, two seeds; SAPO scores 2 points more after training."""
    shifts = {"static": 0.0, "sapo": 2.0, "random": -1.0}
    return [
        load_run(run_folder(f"{policy}{seed}", policy=policy, seed=seed, shift=shift))
        for policy, shift in shifts.items()
        for seed in (0, 1)
    ]


def text_of(renderable, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def test_base_row_and_differences(runs):
    table = score_table(runs, draws=50)
    (group,) = table.groups
    assert [row.label for row in group.rows] == ["static", "sapo - static", "random - static"]
    sapo = group.rows[1].cells
    assert (sapo["AP"].value, sapo["BWT"].value, sapo["FWT"].value) == pytest.approx((2.0, 0.0, 2.0))
    assert {row.n_seeds for row in group.rows} == {2}
    assert {row.n_examples for row in group.rows} == {60}
    assert DEMONSTRATION in table.notes


def test_a_demonstration_shows_nll_too_with_intervals(runs, run_folder):
    """The made-up NLL is 5 - ROUGE-L / 25: two points more are 0.08 nats less."""
    table = score_table(runs, draws=50)
    nll = [row for row in table.groups[0].more if row.measure == "nll"]
    assert [row.label for row in nll] == ["static", "sapo - static", "random - static"]
    gain = nll[1].cells
    assert [gain[name].value for name in ("AP", "BWT", "FWT")] == pytest.approx([-0.08, 0.0, -0.08])
    shown = " ".join(text_of(render.terminal(table), 80).split())
    for part in ("NLL (lower is better):", "-0.080", "[-0.080, -0.080]", "See NLL too: at this size"):
        assert part in shown
    for text in (render.markdown(table), render.latex(table)):
        assert "NLL (lower is better)" in text
        assert "-0.080 [-0.080, -0.080]" in text
    whole = score_table([load_run(run_folder("whole", demonstration=False))], draws=50)
    assert {row.measure for row in whole.groups[0].more} == {"nll", "exact_match"}
    assert not any("coarse" in note for note in whole.notes)


def test_where_nll_leads_rouge_l_follows_with_the_papers_rows(runs):
    table = score_table(runs, "nll", draws=50)
    (group,) = table.groups
    blocks = [(rows[0].score, [row.source for row in rows]) for rows in group.blocks]
    assert blocks == [
        ("NLL (lower is better)", ["ours"] * 3),
        ("ROUGE-L", ["ours"] * 3 + ["paper"] * 2),
        ("exact match", ["ours"] * 3),
    ]
    assert table.notes[:2] == (DEMONSTRATION, NLL_LEADS)
    for text in (render.markdown(table), render.latex(table), render.csv(table)):
        places = [text.index(part) for part in ("nll" if text.startswith("source") else "NLL (lo", "65.41")]
        assert places == sorted(places)
        assert text.count("65.41") == 1
    shown = text_of(render.terminal(table), 80)
    assert shown.index("NLL (lower is better)") < shown.index("ROUGE-L:") < shown.index("65.41")
    assert "[+2.00, +2.00]" in shown


def test_without_a_base_every_policy_has_its_own_scores(runs):
    (group,) = score_table([run for run in runs if run.policy != "static"], draws=50).groups
    assert [row.label for row in group.rows] == ["sapo", "random"]


def test_mini_sequences_stand_beside_other_rows_of_the_paper_of_the_same_method():
    base, sapo = published("table1", "smollm2_135m", "mini_three", "lorainc")
    assert (base.model, base.sequence, base.method) == ("Qwen3-8B", "NI-Seq-M1", "LoraInc")
    assert base.cells == {"AP": 65.41, "BWT": -2.06, "FWT": 4.16}
    assert sapo.cells == {"AP": 1.89, "BWT": 0.5, "FWT": 0.06}
    assert (base.policy, sapo.policy) == ("static", "sapo")


@pytest.mark.parametrize(
    ("names", "model", "sequence", "base_ap"),
    [
        (("llama2_7b_chat", "ni_seq_g1", "olora"), "Llama-2-7b-chat", "NI-Seq-G1", 43.45),
        (("qwen3_8b", "ni_seq_g2", "lorainc"), "Qwen3-8B", "NI-Seq-G2", 23.13),
        (("qwen3_0_6b", "trace", "inscl"), "Qwen3-8B", "TRACE", 58.83),
        (("qwen3_14b", "ni_seq_g2", "lorainc"), "Qwen3-8B", "NI-Seq-G2", 23.13),
    ],
)
def test_the_papers_rows_for_its_own_sequences(names, model, sequence, base_ap):
    base, _ = published("table1", *names)
    assert (base.model, base.sequence, base.cells["AP"]) == (model, sequence, base_ap)


def test_a_method_that_the_paper_does_not_run_has_no_rows(run_folder):
    assert published("table1", "qwen3_8b", "ni_seq_g1", "sequential") == []
    table = score_table([load_run(run_folder(method="sequential"))], draws=50)
    assert "The paper has no rows for sequential." in table.notes


def test_other_measures_and_definitions_leave_the_paper_out(runs):
    for table in (score_table(runs, "exact_match", draws=50), score_table(runs, definition="gem", draws=50)):
        assert all(not group.paper for group in table.groups)
        assert any("paper's rows are left out" in note for note in table.notes)
    with pytest.raises(UserError, match="Unknown metric definition 'gems'"):
        score_table(runs, definition="gems")


def test_runs_that_are_not_comparable_make_no_table(runs, run_folder):
    other = load_run(run_folder("other", method="ewc", comparable={"model": "another"}))
    with pytest.raises(UserError, match="cannot be compared"):
        score_table([*runs, other], draws=50)


def test_unequal_seeds_are_said(runs):
    table = score_table(runs[:3], draws=50)
    assert "sapo - static (mini_three, lorainc): over the seeds that both have." in table.notes


def test_without_a_common_seed_there_is_no_difference(runs):
    table = score_table([runs[0], runs[3]], draws=50)
    assert [row.difference for row in table.groups[0].rows] == [False, False]
    assert any("no seed in common" in note for note in table.notes)


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_table_fits(runs, width):
    text = text_of(render.terminal(score_table(runs, draws=50)), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for part in ("smollm2_135m · mini_three · lorainc", "+2.00", "[+2.00, +2.00]", "65.41", "Demonstration"):
        assert part in text
    assert "* Qwen3-8B · NI-Seq-M1 · LoraInc" in text


def test_markdown(runs):
    lines = render.markdown(score_table(runs, draws=50)).splitlines()
    assert lines[0] == "| Model | Sequence | Method | Policy | Score | AP | BWT | FWT | Examples | Seeds |"
    assert lines[3].startswith(
        "| smollm2_135m | mini_three | lorainc | sapo - static | ROUGE-L | +2.00 [+2.00, +2.00] |"
    )
    assert (
        "| Qwen3-8B | NI-Seq-M1 | LoraInc | paper: static * | ROUGE-L | 65.41 | -2.06 | 4.16 | - | - |"
        in lines
    )
    assert DEMONSTRATION in lines


def test_latex(runs):
    text = render.latex(score_table(runs, draws=50))
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"{smollm2\_135m} & {mini\_three}", r"95 \%"):
        assert part in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in body} == {9}


def test_csv_is_long_and_complete(runs):
    table = pd.read_csv(io.StringIO(render.csv(score_table(runs, draws=50))))
    assert len(table) == (3 + 2 + 3 + 3) * 3
    ours = table[table["source"] == "ours"]
    assert ours.drop(columns="pool_size").notna().all(axis=None)
    assert ours["demonstration"].all()
    assert set(table[table["source"] == "paper"]["sequence"]) == {"NI-Seq-M1"}
    assert set(table["definition"]) == {"reference"}


def test_one_task_shows_dashes_and_says_why(run_folder):
    table = score_table([load_run(run_folder(tasks=["a"]))], draws=50)
    assert "| - | - | 20 | 1 |" in render.markdown(table)
    assert any(note.startswith("A dash") for note in table.notes)


def test_names_are_compared_without_case_and_punctuation():
    assert plain("Llama-2-7b-chat") == plain("llama2_7b_chat")


def test_chosen_prompts(runs, run_folder):
    choices = [
        {"task": "t|1", "index": -1, "text": "Say {x} & 50 %\nplainly", "candidates": None},
        {
            "task": "t2",
            "index": 1,
            "text": "[red]b",
            "candidates": [{"index": 1, "text": "[red]b", "loss": 0.5}],
        },
    ]
    run = load_run(run_folder("own", choices=choices))
    prompts = chosen_prompts([runs[0], run])
    assert list(prompts["loss"]) == pytest.approx([1.4, 1.4, 1.4, None, 0.5])
    assert list(prompts["original_loss"]) == [1.6, 1.6, 1.6, None, None]
    assert r"| own | t\|1 | -1 | - | - | Say {x} & 50 % plainly |" in render.prompts_markdown(prompts)
    assert r"Say \{x\} \& 50 \%" in render.prompts_latex(prompts)
    text = text_of(render.prompts_terminal(prompts), 80)
    assert "[red]b" in text
    assert "NI1343" in text


def test_metrics_for_the_terminal_say_what_is_missing():
    scores = pd.DataFrame({"a": [None, 70.0, 66.0], "b": [None, None, 80.0]}, dtype=float)
    text = " ".join(text_of(render.metrics_terminal(scores), 80).split())
    assert "reference * 73.00 -4.00 -" in text
    assert "FWT (paper, reference, gem): not evaluated: b after 0 and 1 more" in text


def test_pools_and_sizes_are_told_apart_where_they_differ(run_folder):
    pools = [None, {"name": "bank", "size": 20}, {"name": "terse", "size": 10}, {"name": "terse", "size": 20}]
    pools.append({"name": "terse", "size": 3})
    runs = [load_run(run_folder(f"r{i}", policy="sapo", pool=pool)) for i, pool in enumerate(pools)]

    def variants(*which):
        (found,) = grouped([runs[i] for i in which]).values()
        return list(found)

    assert variants(1) == ["sapo"]
    assert variants(1, 3) == ["sapo (bank)", "sapo (terse)"]
    assert variants(2, 3) == ["sapo (K=10)", "sapo (K=20)"]
    assert variants(3, 4, 2) == ["sapo (K=3)", "sapo (K=10)", "sapo (K=20)"]
    assert variants(1, 2) == ["sapo (terse, K=10)", "sapo (bank, K=20)"]
    assert variants(0, 1) == ["sapo (pool not recorded)", "sapo (bank, K=20)"]
    table = score_table([runs[2], runs[3]], draws=20)
    assert any(note.startswith("K: ") for note in table.notes)


def test_the_papers_other_tables():
    base, sapp, sapo = published("table2", "qwen3_8b", "ni_seq_g1", "olora")
    assert [row.policy for row in (base, sapp, sapo)] == ["static", "sapp", "sapo"]
    assert [row.cells["AP"] for row in (base, sapp, sapo)] == [43.05, -1.27, 1.72]
    rows = published("table3", "smollm2_135m", "mini_three", "lorainc")
    assert [row.policy for row in rows] == [
        "sapo (Gemini-2.5-Pro)",
        "sapo (GPT-OSS-120B)",
        "sapo (Qwen3-32B)",
    ]
    assert rows[2].cells == {"AP": 1.66, "BWT": 0.62, "FWT": 0.05}
    assert published("table3", "qwen3_8b", "ni_seq_m1", "ewc") == []
    assert published("table11", "smollm2_135m", "mini_three", "ewc")[0].sequence == "NI-Seq-M2"


def test_a_frame_for_the_terminal_says_what_is_the_same_once():
    frame = pd.DataFrame({"probe": ["g1", "g1"], "what": ["a|b", "[c]"], "n": ["1", "2"]})
    text = text_of(render.frame_terminal(frame, "Title"), 80)
    assert text.count("g1") == 1
    assert "probe: g1" in text
    assert "[c]" in text
    assert "probe" not in text_of(render.frame_terminal(frame[:1], "Title"), 80).splitlines()[0]
    assert r"| g1 | a\|b | 1 |" in render.frame_markdown(frame)
    assert r"{g1} & {a|b} & {1} \\" in render.frame_latex(frame)
