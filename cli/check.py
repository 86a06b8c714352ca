"""`sapo check RUN serve=URL`: whether an endpoint reads and answers what a run has trained."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sapo.cli.console import Json, Progress, State, check_lines, emit, find_run, take
from sapo.conf.errors import UserError


def command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN serve=URL [KEY=VALUE]…",
            help="Run folder or id, the address of an OpenAI-compatible endpoint, and where things are: "
            "data.root=FOLDER, store.root=FOLDER, model.path=FOLDER",
        ),
    ],
    state: State = "last",
    task: Annotated[str | None, typer.Option(help="Whose test rows (default: the state's last)")] = None,
    rows: Annotated[int, typer.Option(help="Test rows that are asked", min=1)] = 8,
    model: Annotated[str | None, typer.Option(help="What the endpoint calls the model")] = None,
    key_variable: Annotated[str | None, typer.Option(help="Environment variable with its key")] = None,
    request: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with the body that your program sends, {input} in place of the input "
            "(default: the trained layout as a chat)"
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that an answer may take", min=0.1)] = 120.0,
    json: Json = False,
) -> None:
    """Check that an endpoint reads the tokens that were trained, and answers as the run did; exit 1 if not.

    Looks at the tokens themselves through /tokenize or /apply-template where the endpoint has them (vLLM,
    llama.cpp), at log-probabilities where it echoes them, and at greedy answers to test rows everywhere.
    """
    own, rest = take(words, ["serve"])
    names, overrides = [w for w in rest if "=" not in w], [w for w in rest if "=" in w]
    if len(names) != 1:
        raise UserError(f"Which run? Name one (`sapo ls runs`); {len(names)} are named.")
    if "serve" not in own:
        raise UserError("Which endpoint? Say serve=URL, such as serve=http://127.0.0.1:8000.")
    key = os.environ.get(key_variable, "") if key_variable else ""
    if key_variable and not key:
        raise UserError(f"--key-variable {key_variable}: this environment variable is not set.")
    folder = find_run(names[0], overrides)
    from sapo.data.files import read_json
    from sapo.experiments.export import exportable
    from sapo.experiments.reevaluation import open_run
    from sapo.experiments.serving import Endpoint, Served

    endpoint = Endpoint(own["serve"], model, key, timeout)
    sent = read_json(request) if request else None
    with Progress() as progress:
        served = Served(exportable(open_run(folder, overrides), state), endpoint, task, rows, sent)
        progress.expect(len(served.rows))
        found = list(served.checks(lambda: progress.advance("")))
    is_served = all(check.ok for check in found if check.required)
    document = {"run": folder.name, "task": served.task.name, "rows": len(served.rows), "served": is_served}
    document["checks"] = [asdict(check) for check in found]
    head = f"{folder.name}, state {served.state.after}: {len(served.rows)} test rows of {served.task.name}"
    end = f"{'Served' if is_served else 'Not served'} as it was trained."
    emit(document, json, [head, *check_lines(found, "wrong", "unseen"), end])
    if not is_served:
        raise typer.Exit(1)
