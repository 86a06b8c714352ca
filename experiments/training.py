"""Training one task on the Hugging Face Trainer, with an exact token mean over every global batch."""

import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from sapo.conf.errors import WorkError
from sapo.conf.schema import TrainerConfig
from sapo.data.batches import by_tokens
from sapo.data.render import Rendered
from sapo.experiments.adapters import trainable_parameters
from sapo.experiments.forward import can_share_prefix, target_logits, target_nll
from sapo.experiments.lessons import Draws, Row

Penalty = Callable[[PeftModel], torch.Tensor | None]

_CHECKPOINT_WEIGHTS = "trainable.safetensors"


def nothing(model: PeftModel) -> None:
    """The penalty of a method that has none."""
    del model


def train(
    model: PeftModel,
    rows: Sequence[Row],
    config: TrainerConfig,
    *,
    draws: Draws,
    scratch: Path,
    what: str,
    penalty: Penalty = nothing,
) -> dict[str, Any]:
    """Trains the model in place and returns the loss of every step and what the training took.

    `draws` has the seed, and decides which prompt a row is shown under when it has several; `penalty` is
    added to the loss of every optimizer step. Checkpoints go to `scratch`; one that is found there is
    continued. Raises WorkError naming `what` and the step if a loss is not finite.
    """
    steps_an_epoch = math.ceil(len(rows) / config.global_batch)
    warmup = math.ceil(config.warmup_ratio * steps_an_epoch * config.epochs)
    trainer = TokenMeanTrainer(
        model=model,
        args=_arguments(config, warmup, draws.seed, scratch, model.device),
        train_dataset=rows,  # type: ignore[arg-type]  # any sequence will do
        data_collator=lambda batch: {"rows": batch},
        callbacks=[],
        trainer_config=config,
        draws=draws,
        penalty=penalty,
        what=what,
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = _last_whole_checkpoint(scratch)
    trainer.train(resume_from_checkpoint=checkpoint)
    if not all(torch.isfinite(p).all() for p in model.parameters() if p.requires_grad):
        raise WorkError(f"{what}: the weights are not finite after the last step. Nothing was stored.")
    history = trainer.state.log_history
    return {
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "penalties": [entry["penalty"] for entry in history if "penalty" in entry],
        "gradient_norms": [entry["grad_norm"] for entry in history if "grad_norm" in entry],
        "steps": trainer.state.global_step,
        "tokens": round(config.epochs * sum(_mean_length(row) for row in rows)),
        "trainable_parameters": trainable_parameters(model),
    }


def _last_whole_checkpoint(scratch: Path) -> str | None:
    """The checkpoint to go on from; what a killed process was just writing lacks the Trainer's last file."""
    for folder in scratch.glob("checkpoint-*"):
        if not (folder / TRAINER_STATE_NAME).is_file():
            shutil.rmtree(folder)
    return get_last_checkpoint(str(scratch)) if scratch.is_dir() else None


def _arguments(
    config: TrainerConfig, warmup: int, seed: int, scratch: Path, device: torch.device
) -> TrainingArguments:
    own_schedule = config.schedule == "warmup_log_constant"
    constant = own_schedule or config.schedule == "constant"
    memory: dict[str, Any] = {"gradient_checkpointing": True} if config.gradient_checkpointing else {}
    arguments = TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=config.epochs,
        # One batch of the data loader is a whole global batch; `training_step` splits it by tokens.
        per_device_train_batch_size=config.global_batch,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type="constant_with_warmup" if constant else config.schedule,
        warmup_steps=warmup,
        seed=seed,
        use_cpu=device.type == "cpu",
        bf16=False,  # weights are in their final precision already
        **memory,
        logging_strategy="steps",
        logging_steps=1,
        save_strategy="steps" if config.checkpoint_steps else "no",
        save_steps=config.checkpoint_steps or 1,
        save_total_limit=1,
        report_to=list(config.report_to) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    # The Trainer would spread each batch over all the GPUs that it sees; a stage has one.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _mean_length(row: Row) -> float:
    return sum(len(wording.input_ids) for wording in row.wordings) / len(row.wordings)


class TokenMeanTrainer(Trainer):
    """A Trainer whose step sees a whole global batch and splits it into micro-batches by length.

    The loss of a step is the sum of the NLL of all its target tokens over their number, whatever the split
    (paper, Section 4; official code with transformers 4.51).
    """

    model: Any
    optimizer: Any

    def __init__(
        self,
        *args: Any,
        trainer_config: TrainerConfig,
        draws: Draws,
        penalty: Penalty,
        what: str,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.trainer_config = trainer_config
        self.draws = draws
        self.penalty = penalty
        self.what = what
        self.budget = trainer_config.micro_batch_tokens
        self.shares_prefix = (
            trainer_config.shared_prefix
            and not trainer_config.gradient_checkpointing
            and can_share_prefix(self.model.config)
        )

    def training_step(self, model: Any, inputs: dict[str, Any], *_: Any) -> torch.Tensor:
        """Gradients of one global batch; a micro-batch that does not fit in memory starts it over, halved."""
        model.train()
        groups = self._worded(inputs["rows"])
        while True:
            try:
                return self._accumulate(model, groups)
            except torch.OutOfMemoryError as error:
                model.zero_grad()
                longest = max(len(example.input_ids) for group in groups for example in group)
                if self.budget <= longest:
                    raise WorkError(f"{self.what}: one example of {longest} tokens does not fit.") from error
                self.budget = max(self.budget // 2, longest)
                torch.cuda.empty_cache()

    def _worded(self, rows: Sequence[Row]) -> list[list[Rendered]]:
        """The global batch by prompt: examples under one prompt share their beginning."""
        n_steps = math.ceil(len(self.train_dataset) / self.trainer_config.global_batch)  # type: ignore[arg-type]
        epoch, step = divmod(self.state.global_step, n_steps)
        groups: dict[tuple[int, int], list[Rendered]] = {}
        for place, row in enumerate(rows, start=step * self.trainer_config.global_batch):
            wording = self.draws.wording(row, epoch, place)
            groups.setdefault((row.group, wording), []).append(row.wordings[wording])
        return list(groups.values())

    def _accumulate(self, model: Any, groups: Sequence[Sequence[Rendered]]) -> torch.Tensor:
        n_tokens = sum(len(example.target_ids) for group in groups for example in group)
        total = torch.zeros((), device=self.args.device)
        for group in groups:
            for batch in by_tokens([len(example.input_ids) for example in group], self.budget):
                logits, targets = target_logits(model, [group[i] for i in batch], self.shares_prefix)
                loss = target_nll(logits, targets).sum() / n_tokens
                self.accelerator.backward(loss)
                total += loss.detach()
        penalty = self.penalty(model)
        if penalty is not None:
            self.accelerator.backward(penalty)
            total += penalty.detach()
            self.log({"penalty": penalty.item()})
        if not torch.isfinite(total):
            step = self.state.global_step + 1
            raise WorkError(f"{self.what}: the loss at step {step} is {total.item()}. Nothing was stored.")
        return total

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's schedules, and DeepSpeed's WarmupLR, as the official code ran."""
        if self.trainer_config.schedule == "warmup_log_constant" and self.lr_scheduler is None:
            warmup = max(2, int(self.args.warmup_steps))
            self.lr_scheduler = LambdaLR(
                optimizer or self.optimizer, lambda step: min(1.0, math.log(step + 1) / math.log(warmup))
            )
            self._created_lr_scheduler = True
            return self.lr_scheduler
        return super().create_scheduler(num_training_steps, optimizer)

    def _save(self, output_dir: str | None = None, *_: Any, **__: Any) -> None:
        """Checkpoints hold the trainable weights only; the base model and frozen adapters do not change."""
        folder = str(output_dir or self.args.output_dir)
        os.makedirs(folder, exist_ok=True)
        weights = {key: p.detach().cpu().contiguous() for key, p in self._trainable().items()}
        save_file(weights, os.path.join(folder, _CHECKPOINT_WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *_: Any) -> None:
        weights = load_file(os.path.join(resume_from_checkpoint, _CHECKPOINT_WEIGHTS))
        parameters = self._trainable()
        if weights.keys() != parameters.keys():
            raise WorkError(f"{self.what}: the checkpoint in {resume_from_checkpoint} is of other weights.")
        with torch.no_grad():
            for key, value in weights.items():
                parameters[key].copy_(value)

    def _trainable(self) -> dict[str, torch.nn.Parameter]:
        return {key: p for key, p in self.model.named_parameters() if p.requires_grad}
