"""`sapo fetch model|benchmarks`: what a job needs, onto this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sapo.cli.console import Json, emit

if TYPE_CHECKING:
    from rich.console import Console

group = typer.Typer(help="Get models and benchmarks onto this machine.", no_args_is_help=True)


def _models(incomplete: str) -> list[str]:
    from sapo.conf.load import choices

    return [name for name in choices("model") if name.startswith(incomplete)]


@group.command()
def model(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME…", help="Models (`sapo ls models`)", autocompletion=_models)
    ],
    json: Json = False,
) -> None:
    """Download or build models."""
    from sapo.conf.load import load_one
    from sapo.experiments.model.fetch import build

    configs = [load_one([f"model={name}"]) for name in names]  # all names are checked before any download
    paths = {config.model.name: str(build(config.model)) for config in configs}

    def render(console: "Console") -> None:
        for name, path in paths.items():
            console.print(f"{name}: {path}", markup=False, soft_wrap=True)

    emit({"models": [{"name": name, "path": path} for name, path in paths.items()]}, json, render)


@group.command()
def benchmarks(
    to: Annotated[Path | None, typer.Option(help="Folder [default: SAPO_DATA, else benchmarks]")] = None,
    json: Json = False,
) -> None:
    """Get SuperNI and TRACE from the paper's repository (needs git and the network)."""
    import os

    from sapo.data.fetch import fetch_benchmarks

    target = to or Path(os.environ.get("SAPO_DATA") or "benchmarks")
    is_new = fetch_benchmarks(target)
    text = f"{'Fetched to' if is_new else 'There already:'} {target}"
    if os.environ.get("SAPO_DATA") != str(target):
        text += f"\nTell sapo where: export SAPO_DATA={target.resolve()} (or pass data.root={target})"
    document = {"path": str(target), "fetched": is_new}
    emit(document, json, lambda console: console.print(text, markup=False, soft_wrap=True))
