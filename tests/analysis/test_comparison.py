"""The train x serve matrix and its sentences, from answers that are made up so that the truth is known."""

import html
import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sapo.analysis.comparison import Comparison, leading_measures

TRAINED = ("untouched", "original", "chosen", "mixed")
SERVED = ("trained", "original", "none", "unseen")


def made_up(effect, n=40, seeds=1, seed=0, noise=0.3) -> Comparison:
    """NLL of `n` rows: a row's own level, noise, minus `effect(trained, served)`; retention tasks alike."""
    rng = np.random.default_rng(seed)
    level = rng.normal(1.5, 0.5, n)
    rows = []
    for run, trained, served in itertools.product(range(seeds), TRAINED, (*SERVED, "retained")):
        if (trained, served) == ("untouched", "trained"):
            continue
        for prompt in (7, 8) if served == "unseen" else (0,):
            nll = level - effect(trained, served) + rng.normal(0, noise, n)
            task = "other" if served == "retained" else "own"
            facts = {"seed": run, "trained": trained, "served": served, "prompt": prompt, "task": task}
            rows += [{**facts, "row": i, "nll": x, "exact_match": 100.0 * (x < 1)} for i, x in enumerate(nll)]
    prompts = {name: [name] for name in TRAINED[1:]}
    return Comparison("own", "tiny", pd.DataFrame(rows), prompts, {-1: 2.0, 0: 1.0}, ("exact_match", "nll"))


def test_what_was_planted_is_said():
    def effect(trained, served):
        if trained == "untouched":
            return 0.0
        if served == "retained":
            return {"original": -0.5, "chosen": -0.1, "mixed": -0.5}[trained]
        return {"original": 0.8, "chosen": 1.4, "mixed": 0.8}[trained] - (0.8 if served == "none" else 0.0)

    found = made_up(effect)
    by_question = {sentence.about: sentence for sentence in found.verdict}
    assert found.chosen == "chosen"
    signs = {"training": 1, "train chosen": 1, "forget chosen": 1}
    signs |= dict.fromkeys(("serve none original", "serve none chosen"), -1)
    noise = ("train mixed", "serve unseen original", "serve original chosen", "forget mixed")
    for question, sign in (signs | dict.fromkeys(noise, 0)).items():
        sentence = by_question[question]
        assert sentence.is_noise == (sign == 0) == ("noise" in sentence.text), question
        assert sentence.estimate * sign > 0 or not sign
    assert "less" in by_question["forget chosen"].text
    assert "costs" in by_question["serve none chosen"].text


@pytest.mark.slow  # a simulation
def test_where_nothing_differs_every_sentence_says_noise_in_19_of_20_seeds():
    quiet = [all(s.is_noise for s in made_up(lambda *_: 0.0, seed=seed).verdict) for seed in range(20)]
    assert sum(quiet) >= 19


def test_a_cell_is_the_mean_over_rows_prompts_and_seeds():
    found = made_up(lambda *_: 0.0, n=12, seeds=2)
    cells = found.table.set_index(["trained", "served", "measure"])
    answers = found.answers
    for trained, served in (("chosen", "none"), ("mixed", "unseen"), ("untouched", "original")):
        of_cell = answers[(answers["trained"] == trained) & (answers["served"] == served)]
        cell = cells.loc[(trained, served, "nll")]
        assert cell["value"] == pytest.approx(of_cell["nll"].mean())
        assert cell["low"] < cell["value"] < cell["high"]
        assert cell["n"] == 12
    by_prompt = answers[(answers["trained"] == "mixed") & (answers["served"] == "unseen")].groupby("prompt")
    assert cells.loc[("mixed", "unseen", "nll"), "spread"] == pytest.approx(by_prompt["nll"].mean().std())
    assert pd.isna(cells.loc[("mixed", "none", "nll"), "spread"])
    lost = answers[answers["served"] == "retained"].pivot_table(index="trained", values="nll")["nll"]
    retained = found.retained.set_index("trained")["change"]
    assert retained["chosen"] == pytest.approx(lost["chosen"] - lost["untouched"])


def test_p_is_that_of_all_signs_and_holm_counts_the_questions():
    """Five rows have 32 signs: no p can be below 1/16, and none is after Holm."""
    found = made_up(lambda trained, _: 5.0 if trained == "chosen" else 0.0, n=5, noise=0.01)
    assert all(sentence.is_noise for sentence in found.verdict)


def test_repeated_rows_count_once_and_rows_of_the_same_prompt_are_not_compared():
    once = made_up(lambda *_: 0.0, n=12)
    twice = replace(once, answers=pd.concat([once.answers, once.answers]))
    assert once.table.equals(twice.table)
    assert once.verdict == twice.verdict
    same = replace(once, prompts={**once.prompts, "chosen": ["original"]})
    assert not [sentence for sentence in same.verdict if "chosen" in sentence.about]


@pytest.mark.parametrize(
    ("label", "exact", "targets", "expected"),
    [
        (100.0, 100.0, ["a b c d e f g"], ("label_match", "nll")),
        (None, 100.0, ["two words"], ("exact_match", "nll")),
        (None, 100.0, ["a b c d e f g"], ("rougeL", "nll")),
        (None, None, ["two words"], ("nll",)),
    ],
)
def test_the_leading_measure_suits_the_rows(label, exact, targets, expected):
    answers = pd.DataFrame({"served": ["original"], "label_match": [label], "exact_match": [exact]})
    assert leading_measures(answers, targets) == expected


def test_files_hold_the_matrix_the_sentences_and_the_commands(tmp_path):
    found = replace(made_up(lambda *_: 0.0, n=12), task="<b>$of$ _a file_")
    files = {path.name for path in found.write(tmp_path, ["sapo train …"])}
    tables = {"matrix.csv", "retained.csv", "compare.json", "compare.md", "report.html"}
    assert tables | {"matrix_nll.png", "matrix_nll.pdf"} <= files
    text = (tmp_path / "compare.md").read_text(encoding="utf-8")
    assert all(sentence.text in text for sentence in found.verdict)
    assert "sapo train …" in text
    assert text.startswith("# &lt;b>$of$ \\_a file\\_: which prompt")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(html.escape(sentence.text, quote=False) in page for sentence in found.verdict)
    read = pd.read_csv(tmp_path / "matrix.csv")
    assert read["value"].tolist() == pytest.approx(found.table["value"].tolist(), abs=1e-6)
