"""Ours against the plain way, side by side on this machine, and the cost of choosing a prompt."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import get_peft_model

from sapo.conf.schema import Config
from sapo.data.benchmarks import load_task
from sapo.data.pools import load_pool
from sapo.data.prompts import Prompt
from sapo.data.render import Rendered
from sapo.data.tasks import Task
from sapo.experiments.bench.metering import Side, Usage, measured, memory_measure, side_by_side
from sapo.experiments.bench.plain import padded_tokens, plain_answers, plain_nll, plain_train
from sapo.experiments.model.adapters import CURRENT, adapter_tensors, lora_config, plain
from sapo.experiments.model.evaluation import evaluate
from sapo.experiments.model.identity import device_of, dtype_of
from sapo.experiments.model.load import LanguageModel, load_model
from sapo.experiments.model.racing import pool_losses
from sapo.experiments.model.rows import Draws, TrainingTask, training_rows
from sapo.experiments.model.training import train

# The paper's setting (Section 5.1, Appendix C).
PAPER_TRAIN, PAPER_EPOCHS, PAPER_SCORED = 1000, 10, 250
# Floating-point operations a parameter and token: forward; with the backward pass of frozen weights.
FORWARD, TRAINING = 2, 4
# Dense bfloat16 peaks in TFLOP/s, from the vendor's data sheets.
PEAKS = {"H100": 989.4, "H200": 989.4, "A100": 312.0}

Row = dict[str, Any]


def facts(config: Config) -> Row:
    """What all measurements of a bench have in common."""
    device = device_of(config)
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    )
    return {
        "model": config.model.name,
        "device": f"{device.type} ({name})",
        "dtype": dtype_of(config),
        "memory": memory_measure(device),
    }


class Bench:
    """One task on a loaded model, with its original instruction."""

    def __init__(self, config: Config, rounds: int) -> None:
        self.config = config
        self.rounds = rounds
        self.language_model: LanguageModel = load_model(config)
        self.base = self.language_model.base
        self.renderer = self.language_model.renderer(config.data.max_input_tokens)
        data = replace(config.data, train_examples=None)
        self.task: Task = load_task(str(config.task), replace(config, data=data))
        self.prompt = Prompt(self.task.instruction)

    def scoring(self) -> Row:
        """NLL of `scorer.examples` examples under the original instruction."""
        full = self._with_scorer("full")

        def ours(rows: list[Rendered]) -> list[float]:
            return pool_losses(self.base, self.task, [self.prompt], [rows], full)["nll"].tolist()

        rendered = self._rendered(self.config.scorer.examples)
        sides = self._compare(rendered, lambda rows: plain_nll(self.base, rows), ours)
        expected, found = (side.result for side in sides)
        worst = max(abs(a - b) / max(abs(a), 1e-9) for a, b in zip(expected, found, strict=True))
        return self._row("scoring", rendered, sides, FORWARD, {"nll": worst})

    def training(self) -> Row:
        """Training on `data.train_examples` examples; without dropout, so that results compare."""
        rendered = self._rendered(self.config.data.train_examples)
        sides = self._compare(rendered, self._plain_training, self._our_training)
        (losses, weights, moved), (other_losses, other_weights, _) = (side.result for side in sides)
        difference = {
            "loss": max(abs(a - b) / abs(a) for a, b in zip(losses, other_losses, strict=True)),
            "update": _norm(weights, other_weights) / moved if moved else 0.0,
        }
        return self._row("training", rendered, sides, TRAINING, difference)

    def evaluation(self) -> Row:
        """Greedy answers to `data.test_examples` examples; ours measures the NLL of the targets as well."""
        longest, stops = self.config.evaluator.max_new_tokens, self.language_model.stop_ids()
        tokenizer = self.language_model.tokenizer

        def plain_way(rows: list[Rendered]) -> list[str]:
            answers = plain_answers(self.base, rows, longest, stops)
            return [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in answers]

        def ours(rows: list[Rendered]) -> list[str]:
            examples = self.task.test[: len(rows)]
            table = evaluate(self.language_model, self.base, examples, rows, self.config)
            return table["prediction"].tolist()

        rendered = self.renderer.render(self.task, self.prompt.text, self.task.test)
        sides = self._compare(rendered, plain_way, ours)
        expected, found = (side.result for side in sides)
        different = sum(a != b for a, b in zip(expected, found, strict=True))
        return self._row("evaluation", rendered, sides, FORWARD, {"predictions": different})

    def race(self, n_examples: int) -> Row:
        """A race over the whole pool, really run once, and the tokens that the plain way computes for it."""
        examples = self.task.train[:n_examples]
        prompts = load_pool(self.task, self.config.paraphrases).candidates(include_original=True)
        rendered = [self.renderer.render(self.task, prompt.text, examples) for prompt in prompts]
        with measured(self.base) as usage:
            table = pool_losses(self.base, self.task, prompts, rendered, self._with_scorer("race"))
        by_index = {prompt.index: rows for prompt, rows in zip(prompts, rendered, strict=True)}
        read = zip(table["prompt"], table["example"], strict=True)
        n_full = sum(len(row.input_ids) for rows in rendered for row in rows)
        return {
            "prompts": len(prompts),
            "examples": len(examples),
            "seconds": usage.seconds,
            "tokens": usage.tokens,
            "memory": usage.memory,
            "read": sum(len(by_index[prompt][example].input_ids) for prompt, example in read) / n_full,
            "plain_tokens": sum(map(padded_tokens, rendered)),
        }

    def candidate(self, n_examples: int) -> Usage:
        """Scoring one prompt on that many examples in our way, once."""
        rendered = self._rendered(n_examples)
        with measured(self.base) as usage:
            pool_losses(self.base, self.task, [self.prompt], [rendered], self._with_scorer("full"))
        return usage

    def paper_tokens(self) -> tuple[int, int]:
        """Tokens that the plain way computes at the paper's setting: a candidate scored; a training."""
        one = padded_tokens(self._rendered(PAPER_SCORED))
        return one, PAPER_EPOCHS * padded_tokens(self._rendered(PAPER_TRAIN))

    def _with_scorer(self, name: str) -> Config:
        return replace(self.config, scorer=replace(self.config.scorer, name=name))

    def _rendered(self, count: int | None) -> list[Rendered]:
        return self.renderer.render(self.task, self.prompt.text, self.task.train[:count])

    def _compare(
        self,
        rendered: list[Rendered],
        plain_way: Callable[[list[Rendered]], Any],
        ours: Callable[[list[Rendered]], Any],
    ) -> tuple[Side[Any], Side[Any]]:
        for way in (plain_way, ours):
            way(rendered[:2])  # whatever is done only once is not measured
        return side_by_side(self.base, lambda: plain_way(rendered), lambda: ours(rendered), self.rounds)

    def _plain_training(self, rows: list[Rendered]) -> tuple[list[float], torch.Tensor, float]:
        def work(model: Any, scratch: Path) -> list[float]:
            return plain_train(model, rows, self.config.trainer, self.config.seed, scratch)

        return self._trained(work)

    def _our_training(self, rows: list[Rendered]) -> tuple[list[float], torch.Tensor, float]:
        draws = Draws(self.config.seed, 1)
        task = replace(self.task, train=self.task.train[: len(rows)])
        lesson = training_rows(self.renderer, [TrainingTask(task, (self.prompt,))])

        def work(model: Any, scratch: Path) -> list[float]:
            trainer = self.config.trainer
            what = f"Training of {self.task.name}"
            return train(model, lesson, trainer, draws=draws, scratch=scratch, what=what)["losses"]

        return self._trained(work)

    def _trained(self, work: Callable[[Any, Path], list[float]]) -> tuple[list[float], torch.Tensor, float]:
        """Losses of all steps, the adapter's weights after them (flat), and how far these have moved."""
        method = replace(self.config.method, dropout=0.0)
        adapter = lora_config(method, list(self.config.model.lora_targets))
        with plain(self.base) as base, tempfile.TemporaryDirectory() as scratch:
            torch.manual_seed(self.config.seed)
            model: Any = get_peft_model(base, adapter, adapter_name=CURRENT)
            before = _flat(model)
            losses = work(model, Path(scratch))
            after = _flat(model)
        self.base.eval()
        return losses, after, _norm(before, after)

    def _row(
        self, kind: str, rendered: list[Rendered], sides: Sequence[Side[Any]], flops: int, difference: Row
    ) -> Row:
        described = [self._side(side.usage, flops) for side in sides]
        return {
            "kind": kind,
            "task": self.task.short_name,
            "examples": len(rendered),
            "plain": described[0],
            "ours": described[1],
            "ratio": described[0]["seconds"] / described[1]["seconds"],
            "difference": difference,
        }

    def _side(self, usage: Usage, flops: int) -> Row:
        rate = usage.tokens / usage.seconds
        row = {**asdict(usage), "tokens_per_second": rate}
        if self.base.device.type != "cuda":
            return row
        tflops = flops * self.base.num_parameters(exclude_embeddings=True) * rate / 1e12
        name = torch.cuda.get_device_name(self.base.device)
        peak = next((peak for chip, peak in PEAKS.items() if chip in name), None)
        return {**row, "tflops": tflops, "utilisation": peak and tflops / peak}


def measure(
    configs: Sequence[Config], kinds: Sequence[str], rounds: int, race_examples: int
) -> Iterator[Row]:
    """A row for every task and kind, as it is measured.

    A scoring row has `race` beside it if `race_examples` is above 0: the race is run once, the seconds of the
    plain way over the whole pool are projected from its tokens and the rate that was measured on this task.
    """
    for config in configs:
        bench = Bench(config, rounds)
        for kind in kinds:
            row: Row = getattr(bench, kind)()
            if kind == "scoring" and race_examples:
                race = bench.race(race_examples)
                seconds = race["plain_tokens"] / row["plain"]["tokens_per_second"]
                row["race"] = {**race, "plain_seconds": seconds, "ratio": seconds / race["seconds"]}
            yield row


def medians(rows: Sequence[Row]) -> list[Row]:
    """A row a kind: the median over tasks of the ratios, and of ours over plain in memory where measured."""
    found = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == kind]
        memory = [
            row["ours"]["memory"] / row["plain"]["memory"]
            for row in mine
            if row["plain"]["memory"] and row["ours"]["memory"] is not None
        ]
        races = [row["race"]["ratio"] for row in mine if "race" in row]
        found.append(
            {
                "kind": kind,
                "tasks": len(mine),
                "ratio": median(row["ratio"] for row in mine),
                "memory_ratio": median(memory) if memory else None,
                "race_ratio": median(races) if races else None,
            }
        )
    return found


def overhead(configs: Sequence[Config], rounds: int) -> Iterator[Row]:
    """The cost of choosing a prompt, as a share of training at the paper's setting, for each task.

    Rates of the plain way and of our training are measured on the bench's sizes and multiplied by the tokens
    of 1,000 examples x 10 epochs. Selection is really run: one candidate on 250 examples, times the number of
    candidates; and a whole race on as many.
    """
    for config in configs:
        bench = Bench(config, rounds)
        scoring, training = bench.scoring(), bench.training()
        one, whole = bench.paper_tokens()
        race = bench.race(PAPER_SCORED)
        plain_training = whole / training["plain"]["tokens_per_second"]
        our_training = plain_training / training["ratio"]
        selection = {
            "plain": race["prompts"] * one / scoring["plain"]["tokens_per_second"],
            "full": race["prompts"] * bench.candidate(PAPER_SCORED).seconds,
            "race": race["seconds"],
        }
        yield {
            "task": bench.task.short_name,
            "prompts": race["prompts"],
            "race_read": race["read"],
            "plain_training_seconds": plain_training,
            "our_training_seconds": our_training,
            "selection_seconds": selection,
            "of_plain_training": {name: seconds / plain_training for name, seconds in selection.items()},
            "of_our_training": {name: seconds / our_training for name, seconds in selection.items()},
        }


def _flat(model: Any) -> torch.Tensor:
    tensors = adapter_tensors(model, CURRENT)
    return torch.cat([tensors[key].detach().float().cpu().flatten() for key in sorted(tensors)])


def _norm(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).norm())
