"""`sapo select` on the random tiny model: what it prints, writes, and refuses."""

import json
from io import StringIO
from pathlib import Path

import pytest
import yaml
from peft import LoraConfig, get_peft_model

from sapo.cli.console import Terminal
from sapo.cli.select import parts
from sapo.conf.load import load_one
from sapo.experiments.model.load import load_model

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
TICKETS, POOL = EXAMPLES / "tickets.csv", EXAMPLES / "tickets.yaml"
INSTRUCTION = yaml.safe_load(POOL.read_text(encoding="utf-8"))["original"]
LABELS = "labels=[billing,account,bug,feature]"
FAST = ("model=tiny_llama", "engine.device=cpu", "scorer.examples=4", "paraphrases.count=3")
MINE = (f"data={TICKETS}", f"instruction={INSTRUCTION}", f"paraphrases.file={POOL}", *FAST)


@pytest.fixture
def rows_file(tmp_path):
    """`rows_file(ROWS)` writes rows as JSONL."""

    def write(rows: list[dict]) -> Path:
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def done(sapo):
    """The choice for the tickets of the documents."""
    return sapo("select", *MINE, LABELS, "--json")


# --- what it finds -----------------------------------------------------------------------------------------


def test_the_document(done):
    assert "[4/4] prompts scored" in done.err
    document = done.document
    assert (document["task"], document["model"]) == ("tickets", "tiny_llama")
    candidates = document["candidates"]
    assert sorted(row["index"] for row in candidates) == [-1, 0, 1, 2]
    assert document["chosen"] == {"index": candidates[0]["index"], "text": candidates[0]["text"]}
    assert [row["loss"] for row in candidates] == sorted(row["loss"] for row in candidates)
    assert {row["n_examples"] for row in candidates} == {4}
    assert next(row for row in candidates if row["index"] == -1)["text"] == INSTRUCTION
    counts = {"rows": 96, "scored": 4, "distinct": 4, "shortened": 0, "findings": []}
    notes = [f"{TICKETS}: input from column 'text', target from column 'label'"]
    columns = {"input": "text", "target": "label"}
    assert document["data"] == {"source": str(TICKETS), "columns": columns, "notes": notes, **counts}
    assert document["written"] is None
    assert len(document["verdict"]) == 2


def test_all_rows_are_there_to_draw_from_unless_said(sapo):
    whole = sapo("select", "task=mini_city", *FAST, "--json").document
    assert (whole["data"]["rows"], whole["data"]["scored"]) == (1000, 4)
    few = sapo("select", "task=mini_city", *FAST, "data.train_examples=3", "--json").document
    assert (few["data"]["rows"], few["data"]["scored"]) == (3, 3)


def test_an_instruction_of_blanks_has_nothing_to_choose_from(sapo):
    """It has no paraphrases either, whatever the pool file holds."""
    done = sapo("select", MINE[0], "instruction= ", *MINE[2:])
    assert (done.code, done.err.splitlines()[-1]) == (2, "sapo: candidate 0 is empty or no text.")


@pytest.mark.parametrize("said", ["columns=[asked,said]", "columns=asked,said"])
def test_columns_by_name(sapo, rows_file, said):
    data = rows_file([{"asked": f"x{i}", "said": "bug"} for i in range(6)])
    columns = sapo("select", f"data={data}", *MINE[1:], said, "--json").document["data"]["columns"]
    assert columns == {"input": "asked", "target": "said"}


def test_an_adapter_of_another_base_model_is_named(sapo, tmp_path):
    found = load_model(load_one(["model=tiny_llama", "engine.device=cpu"]))
    adapted = get_peft_model(found.base, LoraConfig(target_modules=["q_proj", "v_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = "someone/another-model"
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.unload().__dict__.pop("peft_config", None)
    done = sapo("select", *MINE, f"adapter={tmp_path / 'adapter'}", "--json")
    assert done.code == 0
    assert "says it was trained on someone/another-model" in done.err


# --- what people see ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(done, width):
    document = done.document
    document["candidates"][1]["text"] = "Sort [red]it[/red] well."  # no markup
    console = Terminal(width=width, record=True, file=StringIO())
    console.show(parts(document))
    text = console.export_text()
    lines = text.splitlines()
    assert f"{document['candidates'][0]['loss']:.3f} ±" in text
    head = next(line for line in lines if "prompt  " in line)
    assert head.split() == ["#", "prompt", "loss", "Δ", "original", "p", "tokens"]
    table = lines[lines.index(head) :]
    for row in document["candidates"]:
        line = next(line for line in table if line.split()[:1] == [str(row["rank"])])
        assert len(line.rstrip()) <= width
        assert line.rstrip().endswith(str(row["prompt_tokens"]))
    assert "input from column 'text', target from column 'label'" in text
    assert document["verdict"][0] in text
    assert width == 80 or "Sort [red]it[/red] well." in text


def test_what_is_left_out_and_amiss_is_said(sapo, rows_file):
    ends = ["<|im_end|>", *["bug"] * 3]
    data = rows_file([{"context": f"c{i}", "question": "Q?", "answer": end} for i, end in enumerate(ends)])
    shown = " ".join(sapo("select", f"data={data}", *MINE[1:]).out.split())
    for what in (
        "left out: column 'context'",
        "2 of 4 training rows repeat an earlier row",
        "4 of 4 training rows have an input that also stands there with another target",
        "1 of 4 training rows hold control tokens of the model (<|im_end|>)",
    ):
        assert what in shown


# --- what it writes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["null", "system"])
def test_all_rows_are_written_with_the_chosen_wording_and_read_again(sapo, rows_file, tmp_path, layout):
    rows = [{"input": f"x{i}\u2028ü", "output": "bug" if i else "billing"} for i in range(4)]
    data, out = rows_file(rows), tmp_path / "out.jsonl"
    settings = ("suffix=Answer:", f"data.layout={layout}", "--json")
    document = sapo("select", f"data={data}", *MINE[1:], *settings, "--write", out).document
    assert document["written"] == {"path": str(out), "rows": 4, "sent": str(out.with_suffix(".sent.json"))}
    sent = json.loads(out.with_suffix(".sent.json").read_text(encoding="utf-8"))
    assert sent == {**document["sent"], "chat_template_kwargs": {}}
    assert [turn["role"] for turn in sent["messages"]] == ["system", "user"][layout == "null" :]
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]
    for line, row in zip(written, rows, strict=True):
        asked = [
            {**turn, "content": turn["content"].replace("{input}", row["input"])} for turn in sent["messages"]
        ]
        assert line["prompt"] == asked
        assert line["completion"] == [{"role": "assistant", "content": row["output"]}]
    files = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert files == ["mine.jsonl", "out.jsonl", "out.sent.json"]
    again = sapo("select", f"data={out}", *MINE[1:], *settings).document
    assert [row["loss"] for row in again["candidates"]] == [row["loss"] for row in document["candidates"]]
