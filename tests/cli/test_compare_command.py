"""`sapo compare` on the random tiny model: what it says and writes, and what it refuses."""

import shlex
from pathlib import Path

import pytest

from sapo.experiments.model import memory

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
MINE = (
    f"data={EXAMPLES / 'tickets.csv'}",
    f"paraphrases.file={EXAMPLES / 'tickets.yaml'}",
    "labels=[billing,account,bug,feature]",
    "model=tiny_llama",
    "engine.device=cpu",
    "trainer.epochs=1",
    "data.test_examples=12",
    "scorer.examples=8",
    "evaluator.max_new_tokens=2",
    "paraphrases.count=6",
    "compare.train=[original,2]",
    "compare.serve=[trained,none,unseen]",
    "compare.unseen=1",
    "compare.retain=[mini_tense]",
)


@pytest.mark.slow  # trains twice, then for good
def test_cost_document_files_and_the_command_that_trains_for_good(sapo, tmp_path):
    before = sapo("compare", *MINE, "--dry-run", "--json")
    assert before.document == {"trainings": 2, "evaluations": 11, "seconds": None, "notes": []}
    done = sapo("compare", *MINE, "--json")
    assert "2 trainings and 11 evaluations to do; time: unknown" in done.err
    assert "12 of 96 rows are kept for the test; none of them is scored" in done.err
    document = done.document
    assert document["trained"] == ["untouched", "original", "2"]
    assert document["served"] == ["trained", "none", "unseen"]
    assert {"trained", "served", "measure", "value", "low", "high", "n"} <= document["cells"][0].keys()
    assert {cell["measure"] for cell in document["cells"]} == {"label_match", "nll"}
    assert {row["task"] for row in document["retained"]} == {"mini_tense"}
    assert all("noise" in s["text"] for s in document["sentences"] if s["is_noise"])
    assert document["chosen"] in ("original", "2")
    assert all(Path(file).is_file() for file in document["files"])

    shown = sapo("compare", *MINE)
    assert "0 trainings and 0 evaluations to do" in shown.err
    assert all(sentence["text"] in shown.out for sentence in document["sentences"])
    assert document["commands"][0] in shown.out
    trained = sapo(*shlex.split(document["commands"][0])[1:], "--json").document["runs"][0]
    assert sapo("export", trained["id"], "--to", tmp_path / "adapter").code == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["compare.train=[best]"], "compare.train"),
        (["compare.serve=[raw]"], "compare.serve"),
        (["compare.unseen=0"], "compare.unseen"),
        (["compare.train=[9]"], "No prompt 9"),
        (["adapter=x"], "adapter"),
    ],
)
def test_what_is_refused_is_one_message_and_leaves_nothing(sapo, overrides, message, tmp_path):
    done = sapo("compare", *MINE, *overrides)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    assert not list(tmp_path.rglob("stages/*/*/result.json"))


def test_a_model_that_cannot_be_trained_here_is_refused_before_anything_starts(sapo, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda config: 50_000.0)
    monkeypatch.setenv("SAPO_STORE", str(tmp_path / "store"))
    message = sapo("compare", *MINE).refused()
    assert "tiny_llama cannot be trained here" in message
    assert not (tmp_path / "store" / "stages").exists()
