"""`sapo export RUN --to FOLDER`: a trained state for other programs, with its model card."""

from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sapo.cli.console import Json, Overrides, amount, emit, find_run, nothing_on_stdout, say

if TYPE_CHECKING:
    from sapo.experiments.reevaluation import FinishedRun


def command(
    run: Annotated[str, typer.Argument(help="Run folder or id")],
    to: Annotated[Path, typer.Option(help="New folder to write")],
    overrides: Overrides = None,
    state: Annotated[
        str, typer.Option(help="last, a number of trained tasks, or the task that was trained last")
    ] = "last",
    merge: Annotated[
        bool, typer.Option("--merge", help="Write the whole model with the adapter in its weights")
    ] = False,
    json: Json = False,
) -> None:
    """Write a trained state as one PEFT adapter, or as a merged model, with tokenizer and model card."""
    from sapo.analysis.model_card import model_card
    from sapo.analysis.results import load_run
    from sapo.experiments.export import export, exportable, require_free
    from sapo.experiments.reevaluation import open_run

    to = to.expanduser()
    require_free(to)
    folder = find_run(run, overrides)
    with nothing_on_stdout():
        opened = open_run(folder, overrides or [])
        source = exportable(opened, state)
        facts = source.facts(merge)
        card = model_card(load_run(folder), facts)
        difference = export(source, to, merge, card)
    files = sorted(path for path in to.rglob("*") if path.is_file())
    document = {
        **facts,
        "dir": str(to),
        "files": {path.relative_to(to).as_posix(): path.stat().st_size for path in files},
        "logits_difference": difference,
        "test": _test(opened, to) if merge else None,
    }
    emit(document, json, lambda console: _render(console, document))


def _test(run: "FinishedRun", merged: Path) -> str:
    """The command that evaluates a merged model on the run's tasks."""
    model = join([f"model={run.record.model}", f"model.path={merged}"])
    return f"sapo train {run.sequence} method=zero_shot policy=static {model}"


def _render(console: Console, document: dict[str, Any]) -> None:
    base, rank = document["base"], document["rank"]
    tasks = ", ".join(learned["task"] for learned in document["tasks"])
    size = amount(sum(document["files"].values()))
    say(console, f"{document['run']} after {tasks}: {size} in {document['dir']}")
    if document["kind"] == "merged":
        say(
            console,
            f"{base['model']} with an adapter of rank {rank} merged into its weights; its logits differ "
            f"from the adapter's by at most {document['logits_difference']:.1g} of the largest one",
            f"Test it: {document['test']}",
        )
    else:
        say(console, f"An adapter of rank {rank} for {base['load']}")
    say(console, "README.md there has the prompts that it needs, and Python code to use it.")
