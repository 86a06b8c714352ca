"""`sapo select`: which prompt to train with, on your rows and model."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from sapo.cli.console import Json, Progress, emit, nothing_on_stdout, say, take

if TYPE_CHECKING:
    from sapo.conf.schema import Config
    from sapo.data.own import Material
    from sapo.experiments.select import Selection

# Enough rows to see differences of some hundredths of a nat, few enough for a minute or two on two cores;
# all rows of the data are there to be drawn from.
DEFAULTS = ("scorer.examples=64", "data.train_examples=null", "data.max_input_tokens=1536")

SHORTEST = 16  # columns of the terminal for a prompt


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="data=FILE instruction=TEXT paraphrases.file=POOL | task=NAME [OVERRIDES]…",
            help="The rows, the instruction and its paraphrases. Also columns=[INPUT,TARGET] (else guessed), "
            "suffix=TEXT, labels=[A,B], adapter=FOLDER (a PEFT adapter on the model), model=NAME or "
            "model.path=FOLDER, scorer.examples=64 (rows that are scored).",
        ),
    ] = None,
    json: Json = False,
    write: Annotated[
        Path | None,
        typer.Option(help="Write all rows with the chosen prompt: JSONL, TRL's prompt and completion"),
    ] = None,
) -> None:
    """Rank the prompts for your instruction by the loss on your rows before training, and choose one."""
    from sapo.conf.load import load_one
    from sapo.data.own import ARGUMENTS, require_writable, write_jsonl

    given, overrides = take(arguments or [], ARGUMENTS)
    named = {override.partition("=")[0] for override in overrides}
    config = load_one([*(each for each in DEFAULTS if each.partition("=")[0] not in named), *overrides])
    if write:
        require_writable(write)
    from sapo.experiments.select import select

    with nothing_on_stdout(), Progress() as progress:
        material, selection = select(
            given, config, progress.tell, lambda _: progress.advance("prompts scored"), progress.expect
        )
    written = write_jsonl(write, selection.rendered(material.rows)) if write else 0
    document = _document(material, selection, config, given.get("adapter"))
    document["written"] = {"path": str(write), "rows": written} if write else None
    emit(document, json, lambda console: _render(console, document))


def _document(
    material: "Material", selection: "Selection", config: "Config", adapter: str | None
) -> dict[str, Any]:
    columns, scored = material.columns, selection.task.train
    lead, second = selection.lead, selection.runner_up
    return {
        "task": material.task.name,
        "model": config.model.path or config.model.name,
        "adapter": adapter,
        "chosen": {"index": selection.chosen.index, "text": selection.chosen.text},
        "candidates": selection.ranking.to_dict("records"),
        "difference_to_original": asdict(selection.gain),
        "lead": {**asdict(lead), "over": second.index} if lead and second else None,
        "is_noise": {"to_original": selection.gain.is_noise, "lead": lead.is_noise if lead else None},
        "verdict": selection.verdict,
        "data": {
            "source": material.source,
            "columns": {"input": columns[0], "target": columns[1]} if columns else None,
            "rows": material.n_rows,
            "scored": len(scored),
            "distinct": len({(example.input, example.target) for example in scored}),
            "shortened": selection.n_shortened,
            "notes": list(material.task.notes),
            "findings": list(selection.findings),
        },
        "pool": material.pool.source,
        "reduction": config.scorer.reduction,
        "seed": config.seed,
    }


def _render(console: Console, document: dict[str, Any]) -> None:
    data, columns, ranking = document["data"], document["data"]["columns"], document["candidates"]
    read = f"input from column '{columns['input']}', target from column '{columns['target']}'; "
    others = len(ranking) - 1
    state = f" with {document['adapter']}" if document["adapter"] else ""
    console.print(
        f"{data['source']}: {data['rows']} rows; {read if columns else ''}{data['scored']} of them scored, "
        f"{ranking[0]['n_tokens']} target tokens"
    )
    console.print(
        f"{others} paraphrase{'s' if others > 1 else ''} ({document['pool']}); "
        f"model {document['model']}{state}, as it is"
    )
    shortened = f"{data['shortened']} inputs are shortened (data.max_input_tokens)"
    for line in [*data["notes"][1:], *data["findings"], *([shortened] if data["shortened"] else [])]:
        console.print(line)
    console.print(_ranking(console, document))
    console.print(
        "loss: nats a target token, ± 95 %. Δ original: difference to it; ± and p by paired t over the "
        f"{data['distinct']} distinct rows, Bonferroni over {others}. tokens: of the prompt."
    )
    for sentence in document["verdict"]:
        console.print(sentence)
    chosen, written = document["chosen"], document["written"]
    name = "the original" if chosen["index"] == -1 else f"prompt {chosen['index']}"
    console.print(f"\nChosen, {name}:")
    console.print(chosen["text"], style="bold")
    if written:
        say(console, f"{written['rows']} rows with it are in {written['path']}.")


def _ranking(console: Console, document: dict[str, Any]) -> Table:
    """A line a prompt, shortened to what the terminal has room for; its number is its index in the pool."""
    rows = []
    for row in document["candidates"]:
        name, shown = "original", ["-", "-"]
        if row["index"] != -1:
            name, half = str(row["index"]), row["difference_high"] - row["difference"]
            # Adding 0 makes a rounded -0 a 0.
            p = "<.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
            shown = [f"{round(row['difference'], 3) + 0.0:+.3f} ±{half:.3f}", p]
        loss = f"{row['loss']:.3f} ±{row['loss_high'] - row['loss']:.3f}"
        text = f"{name}: {' '.join(row['text'].split())}"
        rows.append([str(row["rank"]), text, loss, *shown, str(row["prompt_tokens"])])
    names = ("#", "prompt", "loss", "Δ original", "p", "tokens")
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    room = console.width - sum(widths[:1] + widths[2:]) - (2 * len(widths) - 1)  # gaps
    widths[1] = max(SHORTEST, min(widths[1], room))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name, width in zip(names, widths, strict=True):
        justify: Any = "left" if name == "prompt" else "right"
        table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis", width=width)
    for row, cells in zip(document["candidates"], rows, strict=True):
        table.add_row(*cells, style="bold" if row["index"] == document["chosen"]["index"] else None)
    return table
