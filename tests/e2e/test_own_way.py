"""The way of docs/own-data.md with the real small model: from files as they come to an adapter."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

from sapo.analysis.results import load_run
from sapo.data.benchmarks import load_own_task

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = ("scorer.examples=4", "evaluator.answers=false", "engine.device=cpu", "paraphrases.count=2")
SMALLER = ("data.train_examples=6", "data.test_examples=1", "trainer.epochs=1", "trainer.global_batch=2")


def test_from_an_alpaca_and_a_semicolon_file_to_an_adapter(small_model, sapo, tmp_path, monkeypatch):
    (tmp_path / "docs").symlink_to(REPOSITORY / "docs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAPO_STORE")
    page = (REPOSITORY / "docs" / "own-data.md").read_text(encoding="utf-8").replace("\\\n", " ")
    part = page.partition("## The whole way")[2].partition("\n## ")[0]
    commands = "".join(re.findall(r"^```sh\n(.*?)^```", part, re.M | re.S)).splitlines()
    titles, moods, training = ([*shlex.split(command)[1:], "--json"] for command in commands)
    first = sapo(*titles, *SMALL).document
    assert first["data"]["columns"] == {"input": "instruction+input", "target": "output"}
    instruction = "Write a short subject line for this mail to our support."
    assert {row["text"] for row in first["candidates"] if row["index"] == -1} == {instruction}
    second = sapo(*moods, *SMALL).document
    assert any("fields are separated by ';'" in note for note in second["data"]["notes"])
    assert second["sent"]["messages"] == [
        {"role": "system", "content": second["chosen"]["text"]},
        {"role": "user", "content": "{input}"},
    ]
    assert len((tmp_path / "moods_chosen.jsonl").read_text().splitlines()) == 16

    trained = sapo(*training, *SMALL, *SMALLER)
    (run,) = trained.document["runs"]
    assert "moods.csv: fields are separated by ';'" in trained.err
    exported = sapo("export", run["id"], "--to", tmp_path / "adapter", "--json").document
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    sent = [json.loads(block) for block in re.findall(r"```json\n(.*?)\n```", card, re.S)]
    assert [each["instruction"] for each in sent] == list(run["prompts"].values())
    assert [each["text"] for each in sent] == [task["text"] for task in exported["tasks"]]

    # Plain Transformers, sent the card's text, has the very loss that the run's evaluation has.
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter" / "tokenizer")
    rows = load_run(Path(run["dir"])).predictions
    rows = rows[(rows["after"] == 2) & (rows["column"] == "trained")]
    for name, each in zip(("moods", "subjects"), sent, strict=True):
        row = load_own_task(name, REPOSITORY / "docs" / "examples" / "tasks").test[0]
        messages = [
            {**turn, "content": turn["content"].replace(each["placeholder"], row.input)}
            for turn in each["messages"]
        ]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert prompt == each["text"].replace(each["placeholder"], row.input)
        ids, answer = (
            tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            for text in (prompt, f"{row.target}<|im_end|>\n")
        )
        whole = torch.cat([ids, answer], dim=1)
        with torch.inference_mode():
            loss = model(whole, labels=torch.cat([torch.full_like(ids, -100), answer], dim=1)).loss.item()
        expected = rows[(rows["task"] == name) & (rows["example"] == 0)]["nll"].item()
        assert loss == pytest.approx(expected, rel=1e-4)
