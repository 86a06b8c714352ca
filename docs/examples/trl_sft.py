"""Choose a wording, fine-tune with it, evaluate: sapo beside TRL's SFTTrainer and a LoRA of PEFT.

python docs/examples/trl_sft.py MODEL [STEPS]
"""

# ruff: noqa: T201 (a script prints)
import csv
import sys
from pathlib import Path

import yaml
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from sapo.experiments import select_prompt

HERE = Path(__file__).parent


def main(model_name: str, steps: int = 30, output: str = "tickets-lora") -> dict[str, float]:
    """Returns the loss on held-out rows before and after training."""
    model = AutoModelForCausalLM.from_pretrained(model_name)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    with (HERE / "tickets.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    train, test = rows[16:], rows[:16]
    pool = yaml.safe_load((HERE / "tickets.yaml").read_text(encoding="utf-8"))

    # Select: which wording does the model, as it is now, find easiest?
    selection = select_prompt(model, tokenizer, train, [pool["original"], *pool["prompts"]])
    print(selection.ranking[["rank", "index", "loss", "difference", "p"]].head(5).to_string(index=False))
    print(*selection.verdict, sep="\n")

    # Train: the rows with the chosen wording are TRL's prompt and completion.
    trainer = SFTTrainer(
        model,
        SFTConfig(
            output, max_steps=steps, learning_rate=1e-3, report_to="none", bf16=False, save_strategy="no"
        ),
        train_dataset=Dataset.from_list(selection.render(train)),
        eval_dataset=Dataset.from_list(selection.render(test)),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"]),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    trainer.save_model()

    # Evaluate. Before the next task of a sequence, call select_prompt again with trainer.model.
    after = trainer.evaluate()["eval_loss"]
    print(
        f"loss on {len(test)} held-out tickets: {before:.3f} before, {after:.3f} after; adapter in {output}"
    )
    return {"before": before, "after": after}


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
