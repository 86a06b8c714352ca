"""`sapo plan OVERRIDES…`: what there is to do, what is done, and what it takes."""

from typing import TYPE_CHECKING, Any

from sapo.cli.console import Json, Overrides, emit

if TYPE_CHECKING:
    from rich.console import Console

    from sapo.conf.schema import Config


def command(overrides: Overrides = None, json: Json = False) -> None:
    """Stages to do and done, with tokens, estimated time and memory; computes nothing."""
    from sapo.conf.load import load

    document = describe(load(overrides or []))
    emit(document, json, lambda console: render(console, document))


def describe(configs: list["Config"]) -> dict[str, Any]:
    """The plan of some runs as JSON values; None for what is not known."""
    from dataclasses import asdict
    from pathlib import Path

    from sapo.experiments.batch import require_possible
    from sapo.experiments.engine.store import Store
    from sapo.experiments.planning import plan, weight_bytes

    for config in configs:
        require_possible(config)
    kinds = plan(configs, Store(Path(configs[0].store.root)))
    seconds = [kind.seconds for kind in kinds]
    known = [second for second in seconds if second is not None]
    weights = {config.model.name: weight_bytes(config) for config in configs}
    return {
        "runs": len(configs),
        "kinds": [asdict(kind) for kind in kinds],
        "seconds": sum(known) if len(known) == len(seconds) else None,
        "weight_bytes": weights,
    }


def render(console: "Console", document: dict[str, Any]) -> None:
    """The plan as a table."""
    from sapo.cli.views import simple_table

    runs = document["runs"]
    table = simple_table(f"{runs} run{'s' if runs > 1 else ''}", "stages", "done", "to do", "tokens", "time")
    for kind in document["kinds"]:
        counts = (str(kind["done"]), str(kind["to_do"]), f"{kind['tokens']:,}")
        table.add_row(kind["kind"], *counts, _time(kind["seconds"]))
    table.add_row("all", "", "", "", _time(document["seconds"]))
    console.print(table)
    for model, size in document["weight_bytes"].items():
        amount = "unknown (model.parameters is not set)" if size is None else f"{size / 1e9:.1f} GB"
        console.print(f"Memory of {model}'s weights: {amount}", markup=False)
    console.print(
        "Estimates: tokens from characters, time from this store's finished stages of the same model, memory "
        "as parameters x bytes without activations. Trainings whose prompt is still to be chosen are to do."
    )


def _time(seconds: float | None) -> str:
    from sapo.cli.console import duration

    return "unknown" if seconds is None else duration(seconds)
