"""`sapo plan OVERRIDES…`: what there is to do, what is done, and what it takes."""

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.filesize import decimal

from sapo.cli.console import Json, Overrides, duration, emit, notice_rows, table

_NOTES = (
    "Estimates: tokens from characters; time and GPU hours from this store's finished stages of the same "
    "model (measured), else hours from the paper's Table 10, a GPU being an H20 (stated); disk as adapters "
    "in float32 and tables of answers; memory of weights as parameters x bytes, without activations.",
    "Trainings whose prompt is still to be chosen are to do.",
)


def command(overrides: Overrides = None, json: Json = False) -> None:
    """Stages to do and done, with tokens, estimated time and memory; computes nothing."""
    from sapo.conf.load import load

    configs = load(overrides or [])
    notice_rows(configs)
    from sapo.experiments.jobs import Job
    from sapo.experiments.plan import plan_jobs

    document = plan_jobs([Job(config) for config in configs])
    emit(document, json, plan_parts(document))


def plan_parts(document: dict[str, Any]) -> Iterator[RenderableType]:
    """The plan as tables: of several targets each alone, then all together."""
    if "targets" in document:
        rows: list[tuple[object, ...]] = []
        for name, alone in document["targets"].items():
            if "error" in alone:
                yield f"No plan of {name}: {alone['error']}"
                continue
            counts = [sum(kind[count] for kind in alone["kinds"]) for count in ("done", "to_do")]
            times = duration(alone["seconds"]), _hours(alone["gpu_hours"])
            rows.append((name, alone["runs"], *counts, *times))
        columns = ("target", "runs", "done", "to do", "time", "GPU hours")
        yield table(columns, rows, "Each target alone")
        yield "All of them, shared stages counted once:"
    rows = []
    for kind in document["kinds"]:
        # Under the trainings, one line a place in the sequence if there are several.
        places = document["trainings"] if kind["kind"] == "train" and len(document["trainings"]) > 1 else []
        for row in (kind, *places):
            time = duration(row["seconds"])
            rows.append((row["kind"], row["done"], row["to_do"], f"{row['tokens']:,}", time))
    rows.append(("all", "", "", "", duration(document["seconds"])))
    yield table(("stages", "done", "to do", "tokens", "time"), rows, f"Runs: {document['runs']}")
    asked, shared = document["asked"], document["shared"]
    yield f"The runs ask for {asked:,} stages, {shared:,} of which another has asked for already."
    for left_out in document["unplanned"]:
        yield f"No plan of {left_out['runs']} more: {left_out['reason']}"
    rows = []
    for name, model in document["models"].items():
        work = f"{model['stages']:,}", f"{model['tokens']:,}", _hours(model["gpu_hours"])
        weights = document["weight_bytes"][name]
        sizes = decimal(model["disk_bytes"]), decimal(weights) if weights else "unknown"
        rows.append((name, *work, ", ".join(model["rates"]) or "-", *sizes))
    rows.append(("all, and runs", "", "", "", "", decimal(document["disk_bytes"]), ""))
    yield table(("model", "to do", "tokens", "GPU hours", "rates", "disk", "weights"), rows)
    yield from _NOTES


def _hours(hours: float | None) -> str:
    return "unknown" if hours is None else f"{hours:,.1f}"
