"""Claims: their statistics, error and power in simulation, a golden table, and evidence that is refused."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from made_up import edit_run, scores_of, with_columns, write_probe, write_run
from scipy import stats
from tiny import refusal

from sapo.analysis.claims import (
    Basis,
    Claim,
    ProbeData,
    contrast_estimate,
    decided,
    over_units,
    permuted_together,
    probe_values,
)
from sapo.analysis.evidence import load_evidence
from sapo.analysis.ledger import claim_texts, exploratory, pair_table
from sapo.analysis.probes.results import sign_of
from sapo.analysis.report import claims
from sapo.analysis.results import NUMBERS, find
from sapo.experiments.engine.archive import export_runs, import_archive
from sapo.experiments.engine.store import Store

# --- simulated stores --------------------------------------------------------------------------------------


def made_probe(rng, number=0, n=10, k=4, together=0.0, loss=0.0, spread=0.0, measures=NUMBERS) -> ProbeData:
    """Prompts with a hidden quality that moves other tasks (`together`) and shows in the loss (`loss`).

    Tasks differ in how much they vary; `spread` is the logarithm of how much more the other tasks do.
    """
    quality = rng.normal(size=n)
    before = loss * quality + np.sqrt(1 - loss**2) * rng.normal(size=n)
    scores = {}
    for measure in measures:
        variation = 0.02 * np.exp(rng.normal(0, 0.4, 1 + k) + spread * (np.arange(1 + k) > 0))
        effects = np.sqrt(together) * quality[:, None] + np.sqrt(1 - together) * rng.normal(size=(n, 1 + k))
        effects[:, 0] = rng.normal(size=n)
        scores[measure] = 50 * (1 + sign_of(measure) * variation * effects)
    return ProbeData(f"pair {number}", "G", "", scores, 2 - 0.1 * before, 0, range(n), rng.normal(2, 1, n))


def made_contrasts(rng, sequences, measures=NUMBERS, seeds=3, rows=60, gain=0.0) -> list[Basis]:
    """Claims (d) in every measure, each with noise of seeds, of test rows, and of both."""
    found = []
    metrics = ("AP", "AP, common", "BWT", "BWT, common", "FWT")
    for other, metric, measure in product(("static", "random"), metrics, measures):
        parts = {}
        for sequence in map(str, range(sequences)):
            noise = rng.normal(0, 0.5, (seeds, 1)) + rng.normal(0, 6, rows) + rng.normal(0, 3, (seeds, rows))
            parts[sequence] = [(gain + noise, np.ones(rows))]
        found.append((Claim(f"d-{other}-{metric}", "", "", measure, "trained"), contrast_estimate(parts)))
    return found


@pytest.mark.slow  # a simulation
@pytest.mark.parametrize(
    ("facts", "sequences", "signs", "measures"),
    [
        ({}, 2, [1], NUMBERS),
        ({}, 4, [1], ["nll"]),
        # Claim (b) holds, and the loss predicts in every pair, but in half of them the wrong way round.
        ({"together": 0.5, "loss": 0.8}, 2, [1, -1], ["nll"]),
    ],
)
def test_stores_without_an_effect_show_one_in_at_most_five_percent(facts, sequences, signs, measures):
    rng, stores, wrong = np.random.default_rng(3), 40, 0
    loss = facts.get("loss", 0)
    for _ in range(stores):
        probes = [
            made_probe(rng, n, **facts | {"loss": loss * rng.choice(signs)}, measures=measures)
            for n in range(6)
        ]
        contrasts = made_contrasts(rng, sequences, measures)
        found = decided(probes, contrasts, measures, permutations=4999)
        assert sum(claim.p is not None for claim in found) == 17 * len(measures)
        wrong += any(claim.verdict == "shown" and not (facts and claim.id == "b") for claim in found)
    assert wrong <= 0.05 * stores


@pytest.mark.slow  # a simulation
def test_effects_of_the_papers_size_are_found():
    """Six pairs of 21 prompts and nine tasks; the power is in docs/claims.md."""
    rng, shown = np.random.default_rng(0), Counter()
    size = {"n": 21, "k": 9, "together": 0.5, "loss": 0.8, "spread": 1.2}
    for _ in range(6):
        probes = [made_probe(rng, number, **size) for number in range(6)]
        found = decided(probes, made_contrasts(rng, 7, rows=600, gain=1.2), permutations=4999)
        shown.update(claim.id for claim in found if claim.verdict == "shown" and claim.measure == "nll")
    least = {"a": 4, "b": 6, "c": 5, "d-static-AP": 3}
    assert not {key: shown[key] for key, count in least.items() if shown[key] < count}


def test_an_effect_of_the_other_direction_is_refuted():
    rng = np.random.default_rng(1)
    probes = [made_probe(rng, number, n=21, k=9, together=0.7, loss=-0.95) for number in range(8)]
    (claim,) = [claim for claim in decided(probes, [], measures=["nll"]) if claim.id == "c"]
    assert (claim.verdict, claim.more) == ("refuted", None)
    assert claim.high < 0


# --- statistics --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ["rougeL", "nll"])
def test_what_a_probe_says_is_what_scipy_says(measure):
    data = made_probe(np.random.default_rng(5), n=9, k=3, together=0.3, loss=0.5)
    data = replace(data, candidates=range(1, 9))
    table, sign = data.scores[measure], {"rougeL": 1, "nll": -1}[measure]

    def r(x, y):
        return stats.spearmanr(x, y).statistic

    variation = stats.variation(table, ddof=1)
    others = sign * table[:, 1:]
    chosen, means = 1 + np.argmin(data.losses[1:]), others.mean(axis=1)
    expected = {
        "a": np.log(stats.gmean(variation[1:]) / variation[0]),
        "b": np.mean([r(others[:, i], others[:, j]) for i, j in ((0, 1), (0, 2), (1, 2))]),
        "c": np.mean([r(-data.losses, others[:, j]) for j in range(3)]),
        "c-in-task": r(-data.losses, sign * table[:, 0]),
        "c-original": means[chosen] - means[0],
        "c-random": means[chosen] - means[1:].mean(),
        "e-kl": np.mean([r(-data.kl, others[:, j]) for j in range(3)]),
        "regret": means.max() - means[chosen],
    }
    assert probe_values(data, measure) == pytest.approx(expected)


def test_tasks_without_variance_or_scores_are_left_out_of_means():
    data = made_probe(np.random.default_rng(5))
    table = data.scores["nll"].copy()
    table[:, 2], table[3, 4] = 7.0, np.nan
    holed = probe_values(replace(data, scores={"nll": table}), "nll")
    whole = probe_values(replace(data, scores={"nll": table[:, [0, 1, 3]]}), "nll")
    assert {key: holed[key] for key in "abc"} == pytest.approx({key: whole[key] for key in "abc"})
    table[:, 0] = 7.0
    assert np.isnan(probe_values(replace(data, scores={"nll": table}), "nll")["a"])


def test_permuted_correlations_are_those_of_permuted_tables():
    scores = made_probe(np.random.default_rng(2), n=6, k=3).scores["nll"][:, 1:]
    rng, upper = np.random.default_rng(9), np.triu_indices(3, 1)
    naive = [stats.spearmanr(rng.permuted(scores, axis=0)).statistic[upper].mean() for _ in range(400)]
    assert stats.ks_2samp(permuted_together(scores, 0, 3000), naive).pvalue > 0.01


def test_over_pairs_it_is_students_t():
    values = [0.3, -0.1, 0.5, 0.4]
    found, expected = over_units(values, "pairs", {"pairs": 4}), stats.ttest_1samp(values, 0)
    assert found.p == pytest.approx(expected.pvalue)
    assert tuple(found.numbers.values()) == pytest.approx(
        (np.mean(values), *expected.confidence_interval(0.95))
    )
    n = 4 + int(found.more(0.01).split()[1])
    for units, is_enough in ((n, True), (n - 1, False)):
        t = found.value / (np.std(values, ddof=1) / np.sqrt(units))
        assert (2 * stats.t.sf(t, 3 * units / 4) <= 0.01) == is_enough


@pytest.mark.parametrize("sequences", [1, 2, 3])
def test_runs_are_nested_in_sequences_seeds_and_rows(sequences):
    rng = np.random.default_rng(0)
    tables = [rng.normal(1, 1, (3, 1)) + rng.normal(0, 2, (3, 40)) for _ in range(sequences)]
    parts = {str(place): [(table, np.ones(40))] for place, table in enumerate(tables)}
    found, means = contrast_estimate(parts), [table.mean() for table in tables]
    assert found.value == pytest.approx(np.mean(means))
    if sequences == 3:
        assert found.p == pytest.approx(stats.ttest_1samp(means, 0).pvalue)
        return
    errors = [(stats.sem(t.mean(axis=1)), stats.sem(t.mean(axis=0))) for t in tables]
    error = np.sqrt(np.square(errors).sum()) / sequences
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.value) / error, 2 * sequences))


@pytest.mark.parametrize(
    ("estimate", "reason"),
    [
        (over_units([1.0, 2.0], "pairs", {}), "2 pairs: 3 needed"),
        (contrast_estimate({"a": [(np.ones((1, 9)), np.ones(9))]}), "1 seed: 2 needed"),
        (contrast_estimate({"a": [(np.zeros((3, 9)), np.ones(9))]}), "nothing differs between seeds"),
        (contrast_estimate({}), "these runs were not scored so"),
    ],
)
def test_too_few_units_are_said_and_never_a_number(estimate, reason):
    assert (estimate.reason, estimate.p) == (reason, None)
    assert np.isnan(estimate.value)


# --- a small store -----------------------------------------------------------------------------------------

TASKS = ("task1_a", "task2_b", "task3_c")
RATES = {"learning_rate": 1e-3, "epochs": 3}


def add(root: Path, name: str, scores=None, rate=1e-3, **facts) -> Path:
    data = {task: f"sha-{task}" for task in TASKS}
    comparable = {"model": "sha", "data": data, "trainer": RATES | {"learning_rate": rate}}
    path = write_run(root / "runs", name, scores, TASKS, **{"n": 30, "comparable": comparable} | facts)
    return with_columns(path, 1.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Three probes with KL, two sequences of three policies, and the runs of a rival."""
    root = tmp_path_factory.mktemp("store")
    for place, kind in enumerate("gcm"):
        names = tuple(f"task{100 * place + number}_x" for number in range(5))
        facts = {"n_prompts": 7, "tasks": names[:2], "unseen": names[2:], "seed": place, "gradients": False}
        probe = write_probe(root, f"probe{place}", sequence=f"ni_probe_{kind}1", **facts)
        for number, run in enumerate(json.loads((probe / "probe.json").read_text())["runs"].values()):
            edit_run(root / "runs" / run, lambda frame, n=number: frame.assign(kl=0.1 * n * frame["after"]))
    # Static, random and SAPO, whose scores differ by 0, -3 and 4 points and noise.
    policies = enumerate({"static": 0.0, "random": -3.0, "sapo": 4.0}.items())
    for (place, (policy, shift)), sequence, seed in product(policies, ("ni_seq_c1", "ni_seq_m1x"), (0, 1)):
        scores = scores_of(TASKS, 3, 10 * seed + place + len(sequence), shift, 30)
        add(root, f"{sequence}-{policy}-{seed}", scores, sequence=sequence, policy=policy, seed=seed)
    for seed in (0, 1):
        add(root, f"slow-{seed}", rate=3e-4, sequence="ni_seq_c1", policy="static", seed=seed)
        add(root, f"fast-{seed}", rate=1e-2, sequence="ni_seq_c1", policy="static", seed=seed)
    return root


GOLDEN = """
a | 3.53 [2.74, 4.56] | 0.11 | undecided | about 1 more pair
b | 0.448 [0.18, 0.717] | 0.021 | shown | -
c | 0.664 [0.396, 0.931] | 0.31 | undecided | about 2 more pairs
c-in-task | - | - | undecided | nothing differs between pairs
c-original | 0.223 [0.143, 0.303] | 0.26 | undecided | about 2 more pairs
c-random | 0.143 [0.0343, 0.251] | 0.89 | undecided | about 4 more pairs
e-kl | -0.182 [-1, 0.761] | 1 | undecided | about 54 more pairs
d-static-AP | 0.18 [0.127, 0.234] | 0.2 | undecided | about 1 more seed (and test rows alike)
d-static-BWT | 0.011 [-0.11, 0.132] | 1 | undecided | about 147 more seeds (and test rows alike)
d-static-FWT | 0.143 [0.0246, 0.262] | 0.98 | undecided | about 3 more seeds (and test rows alike)
d-random-AP | 0.29 [0.227, 0.353] | 0.12 | undecided | about 1 more seed (and test rows alike)
d-random-BWT | -0.00155 [-0.135, 0.132] | 1 | undecided | more than 1000 seeds
d-random-FWT | 0.275 [0.156, 0.393] | 0.33 | undecided | about 2 more seeds (and test rows alike)
e-prompt | - | - | no runs | no runs
e-rate-0.0003-AP | 0.192 [-0.0253, 0.409] | 1 | undecided | about 4 more seeds (and test rows alike)
e-rate-0.0003-BWT | 0.00977 [-0.341, 0.36] | 1 | undecided | about 184 more seeds (and test rows alike)
e-rate-0.0003-FWT | 0.171 [-0.283, 0.625] | 1 | undecided | about 6 more seeds (and test rows alike)
"""


@pytest.fixture(scope="module")
def shown(store, tmp_path_factory):
    output = tmp_path_factory.mktemp("out")
    return claims("claims", find([], store, both=True), output, "reference", ["one run failed: why"])


def test_a_golden_table(shown):
    found = [Claim(**row) for row in shown.document["tables"]["claims"]]
    chosen = [each for each in found if (each.measure, each.column) in ((None, None), ("nll", "trained"))]
    rows = claim_texts(chosen).drop(columns=["claim", "score", "n", "paper"])
    lines = "\n".join(" | ".join(row) for row in rows.itertuples(index=False))
    assert lines == GOLDEN.strip()


def test_what_is_written_and_said(shown):
    output = shown.files[0].parent
    names = {"claims.tex", "claims_claims.csv", "claims_pairs.csv", "claims.md", "badges.md", "report.html"}
    assert {path.name for path in shown.files} == names
    page, text = (output / "report.html").read_text(), (output / "claims.md").read_text()
    parts = ("one run failed: why", "Demonstration", "Exploratory, pair by pair", "Tables 1 and 11: 1.01")
    assert [part for part in parts if part not in page or part not in text] == []
    table = (output / "badges.md").read_text().splitlines()
    assert table[0] == "| claim | ROUGE-L | exact match | NLL |"
    assert "untouched model | no runs | no runs | no runs |" in "\n".join(table)
    (sentence,) = [note for note in shown.remarks if note.startswith("Exploratory")]
    assert "(c) is positive in 3 of 3 pairs (by kind of task: C 1 of 1, G 1 of 1, M 1 of 1)" in sentence
    assert "with the loss before training: too few pairs; with KL on the new task: too few pairs" in sentence
    paper = shown.tables["claims"].set_index(["id", "measure", "column"])["paper"]
    assert paper["d-static-AP", "rougeL", "trained"]["value"] == pytest.approx(1.015)
    assert paper["d-static-AP", "rougeL", "common"] == {"place": "Tables 1 and 11", "value": None}
    json.dumps(shown.document, allow_nan=False)


def test_what_the_sign_goes_with_over_pairs():
    rng = np.random.default_rng(0)
    probes = []
    for n, sign in enumerate([1, 1, -1, -1]):
        data = made_probe(rng, n, together=0.8, loss=0.9 * sign)
        probes.append(replace(data, kind="GC"[n // 2], losses=data.losses + n, kl=data.kl - n))
    sentence = exploratory(pair_table(probes))
    assert "positive in 2 of 4 pairs (by kind of task: C 0 of 2, G 2 of 2)" in sentence
    value = float(sentence.partition("loss before training: ")[2].split()[0])
    assert value <= -0.6
    assert "KL on the new task: 0." in sentence


def without_answers(run: Path, **identity) -> None:
    blank = dict.fromkeys(("rougeL", "exact_match", "label_match"), np.nan)
    edit_run(run, lambda frame: frame.assign(**blank), identity={"evaluator": {"answers": False}} | identity)


def test_runs_without_answers_speak_in_nll_alone(tmp_path):
    for policy in ("static", "sapo"):
        without_answers(add(tmp_path, policy, policy=policy), common_prompt=True)
    add(tmp_path, "bound", policy="static", method="multitask")  # which stands in no claim
    evidence = load_evidence(find([], tmp_path, both=True), "reference")
    found = [each for each in decided([], evidence.contrasts) if each.id == "d-static-AP"]
    reasons = {each.measure: each.reason for each in found if each.column == "trained"}
    assert (reasons, evidence.measures) == ({"nll": "1 seed: 2 needed"}, ("nll",))


# --- what is refused ---------------------------------------------------------------------------------------

DATA = {"model": "sha", "data": dict.fromkeys(TASKS, "other"), "trainer": RATES}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "qwen3_0_6b"}, 'model: "smollm2_135m" -> "qwen3_0_6b"'),
        ({"method": "olora"}, 'method: "lorainc" -> "olora"'),
        ({"parity": "reference"}, 'definition: "paper" -> "reference"'),
        ({"comparable": DATA}, 'data.task1_a: "sha-task1_a" -> "other"'),
        ({"comparable": DATA | {"trainer": RATES | {"epochs": 10}}}, "trainer.epochs: 3 -> 10"),
        ({"n": 12}, "test examples.task1_a: 30 -> 12"),
        ({"seed": 0}, "have the same sequence, policy and seed"),
        ({"rate": 3e-4}, "several learning rates (trainer.learning_rate 0.0003, 0.001)"),
    ],
)
def test_runs_of_two_kinds_are_refused_with_the_difference(changes, message, tmp_path):
    add(tmp_path, "first", policy="sapo")
    add(tmp_path, "second", **{"policy": "sapo", "seed": 1} | changes)
    assert message in refusal(load_evidence, find([], tmp_path, both=True), "reference")
    assert load_evidence(find(["first"], tmp_path, both=True), "reference")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "qwen3_0_6b"}, 'model: "smollm2_135m" -> "qwen3_0_6b"'),
        ({"unseen": ("task618_x", "task9_y"), "n": 5}, "test examples.task618_x: 12 -> 5"),
        ({"n_prompts": 4}, "prompts: 3 -> 4"),
    ],
)
def test_probes_of_two_kinds_are_refused_with_the_difference(changes, message, tmp_path):
    facts = {"n_prompts": 3, "unseen": ("task618_x",), "gradients": False}
    write_probe(tmp_path, "first", **facts)
    write_probe(tmp_path, "second", **facts | {"seed": 1} | changes)
    assert message in refusal(load_evidence, find([], tmp_path, both=True), "reference")


def test_results_alone_move_in_an_archive_and_say_the_same(probe_folder, tmp_path):
    probe = probe_folder("moved", n_prompts=5, unseen=("task618_x", "task511_x"), n=3)
    for run in (tmp_path / "runs").iterdir():
        without_answers(run)
    folders = find(["moved*"], tmp_path, both=True)
    assert (folders[0], len(folders)) == (probe, 6)
    done = export_runs(folders, tmp_path / "moved.tar.gz", with_stages=False)
    assert (len(done.runs), done.probes, done.stages) == (5, ["moved"], 0)
    there = Store(tmp_path / "there")
    assert import_archive(tmp_path / "moved.tar.gz", there).probes == ["moved"]
    here, moved = (
        claims("claims", find([], root, both=True), root / "out", "reference")
        for root in (tmp_path, there.root)
    )
    assert here.tables["claims"].equals(moved.tables["claims"])
    assert set(moved.tables["claims"]["measure"].dropna()) == {"nll"}
    assert any("Without ROUGE-L and exact match" in note for note in moved.notes)
    shutil.rmtree(there.root / "runs")
    export_runs([probe], tmp_path / "again.tar.gz", with_stages=False)
    assert import_archive(tmp_path / "again.tar.gz", there).runs == done.runs
