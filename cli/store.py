"""`sapo store verify|ls`: what lies in the store, and whether it is still what was stored."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sapo.cli.console import Json, emit, store_root

if TYPE_CHECKING:
    from rich.console import Console

    from sapo.experiments.engine.store import Store

group = typer.Typer(
    help="What lies in the store, and whether it is still what was stored.", no_args_is_help=True
)
Root = Annotated[
    Path | None, typer.Option("--root", help="Folder of the store [default: SAPO_STORE, else runs]")
]


@group.command()
def verify(root: Root = None, json: Json = False) -> None:
    """Compare the SHA-256 of every stored file with its manifest; exit 1 if anything is damaged."""
    from sapo.conf.errors import WorkError

    store = _store(root)
    damaged = list(store.damaged())
    count = sum(1 for _ in store.stages())
    if json or not damaged:
        document = {"root": str(store.root), "stages": count, "damaged": damaged}
        emit(document, json, lambda console: console.print(f"{count} stages in {store.root}, none damaged."))
    if damaged:
        lines = "\n".join(f"  {line}" for line in damaged)
        raise WorkError(
            f"{len(damaged)} damaged in {store.root}:\n{lines}\n"
            "Delete the stage's folder; the command that made it computes it again."
        )


@group.command("ls")
def list_stages(root: Root = None, json: Json = False) -> None:
    """Every finished stage: kind, key, task, model, seconds."""
    from sapo.cli.ls import stages

    entries = stages(_store(root).root)

    def render(console: "Console") -> None:
        for entry in entries:
            console.print(f"{entry['name']}  {entry['description']}", markup=False, soft_wrap=True)

    emit({"stages": entries}, json, render)


def _store(root: Path | None) -> "Store":
    from sapo.conf.errors import UserError
    from sapo.experiments.engine.store import Store

    root = root or store_root()
    if not root.is_dir():
        raise UserError(f"No store {root}. Say where it is with --root FOLDER or SAPO_STORE.")
    return Store(root)
