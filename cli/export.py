"""`sapo export RUN --to FOLDER`: a trained state for other programs, with its model card."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapo.cli.console import Json, emit

if TYPE_CHECKING:
    from rich.console import Console

    from sapo.experiments.reevaluation import Reevaluation


def command(
    run: Annotated[str, typer.Argument(help="Run folder or id")],
    to: Annotated[Path, typer.Option(help="New folder to write")],
    state: Annotated[
        str, typer.Option(help="last, a number of trained tasks, or the task that was trained last")
    ] = "last",
    merge: Annotated[
        bool, typer.Option("--merge", help="Write the whole model with the adapter in its weights")
    ] = False,
    json: Json = False,
) -> None:
    """Write a trained state as one PEFT adapter, or as a merged model, with tokenizer and model card."""
    from sapo.cli.console import find_run, nothing_on_stdout
    from sapo.experiments.export import require_free

    to = to.expanduser()
    require_free(to)
    folder = find_run(run)
    with nothing_on_stdout():
        document = _export(folder, to, state, merge)
    emit(document, json, lambda console: _render(console, document))


def _export(folder: Path, to: Path, state: str, merge: bool) -> dict[str, Any]:
    from sapo.analysis.model_card import model_card
    from sapo.analysis.results import load_run
    from sapo.experiments.engine.store import Store
    from sapo.experiments.export import export, exportable
    from sapo.experiments.reevaluation import open_run

    opened = open_run(folder)
    result = load_run(folder)
    source = exportable(opened, state, Store(folder.parent.parent))  # ROOT/runs/<id>
    facts = source.facts(merge)
    difference = export(source, to, merge, model_card(result, facts))
    files = sorted(path for path in to.rglob("*") if path.is_file())
    return {
        **facts,
        "dir": str(to),
        "files": {path.relative_to(to).as_posix(): path.stat().st_size for path in files},
        "logits_difference": difference,
        "test": _test(opened, to) if merge else None,
    }


def _test(run: "Reevaluation", merged: Path) -> str:
    """The command that evaluates a merged model on the run's tasks."""
    import shlex

    model = shlex.join([f"model={run.record['model']}", f"model.path={merged}"])
    return f"sapo train {run.sequence} method=zero_shot policy=static {model}"


def _render(console: "Console", document: dict[str, Any]) -> None:
    base, rank = document["base"], document["rank"]
    tasks = ", ".join(lesson["task"] for lesson in document["tasks"])
    size = sum(document["files"].values()) / 1e6
    lines = [f"{document['run']} after {tasks}: {size:.1f} MB in {document['dir']}"]
    if document["kind"] == "merged":
        lines += [
            f"{base['model']} with an adapter of rank {rank} merged into its weights; its logits differ "
            f"from the adapter's by at most {document['logits_difference']:.1g} of the largest one",
            f"Test it: {document['test']}",
        ]
    else:
        lines.append(f"An adapter of rank {rank} for {base['load']}")
    lines.append("README.md there has the prompts that it needs, and Python code to use it.")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
