"""`sapo fetch model|benchmarks|superni`: what a job needs, onto this machine."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sapo.cli.console import Json, emit

group = typer.Typer(help="Get models and benchmarks onto this machine.", no_args_is_help=True)
To = Annotated[Path, typer.Option(envvar="SAPO_DATA", help="Folder")]
BENCHMARKS = Path("benchmarks")


def _models() -> list[str]:
    from sapo.conf.load import choices

    return choices("model")


@group.command()
def model(
    names: Annotated[list[str], typer.Argument(help="`sapo ls models`, OWNER/NAME", autocompletion=_models)],
    json: Json = False,
) -> None:
    """Download or build models."""
    from sapo.conf.load import load_one
    from sapo.experiments.model.fetch import build

    configs = [load_one([f"model={name}"]) for name in names]  # all names are checked before any download
    found = [{"name": config.model.name, "path": str(build(config.model))} for config in configs]
    emit({"models": found}, json, [f"{each['name']}: {each['path']}" for each in found])


@group.command()
def benchmarks(to: To = BENCHMARKS, json: Json = False) -> None:
    """Get SuperNI and TRACE from the paper's repository (needs git and the network)."""
    from sapo.data.fetch import fetch_benchmarks

    _fetched(to, fetch_benchmarks, json)


@group.command()
def superni(to: To = BENCHMARKS, json: Json = False) -> None:
    """Get all tasks of Natural Instructions from their public repository (needs git and the network)."""
    from sapo.data.fetch import fetch_natural

    _fetched(to, fetch_natural, json)


def _fetched(target: Path, fetch: Callable[[Path], bool], json: bool) -> None:
    is_new = fetch(target)
    lines = [f"{'Fetched to' if is_new else 'There already:'} {target}"]
    if os.environ.get("SAPO_DATA") != str(target):
        lines.append(f"Tell sapo where: export SAPO_DATA={target.resolve()} (or pass data.root={target})")
    emit({"path": str(target), "fetched": is_new}, json, lines)
