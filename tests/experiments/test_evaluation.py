"""How answers are scored."""

import pytest

from sapo.data.mini import generate
from sapo.experiments.engine.work import in_state
from sapo.experiments.evaluation import evaluate, exact_match, rouge_l
from sapo.experiments.models import load_model


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


def test_every_example_has_its_prediction_and_nll(tiny_config, tmp_path):
    config = tiny_config()
    model = load_model(config)
    task = generate("mini_topic", 2, 5, 0)
    rendered = model.renderer(512).render(task, task.instruction, task.test)
    with in_state(model, None, "base") as untouched:
        table = evaluate(model, untouched, task.test, rendered, config.evaluator)
    assert table["target"].tolist() == [example.target for example in task.test]
    assert table["example"].tolist() == list(range(5))
    assert (table["nll"] > 0).all()
    assert table["target_tokens"].tolist() == [len(r.target_ids) for r in rendered]
