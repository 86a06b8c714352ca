"""This machine: ours against plain Transformers, PEFT and Trainer.

The two ways work in turn on one loaded model, as docs/performance.md describes. `make bench` runs `all`.
"""

import argparse
import ctypes
import gc
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from peft import get_peft_model
from torch.nn import functional
from transformers import PrinterCallback, Trainer, TrainingArguments

from sapo.conf.errors import UserError
from sapo.conf.load import load
from sapo.data.benchmarks import load_task
from sapo.data.pools import load_pool
from sapo.data.prompts import Prompt
from sapo.data.render import Rendered
from sapo.experiments.model.adapters import CURRENT, adapter_tensors, lora_config, plain
from sapo.experiments.model.evaluation import evaluate
from sapo.experiments.model.forward import IGNORED, pad_left, padded
from sapo.experiments.model.identity import device_of, dtype_of
from sapo.experiments.model.load import load_model
from sapo.experiments.model.rows import Row
from sapo.experiments.model.scoring import pool_losses
from sapo.experiments.model.training import train

TASKS = ("NI195", "NI360", "NI363", "NI589", "NI1310", "NI488")
MINI_TASKS = ("mini_sentiment", "mini_price", "mini_topic", "mini_city", "mini_sort", "mini_odd")
SIZES = [  # what two CPU cores do with a small model in some minutes; each can be overridden
    "scorer.examples=32", "data.train_examples=32", "data.test_examples=24", "data.max_input_tokens=1536",
    "trainer.epochs=1", "trainer.global_batch=32", "trainer.warmup_ratio=0", "trainer.checkpoint_steps=0",
    "evaluator.max_new_tokens=16",
]  # fmt: skip
BATCH = 8  # of the plain way
KINDS = ("scoring", "training", "evaluation")
Facts = dict[str, Any]
Meter = Callable[[], AbstractContextManager[None]]  # around what is measured of a way


def bench_configs(overrides: Sequence[str]) -> list[Any]:
    """A config for each task that is measured: `task=A,B`, else SuperNI tasks, or mini tasks without data."""
    given = {override.split("=", 1)[0] for override in overrides}
    sizes = [size for size in SIZES if size.split("=", 1)[0] not in given]
    configs = load([*sizes, *overrides])
    if "task" not in given:
        root = configs[0].data.root
        has_data = root and (Path(root) / "SUPERNI" / "instructions.json").is_file()
        configs = load([*sizes, *overrides, f"task={','.join(TASKS if has_data else MINI_TASKS)}"])
    if any(config.task is None for config in configs):
        raise UserError("task: say which task is measured, as in task=NI195.")
    if any(config.trainer.schedule == "warmup_log_constant" for config in configs):
        raise UserError("trainer.schedule=warmup_log_constant: plain Transformers have no such schedule.")
    return configs


# --- the meter ---------------------------------------------------------------------------------------------


@dataclass
class Usage:
    """Seconds, tokens through the embedding, and memory to the peak, if known."""

    seconds: float = 0.0
    tokens: int = 0
    memory: int | None = None


@contextmanager
def measured(base: Any, usage: Usage) -> Iterator[None]:
    """Notes what is done inside."""

    def count(_: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        usage.tokens += arguments[0].numel()

    gc.collect()
    with suppress(OSError, AttributeError):  # freed memory that glibc keeps would hide what comes next
        ctypes.CDLL(None).malloc_trim(0)
    hook = base.get_input_embeddings().register_forward_pre_hook(count)
    before, begun = memory(base.device, reset=True), time.perf_counter()
    yield
    if base.device.type == "cuda":
        torch.cuda.synchronize()
    usage.seconds = time.perf_counter() - begun
    hook.remove()
    usage.memory = memory(base.device) - before if before else None


def memory(device: torch.device, reset: bool = False) -> int:
    """Peak bytes since the last reset: of PyTorch on a GPU, else of the process; 0 where nothing tells."""
    if device.type == "cuda":
        if reset:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident set (man proc)
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    return 0


# --- the plain way: what one writes with Transformers and PEFT alone ---------------------------------------


def batches(rendered: Sequence[Rendered]) -> Iterator[Sequence[Rendered]]:
    """Batches of 8 in the given order; the last may be smaller."""
    for begin in range(0, len(rendered), BATCH):
        yield rendered[begin : begin + BATCH]


def collated(batch: Sequence[Rendered]) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` and `labels` (B, L), padded on the right."""
    ids = padded([example.input_ids for example in batch], side="right")
    mask = padded([[1] * len(example.input_ids) for example in batch], side="right")
    labels = [[IGNORED] * example.target_start + example.target_ids for example in batch]
    return {"input_ids": ids, "attention_mask": mask, "labels": padded(labels, IGNORED, "right")}


def padded_tokens(rendered: Sequence[Rendered]) -> int:
    """Tokens that a pass in padded batches of 8 computes."""
    return sum(len(batch) * max(len(example.input_ids) for example in batch) for batch in batches(rendered))


@torch.inference_mode()
def plain_nll(model: Any, rendered: Sequence[Rendered]) -> list[float]:
    """Summed target NLL of each example, with all logits."""
    sums: list[float] = []
    for batch in batches(rendered):
        inputs = {name: value.to(model.device) for name, value in collated(batch).items()}
        labels = inputs.pop("labels")
        logits = model(**inputs).logits[:, :-1].float()  # (B, L - 1, V)
        nll = functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
        )
        sums += nll.view(len(batch), -1).sum(-1).tolist()
    return sums


def plain_train(
    model: Any, rendered: Sequence[Rendered], config: Any, seed: int, scratch: str
) -> list[float]:
    """Trains by `Trainer.train` in padded batches of up to 8, accumulated; the loss of every step."""
    # The largest batch of up to 8 that the global batch is a multiple of.
    batch = next(n for n in range(min(BATCH, config.global_batch), 0, -1) if config.global_batch % n == 0)
    steps = math.ceil(len(rendered) / config.global_batch) * config.epochs
    arguments = TrainingArguments(
        output_dir=scratch, num_train_epochs=config.epochs, seed=seed, use_cpu=model.device.type == "cpu",
        per_device_train_batch_size=batch, gradient_accumulation_steps=config.global_batch // batch,
        learning_rate=config.learning_rate, weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm, lr_scheduler_type=config.schedule,
        warmup_steps=math.ceil(config.warmup_ratio * steps), logging_strategy="steps", logging_steps=1,
        save_strategy="no", report_to="none", disable_tqdm=True, remove_unused_columns=False,
        dataloader_pin_memory=False,
    )  # fmt: skip
    arguments._n_gpu = min(1, arguments.n_gpu)
    trainer = Trainer(model=model, args=arguments, train_dataset=rendered, data_collator=collated)  # type: ignore[arg-type]
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@torch.inference_mode()
def plain_answers(
    model: Any, rendered: Sequence[Rendered], longest: int, stops: Sequence[int]
) -> list[list[int]]:
    """Greedy answers by `generate`, padded on the left, up to the stop token."""
    answers = []
    for batch in batches(rendered):
        ids, mask, _ = pad_left([example.prompt_ids for example in batch], 0, model.device)
        found = model.generate(
            ids, attention_mask=mask, do_sample=False,
            max_new_tokens=longest, eos_token_id=list(stops), pad_token_id=stops[0],
        )  # fmt: skip
        for tokens in found[:, ids.shape[1] :].tolist():
            end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
            answers.append(tokens[:end])
    return answers


# --- ours against it ---------------------------------------------------------------------------------------


class Bench:
    """One task on a loaded model, with its original instruction."""

    def __init__(self, config: Any, rounds: int) -> None:
        self.config, self.rounds = config, rounds
        self.language_model = load_model(config)
        self.base = self.language_model.base
        self.renderer = self.language_model.renderer(config.data)
        self.task = load_task(config.task, replace(config, data=replace(config.data, train_examples=None)))
        self.prompt = Prompt(self.task.instruction)

    def rendered(self, count: int | None) -> list[Rendered]:
        """The first training examples."""
        return self.renderer.render(self.task, self.prompt.text, self.task.train[:count])

    def losses(self, prompts: Sequence[Prompt], rendered: Sequence[list[Rendered]], scorer: str) -> Any:
        """The table of a Score stage, scored in full or by a race."""
        config = replace(self.config, scorer=replace(self.config.scorer, name=scorer))
        return pool_losses(self.base, self.task, prompts, rendered, config)

    def scoring(self) -> Facts:
        """NLL of `scorer.examples` examples under the original instruction."""
        rendered = self.rendered(self.config.scorer.examples)

        def plainly(rows: list[Rendered], meter: Meter) -> list[float]:
            with meter():
                return plain_nll(self.base, rows)

        def ours(rows: list[Rendered], meter: Meter) -> list[float]:
            with meter():
                return self.losses([self.prompt], [rows], "full")["nll"].tolist()

        ways = (plainly, ours)
        row, (expected, found) = self._compare("scoring", rendered, ways)
        worst = max(abs(a - b) / max(abs(a), 1e-9) for a, b in zip(expected, found, strict=True))
        return {**row, "difference": {"nll": worst}}

    def training(self) -> Facts:
        """Training on `data.train_examples` examples; without dropout, so that results compare."""
        config, seed = self.config.trainer, self.config.seed

        def ours(model: Any, rows: list[Rendered], scratch: str) -> list[float]:
            own = [Row((row,), 0) for row in rows]
            return train(model, own, config, seed=seed, scratch=Path(scratch), what="bench")["losses"]

        ways = (
            lambda rows, meter: self._trained(meter, lambda m, s: plain_train(m, rows, config, seed, s)),
            lambda rows, meter: self._trained(meter, lambda m, s: ours(m, rows, s)),
        )
        row, results = self._compare("training", self.rendered(self.config.data.train_examples), ways)
        (losses, before, after), (other_losses, _, other) = results
        moved = (after - before).norm()
        loss = max(abs(a - b) / abs(a) for a, b in zip(losses, other_losses, strict=True))
        update = float((after - other).norm() / moved) if moved else 0.0
        return {**row, "difference": {"loss": loss, "update": update}}

    def evaluation(self) -> Facts:
        """Greedy answers to `data.test_examples` examples; ours measures the NLL of the targets as well."""
        longest, stops = self.config.evaluator.max_new_tokens, self.language_model.stop_ids()
        decode = self.language_model.tokenizer.decode

        def plainly(rows: list[Rendered], meter: Meter) -> list[str]:
            with meter():
                answers = plain_answers(self.base, rows, longest, stops)
                return [str(decode(ids, skip_special_tokens=True)).strip() for ids in answers]

        def ours(rows: list[Rendered], meter: Meter) -> list[str]:
            examples = self.task.test[: len(rows)]
            with meter():
                table = evaluate(self.language_model, self.base, examples, rows, self.config)
            return table["prediction"].tolist()

        rendered = self.renderer.render(self.task, self.prompt.text, self.task.test, for_test=True)
        row, (expected, found) = self._compare("evaluation", rendered, (plainly, ours))
        return {**row, "difference": {"answers": sum(a != b for a, b in zip(expected, found, strict=True))}}

    def race(self, n_examples: int) -> Facts:
        """A race over the whole pool, really run once, and the tokens that the plain way computes for it."""
        examples = self.task.train[:n_examples]
        prompts = load_pool(self.task, self.config.paraphrases).candidates(include_original=True)
        rendered = [self.renderer.render(self.task, prompt.text, examples) for prompt in prompts]
        with measured(self.base, usage := Usage()):
            table = self.losses(prompts, rendered, "race")
        by_index = {prompt.index: rows for prompt, rows in zip(prompts, rendered, strict=True)}
        pairs = zip(table["prompt"], table["example"], strict=True)
        read = sum(len(by_index[prompt][example].input_ids) for prompt, example in pairs)
        full = sum(len(row.input_ids) for rows in rendered for row in rows)
        plain_tokens = sum(map(padded_tokens, rendered))
        sizes = {"prompts": len(prompts), "examples": len(examples)}
        return {**vars(usage), **sizes, "read": read / full, "plain_tokens": plain_tokens}

    def _trained(self, meter: Meter, work: Callable[[Any, str], list[float]]) -> tuple[list[float], Any, Any]:
        """Losses of all steps, and the adapter's weights before and after them; only steps are measured."""
        adapter = lora_config(replace(self.config, method=replace(self.config.method, dropout=0.0)))

        def flat(model: Any) -> torch.Tensor:
            tensors = adapter_tensors(model, CURRENT)
            return torch.cat([tensors[key].detach().float().cpu().flatten() for key in sorted(tensors)])

        with plain(self.base) as base, tempfile.TemporaryDirectory() as scratch:
            torch.manual_seed(self.config.seed)
            model: Any = get_peft_model(base, adapter, adapter_name=CURRENT)
            before = flat(model)
            with meter():
                losses = work(model, scratch)
            result = losses, before, flat(model)
        self.base.eval()
        return result

    def _compare(self, kind: str, rendered: list[Rendered], ways: Sequence[Any]) -> tuple[Facts, list[Any]]:
        """What both took in turn, which begins alternates: median seconds, highest memory; last results."""
        # Whatever is done only once is not measured: on a GPU kernels of every size, and taking its memory.
        is_gpu = self.base.device.type == "cuda"
        for way in ways:
            way(rendered if is_gpu else rendered[:2], nullcontext)
        usages: tuple[list[Usage], list[Usage]] = [], []
        results: list[Any] = [None, None]
        for number in range(self.rounds):
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                usages[which].append(usage := Usage())
                results[which] = ways[which](rendered, partial(measured, self.base, usage))
        row: Facts = {"kind": kind, "task": self.task.short_name, "examples": len(rendered)}
        for name, own in zip(("plain", "ours"), usages, strict=True):
            seconds, tokens = median(usage.seconds for usage in own), own[0].tokens
            peak = max((usage.memory for usage in own if usage.memory is not None), default=None)
            row[name] = {"seconds": seconds, "tokens": tokens, "rate": tokens / seconds, "memory": peak}
        row["ratio"] = row["plain"]["seconds"] / row["ours"]["seconds"]
        return row, results


# --- the table ---------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> list[Facts]:
    """Measures, prints a table, and returns its rows."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("kind", choices=(*KINDS, "all"))
    parser.add_argument("overrides", nargs="*", help="as of other commands")
    parser.add_argument("--rounds", type=int, default=3, help="times that each side is measured, in turn")
    parser.add_argument("--race-examples", type=int, default=100, help="scoring: of a race; 0: none")
    given = parser.parse_intermixed_args(arguments)
    rows = []
    for config in bench_configs(given.overrides):
        bench = Bench(config, given.rounds)
        for kind in KINDS if given.kind == "all" else (given.kind,):
            row = getattr(bench, kind)()
            if kind == "scoring" and given.race_examples:
                raced = bench.race(given.race_examples)
                raced["plain_seconds"] = raced["plain_tokens"] / row["plain"]["rate"]
                row["race"] = {**raced, "ratio": raced["plain_seconds"] / raced["seconds"]}
            rows.append(row)
    where = f"{config.model.name} on {device_of(config)}, {dtype_of(config)}; rounds: {given.rounds}"
    sys.stdout.write("\n".join([where, *tables(rows)]) + "\n")
    return rows


def tables(rows: Sequence[Facts]) -> Iterator[str]:
    """A table of each kind; a race stands against the plain way's tokens at its measured rate."""
    for one in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == one]
        cells = [
            {
                "task": row["task"] if way == "plain" else "",
                "rows": row["examples"] if way == "plain" else "",
                "way": way,
                "tokens": f"{usage['tokens']:,}",
                "tokens/s": f"{usage['tokens'] / usage['seconds']:,.0f}",
                "s": f"{usage['seconds']:.2f}",
                **usage.get("shown", {}),
                "ratio": "" if way == "plain" else f"{usage.get('ratio', row['ratio']):.2f}",
                "MiB": "-" if usage["memory"] is None else f"{usage['memory'] / 2**20:,.0f}",
                "differs": {k: f"{v:.1g}" for k, v in row["difference"].items()} if way == "ours" else "",
            }
            for row in own
            for way in ("plain", "ours", "race")
            if (usage := row.get(way))
        ]
        yield f"{one}\n{pd.DataFrame(cells).to_string(index=False)}"
        yield f"median ratio: {median(row['ratio'] for row in own):.2f}\n"


if __name__ == "__main__":
    main()
