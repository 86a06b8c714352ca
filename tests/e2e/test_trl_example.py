"""The worked example with TRL: select, train, evaluate, on the random tiny model."""

import runpy
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sapo.conf.load import load_one
from sapo.data.render import Renderer
from sapo.experiments import select_prompt
from sapo.experiments.model import training
from sapo.experiments.model.fetch import model_folder

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "examples" / "trl_sft.py"
DATA = SCRIPT.with_name("tickets.csv")
FOLDER = model_folder(load_one(["model=tiny_llama"]).model)

pytest.importorskip("trl", reason="trl is not installed (pip install trl)")


def trainer(rows, folder, **options):
    """TRL's, of the tiny model."""
    from trl import SFTConfig, SFTTrainer  # takes seconds

    config = SFTConfig(str(folder), report_to="none", bf16=False, use_cpu=True, **options)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    return SFTTrainer(model, config, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)


def test_the_script_selects_trains_and_evaluates(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    losses = runpy.run_path(str(SCRIPT))["main"](str(FOLDER), steps=3, output=str(tmp_path / "lora"))
    assert 0 < losses["after"] < losses["before"]
    weights = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert any(key.endswith("lora_A.weight") for key in weights)
    said = capsys.readouterr().out
    assert "paired t-test over distinct examples" in said
    assert f"{losses['after']:.3f} after" in said


def test_trl_trains_on_the_tokens_that_were_scored_and_finds_the_same_loss(tmp_path):
    """Of conversational rows TRL makes the scored tokens and targets; its losses are the scored one."""
    from datasets import Dataset

    model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    pairs = [(f"number {i}", "odd" if i % 2 else "even, and " + "so on " * i) for i in range(6)]
    selection = select_prompt(model, tokenizer, pairs, ["Odd or even?", "Is it odd or even?"])
    steps = {"max_steps": 1, "logging_steps": 1, "save_strategy": "no", "per_device_train_batch_size": 2}
    sizes = {"gradient_accumulation_steps": 3, "per_device_eval_batch_size": 6}
    theirs_way = trainer(Dataset.from_list(selection.render(pairs)), tmp_path, **steps, **sizes)
    task = selection.task
    rendered = Renderer(tokenizer, {}, 512).render(task, selection.chosen.text, task.train)
    for ours, theirs in zip(rendered, theirs_way.train_dataset, strict=True):
        assert theirs["input_ids"] == ours.input_ids
        assert theirs["labels"] == [-100] * ours.target_start + ours.target_ids
    (loss,) = selection.ranking.loc[selection.ranking["rank"] == 1, "loss"]
    assert theirs_way.evaluate()["eval_loss"] == pytest.approx(loss, rel=3e-5)
    theirs_way.train()
    (first,) = [row["loss"] for row in theirs_way.state.log_history if "loss" in row]
    assert first == pytest.approx(loss, rel=1e-4)  # TRL logs few digits


@pytest.mark.parametrize("layout", ["system", "{input}\n{suffix}\n\nTask: {instruction}"])
def test_in_a_layout_trl_reads_of_written_rows_the_tokens_that_sapo_trains(
    sapo, tmp_path, monkeypatch, layout
):
    """`select --write` hands rows over; they are held to what `train` of the same wording reads."""
    from datasets import load_dataset

    learned, train = [], training.train

    def look(model, rows, *given, **named):
        learned.extend(rendered for row in rows for rendered in row.rendered)
        return train(model, rows, *given, **named)

    monkeypatch.setattr(training, "train", look)
    written = str(tmp_path / "rows.jsonl")
    data = (f"data={DATA}", "labels=[billing,account,bug,feature]", "suffix=One word:", "--json")
    how = ("model=tiny_llama", f"data.layout={layout}", f"paraphrases.file={DATA.with_suffix('.yaml')}")
    small = ("scorer.examples=4", "paraphrases.count=3", "engine.device=cpu")
    index = sapo("select", *data, *how, *small, "--write", written).document["chosen"]["index"]
    few = ("data.train_examples=12", "data.test_examples=2", "evaluator.max_new_tokens=2", "trainer.epochs=1")
    assert sapo("train", *data, *how, *small, *few, "policy=fixed", f"policy.index={index}").document

    rows = load_dataset("json", data_files=written, cache_dir=str(tmp_path), split="train")
    theirs_way = trainer(rows, tmp_path / "out", max_length=None)
    handed = {tuple(row["input_ids"]): row["labels"] for row in theirs_way.train_dataset}
    assert (len(learned), len(rows)) == (12, 96)
    for row in learned:
        assert handed[tuple(row.input_ids)] == [-100] * row.target_start + row.target_ids
    text = theirs_way.processing_class.decode(learned[0].input_ids)
    assert ("<|im_start|>system" in text) == (layout == "system")
    assert "One word:" in text
    assert "Text:" not in text
