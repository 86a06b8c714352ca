"""`parity=reference` is the default with the published code's switches thrown, and nothing else."""

import re
from dataclasses import asdict
from pathlib import Path

import yaml

from sapo.conf.job_files import leaves
from sapo.conf.load import FOLDER, load_one

DOCS = Path(__file__).parents[2] / "docs" / "paper-vs-code.md"
SWITCHES = {
    "parity.name": "reference",
    "seed": 42,
    "data.label_blanks": "keep",
    "data.separator": "prompt",
    "scorer.subset": "first",
    "scorer.reduction": "batch",
    "scorer.state": "shrunk",
    "evaluator.clean_up_spaces": True,
    "evaluator.scores": "published",
    "trainer.schedule": "warmup_log_constant",
    "trainer.step_count": "floor",
    "trainer.seeding": "run",
    "method.penalty_factor": 8.0,
    "data.truncation": "end",
}


def test_reference_throws_exactly_the_switches_of_the_register():
    paper, reference = (dict(leaves(asdict(load_one([f"parity={name}"])))) for name in ("paper", "reference"))
    changed = {key: value for key, value in reference.items() if paper[key] != value}
    assert changed == SWITCHES


def test_every_switch_names_its_number_in_the_register_and_the_docs_explain_it():
    text = (FOLDER / "parity" / "reference.yaml").read_text(encoding="utf-8")
    docs = DOCS.read_text(encoding="utf-8")
    settings = yaml.safe_load(text)
    numbers = re.findall(r"D\d+", text)
    assert len(numbers) >= sum(len(value) for key, value in settings.items() if key not in {"parity", "seed"})
    for number in numbers:
        assert re.search(rf"\b{number}\b", docs), f"{DOCS.name} does not explain {number}"


def test_a_seed_that_is_asked_for_wins():
    assert load_one(["parity=reference", "seed=3"]).seed == 3
