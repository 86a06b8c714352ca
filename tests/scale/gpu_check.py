"""One card, at most eight minutes: does every part run on it and agree, and how fast is it at the 8B shape.

    python tests/scale/gpu_check.py agreement speed --shape FOLDER --out FOLDER

`agreement` runs all kinds of stages of two trainings three times: plainly (row by row, no shared prefix) in
float32, plainly in bfloat16, and as they are in bfloat16. Ours may be at most twice as far from float32 as
plain bfloat16 is. `speed` takes only config and tokenizer from --shape, draws weights on the card, and has
bench.py time ours against plain Transformers. What was found is in OUT/gpu_check.json and .md after each
part, so that a machine that is taken away takes only the rest with it. `--tiny` is the rehearsal on a CPU.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import bench
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from sapo.conf.load import load_one
from sapo.data.benchmarks import load_tasks
from sapo.data.prompts import Prompt
from sapo.experiments.engine.environment import environment
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.stage import Stage
from sapo.experiments.engine.store import Store, Stored
from sapo.experiments.model.identity import device_of
from sapo.experiments.model.load import load_model
from sapo.experiments.model.rows import TrainingTask
from sapo.experiments.stages import Evaluate, Gradient, Score, Train

PARTS = ("agreement", "speed")
PLAIN = ("trainer.shared_prefix=false", "trainer.micro_batch_tokens=1", "evaluator.batch_tokens=1")
WAYS = {
    "float32": ("model.dtype=float32", *PLAIN),
    "plain": ("model.dtype=bfloat16", *PLAIN),
    "ours": ("model.dtype=bfloat16",),
}
FURTHER = 2.0  # times as far from float32 as plain bfloat16 may ours be, and a little: both are noise
STAGES = (  # of `agreement`
    "sequence=mini_three", "method=ewc", "method.fisher_examples=16", "method.dropout=0",
    "data.train_examples=64", "data.test_examples=24", "trainer.epochs=2", "trainer.global_batch=16",
    "trainer.checkpoint_steps=4", "scorer.examples=48", "evaluator.max_new_tokens=16",
)  # fmt: skip
SPEED = (  # of `speed`
    "scorer.examples=250", "data.train_examples=256", "trainer.global_batch=64", "data.test_examples=128",
    "evaluator.max_new_tokens=32",
)  # fmt: skip
TINY = (
    "data.train_examples=8", "data.test_examples=4", "scorer.examples=4", "trainer.global_batch=4",
    "trainer.epochs=1", "method.fisher_examples=2", "evaluator.max_new_tokens=3",
)  # fmt: skip
# Operations a token and weight outside the embeddings: forward, and LoRA's backward through frozen weights.
FORWARD, TRAINED = 2, 4


def agreement(overrides: Sequence[str]) -> dict[str, Any]:
    """By kind of stage: how far plain bfloat16 and ours are from plain float32, relative; and the verdict."""
    found = {}
    for way, settings in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            found[way] = stage_results([*overrides, *settings, f"store.root={folder}"])
    rows = {}
    for name, truth in found["float32"].items():
        plain, ours = (float((found[way][name] - truth).norm() / truth.norm()) for way in ("plain", "ours"))
        rows[name] = {"plain": plain, "ours": ours, "agrees": ours <= FURTHER * plain + 1e-3}
    return rows


def stage_results(overrides: Sequence[str]) -> dict[str, Tensor]:
    """What each kind of stage computes: two trainings after each other, and the others in the last state."""
    config = load_one(overrides)
    first, second, *_ = load_tasks(config)[0]
    engine = LocalEngine(Store(Path(config.store.root)))
    texts = (second.instruction, "Answer.", "What is it? Say it in a few words.")
    prompts = tuple(Prompt(text, index) for index, text in enumerate(texts, start=-1))

    def computed(stage: Stage) -> Stored:
        return asyncio.run(engine.run(stage))

    def tensors(path: Path) -> Tensor:
        values = load_file(path)
        return torch.cat([values[key].flatten().float() for key in sorted(values)])

    state, found = "base", {}
    for position, (task, shown) in enumerate([(first, prompts[1:2]), (second, prompts[:2])]):
        trained = computed(Train(config, state, position, (TrainingTask(task, shown),)))
        state = trained.key
        found[f"training {position + 1}, losses"] = torch.tensor(trained.result.losses)
    found["adapter"] = tensors(trained.folder / "adapter" / "adapter_model.safetensors")
    scored = second.train[: config.scorer.examples]
    for scorer in ("full", "race"):
        config.scorer.name = scorer
        table = computed(Score(config, state, second, scored, prompts)).examples()
        found[f"scoring, {scorer}"] = torch.tensor(table.groupby("prompt")["nll"].mean().to_numpy())
    table = computed(Evaluate(config, state, first, prompts[0])).examples()
    found |= {f"evaluation, {name.upper()}": torch.tensor(table[name].to_numpy()) for name in ("nll", "kl")}
    gradient = computed(Gradient(config, state, first, first.train[:8], prompts[0]))
    return found | {"gradient": tensors(gradient.folder / "gradients.safetensors")}


def speed(overrides: Sequence[str], rounds: int, peak: float) -> Iterator[dict[str, Any]]:
    """A row of the bench for each kind, with operations a second and their share of the measured peak."""
    (config,) = bench.bench_configs(overrides)
    one = bench.Bench(config, rounds)
    embeddings = {
        id(module.weight) for module in (one.base.get_input_embeddings(), one.base.get_output_embeddings())
    }
    weights = sum(p.numel() for p in one.base.parameters() if id(p) not in embeddings)
    for kind in bench.KINDS:
        row = getattr(one, kind)()
        for way in ("plain", "ours"):
            rate = row[way]["rate"] * weights * (TRAINED if kind == "training" else FORWARD)
            row[way] |= {"tflops": rate / 1e12, "share": rate / peak}
            row[way]["shown"] = {"TFLOP/s": f"{rate / 1e12:,.3f}", "of peak": f"{rate / peak:.1%}"}
        yield row


def seconds_of(work: Callable[[], Any], device: torch.device, times: int = 3) -> float:
    """The shortest of some runs after one that does not count."""
    found = []
    for _ in range(times + 1):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begun)
    return min(found[1:])


def matrix_peak(device: torch.device, size: int) -> float:
    """Operations a second of bfloat16 matrix products."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: a @ b, device, 5)


@torch.no_grad()
def pass_overhead(overrides: Sequence[str], short: int = 16, long: int = 4096) -> dict[str, float]:
    """What a pass costs beside its tokens, as a number of tokens: `budgets.pass_tokens` assumes it."""
    base = load_model(load_one(overrides)).base
    ids = torch.zeros(8, long // 8, dtype=torch.long, device=base.device)
    few, many = (
        seconds_of(lambda x=x: base(input_ids=x, logits_to_keep=1), base.device)
        for x in (ids[:1, :short], ids)
    )
    token = (many - few) / (long - short)
    return {"seconds_a_pass": few - short * token, "tokens": (few - short * token) / token}


def report(found: dict[str, Any]) -> str:
    """The tables as text, for Markdown."""
    lines = [f"# {found['device']}", "", f"bfloat16 matrix products: {found['peak'] / 1e12:,.2f} TFLOP/s", ""]
    if "agreement" in found:
        table = pd.DataFrame.from_dict(found["agreement"], orient="index").to_string(
            float_format="{:.1e}".format
        )
        lines += ["Plain bfloat16 and ours, from float32:", f"```\n{table}\n```"]
    if found.get("speed"):
        lines += [f"{found['shape']}, random weights:", "```", *bench.tables(found["speed"]), "```"]
        lines.append(f"A pass costs as much as {found['overhead']['tokens']:,.0f} tokens.")
    return "\n".join([*lines, *(f"Not done: {part}." for part in found["not_done"])]) + "\n"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Does the parts, writes both files after each, prints the tables, and returns all that was found."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("parts", nargs="*", help="agreement, speed (both if none is named), and overrides")
    parser.add_argument("--shape", type=Path, help="folder with config.json and tokenizer, for speed")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the two files")
    parser.add_argument("--minutes", type=float, default=8.0, help="after these nothing new begins")
    parser.add_argument("--rounds", type=int, default=3, help="times that each side is measured")
    parser.add_argument("--tiny", action="store_true", help="the rehearsal: a few rows, on a CPU too")
    given = parser.parse_intermixed_args(arguments)
    begun = time.monotonic()
    parts = [part for part in given.parts if part in PARTS] or list(PARTS)
    own = [part for part in given.parts if part not in PARTS]
    sizes = TINY if given.tiny else ()
    device = device_of(load_one(["model=tiny_llama", *own]))
    found: dict[str, Any] = environment(device)
    found |= {"peak": matrix_peak(device, 256 if given.tiny else 8192), "not_done": list(parts)}

    def keep() -> None:
        found["seconds"] = time.monotonic() - begun
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "gpu_check.json").write_text(json.dumps(found, indent=1))
        (given.out / "gpu_check.md").write_text(report(found))

    def is_time_left() -> bool:
        return time.monotonic() - begun < 60 * given.minutes

    if "agreement" in parts and is_time_left():
        found["agreement"] = agreement(["model=tiny_qwen3", *STAGES, *sizes, *own])
        found["not_done"].remove("agreement")
        keep()
    if "speed" in parts and given.shape and is_time_left():
        drawn = [f"model.source=random:{given.shape}", f"model.name={given.shape.name}"]
        task = [] if any(override.startswith("task=") for override in own) else ["task=mini_topic"]
        settings = ["model=qwen3_8b", *drawn, "model.dtype=bfloat16", *task, *SPEED, *sizes, *own]
        found |= {"shape": given.shape.name, "speed": []}
        found["overhead"] = pass_overhead(settings, *((4, 64) if given.tiny else ()))
        rows = speed(settings, given.rounds, found["peak"])
        while is_time_left() and (row := next(rows, None)):
            found["speed"].append(row)
            keep()
        if len(found["speed"]) == len(bench.KINDS):
            found["not_done"].remove("speed")
    keep()
    sys.stdout.write(report(found))
    return found


if __name__ == "__main__":
    checked = main()
    sys.exit(not all(row["agrees"] for row in checked.get("agreement", {}).values()))
