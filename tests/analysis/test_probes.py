"""Reading probes: what they hold, what is refused and how it says so."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from made_up import edit_run, seal, write_probe

from sapo.analysis.probes.results import load_probe, require_poolable, sign_of
from sapo.analysis.results import score_matrix
from sapo.conf.errors import UserError, WorkError
from sapo.data.files import write_json


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A probe of three prompts and three tasks."""
    return write_probe(tmp_path_factory.mktemp("small"), n_prompts=3, unseen=("task618_x",), n=4)


@pytest.fixture
def copy(small, tmp_path):
    """A copy of the small probe with its runs, to be damaged."""
    store = small.parent.parent
    shutil.copytree(store, tmp_path / "store")
    return tmp_path / "store" / "probes" / small.name


def test_a_probe_holds_its_tasks_prompts_and_scores(small):
    probe = load_probe(small)
    tasks = ("task589_amazon", "task339_record", "task618_x")
    assert (probe.trained, probe.current, *probe.unseen) == tasks
    assert list(probe.prompts) == list(probe.runs) == [-1, 0, 1]
    assert probe.others == ("task589_amazon", "task618_x")
    assert [*map(probe.role, tasks)] == ["forgetting", "training", "generalization"]
    assert probe.facts == "smollm2_135m · ni_probe_g1 · lorainc · seed 0 · demonstration"
    for measure, sign in (("rougeL", 1), ("nll", -1)):
        scores = probe.outcomes(measure)
        for index, run in probe.runs.items():
            expected = score_matrix(run, measure).iloc[-1]
            assert scores.loc[index].to_dict() == pytest.approx(expected.to_dict())
        assert (probe.good(measure) * sign).equals(scores[list(probe.others)])
        assert sign_of(measure) == sign


def test_what_is_missing_or_damaged_is_named_with_the_mend(copy):
    (copy / "losses.parquet").write_bytes(b"not this")
    with pytest.raises(WorkError, match=r"losses.parquet is damaged.*sapo reproduce"):
        load_probe(seal(copy))
    (copy / "losses.parquet").unlink()
    with pytest.raises(UserError, match=r"has no losses.parquet.*sapo reproduce"):
        load_probe(seal(copy))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "0"}, r"probe\.json: seed"),
        ({"runs": {"-1": "../runs/probe--1", "0": "a", "1": "b"}}, r"probe\.json: runs"),
        ({"unseen": []}, r"is not of the probe .*unseen"),
        ({"model": "tiny_llama", "seed": 4}, 'model: "tiny_llama" -> "smollm2_135m"; seed: 4 -> 0'),
        ({"prompts": {"-1": "a", "0": "b", "1": "c"}}, 'prompts.task339_record: "a" -> "Wording -1: '),
    ],
)
def test_a_record_that_does_not_fit_is_refused(copy, changes, message):
    record = json.loads((copy / "probe.json").read_text())
    write_json(copy / "probe.json", record | changes)
    with pytest.raises(UserError, match=message):
        load_probe(seal(copy))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"comparable": {"evaluator": {"max_new": 64}}}, "evaluator.max_new: 128 -> 64"),
        ({"label": "ewc"}, 'label: "lorainc" -> "ewc"'),
        ({"prompts": {"task589_amazon": "other"}}, 'prompts.task589_amazon: "first" -> "other"'),
        ({}, "tested on different rows of task618_x"),
    ],
)
def test_runs_that_do_not_make_a_probe_are_refused_with_the_difference(copy, facts, message):
    run = copy.parent.parent / "runs" / "probe-1"
    record = json.loads((run / "run.json").read_text())
    for name, value in facts.items():
        facts = facts | {name: record[name] | value if isinstance(value, dict) else value}
    edit_run(run, lambda frame: frame[(frame["task"] != "task618_x") | (frame["example"] > 0)], **facts)
    with pytest.raises(UserError, match=message):
        load_probe(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="nll"), "without column nll"),
        (lambda frame: frame.iloc[:0], "no rows"),
        (lambda frame: frame.assign(nll=float("nan")), "nll is not a finite number"),
        (lambda frame: frame.iloc[1:], "same examples, each once"),
        (lambda frame: pd.concat([frame, frame]), "same examples, each once"),
        (lambda frame: frame[frame["prompt"] < 1], r"prompts \[-1, 0, 1\] were not measured"),
        (lambda frame: frame.assign(n_tokens=0), "a target without tokens"),
    ],
)
def test_damaged_losses_are_refused(copy, change, message):
    change(pd.read_parquet(copy / "losses.parquet")).to_parquet(copy / "losses.parquet")
    with pytest.raises(WorkError, match=f"losses.parquet is damaged: .*{message}"):
        load_probe(seal(copy))


def test_only_probes_that_agree_on_shared_data_are_pooled(small):
    one = load_probe(small)
    data = {"task339_record": "sha-task339_record", "task1_new": "sha-new"}
    other = replace(one, id="other", sequence="ni_probe_g2", comparable=one.comparable | {"data": data})
    require_poolable([one, other])
    changed = other.comparable | {"data": data | {"task339_record": "sha-changed"}}
    with pytest.raises(UserError, match=r'data\.task339_record: "sha-task339_record" -> "sha-changed"'):
        require_poolable([one, replace(other, comparable=changed)])
    require_poolable([one, replace(other, comparable=changed, model="another")])
    with pytest.raises(UserError, match="same sequence, model, method and seed"):
        require_poolable([one, replace(one, id="twin")])
    with pytest.raises(UserError, match="are both probe probe"):
        require_poolable([one, one])
