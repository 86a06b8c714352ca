"""`sapo doctor`: what is here, what is missing, and how to get it."""

import typer
from rich.console import Console

from sapo.cli.console import Json, Overrides, emit, say


def command(overrides: Overrides = None, json: Json = False) -> None:
    """Check this machine for the default job, or that of the overrides; exit 1 if something is missing."""
    from dataclasses import asdict

    from sapo.conf.load import load_one

    config = load_one(overrides or [])
    from sapo.experiments.doctor import checks

    found = list(checks(config))
    ready = all(check.ok for check in found if check.required)

    def render(console: Console) -> None:
        for check in found:
            mark = "ok" if check.ok else "missing" if check.required else "absent"
            say(console, f"{mark:<8}{check.name}: {check.detail}")
            if not check.ok and check.mend:
                say(console, f"        {check.mend}")
        console.print("Ready." if ready else "Not ready: see what is missing.")

    emit({"ready": ready, "checks": [asdict(check) for check in found]}, json, render)
    if not ready:
        raise typer.Exit(1)
