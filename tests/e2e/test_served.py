"""`sapo check` against the real `transformers serve` of an exported model."""

import json

import pytest
from servers import serving

from sapo.cli.app import main
from sapo.conf.load import load_one
from sapo.experiments.model.fetch import model_folder


@pytest.fixture
def sapo(capfd, tmp_path, monkeypatch):
    """`sapo("train", …)` in this process, in a folder of its own: its exit code and document."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        with pytest.raises(SystemExit) as done:
            main([*map(str, words), "--json"])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return int(done.value.code or 0), json.loads(out) if out else err

    return call


def test_a_served_export_passes_and_what_is_wrong_is_named(sapo, small, tmp_path):
    # Steps large enough to move the answers.
    steps = ("trainer.epochs=2", "trainer.global_batch=2", "trainer.learning_rate=0.05", "policy=static")
    (run,) = sapo("train", *(word for word in small if word != "trainer.epochs=1"), *steps)[1]["runs"]
    assert sapo("export", run["id"], "--to", tmp_path / "merged", "--merge")[0] == 0
    (tmp_path / "sent.json").write_text('{"messages": [{"role": "user", "content": "{input}"}]}')
    with serving(tmp_path) as url:

        def checked(model, *options):
            code, document = sapo("check", f"serve={url}", run["id"], "--model", model, *options)
            assert code == (not document["served"])
            return {each["name"]: each for each in document["checks"]}

        right = checked(tmp_path / "merged")
        assert right["tokens"]["ok"]
        assert "as many tokens as in training" in right["tokens"]["detail"]
        assert "4 of 4 are the run's" in right["answers"]["detail"]
        assert (right["weights"]["ok"], right["weights"]["required"]) == (False, False)
        lost = checked(tmp_path / "merged", "--request", "sent.json")
        assert not lost["tokens"]["ok"]
        assert "the layout is missing" in lost["tokens"]["detail"]
        base = checked(model_folder(load_one(["model=tiny_llama"]).model))
        assert base["tokens"]["ok"]
        assert "They are the untouched base model's: 4 of 4" in base["answers"]["detail"]
        assert (
            "chat/completions answered " in sapo("check", f"serve={url}", run["id"], "--model", "no/model")[1]
        )
