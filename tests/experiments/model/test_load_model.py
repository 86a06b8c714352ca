"""What a loaded model keeps between stages."""

from sapo.data.mini import generate
from sapo.experiments.model import load as models
from sapo.experiments.model.load import load_model


def test_test_examples_are_tokenized_once_a_task_and_prompt(tiny_config, monkeypatch):
    language_model = load_model(tiny_config())
    renderer = language_model.renderer(512)
    task = generate("mini_price", 2, 4, 0)
    first = language_model.rendered_test(renderer, task, "How much?")
    assert first == renderer.render(task, "How much?", task.test, for_test=True)
    # The same task loaded again is the same; another prompt, frame or limit is not.
    assert language_model.rendered_test(renderer, generate("mini_price", 2, 4, 0), "How much?") is first
    others = [
        language_model.rendered_test(renderer, task, "Which price?"),
        language_model.rendered_test(language_model.renderer(400), task, "How much?"),
        language_model.rendered_test(renderer, generate("mini_price", 2, 3, 0), "How much?"),
    ]
    assert all(other is not first for other in others)
    monkeypatch.setattr(models, "KEPT_TESTS", 1)
    language_model.rendered_test(renderer, task, "Another?")
    assert language_model.rendered_test(renderer, task, "How much?") is not first
