"""`sapo ls KIND`: what there is, one line each."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from sapo.cli.console import Json, emit, notice, store_root

EXAMPLES = (
    "sapo ls models",
    "sapo ls runs policy=sapo seed=0",
)

_MEASURES = {"nll": "NLL", "rougeL": "ROUGE-L"}


def command(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="sequences, models, policies, …, tasks, runs; without one: all kinds",
            autocompletion=lambda: [*kinds(), "tasks", "runs"],
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]…", help="Those with this value alone: runs policy=sapo seed=0"),
    ] = None,
    json: Json = False,
) -> None:
    """List sequences, models, methods, policies, tasks, runs, …, with one line on each; or the kinds."""
    from sapo.conf.errors import unknown
    from sapo.conf.load import choices, description

    groups = kinds()
    entries: list[dict[str, Any]] = []
    kind = {group: name for name, group in groups.items()}.get(kind or "", kind)  # `model` for `models`
    if kind in groups:
        group = groups[kind]
        entries = [{"name": name, "description": description(group, name)} for name in choices(group)]
    elif kind == "tasks":
        from sapo.conf.load import load_one
        from sapo.data.benchmarks import catalogue

        root = load_one([]).data.root
        for entry in catalogue(Path(root) if root else None):
            where = "" if entry["at_hand"] else " (no data: sapo fetch benchmarks)"
            text = entry["instruction"]
            start = text if len(text) <= 70 else f"{text[:69]}…"
            facts = f"{entry['benchmark']}, {entry['paraphrases']} paraphrases{where}"
            entries.append({**entry, "description": f"{facts}: {' '.join(start.split()) or '(empty)'}"})
    elif kind == "runs":
        entries += runs(store_root())
    elif kind is None:
        entries = [{"name": name, "description": f"sapo ls {name}"} for name in (*groups, "tasks", "runs")]
    else:
        raise unknown("kind", kind, (*groups, "tasks", "runs"))
    for condition in only or []:
        key, _, value = condition.partition("=")
        if entries and key not in entries[0]:
            raise unknown("key", key, entries[0])
        entries = [entry for entry in entries if str(entry[key]) == value]
    if not entries and only:
        notice(f"sapo: no {kind} with {' '.join(only)}.")
    elif not entries:
        notice(f"sapo: no {kind} in {store_root()}; `sapo train` makes some.")
    width = max((len(entry["name"]) for entry in entries), default=0)
    lines = [f"{entry['name']:<{width}}  {entry['description']}" for entry in entries]
    emit({kind or "kinds": entries}, json, lines)


def kinds() -> dict[str, str]:
    """What there is of config groups: `policies` is the group `policy`."""
    from sapo.conf.load import GROUPS

    plural = {group: f"{group[:-1]}ies" if group.endswith("y") else f"{group}s" for group in GROUPS}
    return {name: group for group, name in (plural | {"paraphrases": "paraphrases"}).items()}


def runs(root: Path) -> Iterator[dict[str, Any]]:
    """The finished runs of a store, the oldest first; of one that cannot be read, why."""
    from json import loads

    def age(path: Path) -> tuple[float, Path]:
        return path.stat().st_mtime, path

    for path in sorted(root.glob("runs/*/run.json"), key=age):
        date = f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}"
        facts: dict[str, Any] = dict.fromkeys(("sequence", "model", "method", "policy", "seed"))
        aps = dict.fromkeys(("rougeL", "nll"))
        try:
            record = loads(path.read_bytes())
            facts = {name: record[name] for name in facts}
            metrics = path.with_name("metrics.json")
            if metrics.is_file():  # written by the analysis; runs of a probe or from an archive have none yet
                of_measure = loads(metrics.read_bytes())["metrics"]
                aps = {name: of_measure[name]["reference"]["AP"] for name in aps}
            shown = [f"{name} {aps[key]:.2f}" for key, name in _MEASURES.items() if aps[key] is not None]
            ap = f", AP {', '.join(shown)}" if shown else ""
            text = f"{date}  {facts['model']}, {facts['policy']}{ap}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            text = f"not readable ({type(error).__name__})"
        own = {"date": date, "AP": aps["rougeL"], "AP_nll": aps["nll"], "dir": str(path.parent)}
        yield {"name": path.parent.name, "description": text, **facts, **own}
