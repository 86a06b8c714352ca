"""The worked example with TRL: select, train, evaluate, on the random tiny model."""

import importlib.util
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sapo.conf.load import load_one
from sapo.data.render import Renderer
from sapo.experiments import select_prompt
from sapo.experiments.model.fetch import model_folder

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "examples" / "trl_sft.py"

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


def test_trl_trains_on_the_tokens_that_were_scored(tmp_path):
    """TRL's tokens and labels of the rendered rows are the scored tokens and targets."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    folder = model_folder(load_one(["model=tiny_llama"]).model)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    pairs = [(f"number {i}", "odd" if i % 2 else "even") for i in range(6)]
    selection = select_prompt(model, tokenizer, pairs, ["Odd or even?", "Is it odd or even?"])
    config = SFTConfig(str(tmp_path), report_to="none", bf16=False, use_cpu=True)
    rows = Dataset.from_list(selection.render(pairs))
    prepared = SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer).train_dataset
    renderer = Renderer(tokenizer, {}, 512)
    for rendered, row in zip(
        renderer.render(selection.task, selection.chosen.text, selection.task.train), prepared, strict=True
    ):
        assert row["input_ids"] == rendered.input_ids
        assert row["labels"] == [-100] * rendered.target_start + rendered.target_ids
