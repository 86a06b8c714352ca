"""`sapo ls KIND`: what there is, one line each."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from sapo.cli.console import Json, emit, notice, store_root
from sapo.conf.errors import unknown


def command(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="sequences, models, policies, …, tasks, runs; without one: all kinds",
            autocompletion=lambda: [*kinds(), "tasks", "runs"],
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="policy=sapo seed=0")
    ] = None,
    json: Json = False,
) -> None:
    """List sequences, models, methods, policies, tasks, runs, …, with one line on each; or the kinds."""
    from sapo.conf.load import choices, description

    groups = kinds()
    known = (*groups, "tasks", "runs")
    kind = {group: name for name, group in groups.items()}.get(kind or "", kind)  # `model` for `models`
    if kind is None:
        entries = [{"name": name, "description": f"sapo ls {name}"} for name in known]
    elif kind in groups:
        group = groups[kind]
        entries = [{"name": name, "description": description(group, name)} for name in choices(group)]
    elif kind in known:
        entries = list(tasks() if kind == "tasks" else runs(store_root()))
    else:
        raise unknown("kind", kind, known)
    for condition in only or []:
        key, _, value = condition.partition("=")
        if entries and key not in entries[0]:
            raise unknown("key", key, entries[0])
        entries = [entry for entry in entries if str(entry[key]) == value]
    if not entries:
        where = f"with {' '.join(only)}." if only else f"in {store_root()}; `sapo train` makes some."
        notice(f"sapo: no {kind} {where}")
    width = max((len(entry["name"]) for entry in entries), default=0)
    lines = [f"{entry['name']:<{width}}  {entry['description']}" for entry in entries]
    emit({kind or "kinds": entries}, json, lines)


def kinds() -> dict[str, str]:
    """What there is of config groups: `policies` is the group `policy`."""
    from sapo.conf.load import GROUPS

    plural = {group: f"{group[:-1]}ies" if group.endswith("y") else f"{group}s" for group in GROUPS}
    return {name: group for group, name in (plural | {"paraphrases": "paraphrases"}).items()}


def tasks() -> Iterator[dict[str, Any]]:
    """All tasks that can be named, with the beginning of their instructions."""
    from sapo.conf.load import load_one
    from sapo.data.benchmarks import catalogue

    root = load_one([]).data.root
    for entry in catalogue(Path(root) if root else None):
        where = "" if entry["at_hand"] else " (no data: sapo fetch benchmarks)"
        text = entry["instruction"]
        start = " ".join((text if len(text) <= 70 else f"{text[:69]}…").split())
        facts = f"{entry['benchmark']}, {entry['paraphrases']} paraphrases{where}"
        yield {**entry, "description": f"{facts}: {start or '(empty)'}"}


def runs(root: Path) -> Iterator[dict[str, Any]]:
    """The finished runs of a store, the oldest first; of one that cannot be read, why."""
    from json import loads

    for path in sorted(root.glob("runs/*/run.json"), key=lambda path: (path.stat().st_mtime, path)):
        date = f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}"
        facts: dict[str, Any] = dict.fromkeys(("sequence", "model", "method", "policy", "seed"))
        aps = dict.fromkeys(("nll", "rougeL"))
        try:
            record = loads(path.read_bytes())
            facts = {name: record[name] for name in facts}
            metrics = path.with_name("metrics.json")
            if metrics.is_file():  # written by the analysis; runs of a probe or from an archive have none yet
                of_measure = loads(metrics.read_bytes())["metrics"]
                aps = {name: of_measure[name]["reference"]["AP"] for name in aps}
            names = {"nll": "NLL", "rougeL": "ROUGE-L"}
            shown = [f"{names[key]} {ap:.2f}" for key, ap in aps.items() if ap is not None]
            ap = f", AP {', '.join(shown)}" if shown else ""
            text = f"{date}  {facts['model']}, {facts['policy']}{ap}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            text = f"not readable ({type(error).__name__})"
        own = {"date": date, "AP": aps["rougeL"], "AP_nll": aps["nll"], "dir": str(path.parent)}
        yield {"name": path.parent.name, "description": text, **facts, **own}
