"""`sapo ls KIND`: what there is, one line each."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapo.cli.console import Json, emit, store_root

if TYPE_CHECKING:
    from sapo.experiments.engine.store import Stored

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

    if kind is None:
        entries = [{"name": name, "description": f"sapo ls {name}"} for name in KINDS]
        emit({"kinds": entries}, json, lambda console: _render(console, "kinds", entries))
        return

    kind = next(
        (name for name, group in GROUPS.items() if kind == group), kind
    )  # `model` will do for `models`
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    own: dict[str, Callable[[], Entries]] = {
        "tasks": _tasks,
        "runs": lambda: runs(store_root()),
        "stages": lambda: stages(store_root()),
    }
    entries = own[kind]() if kind in own else _choices(GROUPS[kind])
    emit({kind: entries}, json, lambda console: _render(console, kind, entries))


def stages(root: Path) -> Entries:
    """The finished stages of a store; of one that cannot be read, why."""
    from sapo.experiments.engine.store import Store

    return [
        {"name": f"{kind}/{stored.key[:12]}", "description": _stage_facts(stored), "key": stored.key}
        for kind, stored in Store(root).stages()
    ]


def _stage_facts(stored: "Stored") -> str:
    from sapo.conf.errors import UserError

    try:
        return f"{stored.result.task}, {stored.result.model}, {stored.result.seconds:.1f} s"
    except UserError as error:
        return f"not readable ({type(error).__name__})"


def _choices(group: str) -> Entries:
    from sapo.conf.load import choices, description

    return [{"name": name, "description": description(group, name)} for name in choices(group)]


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
    import json

    entries = []
    for path in sorted(root.glob("runs/*/run.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            facts = str(record["policy"])
            metrics = path.parent / "metrics.json"
            ap = None
            if metrics.is_file():  # written by the analysis; runs of a probe or from an archive have none yet
                ap = json.loads(metrics.read_text(encoding="utf-8"))["metrics"]["rougeL"]["reference"]["AP"]
                facts += f", AP {'-' if ap is None else f'{ap:.2f}'} ROUGE-L"
        except (OSError, ValueError, KeyError, TypeError) as error:
            record, ap = {}, None
            facts = f"not readable ({type(error).__name__})"
        entries.append(
            {"name": path.parent.name, "description": facts, "policy": record.get("policy"), "AP": ap}
        )
    return entries


def _render(console: Any, kind: str, entries: Entries) -> None:
    if not entries:
        from sapo.cli.console import notice

        notice(f"sapo: no {kind} in {store_root()}.")
        return
    width = max(len(entry["name"]) for entry in entries)
    for entry in entries:
        console.print(f"{entry['name']:<{width}}  {entry['description']}", markup=False, soft_wrap=True)
