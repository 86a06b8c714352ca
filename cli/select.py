"""`sapo select`: which wording of your instruction to train with, on your rows and model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapo.cli.console import Json, Terminal, emit, notice

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sapo.conf.schema import Config
    from sapo.data.own import Material
    from sapo.experiments.selection import Selection

# Enough rows to see differences of some hundredths of a nat, few enough for a minute or two on two cores;
# all rows of the data are there to be drawn from.
DEFAULTS = ("scorer.examples=64", "data.train_examples=null", "data.max_input_tokens=1536")

SHORTEST_WORDING = 16  # columns of the terminal


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
        typer.Option(help="Write all rows with the chosen wording: JSONL, TRL's prompt and completion"),
    ] = None,
) -> None:
    """Rank the wordings of your instruction by the loss on your rows before training, and choose one."""
    from sapo.cli.console import nothing_on_stdout, take
    from sapo.conf.load import load_one
    from sapo.data.own import ARGUMENTS, gather, require_writable, write_jsonl

    given, overrides = take(arguments or [], ARGUMENTS)
    said = {override.partition("=")[0] for override in overrides}
    config = load_one([*(d for d in DEFAULTS if d.partition("=")[0] not in said), *overrides])
    _require_supported(config)
    if write:
        require_writable(write, [given.get("data"), config.paraphrases.file])
    with nothing_on_stdout():
        material = gather(given, config)
        if more := material.pool.left_out:
            used = len(material.pool.paraphrases)
            notice(f"sapo: {used:,} of {used + more:,} paraphrases of the pool are used (paraphrases.count)")
        selection, findings = _select(material, config, given.get("adapter"))
    written = write_jsonl(write, selection.rendered(material.rows)) if write else 0
    document = _document(material, selection, config, given.get("adapter"))
    document["data"] |= {"notes": list(material.task.notes), "findings": findings}
    document["written"] = {"path": str(write), "rows": written} if write else None
    emit(document, json, lambda console: _render(console, document))


def _require_supported(config: "Config") -> None:
    """UserError for settings of runs that a ranking would silently not follow."""
    from sapo.conf.errors import UserError

    if config.scorer.name != "full":
        raise UserError(f"scorer={config.scorer.name}: `sapo select` scores every wording on all rows drawn.")
    if config.data.truncation != "input":
        raise UserError(f"data.truncation={config.data.truncation}: `sapo select` shortens inputs only.")
    if config.data.separator != "task":
        raise UserError(f"data.separator={config.data.separator}: in `sapo select` the task's own decides.")
    if config.scorer.reduction not in ("token", "example"):
        raise UserError(f"scorer.reduction={config.scorer.reduction}: `sapo select` takes token or example.")


def _select(material: "Material", config: "Config", adapter: str | None) -> "tuple[Selection, list[str]]":
    from sapo.data.hygiene import row_findings
    from sapo.data.render import control_tokens
    from sapo.experiments.model.load import load_model
    from sapo.experiments.model.preflight import preflight
    from sapo.experiments.selection import require_adapter, select_prompt, with_adapter

    folder = Path(adapter).expanduser() if adapter else None
    if folder:
        require_adapter(folder)
        _tell_other_base(folder, config)
    prompts, task, scorer = material.pool.candidates(include_original=True), material.task, config.scorer
    preflight(config, [(task, prompts)], trains=False, answers=False)
    notice("Loading the model …")
    language_model = load_model(config)
    found = row_findings(material.rows, control_tokens(language_model.tokenizer))
    with (
        with_adapter(language_model.base, folder) as model,
        _Progress(len(prompts)) as progress,
    ):
        selection = select_prompt(
            model,
            language_model.tokenizer,
            task.train,
            [prompt.text for prompt in prompts],
            separator=task.separator,
            suffix=task.suffix,
            n_examples=len(task.train),
            name=task.name,
            reduction=scorer.reduction,
            include_original=scorer.include_original,
            template_options=config.model.template_options,
            max_input_tokens=config.data.max_input_tokens,
            batch_tokens=config.evaluator.batch_tokens,
            on_scored=progress,
        )
    return selection, [finding.message for finding in found]


def _tell_other_base(folder: Path, config: "Config") -> None:
    """A warning if an adapter says that it was trained on another model, as one of like shapes fits."""
    from json import loads

    from sapo.conf.errors import UserError
    from sapo.experiments.model.fetch import model_folder

    path = folder / "adapter_config.json"
    try:
        trained_on = loads(path.read_bytes()).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise UserError(f"adapter={folder}: {path} is no JSON object.") from error
    here = model_folder(config.model)
    named = config.model.source.partition(":")[2]
    if trained_on and trained_on != named and Path(trained_on).resolve() != here.resolve():
        notice(f"sapo: the adapter in {folder} says it was trained on {trained_on}; it is used on {here}.")


class _Progress:
    """What is scored, on stderr: a bar on a terminal, a line a wording elsewhere."""

    def __init__(self, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Terminal(stderr=True)
        columns = (TextColumn("scoring wordings"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._row = self._bar.add_task("", total=total)
        self._done, self._total = 0, total

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, _: object) -> None:
        self._done += 1
        self._bar.advance(self._row)
        if self._bar.disable:
            notice(f"[{self._done}/{self._total}] wordings scored")


def _document(
    material: "Material", selection: "Selection", config: "Config", adapter: str | None
) -> dict[str, Any]:
    from dataclasses import asdict

    columns, lead, second = material.columns, selection.lead, selection.runner_up
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
            "scored": len(selection.task.train),
            "distinct": selection.n_distinct,
            "shortened": selection.n_shortened,
        },
        "pool": material.pool.source,
        "reduction": config.scorer.reduction,
        "seed": config.seed,
    }


def _render(console: "Console", document: dict[str, Any]) -> None:
    data, columns = document["data"], document["data"]["columns"]
    read = (
        f"input from column '{columns['input']}', target from column '{columns['target']}'; "
        if columns
        else ""
    )
    ranking = document["candidates"]
    state = f" with {document['adapter']}" if document["adapter"] else ""
    lines = [
        f"{data['source']}: {data['rows']} rows; {read}{data['scored']} of them scored, "
        f"{ranking[0]['n_tokens']} target tokens",
        f"{_counted(len(ranking) - 1, 'paraphrase')} ({document['pool']}); "
        f"model {document['model']}{state}, as it is",
    ]
    lines += data["notes"][1:] + data["findings"]
    if data["shortened"]:
        lines.append(f"{data['shortened']} inputs are shortened (data.max_input_tokens)")
    for line in lines:
        console.print(line, markup=False)
    console.print(_ranking(console, document))
    console.print(
        "loss: nats a target token, ± 95 %. Δ original: difference to it; ± and p by paired t over the "
        f"{data['distinct']} distinct rows, Bonferroni over {len(ranking) - 1}. tokens: of the wording.",
        markup=False,
    )
    _render_choice(console, document)


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _ranking(console: "Console", document: dict[str, Any]) -> "Table":
    """A line a wording, shortened to what the terminal has room for."""
    from rich import box
    from rich.table import Table

    ranking = document["candidates"]
    rows = [_cells(row) for row in ranking]
    names = ("#", "wording", "loss", "Δ original", "p", "tokens")
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    room = console.width - sum(widths[:1] + widths[2:]) - (2 * len(widths) - 1)  # gaps
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for place, (name, width) in enumerate(zip(names, widths, strict=True)):
        is_text = place == 1
        table.add_column(
            name,
            justify="left" if is_text else "right",
            no_wrap=True,
            overflow="ellipsis",
            width=max(SHORTEST_WORDING, min(width, room)) if is_text else width,
        )
    for row, cells in zip(ranking, rows, strict=True):
        table.add_row(*cells, style="bold" if row["index"] == document["chosen"]["index"] else None)
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    """One candidate: place and wording (the number is its index in the pool), losses, tokens."""
    is_original = row["index"] == -1
    loss = f"{row['loss']:.3f} ±{row['loss_high'] - row['loss']:.3f}"
    difference = f"{round(row['difference'], 3) + 0.0:+.3f} ±{row['difference_high'] - row['difference']:.3f}"
    p = "<.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
    name = "original" if is_original else str(row["index"])
    text = f"{name}: {' '.join(row['text'].split())}"
    shown = ["-", "-"] if is_original else [difference, p]
    return [str(row["rank"]), text, loss, *shown, str(row["prompt_tokens"])]


def _render_choice(console: "Console", document: dict[str, Any]) -> None:
    chosen, written = document["chosen"], document["written"]
    for sentence in document["verdict"]:
        console.print(sentence, markup=False)
    name = "the original" if chosen["index"] == -1 else f"prompt {chosen['index']}"
    console.print(f"\nChosen, {name}:", markup=False)
    console.print(chosen["text"], markup=False, style="bold")
    if written:
        console.print(
            f"{written['rows']} rows with it are in {written['path']}.", markup=False, soft_wrap=True
        )
