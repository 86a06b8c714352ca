"""`sapo store ls|verify|gc|export|import`: what lies in the store, its soundness, and moving it elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sapo.cli.console import Json, amount, duration, emit, notice, say, store_root

if TYPE_CHECKING:
    from sapo.experiments.engine.store import Store

group = typer.Typer(
    help="What lies in the store, whether it is still what was stored, and how it moves elsewhere.",
    no_args_is_help=True,
)
Root = Annotated[
    Path | None, typer.Option("--root", help="Folder of the store [default: SAPO_STORE, else runs]")
]


@group.command()
def verify(
    root: Root = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete what is damaged: its command then makes it again")
    ] = False,
    json: Json = False,
) -> None:
    """Read everything that is stored; exit 1 if anything is damaged, missing, or cannot be read.

    Files have the SHA-256 of their manifest, stages are what their names say, and runs and probes have all of
    theirs.
    """
    from sapo.conf.errors import WorkError
    from sapo.experiments.engine import garbage

    store = _store(root)
    found = garbage.verify(store)
    count, runs = sum(1 for _ in store.stages()), sum(1 for _ in store.runs())
    gone = garbage.delete_damaged(store, found) if delete else []
    left = [problem for problem in found if problem.path is None or problem.path not in gone]

    def render(console: Console) -> None:
        for path in gone:
            say(console, f"Deleted {path}")
        damaged = f"{len(gone)} damaged and deleted" if gone else "none damaged"
        say(console, f"{count} stages and {runs} runs in {store.root}, {damaged}.")

    if json or not left:
        document = {"root": str(store.root), "stages": count, "runs": runs, "deleted": [str(p) for p in gone]}
        emit(document | {"damaged": [problem.line for problem in found]}, json, render)
    if left:
        lines = "\n".join(f"  {problem.line}" for problem in left)
        mend = ""
        if any(problem.path for problem in left):
            mend = (
                "\nDelete it with `sapo store verify --delete`; the commands that made it then make it again."
            )
        raise WorkError(f"{len(left)} damaged, missing or not readable in {store.root}:\n{lines}{mend}")


@group.command("ls")
def list_stages(root: Root = None, json: Json = False) -> None:
    """Every finished stage (kind, key, task, model, seconds, size), and what each kind takes on the disk."""
    from sapo.cli.ls import stages
    from sapo.experiments.engine.garbage import size_of

    store = _store(root)
    sizes = {(kind, stored.key): size_of(stored.folder) for kind, stored in store.stages()}
    entries: list[dict[str, Any]] = [
        entry | {"bytes": sizes[kind, entry["key"]]}
        for entry in stages(store.root)
        for kind in [entry["name"].split("/")[0]]
    ]
    kinds = _kinds(store, sizes)
    total = sum(kind["bytes"] for kind in kinds.values())

    def render(console: Console) -> None:
        for entry in entries:
            line = f"{entry['name']}  {entry['description']}, {amount(entry['bytes'])}"
            say(console, line)
        for kind, facts in kinds.items():
            console.print(f"{facts['count']:>7} {kind:<12} {amount(facts['bytes']):>9}")
        console.print(f"{'':>7} {'all':<12} {amount(total):>9}")

    emit({"stages": entries, "kinds": kinds, "bytes": total}, json, render)


def _kinds(store: "Store", sizes: dict[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    """How many there are of each kind of stage and of everything else, and their bytes."""
    from sapo.experiments.engine.garbage import size_of

    lists: dict[str, list[int]] = {}
    for (kind, _), size in sizes.items():
        lists.setdefault(kind, []).append(size)
    for kind in ("runs", "probes", "checkpoints", "building"):
        lists[kind] = [size_of(folder) for folder in store.root.glob(f"{kind}/*")]
    return {kind: {"count": len(found), "bytes": sum(found)} for kind, found in lists.items()}


@group.command()
def gc(
    root: Root = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without, only say what would go")] = False,
    unfinished: Annotated[
        bool,
        typer.Option(
            "--unfinished",
            help="Also stages and checkpoints that no finished run or probe refers to: what deleted runs "
            "left, but also what a killed run would go on from",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """List, or delete with --yes, what nothing refers to: remains of processes that died, locks nobody holds.

    What is being computed is never touched. What `sapo eval` computed in a run's trained states is kept with
    the run; what it computed of the untouched model no run refers to, and --unfinished deletes it.
    """
    from sapo.experiments.engine.garbage import LOCK, collect, leftovers

    store = _store(root)
    found = leftovers(store)
    items = [item for item in found if unfinished or not item.is_of_no_run]
    kept = [item for item in found if item not in items]
    entries: list[dict[str, Any]] = [
        {"path": str(item.path), "what": item.what, "bytes": item.bytes, "age_seconds": round(item.age)}
        for item in items
    ]
    gone = collect(store, items) if yes else []
    size = sum(item.bytes for item in (gone if yes else items))

    def render(console: Console) -> None:
        locks = [entry for entry in entries if entry["what"] == LOCK]
        for entry in entries:
            if entry in locks:
                continue
            facts = f"{entry['what']}, {amount(entry['bytes'])}, {duration(entry['age_seconds'])} old"
            say(console, f"{entry['path']}  {facts}")
        if locks:
            oldest = duration(max(entry["age_seconds"] for entry in locks))
            facts = f"{len(locks)} locks that nobody holds, the oldest {oldest} old"
            say(console, f"{store.root / 'locks'}  {facts}")
        if kept:
            kept_bytes = amount(sum(item.bytes for item in kept))
            console.print(f"Kept: {len(kept)} that no finished run refers to ({kept_bytes}): --unfinished.")
        what = (
            f"Deleted {len(gone)}" if yes else f"{len(items)} would go (nothing was deleted; --yes deletes)"
        )
        console.print(f"{what}: {amount(size)}.")

    emit({"items": entries, "bytes": size, "deleted": len(gone), "kept": len(kept)}, json, render)


@group.command("export")
def export_runs(
    runs: Annotated[
        list[str], typer.Argument(help="Finished runs: folders, ids, or patterns", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.tar.gz", help="A new file", show_default=False)],
    root: Root = None,
    json: Json = False,
) -> None:
    """Write finished runs with all their stages to one file, which `sapo store import` takes in elsewhere.

    To go on elsewhere with runs that have not finished, copy the whole store folder.
    """
    from sapo.analysis.results import find_runs
    from sapo.experiments.engine import archive

    done = archive.export_runs(find_runs(runs, root or store_root()), out)
    text = f"{len(done.runs)} runs with {done.stages} stages, {amount(done.bytes)}, in {out}"
    document = {"file": str(out), "runs": done.runs, "stages": done.stages, "bytes": done.bytes}
    emit(document, json, lambda console: say(console, text))


@group.command("import")
def import_archive(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `sapo store export` wrote")],
    root: Root = None,
    json: Json = False,
) -> None:
    """Take runs and stages in from a file, all or nothing; the same commands then find them computed.

    What comes in is whole and fits together. Nothing shows who made it: import from people you trust.
    """
    from sapo.experiments.engine import archive
    from sapo.experiments.engine.store import Store

    store = Store((root or store_root()).expanduser())
    done = archive.import_archive(file, store)
    notice("sapo: an archive shows that it is whole, not who made it: import only from people you trust.")
    text = f"{len(done.runs)} runs and {done.stages} stages ({done.kept} were there) are in {store.root}:"
    lines = [text, *(f"  {run}" for run in done.runs)]
    document = {"root": str(store.root), "runs": done.runs, "stages": done.stages, "kept": done.kept}
    emit(document, json, lambda console: say(console, "\n".join(lines)))


def _store(root: Path | None) -> "Store":
    from sapo.conf.errors import UserError
    from sapo.experiments.engine.store import Store

    root = (root or store_root()).expanduser()
    if not root.is_dir():
        raise UserError(f"No store {root}. Say where it is with --root FOLDER or SAPO_STORE.")
    return Store(root)
