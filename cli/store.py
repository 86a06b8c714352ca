"""`sapo store ls|verify|gc|export|import`: what lies in the store, its soundness, and moving it elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from sapo.cli.console import Json, duration, emit, notice, table
from sapo.conf.errors import UserError, WorkError

if TYPE_CHECKING:
    from sapo.experiments.engine.store import Store

group = typer.Typer(
    help="What lies in the store, whether it is still what was stored, and how it moves elsewhere.",
    no_args_is_help=True,
)
Root = Annotated[Path, typer.Option("--root", envvar="SAPO_STORE", help="Folder of the store")]
RUNS = Path("runs")


@group.command()
def verify(
    root: Root = RUNS,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is damaged")] = False,
    json: Json = False,
) -> None:
    """Read everything that is stored; exit 1 if anything is damaged, missing, or cannot be read.

    Files have the SHA-256 of their manifest, stages are what their names say, and runs and probes have all of
    theirs.
    """
    from sapo.experiments.engine import garbage

    store = _store(root)
    found = garbage.verify(store)
    count, runs = sum(1 for _ in store.stages()), sum(1 for _ in store.runs())
    gone: list[Path] = []
    hint = "Delete it with `sapo store verify --delete`; the commands that made it then make it again."
    try:
        gone = garbage.delete_damaged(store, found) if delete else []
    except UserError as error:  # after what is damaged is named
        hint = f"Nothing was deleted. {error}"
    left = [problem for problem in found if problem.path is None or problem.path not in gone]
    if json or not left:
        damaged = f"{len(gone)} damaged and deleted" if gone else "none damaged"
        counts = f"{count} stages and {runs} runs in {store.root}, {damaged}."
        document = {"root": str(store.root), "stages": count, "runs": runs, "deleted": [str(p) for p in gone]}
        document["damaged"] = [problem.line for problem in found]
        emit(document, json, [*(f"Deleted {path}" for path in gone), counts])
    if left:
        lines = [f"  {problem.line}" for problem in left]
        lines += [hint] if any(problem.path for problem in left) else []
        head = f"{len(left)} damaged, missing or not readable in {store.root}:"
        raise WorkError("\n".join([head, *lines]))


@group.command("ls")
def list_stages(root: Root = RUNS, json: Json = False) -> None:
    """Every finished stage (kind, key, task, model, seconds, size), and what each kind takes on the disk."""
    from sapo.experiments.engine.garbage import contents

    document = contents(_store(root))
    lines = [
        f"{entry['name']}  {entry['description']}, {decimal(entry['bytes'])}" for entry in document["stages"]
    ]
    rows = [(kind, facts["count"], decimal(facts["bytes"])) for kind, facts in document["kinds"].items()]
    rows.append(("all", "", decimal(document["bytes"])))
    emit(document, json, [*lines, table(("kind", "number", "size"), rows)])


@group.command()
def gc(
    root: Root = RUNS,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without, only say what would go")] = False,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Also what is of no finished run")] = False,
    json: Json = False,
) -> None:
    """List, or delete with --yes, what nothing refers to: remains of processes that died, locks nobody holds.

    Nothing is deleted while another command is at work in the store. --unfinished adds stages and checkpoints
    that no finished run or probe refers to: what deleted runs left, but also what a killed run would go on
    from. What `sapo eval` computed in a run's trained states is the run's, of the untouched model it is not.
    """
    from sapo.experiments.engine.garbage import LOCK, collect, leftovers

    store = _store(root)
    found = leftovers(store)
    items = [item for item in found if unfinished or not item.is_of_no_run]
    kept = [item for item in found if item not in items]
    gone = collect(store, items) if yes else []
    size = sum(item.bytes for item in (gone if yes else items))
    entries = [
        {"path": str(item.path), "what": item.what, "bytes": item.bytes, "age_seconds": round(item.age)}
        for item in items
    ]
    lines = [
        f"{item.path}  {item.what}, {decimal(item.bytes)}, {duration(item.age)} old"
        for item in items
        if item.what != LOCK
    ]
    if locks := [item.age for item in items if item.what == LOCK]:
        oldest = duration(max(locks))
        lines.append(f"{store.root / 'locks'}  {len(locks)} locks that nobody holds, the oldest {oldest} old")
    if kept:
        of_kept = decimal(sum(item.bytes for item in kept))
        lines.append(f"Kept: {len(kept)} that no finished run refers to ({of_kept}): --unfinished.")
    would = f"{len(items)} would go (nothing was deleted; --yes deletes)"
    lines.append(f"{f'Deleted {len(gone)}' if yes else would}: {decimal(size)}.")
    emit({"items": entries, "bytes": size, "deleted": len(gone), "kept": len(kept)}, json, lines)


@group.command("export")
def export_runs(
    runs: Annotated[list[str], typer.Argument(help="Finished runs or probes: folders, ids, or patterns")],
    out: Annotated[Path, typer.Argument(metavar="OUT.tar.gz", help="A new file")],
    root: Root = RUNS,
    results: Annotated[bool, typer.Option("--results", help="Without stages: only to analyze")] = False,
    json: Json = False,
) -> None:
    """Write finished runs, and probes with theirs, with all stages to one file, for `sapo store import`.

    To go on elsewhere with runs that have not finished, copy the whole store folder.
    """
    from sapo.analysis.results import find
    from sapo.experiments.engine import archive

    folders = find(runs, root.expanduser(), both=True)
    done = archive.export_runs(folders, out, with_stages=not results)
    document = {"file": str(out), "runs": done.runs, "probes": done.probes, "stages": done.stages}
    probes = f", {len(done.probes)} probes" if done.probes else ""
    text = f"{len(done.runs)} runs with {done.stages} stages{probes}, {decimal(done.bytes)}, in {out}"
    emit(document | {"bytes": done.bytes}, json, [text])


@group.command("import")
def import_archive(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `sapo store export` wrote")],
    root: Root = RUNS,
    json: Json = False,
) -> None:
    """Take runs and stages in from a file, all or nothing; the same commands then find them computed.

    What comes in is whole and fits together. Nothing shows who made it: import from people you trust.
    """
    from sapo.experiments.engine import archive

    store = _store(root, is_new=True)
    done = archive.import_archive(file, store)
    notice("sapo: an archive shows that it is whole, not who made it: import only from people you trust.")
    text = f"{len(done.runs)} runs and {done.stages} stages ({done.kept} were there) are in {store.root}:"
    document = {"root": str(store.root), "runs": done.runs, "probes": done.probes, "stages": done.stages}
    lines = [text, *(f"  {name}" for name in (*done.runs, *done.probes))]
    emit(document | {"kept": done.kept}, json, lines)


def _store(root: Path, is_new: bool = False) -> "Store":
    from sapo.experiments.engine.store import Store

    if not (root := root.expanduser()).is_dir() and not is_new:
        raise UserError(f"No store {root}. Say where it is with --root FOLDER or SAPO_STORE.")
    return Store(root)
