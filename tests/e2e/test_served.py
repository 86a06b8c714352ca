"""`sapo check` against the real `transformers serve` of an exported model."""

import json

import pytest
from servers import serving

from sapo.conf.load import load_one
from sapo.experiments.model.fetch import model_folder

INPUT = {"role": "user", "content": "{input}"}


@pytest.fixture
def run(document, small):
    """A run whose steps are large enough to move the answers."""
    steps = ("trainer.epochs=2", "trainer.global_batch=2", "trainer.learning_rate=0.05", "policy=static")
    kept = [word for word in small if not word.startswith("trainer.epochs")]
    (run,) = document("train", *kept, *steps)["runs"]
    return run["id"]


def test_a_served_export_passes_and_what_a_program_sends_wrongly_is_named(start, document, run, tmp_path):
    document("export", run, "--to", "merged", "--merge")
    with serving(tmp_path / "merged", tmp_path) as url:
        found = document("check", f"serve={url}", run)
        checks = {each["name"]: each for each in found["checks"]}
        assert found["served"]
        assert "as many tokens as in training" in checks["tokens"]["detail"]
        assert "4 of 4 are the run's" in checks["answers"]["detail"]
        assert (checks["weights"]["ok"], checks["weights"]["required"]) == (False, False)
        (tmp_path / "sent.json").write_text(json.dumps({"messages": [INPUT]}))
        done = start("check", run, f"serve={url}", "--request", "sent.json")
        assert done.returncode == 1, done.stderr
        assert "wrong   tokens: " in done.stdout
        assert "the layout is missing" in done.stdout
        assert done.stdout.endswith("Not served as it was trained.\n")
        other = start("check", run, f"serve={url}", "--model", "other")
        assert (other.returncode, other.stdout) == (1, "")
        assert "answered 400" in other.stderr


def test_the_base_model_is_named(start, run, tmp_path):
    with serving(model_folder(load_one(["model=tiny_llama"]).model), tmp_path) as url:
        done = start("check", run, f"serve={url}")
        assert done.returncode == 1, done.stderr
        assert "ok      tokens: 4 rows have as many tokens as in training" in done.stdout
        assert "They are the untouched base model's: 4 of 4" in done.stdout
        assert "--merge" in done.stdout
