"""Training one task on the Hugging Face Trainer, with an exact token mean over every global batch."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainingArguments

from sapo.conf.errors import WorkError
from sapo.conf.schema import TrainerConfig
from sapo.data.batches import by_tokens
from sapo.data.render import Rendered
from sapo.experiments.model import checkpoints
from sapo.experiments.model.adapters import trainable_parameters
from sapo.experiments.model.budgets import is_out_of_memory, training_tokens
from sapo.experiments.model.forward import (
    gathered_gradients,
    pass_tokens,
    shared_prefix,
    target_logits,
    target_nll,
)
from sapo.experiments.model.lessons import Draws, Row

_log = logging.getLogger(__name__)

Penalty = Callable[[PeftModel], torch.Tensor | None]


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
    continued, and `earlier_seconds` are what it took to get there. Raises WorkError naming `what` and the
    step if a loss is not finite.
    """
    steps = math.ceil(len(rows) / config.global_batch) * config.epochs
    # The first step of a warm-up has rate 0: a training of one step must not consist of that.
    warmup = min(math.ceil(config.warmup_ratio * steps), steps - 1)
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
    found = checkpoints.newest(scratch)
    earlier = {"earlier_seconds": checkpoints.load_seconds(Path(found))} if found else {}
    trainer.begun -= earlier.get("earlier_seconds", 0.0)
    trainer.train(resume_from_checkpoint=found)
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
        **earlier,
    }


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
        self.budget = training_tokens(self.model, trainer_config.micro_batch_tokens)
        self.begun = time.monotonic()
        # Recomputed activations and caches exclude each other.
        self.shares_prefix = trainer_config.shared_prefix and not trainer_config.gradient_checkpointing

    def training_step(self, model: Any, inputs: dict[str, Any], *_: Any) -> torch.Tensor:
        """Gradients of one global batch; a micro-batch that does not fit in memory starts it over, halved."""
        model.train()
        groups = self._worded(inputs["rows"])
        while True:
            try:
                return self._accumulate(model, groups)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                model.zero_grad()
                if self.budget == 1:
                    longest = max(len(example.input_ids) for group in groups for example in group)
                    raise WorkError(f"{self.what}: one example of {longest} tokens does not fit.") from error
                self.budget //= 2
                _log.warning(
                    "%s: a step does not fit in memory; from now on in micro-batches of %d tokens. "
                    "The global batch stays the same (trainer.micro_batch_tokens).",
                    self.what,
                    self.budget,
                )
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
            total += self._backward(model, group, n_tokens)
        penalty = self.penalty(model)
        if penalty is not None:
            self.accelerator.backward(penalty)
            total += penalty.detach()
            self.log({"penalty": penalty.item()})
        if not torch.isfinite(total):
            step = self.state.global_step + 1
            raise WorkError(f"{self.what}: the loss at step {step} is {total.item()}. Nothing was stored.")
        return total

    def _backward(self, model: Any, examples: Sequence[Rendered], n_tokens: int) -> torch.Tensor:
        """Gradients and loss of examples under one prompt, whose beginning is read once for all of them."""
        prefix = shared_prefix(model, examples) if self.shares_prefix else None
        skip = prefix.length if prefix else 0
        lengths = [len(example.input_ids) - skip for example in examples]
        total = torch.zeros((), device=self.args.device)
        with gathered_gradients(prefix) as beginning:
            for batch in by_tokens(lengths, self.budget, pass_tokens(model.device)):
                logits, targets = target_logits(model, [examples[i] for i in batch], beginning)
                loss = target_nll(logits, targets).sum() / n_tokens
                self.accelerator.backward(loss)
                total += loss.detach()
        return total

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's schedules, and DeepSpeed's WarmupLR, as the official code ran."""
        if self.trainer_config.schedule == "warmup_log_constant" and self.lr_scheduler is None:
            warmup = max(2, int(self.args.warmup_steps))
            # The first step has rate 0: a training of one step must not consist of that.
            begin = 2 if num_training_steps == 1 else 1
            self.lr_scheduler = LambdaLR(
                optimizer or self.optimizer, lambda step: min(1.0, math.log(step + begin) / math.log(warmup))
            )
            self._created_lr_scheduler = True
            return self.lr_scheduler
        return super().create_scheduler(num_training_steps, optimizer)

    # The Trainer would pickle all of this but the weights.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(str(self.args.output_dir), f"{checkpoints.PREFIX}{self.state.global_step}")
        checkpoints.save_seconds(time.monotonic() - self.begun, folder)
        checkpoints.seal(folder)

    def _save(self, output_dir: str | None = None, *_: Any, **__: Any) -> None:
        checkpoints.save_weights(self._trainable(), Path(str(output_dir or self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *_: Any) -> None:
        checkpoints.load_weights(self._trainable(), Path(resume_from_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        checkpoints.save_optimizer(self.optimizer, self.lr_scheduler, Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_optimizer(self.optimizer, self.lr_scheduler, Path(checkpoint))

    def _save_rng_state(self, output_dir: str) -> None:
        checkpoints.save_random_state(Path(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_random_state(Path(checkpoint))

    def _trainable(self) -> dict[str, torch.nn.Parameter]:
        return {key: p for key, p in self.model.named_parameters() if p.requires_grad}
