"""`sapo plan OVERRIDES…`: what there is to do, what is done, and what it takes."""

from typing import TYPE_CHECKING, Any

from sapo.cli.console import Json, Overrides, emit, notice_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from sapo.experiments.jobs import Job


def command(overrides: Overrides = None, json: Json = False) -> None:
    """Stages to do and done, with tokens, estimated time and memory; computes nothing."""
    from sapo.conf.load import load
    from sapo.experiments.jobs import Job

    configs = load(overrides or [])
    notice_rows(configs)
    document = describe([Job(config) for config in configs])
    emit(document, json, lambda console: render(console, document))


def describe(jobs: list["Job"], probes: "Sequence[tuple[Sequence[Job], bool]]" = ()) -> dict[str, Any]:
    """The plan of some runs, and of `probes` as `planning.plan` takes them, as JSON values.

    None for what is not known. Runs that cannot be planned are left out, and counted by their reason; raises
    if none can.
    """
    from dataclasses import asdict
    from pathlib import Path

    from sapo.experiments.engine.store import Store
    from sapo.experiments.plan import plan, weight_bytes
    from sapo.experiments.run import plannable

    possible, unplanned = plannable(jobs)
    kept = {job.key for job in possible}
    of_probes = [([job for job in runs if job.key in kept], gradients) for runs, gradients in probes]
    planned = plan(possible, Store(Path(jobs[0].config.store.root)), of_probes)
    distinct = sum(kind.done + kind.to_do for kind in planned.kinds)
    return {
        "runs": len(possible),
        "unplanned": [{"runs": count, "reason": reason} for reason, count in unplanned.items()],
        "kinds": [asdict(kind) for kind in planned.kinds],
        "trainings": [asdict(kind) for kind in planned.trainings],
        "asked": planned.asked,
        "shared": planned.asked - distinct,
        "seconds": _total([kind.seconds for kind in planned.kinds]),
        "gpu_hours": _total([model.gpu_hours for model in planned.models.values()]),
        "models": {name: asdict(model) for name, model in planned.models.items()},
        "disk_bytes": planned.disk_bytes,
        "weight_bytes": {job.config.model.name: weight_bytes(job.config) for job in possible},
    }


def _total(values: "Sequence[float | None]") -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def render(console: "Console", document: dict[str, Any]) -> None:
    """The plan as a table."""
    from sapo.cli.views import simple_table

    runs = document["runs"]
    columns = ["stages", "done", "to do", "tokens", *(["time"] if _is_timed(document) else [])]
    table = simple_table(f"{runs} run{'s' if runs > 1 else ''}", *columns)
    trainings = document["trainings"] if len(document["trainings"]) > 1 else []
    kinds = [
        kind
        for of_kind in document["kinds"]
        for kind in (of_kind, *(trainings if of_kind["kind"] == "train" else []))
    ]
    rows = [
        (row["kind"], str(row["done"]), str(row["to_do"]), f"{row['tokens']:,}", time_text(row["seconds"]))
        for row in kinds
    ]
    for row in [*rows, ("all", "", "", "", time_text(document["seconds"]))]:
        table.add_row(*row[: len(columns)])
    console.print(table)
    asked, shared = document["asked"], document["shared"]
    console.print(f"The runs ask for {asked:,} stages, {shared:,} of which another has asked for already.")
    for left_out in document["unplanned"]:
        count = left_out["runs"]
        line = f"No plan of {count} more run{'s' if count > 1 else ''}: {left_out['reason']}"
        console.print(line, markup=False, soft_wrap=True)
    console.print(_models_table(document))
    for line in _NOTES:
        console.print(line, markup=False)


def _is_timed(document: dict[str, Any]) -> bool:
    """Whether some stages to do have a known time, or else there are no GPU hours that tell as much."""
    known = any(kind["to_do"] and kind["seconds"] is not None for kind in document["kinds"])
    return (
        known
        or document["seconds"] is not None
        or any(model["gpu_hours"] is None for model in document["models"].values())
    )


_NOTES = (
    "Estimates: tokens from characters; time and GPU hours from this store's finished stages of the same "
    "model (measured), else hours from the paper's Table 10, a GPU being an H20 (stated); disk as adapters "
    "in float32 and tables of answers; memory of weights as parameters x bytes, without activations.",
    "Trainings whose prompt is still to be chosen are to do.",
)


def _models_table(document: dict[str, Any]) -> "Table":
    """A line a model: what is to do, and what it takes."""
    from sapo.cli.views import simple_table

    names = ("to do", "tokens", "GPU hours", "rates", "disk", "weights")
    table = simple_table(None, "model", *names)
    for name, model in document["models"].items():
        table.add_row(
            name,
            f"{model['stages']:,}",
            f"{model['tokens']:,}",
            hours_text(model["gpu_hours"]),
            ", ".join(model["rates"]) or "-",
            _size(model["disk_bytes"]),
            _size(document["weight_bytes"][name]),
        )
    table.add_row("all, and runs", "", "", "", "", _size(document["disk_bytes"]), "")
    return table


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def time_text(seconds: float | None) -> str:
    """`2 h 5 min`, or that it is unknown."""
    from sapo.cli.console import duration

    return "unknown" if seconds is None else duration(seconds)


def hours_text(hours: float | None) -> str:
    """Hours of one GPU, or that they are unknown."""
    return "unknown" if hours is None else f"{hours:,.1f}"
