"""The worked example with TRL: select, train, evaluate, on the random tiny model."""

import importlib.util
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sapo.cli.app import main
from sapo.conf.load import load_one
from sapo.data.render import Renderer
from sapo.experiments import select_prompt
from sapo.experiments.model import training
from sapo.experiments.model.fetch import model_folder

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "examples" / "trl_sft.py"
DATA = SCRIPT.with_name("tickets.csv")

pytest.importorskip("trl", reason="trl is not installed (pip install trl)")


def test_the_script_selects_trains_and_evaluates(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("trl_sft", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    folder = model_folder(load_one(["model=tiny_llama"]).model)
    losses = script.main(str(folder), steps=3, output=str(tmp_path / "lora"))
    assert 0 < losses["after"] < losses["before"]
    assert any(
        key.endswith("lora_A.weight") for key in load_file(tmp_path / "lora" / "adapter_model.safetensors")
    )
    said = capsys.readouterr().out
    assert "paired t-test over distinct examples" in said
    assert f"{losses['after']:.3f} after" in said


def test_trl_trains_on_the_tokens_that_were_scored_and_finds_the_same_loss(tmp_path):
    """Of conversational rows TRL makes the scored tokens and targets; its losses are the scored one."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    folder = model_folder(load_one(["model=tiny_llama"]).model)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    pairs = [(f"number {i}", "odd" if i % 2 else "even, and " + "so on " * i) for i in range(6)]
    selection = select_prompt(model, tokenizer, pairs, ["Odd or even?", "Is it odd or even?"])
    config = SFTConfig(
        str(tmp_path),
        report_to="none",
        bf16=False,
        use_cpu=True,
        max_steps=1,
        logging_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        per_device_eval_batch_size=6,
        save_strategy="no",
    )
    rows = Dataset.from_list(selection.render(pairs))
    trainer = SFTTrainer(model, config, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
    rendered = Renderer(tokenizer, {}, 512).render(
        selection.task, selection.chosen.text, selection.task.train
    )
    for ours, theirs in zip(rendered, trainer.train_dataset, strict=True):
        assert theirs["input_ids"] == ours.input_ids
        assert theirs["labels"] == [-100] * ours.target_start + ours.target_ids
    (loss,) = selection.ranking.loc[selection.ranking["rank"] == 1, "loss"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, rel=3e-5)
    trainer.train()
    (first,) = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert first == pytest.approx(loss, rel=1e-4)  # TRL logs few digits


@pytest.mark.parametrize("layout", ["system", "{input}\n{suffix}\n\nTask: {instruction}"])
def test_in_a_layout_trl_reads_of_written_rows_the_tokens_that_sapo_trains(
    tmp_path, monkeypatch, capsys, layout
):
    """`select --write` hands rows over; they are held to what `train` of the same wording reads."""
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    learned, train = [], training.train

    def look(model, rows, *given, **named):
        learned.extend(rendered for row in rows for rendered in row.rendered)
        return train(model, rows, *given, **named)

    def sapo(command, *overrides):
        data = (f"data={DATA}", "labels=[billing,account,bug,feature]", "suffix=One word:")
        how = ("model=tiny_llama", f"data.layout={layout}", f"paraphrases.file={DATA.with_suffix('.yaml')}")
        small = ("scorer.examples=4", "paraphrases.count=3", "engine.device=cpu")
        with pytest.raises(SystemExit) as exit_:
            main([command, *data, *how, *small, *overrides])
        assert exit_.value.code == 0
        return json.loads(capsys.readouterr().out)

    monkeypatch.setattr(training, "train", look)
    index = sapo("select", "--json", "--write", str(tmp_path / "rows.jsonl"))["chosen"]["index"]
    few = ("data.train_examples=12", "data.test_examples=2", "evaluator.max_new_tokens=2", "trainer.epochs=1")
    sapo("train", "--json", "policy=fixed", f"policy.index={index}", *few)

    folder = model_folder(load_one(["model=tiny_llama"]).model)
    written = str(tmp_path / "rows.jsonl")
    rows = load_dataset("json", data_files=written, cache_dir=str(tmp_path), split="train")
    config = SFTConfig(str(tmp_path / "out"), report_to="none", bf16=False, use_cpu=True, max_length=None)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    trainer = SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
    handed = {tuple(row["input_ids"]): row["labels"] for row in trainer.train_dataset}
    assert (len(learned), len(rows)) == (12, 96)
    for row in learned:
        assert handed[tuple(row.input_ids)] == [-100] * row.target_start + row.target_ids
    text = tokenizer.decode(learned[0].input_ids)
    assert ("<|im_start|>system" in text) == (layout == "system")
    assert "One word:" in text
    assert "Text:" not in text
