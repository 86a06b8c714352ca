"""`sapo compare` on the random tiny model: what it says and writes, and what it refuses."""

import shlex
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
ROWS = (f"data={EXAMPLES / 'tickets.csv'}", f"paraphrases.file={EXAMPLES / 'tickets.yaml'}")
SIZES = ("data.test_examples=12", "scorer.examples=8", "evaluator.max_new_tokens=2", "paraphrases.count=6")
ASKED = ("compare.train=[original,2]", "compare.serve=[trained,none,unseen]", "compare.unseen=1")
MINE = (
    *(*ROWS, *SIZES, *ASKED, "compare.retain=[mini_tense]", "labels=[billing,account,bug,feature]"),
    *("model=tiny_llama", "engine.device=cpu", "trainer.epochs=1"),
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
