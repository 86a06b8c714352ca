"""Tables of scores, chosen prompts, pool sizes and wall time, in their renderings, worked by hand."""

import io
from dataclasses import replace

import pandas as pd
import pytest
from made_up import TASKS, candidate, edit_run, with_columns, write_run
from rich.console import Console
from test_figures import assert_legible

from sapo.analysis import render, tables
from sapo.analysis.figures import size_figure
from sapo.analysis.intervals import metric_intervals
from sapo.analysis.metrics import METRICS
from sapo.analysis.page import run_warnings
from sapo.analysis.published import published
from sapo.analysis.results import load_run, row_remarks
from sapo.analysis.tables import DEMONSTRATION, NLL_LEADS, grouped, score_table, size_points, timings
from sapo.conf.errors import UserError
from sapo.data.files import write_json


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Static, SAPO and random, two seeds; SAPO scores 2 points more after training."""
    shifts = {"static": 0.0, "sapo": 2.0, "random": -1.0}
    folder = tmp_path_factory.mktemp("runs")
    return [
        load_run(write_run(folder, f"{policy}{seed}", policy=policy, seed=seed, shift=shift))
        for policy, shift in shifts.items()
        for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def table(runs):
    return score_table(runs, draws=50)


def table_of(*folders):
    return score_table([load_run(folder) for folder in folders], draws=50)


def ours(table):
    """Our lines of the score asked for, by label."""
    return table.lines.query("is_first and source == 'ours'").set_index("label")


def text_of(renderable, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def test_repeated_test_rows_and_answers_that_were_cut_off_are_said(runs, run_folder):
    def change(frame):
        return frame.assign(row=frame["example"] // 2, is_unfinished=frame["example"] < 3)

    run = load_run(edit_run(run_folder("twice"), change))
    notes = score_table([run], draws=50).notes
    assert "NI195: its 20 test examples are 10 distinct rows; intervals and n count these." in notes
    limit = "the limit of new tokens (evaluator.max_new_tokens) and are scored as far as they go."
    assert f"NI363: 12 of 80 answers ran into {limit}" in notes  # 3 of 20 in each of four states
    assert f"NI195: 12 of 80 answers ran into {limit}" in run_warnings([run], ["run"])
    assert row_remarks(runs) == []


def test_a_demonstration_shows_nll_too_with_intervals(table, run_folder):
    """The made-up NLL is 5 - ROUGE-L / 25: two points more are 0.08 nats less."""
    nll = table.lines[table.lines["measure"] == "nll"].set_index("label")
    assert list(nll.index) == ["static", "sapo - static", "random - static"]
    assert [nll[name].iloc[1].value for name in METRICS] == pytest.approx([-0.08, 0.0, -0.08])
    shown = " ".join(text_of(render.score_terminal(table)).split())
    assert "See NLL too: at this size" in shown
    assert "[-0.080, -0.080]" in shown
    for text in (render.score_markdown(table), render.latex(render.score_texts(table))):
        assert "NLL (lower is better)" in text
        assert "-0.080 [-0.080, -0.080]" in text
    whole = table_of(run_folder("whole", demonstration=False))
    assert list(whole.lines.query("not is_first")["measure"]) == ["nll", "exact_match"]
    assert not any("coarse" in note for note in whole.notes)


def test_where_nll_leads_rouge_l_follows_with_the_papers_rows(runs):
    table = score_table(runs, "nll", draws=50)
    blocks = [(score, list(rows["source"])) for score, rows in table.lines.groupby("score", sort=False)]
    three = ["ours"] * 3
    rouge = ("ROUGE-L", [*three, "paper", "paper"])
    assert blocks == [("NLL (lower is better)", three), rouge, ("exact match", three)]
    assert table.notes[:2] == (DEMONSTRATION, NLL_LEADS)
    long, texts = render.csv(render.score_csv(table)), render.score_texts(table)
    for text in (
        render.score_markdown(table),
        render.latex(texts),
        text_of(render.score_terminal(table)),
        long,
    ):
        assert 0 < text.index("nll" if text is long else "NLL (lo") < text.index("65.41")
        assert text.count("65.41") == 1


def test_seeds_and_bases_that_are_missing_are_said(runs):
    table = score_table([run for run in runs if run.policy != "static"], draws=50)
    assert list(ours(table).index) == ["sapo", "random - sapo"]
    table = score_table(runs[:3], draws=50)
    assert "sapo - static (mini_three, lorainc): over the seeds that both have." in table.notes
    table = score_table([runs[0], runs[3]], draws=50)
    assert list(ours(table)["difference"]) == [False, False]
    assert any("no seed in common" in note for note in table.notes)


@pytest.mark.parametrize(
    ("names", "where", "ap"),
    [
        # Ours stand beside other rows of the same method.
        (("table1", "smollm2_135m", "mini_three", "lorainc"), ("Qwen3-8B", "NI-Seq-M1"), 65.41),
        (("table1", "llama2_7b_chat", "ni_seq_g1", "olora"), ("Llama-2-7b-chat", "NI-Seq-G1"), 43.45),
        (("table1", "qwen3_8b", "ni_seq_g2", "lorainc"), ("Qwen3-8B", "NI-Seq-G2"), 23.13),
        (("table1", "qwen3_0_6b", "trace", "inscl"), ("Qwen3-8B", "TRACE"), 58.83),
        (("table1", "qwen3_14b", "ni_seq_g2", "lorainc"), ("Qwen3-8B", "NI-Seq-G2"), 23.13),
        (("table11", "smollm2_135m", "mini_three", "ewc"), ("Qwen3-8B", "NI-Seq-M2"), 44.36),
    ],
)
def test_the_papers_rows_for_ours(names, where, ap):
    rows = published(*names)
    assert list(rows["policy"]) == ["static", "sapo"]
    assert {*zip(rows["model"], rows["sequence"], strict=True)} == {where}
    assert rows["AP"][0] == ap


def test_the_papers_other_tables_and_methods_that_it_does_not_run(run_folder):
    rows = published("table2", "qwen3_8b", "ni_seq_g1", "olora")
    assert list(zip(rows["policy"], rows["AP"], strict=True)) == [
        ("static", 43.05),
        ("sapp", -1.27),
        ("sapo", 1.72),
    ]
    rows = published("table3", "smollm2_135m", "mini_three", "lorainc")
    names = ("Gemini-2.5-Pro", "GPT-OSS-120B", "Qwen3-32B")
    assert list(rows["policy"]) == [f"sapo ({name})" for name in names]
    assert list(rows.loc[2, list(METRICS)]) == [1.66, 0.62, 0.05]
    assert published("table3", "qwen3_8b", "ni_seq_m1", "ewc").empty
    assert "The paper has no rows for sequential." in table_of(run_folder(method="sequential")).notes


def test_other_measures_and_definitions_leave_the_paper_out(runs):
    for table in (score_table(runs, "exact_match", draws=50), score_table(runs, definition="gem", draws=50)):
        assert set(table.lines["source"]) == {"ours"}
        assert any("paper's rows are left out" in note for note in table.notes)
    with pytest.raises(UserError, match="Unknown metric definition 'gems'"):
        score_table(runs, definition="gems")


def test_every_rendering_holds_the_table(table):
    first = ours(table)
    assert list(first.index) == ["static", "sapo - static", "random - static"]
    assert [first[name].iloc[1].value for name in METRICS] == pytest.approx([2.0, 0.0, 2.0])
    text = text_of(render.score_terminal(table))
    assert max(map(len, text.splitlines())) <= 80
    for part in (
        "smollm2_135m · mini_three · lorainc",
        "+2.00",
        "[+2.00, +2.00]",
        "65.41",
        DEMONSTRATION[:13],
    ):
        assert part in text
    assert "* Qwen3-8B · NI-Seq-M1 · LoraInc" in text
    text = render.latex(render.score_texts(table), notes=table.notes)
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"{smollm2\_135m} & {mini\_three}", r"95 \%"):
        assert part in text
    assert {line.count(" & ") for line in text.splitlines() if line.endswith(r"\\")} == {9}
    text = render.csv(render.score_csv(table))
    assert ",60,2,,rougeL,trained," in text
    long = pd.read_csv(io.StringIO(text))
    assert len(long) == (3 + 2 + 3 + 3) * 3
    of_ours = long[long["source"] == "ours"]
    assert of_ours.drop(columns="pool_size").notna().all(axis=None)
    assert of_ours["demonstration"].all()
    assert set(long[long["source"] == "paper"]["sequence"]) == {"NI-Seq-M1"}
    lines = render.score_markdown(table).splitlines()
    assert lines[0] == "| Model | Sequence | Method | Policy | Score | AP | BWT | FWT | Examples | Seeds |"
    assert lines[1] == "|---|---|---|---|---|---:|---:|---:|---:|---:|"
    row = "| smollm2_135m | mini_three | lorainc | sapo - static | ROUGE-L | +2.00 [+2.00, +2.00] |"
    assert lines[3].startswith(row)
    papers = "| Qwen3-8B | NI-Seq-M1 | LoraInc | paper: static \\* | ROUGE-L | 65.41 | -2.06 | 4.16 | - | - |"
    assert {papers, DEMONSTRATION} <= {*lines}


def test_one_task_has_ap_alone_and_no_rows_of_the_paper(run_folder):
    table = table_of(run_folder(tasks=["a"]))
    assert render.score_markdown(table).startswith("| Model | Sequence | Method | Policy | Score | AP | Ex")
    assert set(table.lines["source"]) == {"ours"}
    assert "BWT" not in text_of(render.score_terminal(table)).partition("Rows `A - B`")[0]
    without = edit_run(run_folder("nll"), lambda frame: frame.assign(rougeL=None, exact_match=None))
    edit_run(without, identity={"evaluator": {"answers": False}})
    assert set(score_table([load_run(without)], "nll", draws=20).lines["measure"]) == {"nll"}


def test_runs_are_compared_by_whatever_they_differ_in(run_folder):
    """Paired over equal rows: 2 points more at the higher rate, 1 more by the other method."""

    def run(name, shift=0.0, rate=1e-3, **facts):
        identity = {"trainer": {"learning_rate": rate, "epochs": 1}, "policy": {"index": -1}}
        return load_run(run_folder(name, shift=shift, identity=identity, **facts))

    def firsts(*runs):
        table = score_table(runs, draws=50)
        lines = ours(table)
        return table.settings, lines["group"].iloc[0], dict(lines["AP"])

    slow, fast, ewc = run("slow"), run("fast", 2.0, 1e-2), run("ewc", 1.0, method="ewc")
    settings, group, found = firsts(slow, fast, run("fast1", 2.0, 1e-2, seed=1), run("slow1", seed=1))
    assert (settings, group) == (("trainer.learning_rate",), "smollm2_135m · mini_three · lorainc · static")
    assert list(found) == ["0.001", "0.01 - 0.001"]
    difference = found["0.01 - 0.001"]
    assert [difference.value, difference.low, difference.high] == pytest.approx([2.0] * 3)
    assert difference.n_seeds == 2
    settings, group, found = firsts(slow, ewc)
    assert (settings, group) == (("method",), "smollm2_135m · mini_three · static")
    assert found["ewc - lorainc"].value == pytest.approx(1.0)
    assert list(firsts(fast, slow)[2]) == ["0.01", "0.001 - 0.01"]  # the first named is the base
    sapo = [run("sapo", 3.0, policy="sapo"), run("sapofast", 5.0, 1e-2, policy="sapo")]
    *_, found = firsts(slow, fast, *sapo)
    labels = ["static, 0.001", "static, 0.01 - static, 0.001"]
    labels += ["sapo, 0.001 - static, 0.001", "sapo, 0.01 - static, 0.01"]  # each with its own static
    assert list(found) == labels
    assert [found[label].value for label in labels[1:]] == pytest.approx([2.0, 3.0, 3.0])
    again = run("again-01234567")  # with other prompts, say
    assert list(firsts(slow, again)[2])[1].startswith("static, 01234567 - ")
    table = score_table([slow, fast], draws=50)
    assert "trainer.learning_rate" in render.score_markdown(table).splitlines()[0]
    for width in (60, 80):
        text = text_of(render.score_terminal(table), width)
        assert max(map(len, text.splitlines())) <= width
        assert "[+2.00, +2.00]" in text


def test_runs_of_other_test_rows_stand_with_scores_of_their_own(run_folder):
    """Rows are paired where inputs and targets are the same, whatever stands around them."""
    framed = {"data": dict.fromkeys(TASKS, "sha of the same rows under another line")}
    whole, framed = run_folder("whole"), run_folder("framed", shift=2.0, comparable=framed)
    few = [
        run_folder(f"few-{policy}", policy=policy, n=5, shift=shift, comparable={"data": {}})
        for policy, shift in (("static", 1.0), ("sapo", 4.0))
    ]
    for path, most in ((whole, None), (framed, None), *((path, 5) for path in few)):
        line = "Text:" if path == framed else "task"
        write_json(path / "config.yaml", {"data": {"test_examples": most, "separator": line}})
    table = table_of(whole, framed, *few)
    assert table.settings == ("data.test_examples", "data.separator", "policy")
    first = ours(table)
    labels = ["static, all, task", "static, all, Text: - static, all, task", "static, 5, task"]
    assert list(first.index) == [*labels, "sapo, 5, task - static, 5, task"]
    assert [first["AP"].iloc[place].value for place in (1, 3)] == pytest.approx([2.0, 3.0])
    assert list(first["n_examples"]) == [60, 60, 15, 15]
    own = metric_intervals([load_run(few[0])], "rougeL", "reference", draws=50)
    assert first.loc["static, 5, task", "AP"] == own["AP"]
    (why,) = [note for note in table.notes if "no difference from" in note]
    start = "static, 5, task (mini_three, lorainc): scores, no difference from static, all, task "
    assert why.startswith(start + "(NI195: 20 and 5 test rows, 5 in both): a paired interval")


def test_runs_of_other_instructions_are_no_seeds_of_one_and_their_labels_are_not_paired(run_folder):
    """The record tells frames apart where rows are equal: the second scores 2 points more."""

    def run(frame, seed):
        facts = {"seed": seed, "comparable": {"data": dict.fromkeys(TASKS, frame)}}
        path = run_folder(f"{frame}{seed}", shift=2.0 * (frame == "B"), **facts)
        return load_run(with_columns(path, loss=0.0))

    one = [run("A", 0), run("B", 1)]
    table = score_table(one, draws=50)
    assert (table.settings, list(ours(table)["n_seeds"])) == (("test frame",), [1, 1])
    table = score_table([one[0], run("A", 1), run("B", 0), one[1]], draws=50)
    first = ours(table)
    assert (table.settings, list(first["n_seeds"])) == (("test frame",), [2, 2])
    (which,) = [note for note in table.notes if note.startswith("Test frame: a digest of instruction")]
    assert f"{first['policy'].iloc[0]} is that of A0, A1" in which
    assert first["AP"].iloc[1].value == pytest.approx(2.0)
    labels = table.lines.query("measure == 'label_match' and tested_with == 'trained'")
    assert [list(lines["difference"]) for lines in (labels, first)] == [[False, False], [False, True]]
    (why,) = [note for note in table.notes if "no difference from" in note]
    assert "(NI195: the same test rows, with other labels or words around them)" in why


def test_an_older_run_without_inputs_is_a_seed_as_others_are(run_folder):
    old = edit_run(run_folder("old"), lambda frame: frame.drop(columns="input"))
    table = table_of(old, run_folder("new", seed=1))
    assert (table.settings, list(ours(table)["n_seeds"])) == (("policy",), [2])


def test_only_what_a_config_leaves_unset_is_called_default(run_folder):
    runs = []
    for identity in ({"evaluator": {"layout": "plain"}}, {"method": {"weight": 1}}):
        path = run_folder(f"run{len(runs)}", identity=identity)
        write_json(path / "config.yaml", {"data": {}})
        runs.append(load_run(path))
    (variants,) = grouped(runs).values()
    assert list(tables.varying(runs)) == ["data.layout", "method.weight"]
    assert [variant.values for variant in variants] == [("plain", "-"), ("default", "1")]


def test_chosen_prompts(runs, run_folder):
    choices = [
        {"task": "t|1", "index": -1, "text": "Say {x} & 50 %\nplainly", "candidates": None},
        {"task": "t2", "index": 1, "text": "[red]b", "candidates": [candidate(1, 0.5)]},
    ]
    prompts = tables.chosen_prompts([runs[0], load_run(run_folder("own", choices=choices))])
    assert list(prompts["loss"]) == pytest.approx([1.4, 1.4, 1.4, None, 0.5])
    assert list(prompts["original_loss"]) == [1.6, 1.6, 1.6, None, None]
    texts = render.prompt_texts(prompts)
    assert r"| own | t\|1 | -1 | - | - | Say {x} & 50 % plainly |" in render.markdown(texts)
    assert r"Say \{x\} \& 50 \%" in render.latex(texts)
    text = text_of(render.prompts_terminal(prompts))
    assert "[red]b" in text
    assert "NI1343" in text


def test_metrics_for_the_terminal_say_what_is_missing():
    scores = pd.DataFrame({"a": [None, 70.0, 66.0], "b": [None, None, 80.0]}, dtype=float)
    text = " ".join(text_of(render.metrics_terminal(scores)).split())
    assert "reference * 73.00 -4.00 -" in text
    assert "FWT (paper, reference, gem): not evaluated: b after 0 and 1 more" in text


def test_pools_and_sizes_are_told_apart_where_they_differ(run_folder):
    pools = [
        None,
        *({"name": n, "size": k} for n, k in (("bank", 20), ("terse", 10), ("terse", 20), ("terse", 3))),
    ]
    runs = [load_run(run_folder(f"r{i}", policy="sapo", pool=pool)) for i, pool in enumerate(pools)]
    for which, names in {
        (1,): ["sapo"],
        (1, 3): ["sapo (bank)", "sapo (terse)"],
        (2, 3): ["sapo (K=10)", "sapo (K=20)"],
        (3, 4, 2): ["sapo (K=3)", "sapo (K=10)", "sapo (K=20)"],
        (1, 2): ["sapo (terse, K=10)", "sapo (bank, K=20)"],
        (0, 1): ["sapo (pool not recorded)", "sapo (bank, K=20)"],
    }.items():
        (variants,) = grouped([runs[i] for i in which]).values()
        assert [variant.name for variant in variants] == names
    table = score_table([runs[2], runs[3]], draws=20)
    assert any(note.startswith("K: ") for note in table.notes)
    others = [
        load_run(run_folder(f"o{k}", policy="random", pool={"name": "terse", "size": k})) for k in (3, 20)
    ]
    (variants,) = grouped([runs[4], runs[3], *others]).values()  # sizes of one policy follow each other
    policies = [variant.policy for variant in variants]
    assert [variant.name for variant in variants] == [
        f"{p} (K={k})" for p in dict.fromkeys(policies) for k in (3, 20)
    ]


def test_a_frame_for_the_terminal_says_what_is_the_same_once():
    frame = pd.DataFrame({"probe": ["g1", "g1"], "what": ["a|b", "[c]"], "n": ["1", "2"]})
    text = text_of(render.terminal(frame, "Title"))
    assert (text.count("g1"), text.count("probe: g1"), text.count("[c]")) == (1, 1, 1)
    assert "probe" not in text_of(render.terminal(frame[:1], "Title")).splitlines()[0]
    assert r"| g1 | a\|b | 1 |" in render.markdown(frame)
    assert r"{g1} & {a|b} & {1} \\" in render.latex(frame)


def test_no_cell_acts_in_a_spreadsheet_or_in_markdown():
    texts = ["=1+1", "@SUM(A1)", "-2+3", "<b>[a](http://b)"]
    frame = pd.DataFrame({"text": texts, "n": ["-0.5 [-1.0, 0.1]", "-loss", "+1.5", "-"]})
    lines = [line.split(",", 1) for line in render.csv(frame).splitlines()[1:]]
    assert [text for text, _ in lines] == ["'=1+1", "'@SUM(A1)", "'-2+3", "<b>[a](http://b)"]
    assert [number.strip('"') for _, number in lines] == list(frame["n"])
    text = render.markdown(frame)
    assert "| -0.5 [-1.0, 0.1] |" in text
    assert "<b>" not in text
    assert "[a](" not in text


# --- the size of the pool ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    """Static, and SAPO with 10 and 20 paraphrases of two writers, which score 1 and 2 points more."""
    folder = tmp_path_factory.mktemp("sizes")
    runs = [write_run(folder, "static")]
    for name in ("bank", "terse"):
        for size in (20, 10):
            facts = {"policy": "sapo", "pool": {"name": name, "size": size}, "shift": size / 10}
            runs.append(write_run(folder, f"{name}{size}", **facts))
    return table_of(*runs)


def test_points_are_differences_by_size_with_a_line_a_pool(sizes, table):
    points = size_points(sizes, "rougeL")
    assert len(points) == 4 * 3
    assert set(points["base"]) == {"static"}
    assert set(points["policy"]) == {"sapo (bank)", "sapo (terse)"}
    which = "metric == 'AP' and policy == 'sapo (bank)'"
    for measure, expected in (("rougeL", {20: 2.0, 10: 1.0}), ("nll", {20: -0.08, 10: -0.04})):
        bank = size_points(sizes, measure).query(which).set_index("pool_size")["estimate"]
        assert dict(bank) == pytest.approx(expected)  # the made-up NLL is 5 - ROUGE-L / 25
    assert (points["low"] <= points["estimate"]).all()
    assert (points["estimate"] <= points["high"]).all()
    assert size_points(table, "rougeL").empty  # runs without pools


def test_sizes_keep_a_line_where_other_settings_differ_too(run_folder):
    runs = []
    for rank in (4, 8):
        facts = {"identity": {"trainer": {"rank": rank}}}
        runs.append(run_folder(f"static{rank}", **facts))
        for size in (10, 20):
            pool = {"name": "bank", "size": size}
            runs.append(run_folder(f"sapo{rank}_{size}", policy="sapo", pool=pool, **facts))
    points = size_points(table_of(*runs), "nll").query("metric == 'AP'")
    assert list(zip(points["policy"], points["pool_size"], strict=True)) == [
        ("sapo, 4", 10),
        ("sapo, 4", 20),
        ("sapo, 8", 10),
        ("sapo, 8", 20),
    ]


def test_the_figure_has_a_panel_a_metric_and_a_tick_a_size(sizes):
    figure = size_figure(size_points(sizes, "rougeL"), "rougeL", "Sizes")
    assert [axes.get_title() for axes in figure.axes] == ["AP (n = 60)", "BWT (n = 40)", "FWT (n = 40)"]
    assert [list(axes.get_xticks()) for axes in figure.axes] == [[10, 20]] * 3
    assert list(figure.axes[0].containers[0].lines[0].get_ydata()) == pytest.approx([1.0, 2.0])
    assert figure.legends[0].get_title().get_text() == "Sizes"
    label = "ROUGE-L: difference from static\n(ROUGE-L points; higher is better)"
    assert figure.axes[0].get_ylabel() == label


def test_no_text_of_the_figure_lies_on_other_text_or_outside(sizes):
    points = size_points(sizes, "nll").query("pool_size == 10 and policy == 'sapo (bank)'")
    every = [
        points.assign(group=f"smollm2_135m · mini_three · {method}", policy=f"sapo ({name})", pool_size=size)
        for method in ("lorainc", "inscl (lexical)")
        for name in ("bank", "elaborate")
        for size in (5, 10, 20, 30, 40, 50)
    ]
    title = "Size of the prompt pool\nseeds 0, 1 · demonstration · NLL leads"
    assert_legible(size_figure(pd.concat(every), "nll", title))


# --- wall time ---------------------------------------------------------------------------------------------


def stages_of(kind: str, *seconds: float) -> list[dict]:
    facts = {"kind": kind, "device": "cuda (a GPU)"}
    return [facts | {"task": task, "seconds": value} for task, value in zip("ab", seconds, strict=False)]


@pytest.fixture
def pair(run_folder):
    """`pair(method, seed, train, score)`: a static and a SAPO run with the times of their stages."""

    def write(method, seed, train, score):
        tested = stages_of("evaluate", 7.0)
        common = {"tasks": ["a", "b"], "method": method, "seed": seed}
        static = run_folder(f"static-{method}{seed}", stages=stages_of("train", *train) + tested, **common)
        # The training of another prompt takes another time, which is not selection's.
        sapo_stages = stages_of("score", *score) + stages_of("train", 500.0, 500.0) + tested
        sapo = run_folder(f"sapo-{method}{seed}", policy="sapo", stages=sapo_stages, **common)
        return [load_run(static), load_run(sapo)]

    return write


def test_selection_over_training_of_equal_seeds(pair):
    runs = [*pair("ewc", 0, (10, 30), (1, 3)), *pair("ewc", 1, (20, 20), (4, 8))]
    frame, _, notes = timings(runs, draws=200)
    own, paper = frame.to_dict("records")
    names = ("base_seconds", "extra_seconds", "test_seconds", "overhead_percent", "n_tasks", "n_seeds")
    assert [own[name] for name in names] == [40.0, 8.0, 14.0 / 2, 20.0, 2, 2]
    # Task a and b have 10 % each in the one seed, 20 and 40 % in the other: a mean of 15 to 25 %.
    assert own["low"] == pytest.approx(40 * 100 / 3 / 80, rel=0.5)
    assert 10 <= own["low"] < 20 < own["high"] <= 30
    names = ("base_seconds", "extra_seconds", "method", "overhead_percent", "sequence")
    assert [paper[name] for name in names] == [3.0 * 3600, 0.25 * 3600, "EWC", 8.3, "NI-Seq-M1"]
    assert notes[-1].startswith("Hardware: cuda (a GPU).")


def test_runs_without_a_partner_are_named_and_the_paper_stands_alone(pair):
    _, sapo = pair("olora", 0, (1, 1), (1, 1))
    frame, warnings, _ = timings([sapo], draws=50)
    assert list(frame["source"]) == ["paper"]
    assert f"Left out, since no static run has their seed: {sapo.id}." in warnings
    assert any(warning.startswith("No run here has both") for warning in warnings)
    of_no_paper, *_ = timings(pair("replay", 0, (1, 1), (1, 1))[:1], draws=50)
    assert tables.timing_text(of_no_paper).empty


def test_text_has_units_and_dashes(pair):
    text = tables.timing_text(timings(pair("lorainc", 0, (10, 30), (1, 3)), draws=50)[0])
    assert text.to_dict("split")["data"] == [
        ["lorainc, sapo", "40.0 s", "4.0 s", "10.0 % [10.0, 10.0]", "7.0 s", "2", "1"],
        ["paper: LoraInc *", "2.00 h", "0.25 h", "12.5 %", "-", "-", "-"],
    ]


@pytest.mark.parametrize("kind", ["score", "evaluate", "train"])
def test_times_of_different_hardware_are_not_divided(pair, kind):
    static, sapo = pair("lorainc", 0, (10, 30), (1, 3))
    stages = sapo.record.stages
    moved = tuple(s.model_copy(update={"device": "cpu"}) if s.kind == kind else s for s in stages)
    sapo = replace(sapo, record=sapo.record.model_copy(update={"stages": moved}))
    frame, warnings, notes = timings([static, sapo], draws=50)
    assert notes[-1].startswith("Hardware: cpu; cuda (a GPU).")
    if kind == "train":  # which is not timed
        assert frame["hardware"][0] == "cuda (a GPU)"
        return
    assert list(frame["source"]) == ["paper"]
    reason = "they or their static run were computed on several kinds of hardware"
    assert f"Left out, since {reason}: {sapo.id}." in warnings
