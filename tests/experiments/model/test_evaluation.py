"""How answers are scored."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from rouge_score.rouge_scorer import RougeScorer
from trainings import plain_nll, read_task

from sapo.experiments.model import evaluation, generation
from sapo.experiments.model.evaluation import evaluate, exact_match, label_match, named_label, rouge_l
from sapo.experiments.model.fetch import tiny_tokenizer


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        ("4 stars", "2 stars", 50.0),
        ("-5", "5", 100.0),
        ("positive", "positive", 100.0),
        ("the cats sat", "the cat sat", 100.0),  # stemmed
        ("a b c d", "a c", 200 * 0.5 * 1.0 / 1.5),  # precision 1/2, recall 1
        ("", "yes", 0.0),
        ("中立", "中立", 100.0),
        ("支持", "中立", 0.0),
        ("第3页", "第3章", 200 / 3),  # 第 3 of three characters each
        ("第3章", "第3章", 100.0),
        ("是的, yes", "不是 yes", 200 * 2 / 3 / 2),  # 是 yes of 是 的 yes and 不 是 yes
        ("Москва 5", "Париж 5", 50.0),
        ("москва", "Москва!", 100.0),
        ("서울 시", "서울 도", 50.0),
        ("とうきょう", "とうきよう", 80.0),
        ("हिन्दी भाषा", "हिन्दी लिपि", 50.0),  # vowel signs belong to their word
        ("٥", "5", 0.0),
        ("a β b", "a b", 200 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("+", "+", 100.0),  # no token at all: exact match
        ("-", "+", 0.0),
        ("", "", 100.0),
    ],
)
def test_rouge_l(prediction, target, expected):
    assert rouge_l(prediction, target) == pytest.approx(expected)


LATIN = st.text(st.characters(max_codepoint=0x36F, exclude_categories=("Cs",)), max_size=30)


@given(LATIN, LATIN)
def test_texts_in_latin_script_are_scored_by_rouge_score_alone(prediction, target):
    """Accents, punctuation and all; a target in which it sees nothing apart."""
    google = RougeScorer(["rougeL"], use_stemmer=True)
    if google._tokenizer.tokenize(target):
        assert rouge_l(prediction, target) == 100 * google.score(target, prediction)["rougeL"].fmeasure


@pytest.mark.parametrize(
    ("prediction", "target", "rouge", "exact", "strictly"),
    [
        ("", "", 0.0, 100.0, 100.0),  # nothing is right, and scores nothing
        ("中立", "中立", 0.0, 100.0, 100.0),
        ("第3页", "第3章", 100.0, 0.0, 0.0),
        ("The Answer: yes.", "the answer yes", 100.0, 100.0, 0.0),
        ("positive", "Positive", 100.0, 100.0, 0.0),
        ("-5", "5", 100.0, 100.0, 0.0),
        ("a  b\n", "a b", 100.0, 100.0, 100.0),
        ("yes", "no", 0.0, 0.0, 0.0),
    ],
)
def test_scores_as_published_and_an_exact_match_to_the_letter(prediction, target, rouge, exact, strictly):
    assert rouge_l(prediction, target, "published") == rouge
    assert exact_match(prediction, target, "published") == exact
    assert exact_match(prediction, target) == strictly


def test_answers_are_decoded_as_they_are_or_as_published():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("it isn 't so , or is it ? No .", add_special_tokens=False)["input_ids"]
    assert evaluation.decoded(tokenizer, ids) == "it isn 't so , or is it ? No ."
    assert evaluation.decoded(tokenizer, ids, clean_up_spaces=True) == "it isn 't so, or is it? No."


STARS = ("1 star", "2 stars", "3 stars")


@pytest.mark.parametrize(
    ("answer", "labels", "expected"),
    [
        ("Positive.", ("positive", "negative"), "positive"),
        (" **negative** ", ("positive", "negative"), "negative"),
        ("The answer is POSITIVE, I think", ("positive", "negative"), "positive"),
        ("positive or negative", ("positive", "negative"), None),
        ("positively", ("positive", "negative"), None),
        ("2  Stars!", STARS, "2 stars"),
        ("It has 2 stars", STARS, "2 stars"),
        ("12 stars", STARS, None),
        ("not positive", ("positive", "not positive"), "not positive"),
        ("b", ("A", "B"), "B"),
        ("it is a B", ("A", "B"), "B"),
        ("A. dovish", ("A", "B"), "A"),
        ("a dove", ("A", "B"), None),
        ("A or B", ("A", "B"), None),
        ("4.5", ("4", "5"), None),
        ("", ("a", "b"), None),
        ("态度是支持。", ("支持", "反对"), "支持"),
        ("答案是A", ("A", "B"), "A"),
        ("c++ (new)", ("c++ (new)", "c"), "c++ (new)"),
        # Letters that are the same without their case, by more than one rule.
        ("the ſports page", ("sports", "city"), "sports"),
        ("a cıty", ("sports", "city"), "city"),
        ("it is istanbul", ("İstanbul", "ankara"), "İstanbul"),
        ("5 μm", ("µm", "nm"), "µm"),
    ],
)
def test_an_answer_names_a_label_or_none(answer, labels, expected):
    assert named_label(answer, labels) == expected


@pytest.mark.parametrize(
    "labels", [("positive", "negative"), STARS, ("A", "B", "C"), ("a", "b"), ("支持", "中立")]
)
def test_every_label_names_itself_and_no_other(labels):
    assert [named_label(label, labels) for label in labels] == list(labels)
    assert [label_match(labels[0], target, labels) for target in labels[:2]] == [100.0, 0.0]


def test_label_match_is_not_applicable_without_labels():
    table = pd.DataFrame({"prediction": ["A.", "B or A", "C"], "target": ["A", "A", "D"], "rougeL": 0.0})
    assert label_match("yes", "yes", ()) is None
    assert evaluation.mean_label_match(table, ()) is None
    assert evaluation.mean_label_match(table, ("A", "B", "C")) == pytest.approx(100 / 3)


def test_answers_and_losses_do_not_depend_on_the_batches_or_on_room_for_answers(tiny_config, monkeypatch):
    model, task, rendered = read_task(tiny_config(), "mini_topic", 12)
    tables = []
    for has_room in (False, True):  # True as on a GPU
        monkeypatch.setattr(generation, "keeps_room", lambda device, has_room=has_room: has_room)
        for tokens, share in ((10_000, True), (150, True), (10_000, False)):
            changes = (f"evaluator.batch_tokens={tokens}", f"trainer.shared_prefix={share}")
            config = tiny_config("evaluator.max_new_tokens=6", *changes)
            tables.append(evaluate(model, model.base, task.test, rendered, config))
    one, *others = tables
    assert one["target"].tolist() == [example.target for example in task.test]
    assert one["example"].tolist() == list(range(12))
    assert one["target_tokens"].tolist() == [len(row.target_ids) for row in rendered]
    for other in others:
        assert one["prediction"].tolist() == other["prediction"].tolist()
        assert one["nll"].tolist() == pytest.approx(other["nll"].tolist(), rel=1e-5)


@pytest.fixture
def moved(tiny_config):
    """A tiny model with an adapter that is not zero, and a task's test rows as it sees them."""
    model, task, rendered = read_task(tiny_config(), "mini_topic", 6)
    torch.manual_seed(0)
    state = get_peft_model(model.base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    yield model, state, task, rendered
    state.unload()


@pytest.mark.parametrize("shared", ["true", "false"])
def test_a_state_has_moved_by_the_divergence_of_its_predictions(moved, tiny_config, shared):
    model, state, task, rendered = moved
    config = tiny_config(f"trainer.shared_prefix={shared}", "evaluator.batch_tokens=150")
    table = evaluate(model, state, task.test, rendered, config)
    for row, kl, nll in zip(rendered, table["kl"], table["nll"], strict=True):
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            assert nll == pytest.approx(plain_nll(state, row).item() / len(row.target_ids), rel=1e-5)
            after = state(ids).logits[0, row.target_start - 1 : -1].log_softmax(-1)
            with state.disable_adapter():
                before = state(ids).logits[0, row.target_start - 1 : -1].log_softmax(-1)
        expected = (before.exp() * (before - after)).sum(-1).mean()
        assert kl == pytest.approx(float(expected), rel=1e-4)
        assert kl > 1e-4
    assert evaluate(model, state.unload(), task.test, rendered, config)["kl"].isna().all()


def test_without_answers_the_losses_are_the_same_and_nothing_is_scored(moved, tiny_config):
    model, state, task, rendered = moved
    full = evaluate(model, state, task.test, rendered, tiny_config())
    only = evaluate(model, state, task.test, rendered, tiny_config("evaluator.answers=false"))
    assert only["nll"].tolist() == pytest.approx(full["nll"].tolist(), rel=1e-5)
    assert only["kl"].tolist() == full["kl"].tolist()
    assert only[["rougeL", "exact_match"]].isna().all(axis=None)
    assert (only["prediction"] == "").all()
    assert evaluation.mean_label_match(only, task.labels) is None
    assert evaluation.mean_label_match(full, task.labels) is not None
    assert only.dtypes.equals(full.dtypes)


def test_answers_that_ran_into_the_limit_are_known(tiny_config):
    config = tiny_config("evaluator.max_new_tokens=3")
    model, task, rendered = read_task(config, "mini_topic", 3)
    free = evaluate(model, model.base, task.test, rendered, config)
    assert free["is_unfinished"].all()
    # The first row's last token ends its answer, if it is an end.
    ((ids, *_),) = generation.answer_and_nll(model.base, rendered[:1], 3, [])
    ending = SimpleNamespace(tokenizer=model.tokenizer, stop_ids=lambda: ids[-1:])
    found = evaluate(ending, model.base, task.test[:1], rendered[:1], config)
    assert not found["is_unfinished"].any()
