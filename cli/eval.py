"""`sapo eval RUN [TASKS…] [OVERRIDES…]`: a run's states on tasks, under given prompts."""

from typing import Annotated, Any

import typer
from rich.console import Console

from sapo.cli.console import Json, Progress, emit, find_run, nothing_on_stdout, table


def command(
    run: Annotated[str, typer.Argument(help="Run folder or id")],
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TASK|KEY=VALUE]…",
            help="Tasks, also ones that the run does not have [default: the run's], and where things are: "
            "data.root=FOLDER, engine.device=cpu, paraphrases.file=POOL.yaml, …",
        ),
    ] = None,
    prompt: Annotated[
        str,
        typer.Option(
            help="original, trained (where the state has learned the task), or a number of the pool"
        ),
    ] = "trained",
    state: Annotated[str, typer.Option(help="Number of trained tasks, base, last, or all")] = "all",
    json: Json = False,
) -> None:
    """Evaluate the states of a finished run, the untouched model included, on tasks."""
    from sapo.experiments.reevaluation import evaluate, open_run

    overrides = [argument for argument in tasks or [] if "=" in argument]
    names = [argument for argument in tasks or [] if "=" not in argument]
    folder = find_run(run, overrides)
    with Progress() as progress, nothing_on_stdout():
        opened = open_run(folder, overrides)
        rows = evaluate(opened, names, prompt, state, progress, progress.expect)
    document = {"run": folder.name, "dir": str(folder), "evaluations": rows}
    emit(document, json, lambda console: _render(console, rows))


def _render(console: Console, rows: list[dict[str, Any]]) -> None:
    def cells(row: dict[str, Any]) -> tuple[object, ...]:
        index = row["prompt"]["index"]
        label = "-" if row["label_match"] is None else f"{row['label_match']:.2f}"
        scores = f"{row['rougeL']:.2f}", f"{row['exact_match']:.2f}", label, f"{row['nll']:.4f}"
        return row["task"], row["after"], "original" if index == -1 else index, *scores, row["examples"]

    names = ("task", "after", "prompt", "ROUGE-L", "exact", "label", "NLL", "n")
    console.print(table(names, map(cells, rows)))
    console.print(
        "after: tasks trained so far (0: untouched model). exact, label: exact and label match in % (-: the "
        "task has no labels). NLL: nats per target token, lower is better. n: test examples."
    )
