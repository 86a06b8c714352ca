"""How answers are scored."""

import pandas as pd
import pytest

from sapo.data.mini import generate
from sapo.experiments.model.evaluation import (
    evaluate,
    exact_match,
    label_match,
    mean_label_match,
    named_label,
    rouge_l,
)
from sapo.experiments.model.load import load_model
from sapo.experiments.stages import in_state


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        ("4 stars", "2 stars", 50.0),
        ("-5", "5", 100.0),
        ("positive", "positive", 100.0),
        ("the cats sat", "the cat sat", 100.0),  # stemmed
        ("a b c d", "a c", 200 * 0.5 * 1.0 / 1.5),  # precision 1/2, recall 1
        ("", "yes", 0.0),
        ("中立", "中立", 100.0),  # ROUGE sees no tokens: exact match
        ("支持", "中立", 0.0),
    ],
)
def test_rouge_l(prediction, target, expected):
    assert rouge_l(prediction, target) == pytest.approx(expected)


def test_exact_match_is_to_the_letter_but_for_white_space():
    assert exact_match("Positive  Review\n", "Positive Review") == 100
    assert exact_match("positive", "Positive") == 0
    assert exact_match("-5", "5") == 0


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
    assert [label_match(labels[0], target, labels) for target in labels] == [100.0] + [0.0] * (
        len(labels) - 1
    )


def test_label_match_is_not_applicable_without_labels():
    table = pd.DataFrame({"prediction": ["A.", "B or A", "C"], "target": ["A", "A", "D"]})
    assert label_match("yes", "yes", ()) is None
    assert mean_label_match(table, ()) is None
    assert mean_label_match(table, ("A", "B", "C")) == pytest.approx(100 / 3)


def test_answers_and_losses_do_not_depend_on_the_batches(tiny_config):
    model = load_model(tiny_config())
    task = generate("mini_topic", 2, 12, 0)
    rendered = model.renderer(512).render(task, task.instruction, task.test)
    one, *others = (
        evaluate(model, model.base, task.test, rendered, tiny_config("evaluator.max_new_tokens=6", *settings))
        for settings in (
            ["evaluator.batch_tokens=10000"],
            ["evaluator.batch_tokens=150"],
            ["trainer.shared_prefix=false"],
        )
    )
    for other in others:
        assert one["prediction"].tolist() == other["prediction"].tolist()
        assert one["nll"].tolist() == pytest.approx(other["nll"].tolist(), rel=1e-5)


def test_every_example_has_its_prediction_and_nll(tiny_config, tmp_path):
    config = tiny_config()
    model = load_model(config)
    task = generate("mini_topic", 2, 5, 0)
    rendered = model.renderer(512).render(task, task.instruction, task.test)
    with in_state(model, None, "base") as untouched:
        table = evaluate(model, untouched, task.test, rendered, config)
    assert table["target"].tolist() == [example.target for example in task.test]
    assert table["example"].tolist() == list(range(5))
    assert (table["nll"] > 0).all()
    assert table["target_tokens"].tolist() == [len(r.target_ids) for r in rendered]
