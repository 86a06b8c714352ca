"""`sapo bench …`: how fast this machine is, ours against the plain way, and what choosing a prompt costs."""

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapo.cli.console import Json, Overrides, emit, notice

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

group = typer.Typer(
    help="Time scoring, training and evaluation against plain Transformers and PEFT.", no_args_is_help=True
)

KINDS = ("scoring", "training", "evaluation")
# What the last column of a kind's table holds.
DIFFERENCE = {
    "scoring": "NLL differs",  # largest relative difference of an example
    "training": "loss, update differ",  # largest relative difference of a step; of the whole update
    "evaluation": "answers differ",
}
Rounds = Annotated[int, typer.Option(min=1, help="Times that each side is measured, in turn; medians count")]
RaceExamples = Annotated[int, typer.Option(min=0, help="Examples of the race over a task's pool; 0: no race")]


@group.command("scoring")
def scoring(
    overrides: Overrides = None, rounds: Rounds = 3, race_examples: RaceExamples = 100, json: Json = False
) -> None:
    """Loss of examples under one prompt, and a race over the task's prompts."""
    _measure(["scoring"], overrides, rounds, race_examples, json)


@group.command("training")
def training(overrides: Overrides = None, rounds: Rounds = 3, json: Json = False) -> None:
    """Training of a LoRA adapter."""
    _measure(["training"], overrides, rounds, 0, json)


@group.command("evaluation")
def evaluation(overrides: Overrides = None, rounds: Rounds = 3, json: Json = False) -> None:
    """Greedy answers to test examples; ours measures the loss of their targets as well."""
    _measure(["evaluation"], overrides, rounds, 0, json)


@group.command("all")
def everything(
    overrides: Overrides = None, rounds: Rounds = 3, race_examples: RaceExamples = 100, json: Json = False
) -> None:
    """Scoring, training and evaluation."""
    _measure(KINDS, overrides, rounds, race_examples, json)


@group.command("overhead")
def overhead(overrides: Overrides = None, rounds: Rounds = 1, json: Json = False) -> None:
    """The cost of choosing a prompt at the paper's setting, as a share of the training that follows."""
    from sapo.cli.console import nothing_on_stdout
    from sapo.experiments.bench.setup import bench_configs

    configs = bench_configs(overrides or [])  # a wrong override is answered before PyTorch is imported
    from sapo.experiments.bench import comparison

    rows = []
    with nothing_on_stdout():
        for row in comparison.overhead(configs, rounds):
            notice(f"{row['task']}: measured")
            rows.append(row)
    shares = {
        name: median(row["of_plain_training"][name] for row in rows) for name in rows[0]["of_plain_training"]
    }
    document = {
        **comparison.facts(configs[0]),
        "rounds": rounds,
        "rows": rows,
        "median_of_plain_training": shares,
    }
    emit(document, json, lambda console: _render_overhead(console, document))


@group.command("racing")
def racing(
    orders: Annotated[int, typer.Option(min=1, help="Random orders of each pool's examples")] = 200,
    confidence: Annotated[float, typer.Option(min=0.01, max=0.999999, help="As scorer.confidence")] = 0.95,
    reduction: Annotated[str, typer.Option(help="token or example")] = "token",
    json: Json = False,
) -> None:
    """Race the pools again that the store (SAPO_STORE) holds scored in full: same choice, how much read."""
    from sapo.cli.console import store_root
    from sapo.conf.errors import unknown

    if reduction not in ("token", "example"):
        raise unknown("reduction", reduction, ("token", "example"))
    from sapo.experiments.bench.racing import study
    from sapo.experiments.engine.store import Store

    rows = study(Store(store_root()), orders, confidence, reduction)
    emit(
        {"orders": orders, "confidence": confidence, "reduction": reduction, "rows": rows},
        json,
        lambda console: _render_racing(console, rows),
    )


def _measure(
    kinds: Sequence[str],
    overrides: list[str] | None,
    rounds: int,
    race_examples: int,
    json: bool,
) -> None:
    from sapo.cli.console import nothing_on_stdout
    from sapo.experiments.bench.setup import bench_configs

    configs = bench_configs(overrides or [])
    from sapo.experiments.bench import comparison

    rows = []
    with nothing_on_stdout():
        for row in comparison.measure(configs, kinds, rounds, race_examples):
            notice(f"{row['task']} {row['kind']}: {row['ratio']:.1f} times as fast")
            rows.append(row)
    document = {
        **comparison.facts(configs[0]),
        "rounds": rounds,
        "rows": rows,
        "medians": comparison.medians(rows),
    }
    emit(document, json, lambda console: _render(console, document))


def _render(console: "Console", document: dict[str, Any]) -> None:
    from sapo.cli.views import simple_table

    for middle in document["medians"]:
        kind = middle["kind"]
        table = simple_table(kind, "task", "way", "tokens", "tokens/s", "s", "ratio", "MiB", DIFFERENCE[kind])
        for row in (found for found in document["rows"] if found["kind"] == kind):
            _add_comparison(table, row)
            if "race" in row:
                _add_race(table, row["race"])
        memory = "" if middle["memory_ratio"] is None else f"x {middle['memory_ratio']:.2f}"
        table.add_row("median", "ours", "", "", "", f"{middle['ratio']:.2f}", memory, "")
        if middle["race_ratio"] is not None:
            table.add_row("", "race", "", "", "", f"{middle['race_ratio']:.2f}", "", "")
        console.print(table)
    _foot(console, document)


def _add_comparison(table: "Table", row: dict[str, Any]) -> None:
    for way in ("plain", "ours"):
        usage, is_ours = row[way], way == "ours"
        rate = f"{usage['tokens_per_second']:,.0f}"
        if usage.get("tflops") is not None:
            part = f", {usage['utilisation']:.0%}" if usage["utilisation"] else ""
            rate += f" ({usage['tflops']:.1f} TFLOP/s{part})"
        table.add_row(
            "" if is_ours else row["task"],
            way,
            f"{usage['tokens']:,}",
            rate,
            f"{usage['seconds']:.2f}",
            f"{row['ratio']:.2f}" if is_ours else "",
            _mebibytes(usage["memory"]),
            ", ".join(f"{value:.1g}" for value in row["difference"].values()) if is_ours else "",
        )


def _add_race(table: "Table", race: dict[str, Any]) -> None:
    """A race over the pool, and what the plain way would have taken for it."""
    projected = f"{race['plain_seconds']:.2f} *"
    size = f"{race['prompts']} x {race['examples']}"
    table.add_row(size, "plain", f"{race['plain_tokens']:,}", "", projected, "", "", "")
    rate = f"{race['tokens'] / race['seconds']:,.0f}"
    cells = (f"{race['seconds']:.2f}", f"{race['ratio']:.2f}", _mebibytes(race["memory"]))
    table.add_row(f"{race['read']:.0%} read", "race", f"{race['tokens']:,}", rate, *cells, "")


def _foot(console: "Console", document: dict[str, Any]) -> None:
    facts = f"{document['model']} on {document['device']}, {document['dtype']}; rounds: {document['rounds']}"
    console.print(f"{facts}. Memory: {document['memory']}.", markup=False)
    if any("race" in row for row in document["rows"]):
        console.print(
            "race: prompts x examples. *: projected from the plain way's tokens at its measured rate."
        )


def _render_overhead(console: "Console", document: dict[str, Any]) -> None:
    from sapo.cli.views import simple_table

    title = "Choosing among the prompts: seconds, and share of plain training of 1,000 examples x 10 epochs"
    table = simple_table(title, "task", "prompts", "plain training", "plain", "full", "race", "race read")
    for row in document["rows"]:
        cells = [
            f"{row['selection_seconds'][name]:.0f} s ({row['of_plain_training'][name]:.1%})"
            for name in ("plain", "full", "race")
        ]
        training = f"{row['plain_training_seconds']:.0f} s"
        table.add_row(row["task"], str(row["prompts"]), training, *cells, f"{row['race_read']:.1%}")
    middle = [f"{document['median_of_plain_training'][name]:.1%}" for name in ("plain", "full", "race")]
    table.add_row("median", "", "", *middle, "")
    console.print(table)
    _foot(console, document)
    console.print("Training and plain scoring are projected from measured rates; full from one candidate.")


def _render_racing(console: "Console", rows: list[dict[str, Any]]) -> None:
    from sapo.cli.views import simple_table
    from sapo.data.tasks import short_name

    columns = ("prompts", "examples", "winner", "next", "near ties", "agreement", "worst", "read")
    table = simple_table("Racing against scoring in full", "task", *columns)
    for row in rows:
        gap = "-" if row["gap"] is None else f"+{row['gap']:.2%}"
        counts = (str(row["prompts"]), str(row["examples"]), str(row["winner"]))
        shares = (f"{row['agreement']:.1%}", f"+{row['worst']:.2%}", f"{row['read']:.1%}")
        table.add_row(short_name(row["task"]), *counts, gap, str(row["near_ties"]), *shares)
    console.print(table)
    console.print(
        "next: excess loss of the second-best prompt. near ties: other prompts within 0.1 % of the best. "
        "agreement: orders whose choice is the winner or within 0.1 % of it; worst: largest excess loss of "
        "a choice. read: share of all (prompt, example) pairs. The original is prompt -1."
    )


def _mebibytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:,.0f}"
