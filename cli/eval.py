"""`sapo eval RUN [TASKS…] [OVERRIDES…]`: a run's states on tasks, under given prompts."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapo.cli.console import Json, emit

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console


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
    from sapo.cli.console import find_run

    folder = find_run(run)
    names = [argument for argument in tasks or [] if "=" not in argument]
    overrides = [argument for argument in tasks or [] if "=" in argument]
    rows = _evaluations(folder, names, overrides, prompt, state)
    document = {"run": folder.name, "dir": str(folder), "evaluations": rows}
    emit(document, json, lambda console: _render(console, rows))


def _evaluations(
    folder: "Path", names: list[str], overrides: list[str], prompt: str, state: str
) -> list[dict[str, Any]]:
    """A row an evaluation."""
    from sapo.cli.console import nothing_on_stdout
    from sapo.cli.progress import StageProgress
    from sapo.experiments import reevaluation
    from sapo.experiments.engine.local import LocalEngine
    from sapo.experiments.engine.store import Store
    from sapo.experiments.model.evaluation import mean_label_match

    run = reevaluation.open_run(folder, overrides)
    wishes = run.wishes(names, prompt, state)
    store = Store(folder.parent.parent)  # ROOT/runs/<id>
    reevaluation.require_states(run, wishes, store)
    with store.at_work(), StageProgress(len(wishes)) as progress, nothing_on_stdout():
        stored = reevaluation.evaluate(run, wishes, LocalEngine(store, progress))
    return [
        {
            "after": wish.after,
            "state": wish.state,
            "task": wish.task.name,
            "prompt": {"index": wish.prompt.index, "text": wish.prompt.text},
            **{name: getattr(result.result, name) for name in ("rougeL", "exact_match", "nll", "examples")},
            "label_match": mean_label_match(result.examples(), wish.task.labels),
        }
        for wish, result in zip(wishes, stored, strict=True)
    ]


def _render(console: "Console", rows: list[dict[str, Any]]) -> None:
    from sapo.cli.views import simple_table

    names = ("after", "prompt", "ROUGE-L", "exact", "label", "NLL", "n")
    table = simple_table(None, "task", *names)
    for row in rows:
        index = row["prompt"]["index"]
        label = "-" if row["label_match"] is None else f"{row['label_match']:.2f}"
        scores = (f"{row['rougeL']:.2f}", f"{row['exact_match']:.2f}", label, f"{row['nll']:.4f}")
        prompt = "original" if index == -1 else str(index)
        table.add_row(row["task"], str(row["after"]), prompt, *scores, str(row["examples"]))
    console.print(table)
    console.print(
        "after: tasks trained so far (0: untouched model). exact, label: exact and label match in % (-: the "
        "task has no labels). NLL: nats per target token, lower is better. n: test examples."
    )
