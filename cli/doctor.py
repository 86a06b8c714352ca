"""`sapo doctor`: what is here, what is missing, and how to get it."""

from dataclasses import asdict

import typer

from sapo.cli.console import Json, Overrides, check_lines, emit


def command(overrides: Overrides = None, json: Json = False) -> None:
    """Check this machine for the default job, or that of the overrides; exit 1 if something is missing."""
    from sapo.conf.load import load_one

    config = load_one(overrides or [])
    from sapo.experiments.doctor import checks

    found = list(checks(config))
    ready = all(check.ok for check in found if check.required)
    end = "Ready." if ready else "Not ready: see what is missing."
    document = {"ready": ready, "checks": [asdict(check) for check in found]}
    emit(document, json, [*check_lines(found, "missing", "absent"), end])
    if not ready:
        raise typer.Exit(1)
