"""`sapo eval RUN [TASKS…] [OVERRIDES…]`: a run's states on tasks, under given prompts."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from sapo.cli.console import Json, Progress, Run, emit, find_run, table, take
from sapo.conf.errors import UserError


def command(
    run: Run,
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TASK|KEY=VALUE]…",
            help="Tasks, also ones that the run does not have (default: the run's); tasks=lm_eval:NAME,… of "
            "EleutherAI's harness; and where things are: data.root=FOLDER, engine.device=cpu, …",
        ),
    ] = None,
    prompt: Annotated[str, typer.Option(help="original, trained, or a number of the pool")] = "trained",
    state: Annotated[str, typer.Option(help="Number of trained tasks, base, last, or all")] = "all",
    json: Json = False,
) -> None:
    """Evaluate the states of a finished run, the untouched model included, on tasks.

    Where a state has not learned a task, the original stands for the trained prompt.
    """
    from sapo.experiments.engine.local import LocalEngine
    from sapo.experiments.reevaluation import evaluate, open_run

    own, rest = take(tasks, ["tasks"])
    overrides = [argument for argument in rest if "=" in argument]
    names = [argument for argument in rest if "=" not in argument]
    kind, is_harness, wanted = own.get("tasks", "").rpartition("lm_eval:")
    if is_harness and (kind or names or prompt != "trained"):
        raise UserError("tasks=lm_eval:NAME,… stands alone: the harness brings its own prompts.")
    names += [name for name in wanted.split(",") if name]
    folder = find_run(run, overrides)
    with Progress() as progress:
        opened = open_run(folder, overrides)
        engine = LocalEngine(opened.store, progress)
        engine.expect = progress.expect
        if is_harness:
            from sapo.experiments import harness

            rows = harness.evaluate(opened, names, state, engine)
        else:
            rows = evaluate(opened, names, prompt, state, engine)
    document = {"run": folder.name, "dir": str(folder), "evaluations": rows}
    emit(document, json, _metrics(rows) if is_harness else _scores(rows))


def _scores(rows: list[dict[str, Any]]) -> Iterator[RenderableType]:
    columns = ("task", "after", "prompt", "ROUGE-L", "exact", "label", "NLL", "n")
    cells = []
    for row in rows:
        index = row["prompt"]["index"]
        label = "-" if row["label_match"] is None else f"{row['label_match']:.2f}"
        scores = f"{row['rougeL']:.2f}", f"{row['exact_match']:.2f}", label, f"{row['nll']:.4f}"
        prompt = "original" if index == -1 else index
        cells.append((row["task"], row["after"], prompt, *scores, row["examples"]))
    yield table(columns, cells)
    yield (
        "after: tasks trained so far (0: untouched model). exact, label: exact and label match in % (-: the "
        "task has no labels). NLL: nats per target token, lower is better. n: test examples."
    )


def _metrics(rows: list[dict[str, Any]]) -> Iterator[RenderableType]:
    """The harness's metrics with the states as columns, as in a run's matrices."""
    found: dict[tuple[str, str, int], dict[int, float]] = {}
    for row in rows:
        for metric, value in row["metrics"].items():
            found.setdefault((row["task"], metric, row["examples"]), {})[row["after"]] = value
    states = dict.fromkeys(row["after"] for row in rows)
    yield table(
        ("task", "metric", *(f"after {after}" for after in states), "n"),
        [
            (task, metric, *(f"{values[after]:.4f}" for after in states), count)
            for (task, metric, count), values in found.items()
        ],
    )
    yield (
        "after: tasks trained so far (0: untouched model). Metrics and prompts are lm-evaluation-harness's. "
        "n: documents."
    )
