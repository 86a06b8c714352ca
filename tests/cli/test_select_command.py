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


def rows_file(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


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


def test_the_bank_is_used_for_an_instruction_that_it_has(sapo, tmp_path):
    bank = yaml.safe_load((Path(__file__).parents[2] / "data" / "bank" / "mini_topic.yaml").read_text())
    data = rows_file(tmp_path / "mine.jsonl", [{"input": f"x{i}", "output": "food"} for i in range(6)])
    document = sapo("select", f"data={data}", f"instruction={bank['original']}", *FAST, "--json").document
    assert {row["text"] for row in document["candidates"]} == {bank["original"], *bank["prompts"][:3]}


def test_the_instruction_can_come_from_the_pool_file(sapo, done):
    without = [argument for argument in MINE if not argument.startswith("instruction=")]
    assert sapo("select", *without, LABELS, "--json").document == done.document


@pytest.mark.parametrize("said", ["columns=[asked,said]", "columns=asked,said"])
def test_columns_by_name(sapo, tmp_path, said):
    data = rows_file(tmp_path / "mine.jsonl", [{"asked": f"x{i}", "said": "bug"} for i in range(6)])
    arguments = [f"data={data}", *MINE[1:], *said.split()]
    columns = sapo("select", *arguments, "--json").document["data"]["columns"]
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


def test_a_checkpoint_folder_is_a_model(sapo, done, tmp_path):
    found = load_model(load_one(["model=tiny_llama", "engine.device=cpu"]))
    found.base.save_pretrained(tmp_path / "checkpoint")
    found.tokenizer.save_pretrained(tmp_path / "checkpoint")
    mine = [argument for argument in MINE if not argument.startswith("model=")]
    document = sapo("select", *mine, f"model.path={tmp_path / 'checkpoint'}", "--json").document
    assert document["model"] == "checkpoint"
    assert document["candidates"] == done.document["candidates"]


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


def test_what_is_left_out_and_amiss_is_said(sapo, tmp_path):
    ends = ["<|im_end|>", *["bug"] * 3]
    rows = [{"context": f"c{i}", "question": "Which?", "answer": end} for i, end in enumerate(ends)]
    data = rows_file(tmp_path / "mine.jsonl", rows)
    arguments = ["select", f"data={data}", *MINE[1:]]
    facts = sapo(*arguments, "--json").document["data"]
    shown = " ".join(sapo(*arguments).out.split())
    for what in (
        "left out: column 'context'",
        "2 of 4 training rows repeat an earlier row",
        "4 of 4 training rows have an input that also stands there with another target",
        "1 of 4 training rows hold control tokens of the model (<|im_end|>)",
    ):
        assert any(what in line for line in [*facts["notes"], *facts["findings"]])
        assert what in shown
    assert len(facts["notes"] + facts["findings"]) == 5


# --- what it writes ----------------------------------------------------------------------------------------


def test_all_rows_are_written_with_the_chosen_wording(sapo, tmp_path):
    rows = [{"input": f"x{i}\u2028ü", "output": "bug" if i else "billing"} for i in range(9)]
    data, out = rows_file(tmp_path / "mine.jsonl", rows), tmp_path / "out.jsonl"
    done = sapo("select", f"data={data}", *MINE[1:], "suffix=Answer:", "--write", out, "--json")
    document = done.document
    assert document["written"] == {"path": str(out), "rows": 9, "sent": str(out.with_suffix(".sent.json"))}
    sent = json.loads(out.with_suffix(".sent.json").read_text(encoding="utf-8"))
    assert sent == {**document["sent"], "chat_template_kwargs": {}}
    (turn,) = sent["messages"]
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]
    for line, row in zip(written, rows, strict=True):
        asked = turn["content"].replace("{input}", row["input"])
        assert line["prompt"] == [{"role": "user", "content": asked}]
        assert line["completion"] == [{"role": "assistant", "content": row["output"]}]
    files = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert files == ["mine.jsonl", "out.jsonl", "out.sent.json"]


def test_a_layout_goes_into_what_is_written_and_is_read_again(sapo, tmp_path):
    rows = [{"input": f"x{i}", "output": "bug" if i else "billing"} for i in range(4)]
    data, out = rows_file(tmp_path / "mine.jsonl", rows), tmp_path / "out.jsonl"
    arguments = ("select", f"data={data}", *MINE[1:], "suffix=Answer:", "data.layout=system")
    document = sapo(*arguments, "--write", out, "--json").document
    chosen, written = document["chosen"]["text"], [json.loads(line) for line in out.open(encoding="utf-8")]
    assert document["sent"]["messages"] == [
        {"role": "system", "content": chosen},
        {"role": "user", "content": "{input}\n\nAnswer:"},
    ]
    assert [row["prompt"] for row in written] == [
        [{"role": "system", "content": chosen}, {"role": "user", "content": f"x{i}\n\nAnswer:"}]
        for i in range(4)
    ]
    again = sapo("select", f"data={out}", *arguments[2:], "--json").document
    assert [row["loss"] for row in again["candidates"]] == [row["loss"] for row in document["candidates"]]


def test_a_template_that_ends_no_answer_is_said(sapo, tmp_path, caplog):
    rows = tmp_path / "rows.csv"
    rows.write_text("input,output\n" + "".join(f"x{i},y{i}\n" for i in range(4)))
    pool = tmp_path / "pool.yaml"
    pool.write_text("prompts: [Put it in order.]\n")
    template = tmp_path / "no_end.jinja"
    turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    template.write_text(turns + "{% if add_generation_prompt %}<assistant>{% endif %}")
    settings = ("model=tiny_llama", f"paraphrases.file={pool}", f"model.chat_template={template}")
    done = sapo("select", f"data={rows}", "instruction=Sort it.", *settings)
    assert done.code == 0, done.err
    assert "writes no end after an answer" in caplog.text
