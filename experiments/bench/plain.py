"""The plain way: what one writes with Transformers and PEFT alone. `sapo bench` measures against it."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from sapo.conf.schema import TrainerConfig
from sapo.data.render import Rendered
from sapo.experiments.model.forward import IGNORED

BATCH = 8


@torch.inference_mode()
def plain_nll(model: Any, rendered: Sequence[Rendered]) -> list[float]:
    """Summed target NLL of each example: batches of 8 in the given order, padded, with all logits."""
    sums: list[float] = []
    for batch in batches(rendered):
        inputs = {name: value.to(model.device) for name, value in padded(batch).items()}
        labels = inputs.pop("labels")
        logits = model(**inputs).logits[:, :-1].float()  # (B, L - 1, V)
        nll = functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
        )
        sums += nll.view(len(batch), -1).sum(-1).tolist()
    return sums


def plain_train(
    model: PeftModel, rendered: Sequence[Rendered], config: TrainerConfig, seed: int, scratch: Path
) -> list[float]:
    """Trains in place by `Trainer.train` in padded batches of up to 8; returns the loss of every step.

    A global batch that is larger is accumulated, with the Trainer's token mean over all of it.
    """
    # The largest batch of up to 8 that the global batch is a multiple of.
    batch = next(n for n in range(min(BATCH, config.global_batch), 0, -1) if config.global_batch % n == 0)
    steps = math.ceil(len(rendered) / config.global_batch) * config.epochs
    arguments = TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=config.global_batch // batch,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type=config.schedule,
        warmup_steps=math.ceil(config.warmup_ratio * steps),
        seed=seed,
        use_cpu=model.device.type == "cpu",
        logging_strategy="steps",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rendered,  # type: ignore[arg-type]  # any sequence will do
        data_collator=padded,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@torch.inference_mode()
def plain_answers(
    model: PreTrainedModel, rendered: Sequence[Rendered], max_new_tokens: int, stop_ids: Sequence[int]
) -> list[list[int]]:
    """Greedy answers by `generate`: batches of 8 in the given order, padded on the left."""
    answers = []
    for batch in batches(rendered):
        longest = max(len(example.prompt_ids) for example in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, example in enumerate(batch):
            ids[row, longest - len(example.prompt_ids) :] = torch.tensor(example.prompt_ids)
            mask[row, longest - len(example.prompt_ids) :] = 1
        found = model.generate(  # type: ignore[operator]
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stop_ids),
            pad_token_id=stop_ids[0],
        )
        answers += [_until_stop(row, stop_ids) for row in found[:, longest:].tolist()]
    return answers


def _until_stop(tokens: list[int], stop_ids: Sequence[int]) -> list[int]:
    stop = next((place for place, token in enumerate(tokens) if token in stop_ids), len(tokens))
    return tokens[:stop]


def padded(batch: Sequence[Rendered]) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `labels` (B, L), padded on the right."""
    longest = max(len(example.input_ids) for example in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, example in enumerate(batch):
        length = len(example.input_ids)
        ids[row, :length] = torch.tensor(example.input_ids)
        mask[row, :length] = 1
        labels[row, example.target_start : length] = torch.tensor(example.target_ids)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def padded_tokens(rendered: Sequence[Rendered]) -> int:
    """Tokens that a pass in padded batches of 8 computes."""
    return sum(len(batch) * max(len(example.input_ids) for example in batch) for batch in batches(rendered))


def batches(rendered: Sequence[Rendered]) -> Iterator[Sequence[Rendered]]:
    """Batches of 8 in the given order; the last may be smaller."""
    for begin in range(0, len(rendered), BATCH):
        yield rendered[begin : begin + BATCH]
