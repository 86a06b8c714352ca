"""Reading probes: what they hold, what is refused and how it says so."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from sapo.analysis.probes.results import load_probe, require_poolable, sign_of
from sapo.analysis.results import load_run, score_matrix
from sapo.conf.errors import UserError


@pytest.fixture(scope="module")
def small(tmp_path_factory, probe_writer):
    """A probe of three prompts and three tasks."""
    folder = tmp_path_factory.mktemp("small")
    return probe_writer(folder, n_prompts=3, unseen=("task618_x",), n=4)


@pytest.fixture
def copy(small, tmp_path):
    """A copy of the small probe with its runs, to be damaged."""
    store = small.parent.parent
    shutil.copytree(store, tmp_path / "store")
    return tmp_path / "store" / "probes" / small.name


def change_record(folder, **changes):
    record = json.loads((folder / "probe.json").read_text())
    (folder / "probe.json").write_text(json.dumps(record | changes))


def test_a_probe_holds_its_tasks_prompts_and_scores(small):
    probe = load_probe(small)
    assert (probe.trained, probe.current, probe.unseen) == (
        "task589_amazon",
        "task339_record",
        ("task618_x",),
    )
    assert list(probe.prompts) == list(probe.runs) == [-1, 0, 1]
    assert probe.others == ("task589_amazon", "task618_x")
    roles = [probe.role(task) for task in (probe.trained, probe.current, *probe.unseen)]
    assert roles == ["forgetting", "training", "generalization"]
    assert probe.facts == "smollm2_135m · ni_probe_g1 · lorainc · seed 0 · demonstration"
    for measure in ("rougeL", "nll"):
        scores = probe.outcomes(measure)
        for index in probe.prompts:
            run = load_run(small.parent.parent / "runs" / f"probe-{index}")
            expected = score_matrix(run, measure).iloc[-1]
            assert scores.loc[index].to_dict() == pytest.approx(expected.to_dict())
        examples = probe.final_examples(measure, "task618_x")
        assert examples.shape == (3, 4)
        assert examples.mean(axis=1) == pytest.approx(scores["task618_x"].to_numpy())
    assert (sign_of("rougeL"), sign_of("nll")) == (1, -1)


def test_the_loss_of_a_prompt_is_total_nll_over_total_tokens(small):
    probe = load_probe(small)
    rows = probe.losses[probe.losses["prompt"] == 0]
    assert probe.pre_update_losses()[0] == pytest.approx(rows["nll"].sum() / rows["n_tokens"].sum())


@pytest.mark.parametrize("name", ["probe.json", "losses.parquet", "answers.parquet"])
def test_what_is_missing_or_damaged_is_named_with_the_mend(copy, name):
    (copy / name).write_bytes(b"not this")
    with pytest.raises(UserError, match=rf"{name} is damaged.*sapo reproduce"):
        load_probe(copy)
    (copy / name).unlink()
    with pytest.raises(UserError, match=rf"has no {name}.*sapo reproduce"):
        load_probe(copy)


def test_without_gradients_there_are_none(copy):
    (copy / "gradients.parquet").unlink()
    assert load_probe(copy).gradients is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": "0"}, "seed missing or wrong"),
        ({"tasks": ["task589_amazon"]}, "tasks .a trained and a current one"),
        ({"prompts": {"0": "a", "1": "b", "2": "c"}}, "-1, the original"),
        ({"prompts": {"-1": "a", "first": "b"}}, "prompts .numbered"),
        ({"runs": {"-1": "probe--1"}}, "one for each prompt"),
        ({"unseen": []}, "is not of the probe .*unseen"),
        ({"unseen": [{}]}, "unseen and prompts .texts"),
        ({"runs": {"-1": "../runs/probe--1", "0": "a", "1": "b"}}, "'../runs/probe--1' .it holds a slash"),
        ({"runs": {"-1": 7, "0": "a", "1": "b"}}, "'7' .it is no text"),
        ({"identity": {}}, "the scorer's reduction and include_original"),
        ({"n_cut": None}, "n_cut missing or wrong"),
        ({"missing": 3}, "missing missing or wrong"),
        ({"missing": ["3"]}, "missing .numbers of prompts"),
        ({"id": "../../elsewhere"}, "'../../elsewhere' .it holds a slash"),
        ({"model": "tiny_llama"}, "is not of the probe .*model smollm2_135m instead of tiny_llama"),
        ({"seed": 4}, "is not of the probe .*seed 0 instead of 4"),
        ({"prompts": {"-1": "a", "0": "b", "1": "c"}}, "another wording than prompt -1 of task339_record"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(copy, changes, said):
    change_record(copy, **changes)
    with pytest.raises(UserError, match=said):
        load_probe(copy)


def test_runs_that_cannot_be_compared_are_refused_with_the_difference(copy):
    file = copy.parent.parent / "runs" / "probe-1" / "run.json"
    record = json.loads(file.read_text())
    record["comparable"]["evaluator"] = {"max_new": 64}
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match="evaluator max_new: 128 against 64"):
        load_probe(copy)


def test_runs_of_another_method_are_refused(copy):
    file = copy.parent.parent / "runs" / "probe-1" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"method": "ewc"}))
    with pytest.raises(UserError, match="method ewc instead of lorainc"):
        load_probe(copy)


def test_runs_that_were_tested_on_other_rows_are_refused(copy):
    file = copy.parent.parent / "runs" / "probe-1" / "predictions.parquet"
    frame = pd.read_parquet(file)
    frame[(frame["task"] != "task618_x") | (frame["example"] > 0)].to_parquet(file)
    with pytest.raises(UserError, match="tested on different rows of task618_x"):
        load_probe(copy)


def test_runs_with_other_first_prompts_are_refused(copy):
    file = copy.parent.parent / "runs" / "probe-1" / "run.json"
    record = json.loads(file.read_text())
    record["prompts"]["task589_amazon"] = "other"
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match="trained task589_amazon with 2 prompts"):
        load_probe(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda frame: frame.drop(columns="nll"), "without column nll"),
        (lambda frame: frame.iloc[:0], "no rows"),
        (lambda frame: frame.assign(nll=float("nan")), "nll is not a finite number"),
        (lambda frame: frame.iloc[1:], "same examples, each once"),
        (lambda frame: pd.concat([frame, frame]), "same examples, each once"),
        (lambda frame: frame[frame["prompt"] < 1], r"prompts \[-1, 0\] instead of \[-1, 0, 1\]"),
        (lambda frame: frame.assign(n_tokens=0), "a target without tokens"),
    ],
)
def test_damaged_losses_are_refused(copy, change, said):
    change(pd.read_parquet(copy / "losses.parquet")).to_parquet(copy / "losses.parquet")
    with pytest.raises(UserError, match=f"losses.parquet is damaged: .*{said}"):
        load_probe(copy)


def test_only_probes_that_agree_on_shared_data_are_pooled(small):
    one = load_probe(small)
    data = {"task339_record": "sha-task339_record", "task1_new": "sha-new"}
    other = replace(one, id="other", sequence="ni_probe_g2", comparable=one.comparable | {"data": data})
    require_poolable([one, other])
    changed = other.comparable | {"data": data | {"task339_record": "sha-changed"}}
    with pytest.raises(UserError, match="data task339_record: sha-task339_record against sha-changed"):
        require_poolable([one, replace(other, comparable=changed)])
    require_poolable([one, replace(other, comparable=changed, model="another")])
    with pytest.raises(UserError, match="same sequence, model, method and seed"):
        require_poolable([one, replace(one, id="twin")])
    with pytest.raises(UserError, match="are both probe probe"):
        require_poolable([one, one])
