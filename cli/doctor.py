"""`sapo doctor`: what is here, what is missing, and how to get it."""

from typing import TYPE_CHECKING

import typer

from sapo.cli.console import Json, Overrides, emit

if TYPE_CHECKING:
    from rich.console import Console


def command(overrides: Overrides = None, json: Json = False) -> None:
    """Check this machine for the default job, or that of the overrides; exit 1 if something is missing."""
    from dataclasses import asdict

    from sapo.conf.load import load_one

    config = load_one(overrides or [])
    from sapo.experiments.machine import checks

    found = list(checks(config))
    ready = all(check.ok for check in found if check.required)

    def render(console: "Console") -> None:
        for check in found:
            mark = "ok     " if check.ok else "missing" if check.required else "absent "
            style = "green" if check.ok else "red" if check.required else "yellow"
            console.print(mark, style=style, end=" ")
            console.print(check.name, end=": ")
            console.print(check.detail, markup=False, soft_wrap=True)
            if not check.ok and check.mend:
                console.print(f"        {check.mend}", markup=False, soft_wrap=True)
        console.print("Ready." if ready else "Not ready: mend what is missing.")

    emit({"ready": ready, "checks": [asdict(check) for check in found]}, json, render)
    if not ready:
        raise typer.Exit(1)
