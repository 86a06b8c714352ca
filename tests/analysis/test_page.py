"""The report's page: it holds what was found, is whole and alone, and nothing that it shows can act."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import candidate, edit_run, write_run

from sapo.analysis import page as page_module
from sapo.analysis.page import Report, answers, html, run_labels, run_warnings
from sapo.analysis.results import load_run
from sapo.analysis.tables import DEMONSTRATION, score_table

NAME = "<img src=x onerror=alert(1)>{{7*7}}{% raw %}<!--'\"&"  # what a task may be called
HOSTILE = f"</script>{NAME}\u2028"
VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Tags with their attributes, and the text of every element that holds no other."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.texts, self.script = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {tag} {attrs}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.script += data
        elif data.strip() and self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report_of(*folders: Path) -> Report:
    runs = [load_run(folder) for folder in folders]
    return Report(runs, table=score_table(runs, draws=50))


# --- safe and alone ----------------------------------------------------------------------------------------


def test_what_came_from_data_and_models_is_text_and_nothing_else(run_folder):
    tasks = [f"task195_{NAME}", NAME]
    candidates = [candidate(index, 1.0, text=HOSTILE) for index in (-1, 0)]
    choices = [{"task": task, "index": 0, "text": HOSTILE, "candidates": candidates} for task in tasks]
    names = {"model": NAME, "sequence": NAME, "method": HOSTILE, "policy": HOSTILE}
    environment = {"device": HOSTILE, "commit": HOSTILE, "dirty": True, "packages": {HOSTILE: HOSTILE}}
    folder = run_folder(tasks=tasks, choices=choices, notes=[HOSTILE], environment=environment, **names)
    edit_run(folder, lambda frame: frame.assign(prediction=HOSTILE, target=HOSTILE))
    report = report_of(folder)
    report.warnings, report.notes = [HOSTILE], [HOSTILE]
    report.texts = {HOSTILE: pd.DataFrame({HOSTILE: [HOSTILE]})}
    text = html(report)
    page = Page(text)
    assert not page.all("img")
    assert len(page.all("script")) == 1
    assert "alert(" not in page.script
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "{{7*7}}" in page.text
    assert "49</" not in text
    assert page.texts.count(HOSTILE) > 100
    assert "<!--" not in text
    assert "</script><img" not in text


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The report of a static and a SAPO run, with figures of its own and of a run."""
    folder = tmp_path_factory.mktemp("two")
    common = {"environment": {"packages": {"torch": "9.1"}, "commit": "abc"}, "n": 60}
    folders = []
    for policy, shift, index in (("static", 0.0, 3), ("sapo", 2.0, 4)):
        identity = {"policy": {"index": index}, "trainer": {"names": ["q", "v"]}}
        folders.append(write_run(folder, policy, policy=policy, shift=shift, identity=identity, **common))
    losses = [f"{task},{step},{1 / step}\n" for task in "ab" for step in range(1, 9)]
    (folders[0] / "losses.csv").write_text("task,step,loss\n" + "".join(losses))
    report = report_of(*folders)
    report.warnings = [DEMONSTRATION, "sapo failed: out of memory"]
    report.notes = ["p values are after `holm`."]
    for name in ("a.png", "a.pdf", "sapo/of_a_run.png"):
        (folder / name).write_bytes(name.encode())
        report.files.append(folder / name)
    return report


@pytest.fixture(scope="module")
def page(two):
    return Page(html(two))


def test_the_page_needs_nothing_but_itself(two, page):
    assert {name for name, _ in page.tags}.isdisjoint({"link", "iframe", "object", "embed", "base"})
    content = base64.b64encode(b"a.png").decode()
    of_report, of_losses = (picture["src"] for picture in page.all("img"))
    assert of_report == f"data:image/png;base64,{content}"
    assert of_losses.startswith("data:image/png;base64,")
    links = [attributes["href"] for attributes in page.all("a")]
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert links
    assert {link[1:] for link in links} <= ids
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"https?:|url\(|@import", re.sub('data:[^"]*', "", html(two)))


def test_the_policy_of_the_page_lets_only_its_own_script_run(page):
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    nothing = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-"
    assert policy == f"{nothing}{digest}'; base-uri 'none'; form-action 'none'"


# --- what it holds -----------------------------------------------------------------------------------------


def test_the_table_stands_with_intervals_counts_and_the_papers_rows(two, page):
    parts = ("Comparison: AP, BWT, FWT", "paper: static *", "sapo - static", "reference", "65.41")
    for part in ("Training loss", *parts, two.table.lines.at[0, "AP"].text(), "Demonstration on a small"):
        assert part in page.text


def test_warnings_stand_apart_from_how_to_read_the_page(two):
    warnings, reading = (
        html(two).partition(f'<section id="{name}">')[2].partition("</section>")[0]
        for name in ("warnings", "reading")
    )
    assert warnings.count("Demonstration on a small model") == 1  # the runs say so, too
    assert "sapo failed: out of memory" in warnings
    assert ("holm" in warnings, "after <code>holm</code>." in reading) == (False, True)


def test_one_run_has_a_table_too_and_a_policy_that_measures_nothing_its_prompt_alone(run_folder):
    choices = [{"task": "task363_sst2", "index": 4, "text": "Rate it.", "candidates": None}]
    text = Page(html(report_of(run_folder(n=20, choices=choices)))).text
    assert "ROUGE-L static" in text
    assert " 60 1 " in text  # three tasks of 20 test examples, one seed
    assert "NI363 Rate it. Candidate 4: this policy measures no losses." in text


def test_settings_versions_and_data_stand_where_they_differ_and_where_they_do_not(page):
    differing, _, shared = page.text.partition("What all runs have in common")
    assert "policy.index 3 4" in differing
    data = "test data, task363_sst2 sha-task363_sst2"
    for fact in ("torch 9.1", "git commit abc", "trainer.names q, v", data):
        assert fact in shared
        assert fact not in differing


# --- what it says of runs ----------------------------------------------------------------------------------


def test_matrices_are_as_computed_and_coloured_by_what_is_better(run_folder):
    values = {"a": [0, 80, 60], "b": [10, 35, 90]}
    scores = {(after, task): np.array([values[task][after]]) for task in values for after in (0, 1, 2)}
    run = load_run(run_folder(tasks=["a", "b"], scores=scores))
    page = html(Report([run], measure="rougeL"))
    ours = page.partition('id="matrices"')[2].partition("By other measures")[0]
    rows = [re.findall(r">([^<>]*)</t[hd]>", row) for row in ours.split("<tr>")]
    assert rows[2:4] == [["untouched model", "0.0", "10.0"], ["after a", "80.0", "35.0"]]
    assert rows[4] == ["after b", "60.0", "90.0"]
    cells = re.findall(r'class="n (\w+)" style="--h:([\d.]+)">([^<]*)', page)
    assert {("amount", "0.8", "80.0"), ("amount", "0.35", "35.0")} <= set(cells)
    assert {("bad", "1.0", "-20.0"), ("good", "1.0", "+25.0")} <= set(cells)
    assert ("bad", "1.0", "+0.800") in cells  # of NLL: (80 - 60) / 25 nats more


@pytest.mark.parametrize("n_of_original", [8, 4])
def test_candidates_stand_by_loss_and_only_losses_of_as_many_examples_are_compared(run_folder, n_of_original):
    scored = [candidate(-1, 2.0, n_of_original), candidate(0, 1.0, 2), candidate(1, 1.5, 8)]
    choices = [{"task": "a", "index": 1, "text": "t", "candidates": scored}]
    page = html(Report([load_run(run_folder(tasks=["a"], choices=choices))]))
    rows = page.partition('<table class="candidates">')[2].partition("</table>")[0].split("<tr")[2:]
    texts = [re.sub("<[^>]+>", " ", row.partition(">")[2]).split() for row in rows]
    changes, dropped = (("-0.5000", "+0.0000"), []) if n_of_original == 8 else (("–", "–"), ["(dropped)"])
    assert texts == [
        ["0", "1.0000", "–", "2", "(dropped)", "Wording", "0"],
        ["1", "chosen", "1.5000", changes[0], "8", "Wording", "1"],
        ["original", "2.0000", changes[1], f"{n_of_original}", *dropped, "Wording", "-1"],
    ]


def test_runs_are_told_apart_by_settings_then_by_prompts_then_by_id(run_folder):
    def labels(*folders: Path) -> list[str]:
        return run_labels([load_run(folder) for folder in folders])

    static, adaptive = run_folder("static"), run_folder("sapo", policy="sapo", seed=1)
    assert labels(static, adaptive) == ["static · seed 0", "sapo · seed 1"]
    other = run_folder("other", model="tiny_llama")
    assert labels(static, other) == ["smollm2_135m · static · seed 0", "tiny_llama · static · seed 0"]
    choices = {index: [{"task": "a", "index": index, "text": "t"}] for index in (-1, 7)}
    probes = [run_folder(f"probe{n}", tasks=["a"], choices=choice) for n, choice in choices.items()]
    assert labels(*probes) == ["static · seed 0 · prompts original", "static · seed 0 · prompts 7"]
    again = run_folder("again")
    expected = [f"static · seed 0 · prompts 1, 1, 1 · {name}" for name in ("static", "again")]
    assert labels(static, again) == expected


def test_warnings_name_the_runs_that_they_are_about(run_folder):
    common = {"demonstration": False, "notes": ["A note."]}
    first = run_folder("one", shortened={"task195_sentiment": 3, "task363_sst2": 0}, **common)
    second = run_folder("two", seed=1, environment={"dirty": True}, **common)
    runs = [load_run(first), load_run(second)]
    assert run_warnings(runs, run_labels(runs)) == [
        "NI195: 3 inputs were too long and have been shortened. (static · seed 0)",
        "A note.",
        "Run with uncommitted changes: the git commit does not say all of the code. (static · seed 1)",
    ]


# --- predictions -------------------------------------------------------------------------------------------


def test_the_changed_answers_come_first(run_folder):
    """Of four examples of task a one is lost, one gained, one reworded, one the same."""
    scores = {(0, "a"): [0] * 4, (1, "a"): [50, 40, 30, 20], (2, "a"): [10, 90, 30, 20]}
    scores |= {(state, "b"): [state] * 4 for state in (0, 1, 2)}
    folder = run_folder("run", {key: np.array(v, float) for key, v in scores.items()}, tasks=["a", "b"])

    def change(frame: pd.DataFrame) -> None:
        frame.loc[(frame["after"] == 2) & (frame["example"] < 3), "prediction"] = "no"

    found = answers([load_run(edit_run(folder, change))], ["run"])
    (block,) = found["a"]
    assert (block["before"], block["after"], block["total"]) == ("after a", "after b", 4)
    assert block["counts"] == {"lost": 1, "gained": 1, "reworded": 1, "same": 1}
    names = ("example", "change", "prediction_before", "prediction", "rougeL_before", "rougeL")
    assert [tuple(row[name] for name in names) for row in block["rows"]] == [
        (0, "lost", "yes", "no", 50, 10),
        (1, "gained", "yes", "no", 40, 90),
        (2, "reworded", "yes", "no", 30, 30),
        (3, "same", "yes", "yes", 20, 20),
    ]
    (last,) = found["b"]  # trained last: compared with the untouched model
    assert (last["before"], last["after"], last["counts"]["gained"]) == ("untouched model", "after b", 4)


def test_a_task_tested_in_one_state_only_has_nothing_to_compare(run_folder):
    folder = run_folder(tasks=["a"], scores={(1, "a"): np.array([5.0, 6.0])})
    report = report_of(folder)
    (block,) = answers(report.runs, ["run"])["a"]
    assert (block["before"], block["counts"], len(block["rows"])) == (None, {}, 2)
    assert "All 2 test examples." in Page(html(report)).text


def test_the_page_says_how_many_of_how_many_are_shown(two, page, monkeypatch):
    assert "50 of 60 test examples are shown." in page.text
    monkeypatch.setattr(page_module, "PAGE_ROWS", 60)
    short = Page(html(two))
    assert "10 of 60 test examples are shown." in short.text
    assert len([row for row in short.all("tr") if "data-change" in row]) == 2 * 3 * 10


def test_long_answers_are_cut_and_say_so_and_scores_that_are_not_there_are_dashes(run_folder):
    facts = {"prediction": "x" * 1000, "rougeL": np.nan, "exact_match": np.nan}
    folder = edit_run(
        run_folder(n=1), lambda f: f.assign(**facts), identity={"evaluator": {"answers": False}}
    )
    text = html(Report([load_run(folder)], measure="nll"))
    assert ">–</td>" in text.partition('id="answers"')[2]
    assert "nan" not in text.partition('id="answers"')[2]
    assert "x" * 600 + "… (1000 letters)" in text
    assert "x" * 601 not in text


# --- figures and tables ------------------------------------------------------------------------------------


def test_a_report_without_runs_shows_what_it_is_given(tmp_path):
    (tmp_path / "violin.png").write_bytes(b"png")
    frame = pd.DataFrame({"probe": ["g1", "g1"], "task": ["NI195", "b"], "spread": [0.12345, np.nan]})
    report = Report([], tmp_path, warnings=["One stage failed."], notes=["p: see `holm`."])
    report.files, report.texts = [tmp_path / "violin.png"], {"Spread": frame}
    page = Page(html(report))
    for part in ("One stage failed.", "Spread probe: g1 task spread NI195 0.123 b –", "violin"):
        assert part in page.text
