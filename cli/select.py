"""`sapo select`: which prompt to train with, on your rows and model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sapo.cli.console import Json, Progress, emit, may_replace, take


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="data=FILE instruction=TEXT paraphrases.file=POOL | task=NAME [OVERRIDES]…",
            help="The rows, the instruction and its paraphrases. Also columns=[INPUT,TARGET] (else guessed), "
            "suffix=TEXT, labels=[A,B], adapter=FOLDER (a PEFT adapter on the model), model=NAME, "
            "model=FOLDER or model=OWNER/NAME, scorer.examples=64 (rows that are scored).",
        ),
    ] = None,
    json: Json = False,
    write: Annotated[Path | None, typer.Option(help="All rows with the chosen prompt: JSONL for TRL")] = None,
) -> None:
    """Rank the prompts for your instruction by the loss on your rows before training, and choose one."""
    from sapo.conf.load import load_one
    from sapo.data.files import write_json
    from sapo.data.own import ARGUMENTS, DEFAULTS, require_writable, write_jsonl

    given, overrides = take(arguments, ARGUMENTS)
    config = load_one([*DEFAULTS, *overrides])
    if write:
        sent = write.with_suffix(".sent.json")
        for path in (write, sent):
            require_writable(path, replaces=may_replace(path))
    from sapo.experiments.select import as_json, select

    with Progress() as progress:
        material, selection = select(
            given, config, progress.tell, lambda _: progress.advance("prompts scored"), progress.expect
        )
    document = as_json(material, selection, config, given.get("adapter"))
    document["written"] = None
    if write:
        rows = write_jsonl(write, selection.rendered(material.rows))
        write_json(sent, {**document["sent"], "chat_template_kwargs": dict(config.model.template_options)})
        document["written"] = {"path": str(write), "rows": rows, "sent": str(sent)}
    emit(document, json, parts(document))


def parts(document: dict[str, Any]) -> Iterator[RenderableType]:
    """What people are shown of a choice: what was read, the ranking, what it says, and the chosen prompt."""
    data, columns, ranking = document["data"], document["data"]["columns"], document["candidates"]
    chosen, written, others = document["chosen"], document["written"], len(ranking) - 1
    read = (
        f"input from column '{columns['input']}', target from column '{columns['target']}'; "
        if columns
        else ""
    )
    state = f" with {document['adapter']}" if document["adapter"] else ""
    yield (
        f"{data['source']}: {data['rows']} rows; {read}{data['scored']} of them scored, "
        f"{ranking[0]['n_tokens']} target tokens"
    )
    yield (
        f"{others} paraphrase{'s' if others > 1 else ''} ({document['pool']}); "
        f"model {document['model']}{state}, as it is"
    )
    yield from (*data["notes"][1:], *data["findings"])
    if data["shortened"]:
        yield f"{data['shortened']} inputs are shortened (data.max_input_tokens)"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("#", "prompt", "loss", "Δ original", "p", "tokens"):
        if name == "prompt":  # the one that gives way
            table.add_column(name, min_width=16)
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for row in ranking:
        name, shown = "original", ["-", "-"]
        if row["index"] != -1:
            name, half = str(row["index"]), row["difference_high"] - row["difference"]
            # Adding 0 makes a rounded -0 a 0.
            difference = f"{round(row['difference'], 3) + 0.0:+.3f} ±{half:.3f}"
            shown = [difference, "<.001" if row["p"] < 0.001 else f"{row['p']:.3f}"]
        loss = f"{row['loss']:.3f} ±{row['loss_high'] - row['loss']:.3f}"
        text = Text(f"{name}: {' '.join(row['text'].split())}", no_wrap=True, overflow="ellipsis")
        style = "bold" if row["index"] == chosen["index"] else None
        table.add_row(str(row["rank"]), text, loss, *shown, str(row["prompt_tokens"]), style=style)
    yield table
    yield (
        "loss: nats a target token, ± 95 %. Δ original: difference to it; ± and p by paired t over the "
        f"{data['distinct']} distinct rows, Bonferroni over {others}. tokens: of the prompt."
    )
    yield from document["verdict"]
    yield f"\nChosen, {'the original' if chosen['index'] == -1 else 'prompt {index}'.format(**chosen)}:"
    yield Text(chosen["text"], style="bold")
    yield "\nWhat to send in production for an input:"
    for turn in document["sent"]["messages"]:
        yield from (f"{turn['role']}:", Text(turn["content"], style="dim"))
    if written:
        yield f"\n{written['rows']} rows with it are in {written['path']}, what to send in {written['sent']}."
