"""`sapo ls KIND`: what there is, one line each."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sapo.cli.console import Json, emit, notice, say, store_root

GROUPS = {
    "sequences": "sequence",
    "models": "model",
    "methods": "method",
    "policies": "policy",
    "paraphrases": "paraphrases",
    "scorers": "scorer",
    "evaluators": "evaluator",
    "trainers": "trainer",
    "scales": "scale",
    "engines": "engine",
    "parities": "parity",
    "experiments": "experiment",
}
KINDS = (*GROUPS, "tasks", "runs", "stages")
Entries = list[dict[str, Any]]


def command(
    kind: Annotated[
        str | None,
        typer.Argument(help=", ".join(KINDS), autocompletion=lambda: list(KINDS), show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """List sequences, models, methods, policies, tasks, runs, …, with one line on each; or the kinds."""
    from sapo.conf.errors import unknown
    from sapo.conf.load import choices, description

    kind = "kinds" if kind is None else kind
    kind = {group: name for name, group in GROUPS.items()}.get(kind, kind)  # `model` will do for `models`
    if kind == "kinds":
        entries = [{"name": name, "description": f"sapo ls {name}"} for name in KINDS]
    elif kind in GROUPS:
        group = GROUPS[kind]
        entries = [{"name": name, "description": description(group, name)} for name in choices(group)]
    elif kind == "tasks":
        entries = _tasks()
    elif kind in KINDS:
        entries = runs(store_root()) if kind == "runs" else stages(store_root())
    else:
        raise unknown("kind", kind, KINDS)

    def render(console: Console) -> None:
        if not entries:
            notice(f"sapo: no {kind} in {store_root()}; `sapo train` makes some.")
        width = max((len(entry["name"]) for entry in entries), default=0)
        say(console, *(f"{entry['name']:<{width}}  {entry['description']}" for entry in entries))

    emit({kind: entries}, json, render)


def stages(root: Path) -> Entries:
    """The finished stages of a store; of one that cannot be read, why."""
    from sapo.conf.errors import UserError
    from sapo.experiments.engine.store import Store

    entries = []
    for kind, stored in Store(root).stages():
        try:
            text = f"{stored.result.task}, {stored.result.model}, {stored.result.seconds:.1f} s"
        except UserError as error:
            text = f"not readable ({type(error).__name__})"
        entries.append({"name": f"{kind}/{stored.key[:12]}", "description": text, "key": stored.key})
    return entries


def _tasks() -> Entries:
    from dataclasses import asdict

    from sapo.conf.load import load_one
    from sapo.data.benchmarks import catalogue

    root = load_one([]).data.root
    entries = []
    for entry in catalogue(Path(root) if root else None):
        where = "" if entry.at_hand else " (no data: sapo fetch benchmarks)"
        start = entry.instruction if len(entry.instruction) <= 70 else f"{entry.instruction[:69]}…"
        instruction = " ".join(start.split()) or "(empty)"
        text = f"{entry.benchmark}, {entry.paraphrases} paraphrases{where}: {instruction}"
        entries.append({**asdict(entry), "description": text})
    return entries


def runs(root: Path) -> Entries:
    """The finished runs of a store; of one that cannot be read, why."""
    from json import loads

    entries = []
    for path in sorted(root.glob("runs/*/run.json")):
        policy, ap = None, None
        try:
            facts = policy = str(loads(path.read_bytes())["policy"])
            metrics = path.with_name("metrics.json")
            if metrics.is_file():  # written by the analysis; runs of a probe or from an archive have none yet
                ap = loads(metrics.read_bytes())["metrics"]["rougeL"]["reference"]["AP"]
                facts += f", AP {'-' if ap is None else f'{ap:.2f}'} ROUGE-L"
        except (OSError, ValueError, KeyError, TypeError) as error:
            policy, facts = None, f"not readable ({type(error).__name__})"
        entries.append({"name": path.parent.name, "description": facts, "policy": policy, "AP": ap})
    return entries
