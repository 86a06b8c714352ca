"""Training one task: batches by prompt and length, an exact token mean over every global batch, AdamW.

`train` reads like a recipe. Accelerate runs the backward pass, clips gradients and feeds trackers. With the
same seed the order of the rows and dropout are those of the Hugging Face Trainer. The published code's 8
devices average 8 token means a step (D19); here a step's loss is one token mean of the global batch.
"""

import logging
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import set_seed
from peft import PeftModel
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import TrainerConfig
from sapo.data.batches import by_tokens
from sapo.data.files import write_json
from sapo.data.records import PROGRESS
from sapo.data.render import Rendered
from sapo.experiments.model import checkpoints, forward, ranks
from sapo.experiments.model.budgets import is_out_of_memory, training_tokens
from sapo.experiments.model.rows import Row

_log = logging.getLogger(__name__)

SECONDS = 1.0  # between two of the lines that say how far a training is
CODE_BATCH = 8  # rows that the official code's 8 devices take at once, one each

Penalty = Callable[[PeftModel], Tensor | None]


def train(
    model: PeftModel,
    rows: Sequence[Row],
    config: TrainerConfig,
    *,
    seed: int,
    redraw: int = 1,
    scratch: Path,
    what: str,
    penalty: Penalty | None = None,
) -> dict[str, Any]:
    """Trains the model's free parameters in place; the loss of every step, and what the training took.

    Of several prompts of a row one is drawn anew for `redraw` examples. A checkpoint in `scratch` is gone on
    from; `what` names the training in messages; `penalty` is added to the loss of every step.

    Returns `losses`, `penalties` and `gradient_norms` (before clipping) by step, `steps`, `tokens`,
    `trainable_parameters`, and after a checkpoint the `earlier_seconds` that it took to get there. Raises
    WorkError if a loss or a weight is not finite, or a single example does not fit in memory.
    """
    begun = time.monotonic()
    set_seed(seed + ranks.rank())  # dropout is drawn by each rank for itself
    accelerator = _accelerator(model, config, scratch, what)
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = AdamW(weights.values(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    steps = optimizer_steps(len(rows), config)
    schedule = rate_schedule(optimizer, config, steps)
    history, earlier = checkpoints.resume(scratch, weights, optimizer, schedule)
    backward = Backward(model, accelerator, config, penalty, what)
    model.train()
    with _telling(scratch, len(history), steps) as tell:
        for step in range(len(history), steps):
            facts = backward(global_batch(rows, config, seed, redraw, step))
            if not math.isfinite(loss := facts["loss"]):
                raise WorkError(f"{what}: the loss at step {step + 1} is {loss}. Nothing was stored.")
            norm = accelerator.clip_grad_norm_(weights.values(), config.max_grad_norm)
            facts |= {"gradient_norm": float(norm), "learning_rate": float(schedule.get_last_lr()[0])}
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            history.append(facts)
            accelerator.log(facts, step=step + 1)
            tell(step + 1, loss)
            if config.checkpoint_steps and ((step + 1) % config.checkpoint_steps == 0 or step + 1 == steps):
                seconds = earlier + time.monotonic() - begun
                checkpoints.save(scratch, weights, optimizer, schedule, history, seconds)
    for tracker in accelerator.trackers:  # as `end_training` does, which also parts the ranks
        tracker.finish()
    _require_sound(weights.values(), what)
    lengths = (sum(len(one.input_ids) for one in row.rendered) / len(row.rendered) for row in rows)
    passes = len(history) / math.ceil(len(rows) / config.global_batch)
    return {
        "losses": [facts["loss"] for facts in history],
        "penalties": [facts["penalty"] for facts in history if "penalty" in facts],
        "gradient_norms": [facts["gradient_norm"] for facts in history],
        "steps": len(history),
        "tokens": round(passes * sum(lengths)),
        "trainable_parameters": sum(p.numel() for p in weights.values()),
        **({"earlier_seconds": earlier} if earlier else {}),
    }


def _require_sound(weights: Iterable[Tensor], what: str) -> None:
    """WorkError unless the trained weights are finite, and the same on all devices."""
    sums = torch.stack([weight.detach().float().sum() for weight in weights]).tolist()
    if not all(map(math.isfinite, sums)):
        raise WorkError(f"{what}: the weights are not finite after the last step. Nothing was stored.")
    if any(other != sums for other in ranks.gathered(sums)):
        raise WorkError(f"{what}: the devices have come to different weights. Nothing was stored.")


@contextmanager
def _telling(scratch: Path, first: int, steps: int) -> Iterator[Callable[[int, float], None]]:
    """Leaves beside the checkpoints how far the training is, while it goes on; nothing depends on it."""
    begun, seen = time.monotonic(), 0.0

    def tell(step: int, loss: float) -> None:
        nonlocal seen
        if ranks.rank() or time.monotonic() - seen < SECONDS:
            return
        seen = time.monotonic()
        left = (seen - begun) / (step - first) * (steps - step)
        with suppress(OSError):
            scratch.mkdir(parents=True, exist_ok=True)
            write_json(scratch / PROGRESS, {"step": step, "steps": steps, "loss": loss, "left": left})

    try:
        yield tell
    finally:
        if ranks.rank() == 0:
            with suppress(OSError):
                (scratch / PROGRESS).unlink()
                scratch.rmdir()  # unless it has a checkpoint


def optimizer_steps(n_rows: int, config: TrainerConfig) -> int:
    """How many optimizer steps a training on so many rows has; each pass ends with what is left of it.

    With `trainer.step_count=floor` the last pass ends early: a pass counts as the whole accumulations in its
    batches of 8 rows, as in the official code (transformers 4.51: 1,000 rows in steps of 64 are 15 a pass).
    """
    if config.step_count == "floor":
        batches = math.ceil(n_rows / CODE_BATCH)
        return max(1, batches // max(1, config.global_batch // CODE_BATCH)) * config.epochs
    return math.ceil(n_rows / config.global_batch) * config.epochs


def rate_schedule(optimizer: Optimizer, config: TrainerConfig, steps: int) -> LRScheduler:
    """Transformers' schedules, and `warmup_log_constant`: DeepSpeed's WarmupLR, as the official code ran it.

    Its rate at step k, from 0, is log(max(k, 1)) / log(warm-up steps) of the peak, 1 from there on
    (deepspeed 0.16.5, lr_schedules.py, `WarmupLR`).
    """
    # The first step of a warm-up has rate 0, with DeepSpeed the first two: no training may consist of these.
    warmup = min(math.ceil(config.warmup_ratio * steps), steps - 1)
    if config.schedule != "warmup_log_constant":
        name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
        return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    scale = math.log(max(2, warmup))
    return LambdaLR(optimizer, lambda k: 1.0 if steps <= 2 else min(1.0, math.log(max(k, 1)) / scale))


def _accelerator(model: PeftModel, config: TrainerConfig, scratch: Path, what: str) -> Accelerator:
    """Accelerate for this training, with the trackers that `trainer.report_to` names."""
    require_trackers(config)
    AcceleratorState._reset_state(reset_partial_state=True)  # the last training may have had another device
    logs = scratch.parent.parent / "trackers" / scratch.name[:12]
    on_cpu = model.device.type == "cpu"
    accelerator = Accelerator(cpu=on_cpu, log_with=list(config.report_to) or None, project_dir=logs)
    values = {k: v for k, v in vars(config).items() if isinstance(v, bool | str | float | int)}
    accelerator.init_trackers("sapo", {**values, "what": what})
    return accelerator


def require_trackers(config: TrainerConfig) -> None:
    """UserError if a tracker of `trainer.report_to` is not installed, which Accelerate would leave out."""
    there = list(map(str, get_available_trackers())) if config.report_to else []
    if missing := [name for name in config.report_to if name not in there]:
        raise UserError(
            f"trainer.report_to={','.join(missing)}: not installed, or not a tracker of Accelerate. "
            f"Here there are: {', '.join(there) or 'none'}."
        )


def global_batch(
    rows: Sequence[Row], config: TrainerConfig, seed: int, redraw: int, step: int
) -> list[list[Rendered]]:
    """The examples of a step, by prompt: those under one prompt share their beginning.

    Seed, epoch and block of `redraw` examples decide on a prompt of several (PAFT, EMNLP 2025): a resumed
    training goes on with the same.
    """
    epoch, batch = divmod(step, math.ceil(len(rows) / config.global_batch))
    if batch == 0:  # as a data loader does when a pass begins: dropout goes on as after it
        torch.empty((), dtype=torch.int64).random_()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    begin = batch * config.global_batch
    groups: dict[tuple[int, int], list[Rendered]] = defaultdict(list)
    for place, index in enumerate(order[begin : begin + config.global_batch], start=begin):
        row, prompt = rows[index], 0
        if len(row.rendered) > 1:
            draw = random.Random(f"prompt {seed} {epoch} {place // redraw}")  # noqa: S311
            prompt = draw.randrange(len(row.rendered))
        groups[row.group, prompt].append(row.rendered[prompt])
    return list(groups.values())


def _share(groups: Sequence[Sequence[Rendered]]) -> list[list[Rendered]]:
    """This rank's rows of a global batch, by prompt: dealt by length, so that all have as much to do."""
    by_length = (sorted(group, key=lambda row: len(row.input_ids)) for group in groups)
    own = ranks.share([(number, row) for number, group in enumerate(by_length) for row in group])
    return [[row for _, row in group] for _, group in groupby(own, itemgetter(0))]


class Backward:
    """Leaves the gradients of a global batch, computed in micro-batches that fit in memory.

    The loss is the sum of the NLL of all its target tokens over their number, whatever the split (paper,
    Section 4; official code with transformers 4.51), and the penalty once. Of several ranks each computes a
    share of the rows; the sums over all of them are what each is left with.
    """

    def __init__(
        self, model: Any, accelerator: Accelerator, config: TrainerConfig, penalty: Penalty | None, what: str
    ) -> None:
        self.model, self.accelerator, self.penalty, self.what = model, accelerator, penalty, what
        self.tokens = training_tokens(model, config.micro_batch_tokens)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        # Recomputed activations and caches exclude each other.
        self.shares_prefix = config.shared_prefix and not config.gradient_checkpointing

    def __call__(self, groups: Sequence[Sequence[Rendered]]) -> dict[str, float]:
        """`loss`, with the penalty, and `penalty` if there is one; what does not fit restarts in halves."""
        n_tokens = sum(len(example.target_ids) for group in groups for example in group)
        groups = _share(groups)
        while True:
            try:
                own = self._accumulate(groups, n_tokens)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self.model.zero_grad()
                if self.tokens == 1:
                    longest = max(len(example.input_ids) for group in groups for example in group)
                    raise WorkError(f"{self.what}: one example of {longest} tokens does not fit.") from error
                self.tokens //= 2
                _log.warning(
                    "%s: a step does not fit in memory; from now on in micro-batches of %d tokens. "
                    "The global batch stays the same (trainer.micro_batch_tokens).",
                    self.what,
                    self.tokens,
                )
                torch.cuda.empty_cache()
        # Ranks meet here, after whatever each had to repeat.
        parts = ranks.gathered(own)
        if len(parts) > 1:
            free = [p for p in self.model.parameters() if p.requires_grad]
            for p in free:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            ranks.add_up([p.grad for p in free])
        return {name: sum(part.get(name, 0.0) for part in parts) for name in parts[0]}

    def _accumulate(self, groups: Sequence[Sequence[Rendered]], n_tokens: int) -> dict[str, float]:
        total = torch.zeros((), device=self.model.device)
        for group in groups:  # examples under one prompt, whose beginning is read once for all of them
            part = torch.zeros_like(total)
            prefix = forward.shared_prefix(self.model, group, self.shares_prefix)
            lengths = [len(example.input_ids) - prefix.length for example in group]
            with forward.gathered_gradients(prefix) as beginning:
                for batch in by_tokens(lengths, self.tokens, forward.pass_tokens(self.model)):
                    found = forward.target_logits(self.model, [group[i] for i in batch], beginning)
                    loss = forward.target_nll(*found).sum() / n_tokens
                    self.accelerator.backward(loss)
                    part += loss.detach()
            total += part
        penalty = self.penalty(self.model) if self.penalty and ranks.rank() == 0 else None
        if penalty is None:
            return {"loss": total.item()}
        self.accelerator.backward(penalty)
        return {"loss": (total + penalty.detach()).item(), "penalty": penalty.item()}
