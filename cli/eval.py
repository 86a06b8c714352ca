"""`sapo eval RUN [TASKS…] [OVERRIDES…]`: a run's states on tasks, under given prompts."""

from typing import Annotated, Any

import typer

from sapo.cli.console import Json, Progress, emit, find_run, table

EXAMPLES = (
    "sapo eval RUN",
    "sapo eval RUN mini_price --state last --prompt original",
)


def command(
    run: Annotated[str, typer.Argument(help="Run folder or id")],
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TASK|KEY=VALUE]…",
            help="Tasks, also ones that the run does not have (default: the run's), and where things are: "
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
    with Progress() as progress:
        rows = evaluate(open_run(folder, overrides), names, prompt, state, progress, progress.expect)

    def cells(row: dict[str, Any]) -> tuple[object, ...]:
        index = row["prompt"]["index"]
        label = "-" if row["label_match"] is None else f"{row['label_match']:.2f}"
        scores = f"{row['rougeL']:.2f}", f"{row['exact_match']:.2f}", label, f"{row['nll']:.4f}"
        return row["task"], row["after"], "original" if index == -1 else index, *scores, row["examples"]

    columns = ("task", "after", "prompt", "ROUGE-L", "exact", "label", "NLL", "n")
    legend = (
        "after: tasks trained so far (0: untouched model). exact, label: exact and label match in % (-: the "
        "task has no labels). NLL: nats per target token, lower is better. n: test examples."
    )
    document = {"run": folder.name, "dir": str(folder), "evaluations": rows}
    emit(document, json, [table(columns, map(cells, rows)), legend])
