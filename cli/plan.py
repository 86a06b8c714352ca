"""`sapo plan OVERRIDES…`: what there is to do, what is done, and what it takes."""

from typing import Any

from rich.console import Console

from sapo.cli.console import Json, Overrides, amount, duration, emit, notice_rows, say, table

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
    emit(document, json, lambda console: render_plan(console, document))


def render_plan(console: Console, document: dict[str, Any]) -> None:
    """The plan as tables: of several targets each alone, then all together."""
    for name, alone in document.get("targets", {}).items():
        if "error" in alone:
            say(console, f"No plan of {name}: {alone['error']}")
    if "targets" in document:
        rows = [
            (name, alone["runs"], *_counts(alone), duration(alone["seconds"]), _hours(alone["gpu_hours"]))
            for name, alone in document["targets"].items()
            if "error" not in alone
        ]
        columns = ("target", "runs", "done", "to do", "time", "GPU hours")
        console.print(table(columns, rows, "Each target alone"))
        console.print("All of them, shared stages counted once:")
    console.print(_kinds_table(document))
    asked, shared = document["asked"], document["shared"]
    console.print(f"The runs ask for {asked:,} stages, {shared:,} of which another has asked for already.")
    for left_out in document["unplanned"]:
        say(console, f"No plan of {_counted(left_out['runs'], 'more run')}: {left_out['reason']}")
    rows = [
        (
            name,
            f"{model['stages']:,}",
            f"{model['tokens']:,}",
            _hours(model["gpu_hours"]),
            ", ".join(model["rates"]) or "-",
            amount(model["disk_bytes"]),
            amount(document["weight_bytes"][name]),
        )
        for name, model in document["models"].items()
    ]
    rows.append(("all, and runs", "", "", "", "", amount(document["disk_bytes"]), ""))
    console.print(table(("model", "to do", "tokens", "GPU hours", "rates", "disk", "weights"), rows))
    for line in _NOTES:
        console.print(line)


def _kinds_table(document: dict[str, Any]) -> Any:
    """A line a kind of stage, and under the trainings one a place in the sequence if there are several."""
    trainings = document["trainings"] if len(document["trainings"]) > 1 else []
    kinds = [
        row for kind in document["kinds"] for row in (kind, *(trainings if kind["kind"] == "train" else []))
    ]
    rows: list[tuple[str, ...]] = [
        (row["kind"], str(row["done"]), str(row["to_do"]), f"{row['tokens']:,}", duration(row["seconds"]))
        for row in kinds
    ]
    rows.append(("all", "", "", "", duration(document["seconds"])))
    # No column of unknown times where GPU hours tell as much.
    timed = (
        any(kind["to_do"] and kind["seconds"] is not None for kind in document["kinds"])
        or document["seconds"] is not None
        or any(model["gpu_hours"] is None for model in document["models"].values())
    )
    columns = ("stages", "done", "to do", "tokens", "time")[: 5 if timed else 4]
    return table(columns, [row[: len(columns)] for row in rows], _counted(document["runs"], "run"))


def _counts(document: dict[str, Any]) -> list[int]:
    return [sum(kind[count] for kind in document["kinds"]) for count in ("done", "to_do")]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}"


def _hours(hours: float | None) -> str:
    return "unknown" if hours is None else f"{hours:,.1f}"
