"""Job files: overrides in YAML."""

import pytest
from tiny import refusal

from sapo.conf.load import load

JOB = """
model: tiny_llama
policy: [static, sapo]
seed: range(2)
trainer: {learning_rate: 1e-3, epochs: 1}
sequence.tasks: [mini_city, mini_topic]
model.template_options: {shout: true}
store: {root: "a[b], c"}
"""


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(JOB, encoding="utf-8")
    return path


def test_a_job_file_is_its_overrides(job):
    overrides = ["model=tiny_llama", "policy=static,sapo", "seed=range(2)", "trainer.learning_rate=1e-3"]
    overrides += ["trainer.epochs=1", "sequence.tasks=[mini_city,mini_topic]"]
    overrides += ["+model.template_options.shout=true", "store.root='a[b], c'"]
    assert load([str(job)]) == load(overrides)


def test_what_stands_beside_a_job_file_wins(job):
    (config,) = load(["policy=random", str(job), "seed=7", "sequence.tasks=[mini_city]"])
    assert (config.policy.name, config.seed, config.sequence.tasks) == ("random", 7, ["mini_city"])
    assert load(["policy=random", str(job), "seed=7", "trainer=paper"])[0].trainer.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("policy: [static", "Cannot read the job file"),
        ("- static", "it holds no settings"),
        ("1: static", "it holds no settings"),
        ("seed: 1\nseed: 2", "found duplicate key seed"),
        ("sequence.name: 7", "sequence.name is a text, and YAML reads a number: put it in quotes."),
        ("polcy: static", "Unknown setting polcy. Did you mean policy?"),
        ("trainer: {lr: 1}", "Unknown setting trainer.lr. Did you mean trainer.learning_rate?"),
    ],
)
def test_what_is_wrong_in_a_job_file_is_named(job, text, said):
    job.write_text(text, encoding="utf-8")
    assert said in refusal(load, [str(job)])


def test_a_job_file_that_is_not_there():
    assert "No job file none.yaml" in refusal(load, ["none.yaml"])


def test_a_text_or_a_folder_that_stands_alone_is_named(tmp_path):
    """However long: an instruction without `instruction=` is no name of a file."""
    assert f"Rows are data={tmp_path}" in refusal(load, [str(tmp_path)])
    assert "Write KEY=VALUE" in refusal(load, ["Name the mood of the review. " * 12])
