"""Table 1 and the table of chosen prompts, in four renderings."""

import io

import pandas as pd
import pytest
from rich.console import Console

from sapo.analysis import render
from sapo.analysis.results import load_run
from sapo.analysis.tables import DEMONSTRATION, chosen_prompts, paper_rows, plain, table1
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
    table = table1(runs, draws=50)
    (group,) = table.groups
    assert [row.label for row in group.rows] == ["static", "sapo - static", "random - static"]
    sapo = group.rows[1].cells
    assert (sapo["AP"].estimate, sapo["BWT"].estimate, sapo["FWT"].estimate) == pytest.approx((2.0, 0.0, 2.0))
    assert {row.n_seeds for row in group.rows} == {2}
    assert {row.n_examples for row in group.rows} == {60}
    assert DEMONSTRATION in table.notes


def test_without_a_base_every_policy_has_its_own_scores(runs):
    (group,) = table1([run for run in runs if run.policy != "static"], draws=50).groups
    assert [row.label for row in group.rows] == ["sapo", "random"]


def test_mini_sequences_stand_beside_other_rows_of_the_paper_of_the_same_method():
    base, sapo = paper_rows("smollm2_135m", "mini_three", "lorainc")
    assert (base.model, base.sequence, base.method) == ("Qwen3-8B", "NI-Seq-M1", "LoraInc")
    assert base.cells == {"AP": 65.41, "BWT": -2.06, "FWT": 4.16}
    assert sapo.cells == {"AP": 1.89, "BWT": 0.5, "FWT": 0.06}
    assert sapo.difference


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
    base, _ = paper_rows(*names)
    assert (base.model, base.sequence, base.cells["AP"]) == (model, sequence, base_ap)


def test_a_method_that_the_paper_does_not_run_has_no_rows(run_folder):
    assert paper_rows("qwen3_8b", "ni_seq_g1", "sequential") == ()
    table = table1([load_run(run_folder(method="sequential"))], draws=50)
    assert "The paper has no rows for sequential." in table.notes


def test_other_measures_and_definitions_leave_the_paper_out(runs):
    for table in (table1(runs, "nll", draws=50), table1(runs, definition="gem", draws=50)):
        assert all(not group.paper for group in table.groups)
        assert any("paper's rows are left out" in note for note in table.notes)
    assert any("lower is better" in note for note in table1(runs, "nll", draws=50).notes)
    with pytest.raises(UserError, match="Unknown metric definition 'gems'"):
        table1(runs, definition="gems")


def test_runs_that_are_not_comparable_make_no_table(runs, run_folder):
    other = load_run(run_folder("other", method="ewc", comparable={"model": "another"}))
    with pytest.raises(UserError, match="cannot be compared"):
        table1([*runs, other], draws=50)


def test_unequal_seeds_are_said(runs):
    table = table1(runs[:3], draws=50)
    assert "sapo - static (mini_three, lorainc): over the seeds that both have." in table.notes


def test_without_a_common_seed_there_is_no_difference(runs):
    table = table1([runs[0], runs[3]], draws=50)
    assert [row.difference for row in table.groups[0].rows] == [False, False]
    assert any("no seed in common" in note for note in table.notes)


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_table_fits(runs, width):
    text = text_of(render.terminal(table1(runs, draws=50)), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for part in ("smollm2_135m · mini_three · lorainc", "+2.00", "[+2.00, +2.00]", "65.41", "Demonstration"):
        assert part in text
    assert "* Qwen3-8B · NI-Seq-M1 · LoraInc" in text


def test_markdown(runs):
    lines = render.markdown(table1(runs, draws=50)).splitlines()
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
    text = render.latex(table1(runs, draws=50))
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"{smollm2\_135m} & {mini\_three}", r"95 \%"):
        assert part in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in body} == {9}


def test_csv_is_long_and_complete(runs):
    table = pd.read_csv(io.StringIO(render.csv(table1(runs, draws=50))))
    assert len(table) == (3 + 2 + 3) * 3
    ours = table[table["source"] == "ours"]
    assert ours.notna().all(axis=None)
    assert ours["demonstration"].all()
    assert set(table[table["source"] == "paper"]["sequence"]) == {"NI-Seq-M1"}
    assert set(table["definition"]) == {"reference"}


def test_one_task_shows_dashes_and_says_why(run_folder):
    table = table1([load_run(run_folder(tasks=["a"]))], draws=50)
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
