"""`sapo plan OVERRIDES…`: what there is to do, what is done, and what it takes."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.filesize import decimal

from sapo.cli.console import Json, Overrides, duration, emit, notice, notice_rows, table

_NOTES = (
    "Estimates: tokens from characters; time from rates measured on one device with the model, rows "
    "dealt over engine.devices; disk as adapters in float32 and tables of answers; memory of one row at a "
    "time, as long as settings allow.",
    "Trainings whose prompt is still to be chosen are to do.",
)
_RATES = ("H20 h", "H100 h")
_UNMEASURED = (
    "Not all of the models were measured here: `sapo plan --measure` takes a minute. Hours are stated: "
    "of an H20 by the paper's Table 10; and of an H100 at 40 % of its peak of 989 TFLOP/s, where beginnings "
    "that rows share are computed once."
)


def command(
    overrides: Overrides = None,
    json: Json = False,
    measure: Annotated[bool, typer.Option("--measure", help="First measure this device (a minute)")] = False,
    card_gb: Annotated[float | None, typer.Option(min=1, help="What fits on a GPU of so many GB")] = None,
) -> None:
    """Stages to do and done, with tokens, estimated time and memory; only measures."""
    from sapo.conf.load import load

    configs = load(overrides or [])
    notice_rows(configs)
    from sapo.experiments.jobs import Job
    from sapo.experiments.plan import plan_jobs

    if measure:
        from sapo.experiments.costs import measured, rates_file, save_rates
        from sapo.experiments.ready import require_ready

        by_model = {repr((config.model, config.engine)): config for config in configs}
        require_ready(list(by_model.values()))
        for config in by_model.values():
            rates = measured(config, lambda line: notice(f"sapo: {line}"))
            save_rates(config, rates)
            notice(
                f"sapo: {config.model.name}: training {rates.training:,.0f} tokens/s, reading "
                f"{rates.reading:,.0f} tokens/s, generation {rates.steps:,.2f} steps/s of {rates.rows} rows; "
                f"kept in {rates_file(config)}"
            )
    document = plan_jobs([Job(config) for config in configs], card_gb=card_gb)
    emit(document, json, plan_parts(document))


def plan_parts(document: dict[str, Any]) -> Iterator[RenderableType]:
    """The plan as tables: of several targets each alone, then all together."""
    rows: list[tuple[object, ...]] = []
    for name, alone in document.get("targets", {}).items():
        if "error" in alone:
            yield f"No plan of {name}: {alone['error']}"
            continue
        counts = (sum(kind[count] for kind in alone["kinds"]) for count in ("done", "to_do"))
        rows.append((name, alone["runs"], *counts, duration(alone["seconds"]), *_hours(alone)))
    if rows:
        yield table(("target", "runs", "done", "to do", "time", *_RATES), rows, "Each target alone")
        yield "All of them, shared stages counted once:"
    # Under the trainings, one line a place in the sequence if there are several.
    places = document["trainings"] if len(document["trainings"]) > 1 else []
    rows = [
        (row["kind"], row["done"], row["to_do"], f"{row['tokens']:,}", duration(row["seconds"]))
        for kind in document["kinds"]
        for row in (kind, *(places if kind["kind"] == "train" else ()))
    ]
    rows.append(("all", "", "", "", duration(document["seconds"])))
    yield table(("stages", "done", "to do", "tokens", "time"), rows, f"Runs: {document['runs']}")
    asked, shared = document["asked"], document["shared"]
    yield f"The runs ask for {asked:,} stages, {shared:,} of which another has asked for already."
    for left_out in document["unplanned"]:
        yield f"No plan of {left_out['runs']} more: {left_out['reason']}"
    rows = []
    for name, model in document["models"].items():
        work = f"{model['stages']:,}", f"{model['tokens']:,}", duration(model["seconds"])
        rows.append((name, *work, *_hours(model), decimal(model["disk_bytes"])))
    rows.append(("all, and runs", "", "", "", "", "", decimal(document["disk_bytes"])))
    yield table(("model", "to do", "tokens", "time", *_RATES, "disk"), rows)
    for name, need in document["memory"].items():
        if need["fits"] is None:
            yield f"{name}: nothing says how large it is (model.parameters=BILLIONS)."
            continue
        weights, least, room = (decimal(round(need[what])) for what in ("weights", "training", "device"))
        fits = "fits in" if need["fits"] else "does not fit in"
        ways = f"; with {' '.join(need['ways'])} it does" if need["ways"] else ""
        yield f"{name}: weights {weights}; a training takes at least {least}, which {fits} {room}{ways}."
    yield from document["notes"]
    if any(model["seconds"] is None for model in document["models"].values()):
        yield _UNMEASURED
    yield from _NOTES


def _hours(planned: dict[str, Any]) -> Iterator[str]:
    for value in planned["gpu_hours"].values():
        yield "unknown" if value is None else f"{value:,.{0 if value > 10 else 2}f}"
