"""Runs with all their stages as one file, which another machine imports and goes on from.

A gzipped tar of plain files: `index.json` (names and sizes), then `stages/KIND/KEY/…` and `runs/ID/…`. It is
read block by block, so that nothing of tar's but a plain file with a known name and size is ever taken.
"""

import gzip
import io
import json
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sapo.conf.errors import UserError, WorkError, is_full
from sapo.conf.schema import ParaphrasesConfig
from sapo.data.files import flush, stored_json, sync
from sapo.data.records import MANIFEST, damage
from sapo.data.tasks import digest
from sapo.experiments.engine.store import KINDS, Store, Stored
from sapo.experiments.runs import RUN_FILES, put_run

FORMAT = 1
INDEX = "index.json"
LARGEST_INDEX = 2**26
_BLOCK = 512
_PIECE = 2**20
_STAGE = re.compile(
    rf"stages/(?:{'|'.join(KINDS)})/[0-9a-f]{{64}}/(?:\w[\w.-]*/){{0,3}}\w[\w.-]*\.(?:json|yaml|parquet|safetensors|md)",
    re.ASCII,
)
_KEY = re.compile(r"[0-9a-f]{64}")
# What reading files that somebody else has written may raise.
_MALFORMED = (KeyError, TypeError, AttributeError, ValueError, RecursionError, WorkError, yaml.YAMLError)
_RUN = re.compile(rf"runs/[^./\x00-\x1f\\][^/\x00-\x1f\\]*/(?:{'|'.join(map(re.escape, RUN_FILES))})")


@dataclass(frozen=True)
class Archived:
    """What an archive holds, or what an import did: run ids, stages, those that were there already, bytes."""

    runs: list[str]
    stages: int
    kept: int
    bytes: int


def export_runs(folders: Sequence[Path], target: Path) -> Archived:
    """Writes finished runs and every stage that they refer to; all is verified before it is written.

    Raises UserError if the target exists or a stage is not in the store, WorkError if anything is damaged.
    """
    if target.exists():
        raise UserError(f"{target} exists already. Name a new file; nothing is overwritten.")
    files: dict[str, Path] = {}
    stages: dict[str, Stored] = {}
    for folder in folders:
        store = Store(folder.parent.parent)
        stages |= {stored.key: stored for stored in _stages_of(folder, store)}
        files |= {f"runs/{folder.name}/{name}": folder / name for name in RUN_FILES}
    for stored in stages.values():
        name = f"stages/{stored.folder.parent.name}/{stored.key}"
        names = [*stored_json(stored.folder / MANIFEST), MANIFEST]
        files |= {f"{name}/{file}": stored.folder / file for file in names}
    strangers = [name for name in files if not _is_known(name)]
    if strangers:
        raise UserError(f"{strangers[0]} is nothing that an import would take.")
    sizes = {name: path.stat().st_size for name, path in sorted(files.items())}
    index = json.dumps({"format": FORMAT, "files": sizes}).encode()
    try:
        _pack(files, sizes, index, target)
    except OSError as error:
        raise (WorkError if is_full(error) else UserError)(f"Cannot write {target}: {error}.") from error
    return Archived([folder.name for folder in folders], len(stages), 0, sum(sizes.values()))


def _pack(files: dict[str, Path], sizes: dict[str, int], index: bytes, target: Path) -> None:
    """Writes the archive beside its place, and moves it there when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        # Weights do not compress: the fastest level is nearly as small as the best.
        with tarfile.open(
            Path(scratch) / "archive", "w:gz", compresslevel=1, format=tarfile.USTAR_FORMAT
        ) as tar:
            tar.addfile(_member(INDEX, len(index)), io.BytesIO(index))
            for name, size in sizes.items():
                with files[name].open("rb") as content:
                    tar.addfile(_member(name, size), content)
        (Path(scratch) / "archive").rename(target)


def import_archive(file: Path, store: Store) -> Archived:
    """Takes the runs and stages of an archive into the store, after all of it was verified.

    What the store has already stays. Runs come last: a run is there when all its stages are. Raises
    UserError if the file is no whole archive, holds anything else, does not fit on the disk, or if a stage
    of the store has another result.
    """
    with _opened(file):  # what is no archive makes no store
        pass
    with store.lock("import"), store.scratch("import") as scratch:
        n_bytes = _unpack(file, scratch, shutil.disk_usage(store.root).free)
        stages = sorted(path for path in scratch.glob("stages/*/*"))
        runs = sorted(scratch.glob("runs/*"))
        try:
            for stage in stages:
                _check_stage(stage)
            for run in runs:
                _check_run(run, scratch)
        except _MALFORMED as error:
            raise UserError(f"{file} holds a stage or run that sapo has not written: {error!r}") from error
        kept = [stage for stage in stages if _has_already(store, stage)]
        put = [_put_stage(store, stage) for stage in stages if stage not in kept]
        for run in runs:
            with store.lock(run.name):
                if not (store.run_folder(run.name) / "run.json").is_file():
                    put_run(run, store.run_folder(run.name))
    return Archived([run.name for run in runs], len(stages), len(stages) - sum(put), n_bytes)


def _put_stage(store: Store, stage: Path) -> bool:
    """Moves a stage to its place; False if a command has computed it meanwhile, which then stays."""
    final = store.root / "stages" / stage.parent.name / stage.name
    with store.lock(stage.name):
        if _has_already(store, stage):
            return False
        flush(stage)
        final.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(final, ignore_errors=True)  # without a manifest: what an interrupted copy left
        stage.rename(final)
        sync(final.parent)
    return True


def _stages_of(folder: Path, store: Store) -> Iterator[Stored]:
    if not (folder / MANIFEST).is_file():
        raise UserError(f"Run {folder.name} was written without a manifest: run its command again.")
    for line in damage(folder):
        raise WorkError(f"Damaged: {line}. Run its command again: only what is missing is computed.")
    try:
        keys = [(stage["kind"], stage["key"]) for stage in stored_json(folder / "run.json")["stages"]]
    except (KeyError, TypeError) as error:
        raise WorkError(f"Damaged: {folder / 'run.json'} names no stages. Run its command again.") from error
    for kind, key in keys:
        stored = store.find(kind, key)
        if stored is None:
            raise UserError(
                f"Stage {kind}/{key[:12]} of run {folder.name} is not in {store.root}. "
                "Run its command again: only what is missing is computed."
            )
        yield stored


def _member(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def _is_known(name: str) -> bool:
    return bool(_STAGE.fullmatch(name) or _RUN.fullmatch(name))


def _unpack(file: Path, scratch: Path, free: int) -> int:
    """Writes the archive's files under `scratch` and returns their bytes."""
    with _opened(file) as (stream, members, sizes):
        total = sum(sizes.values())
        if total > free:
            raise UserError(f"{file} needs {total:,} bytes, and {free:,} are free. Set --root FOLDER.")
        for name, size in members:
            if sizes.pop(name, None) != size:
                raise UserError(f"{file}: {name} is not as its index says, or comes twice.")
            _write(stream, size, scratch / name)
        if len(rest := stream.read(_PIECE)) == _PIECE or rest.strip(b"\0"):  # checks the sum, too
            raise ValueError("more follows its end")
    if sizes:
        raise UserError(f"{file} is not whole: {next(iter(sizes))} is missing.")
    return total


@contextmanager
def _opened(file: Path) -> Iterator[tuple[gzip.GzipFile, Iterator[tuple[str, int]], dict[str, int]]]:
    """An archive that is read: its stream, its members after the index, and the sizes that this declares."""
    try:
        with gzip.open(file) as stream:
            members = _members(stream)
            yield stream, members, _index(stream, next(members, ("", 0)))
    except (OSError, EOFError, zlib.error, tarfile.HeaderError, ValueError, RecursionError) as error:
        if is_full(error):  # the store's disk: the archive may well be whole
            raise
        raise UserError(f"{file} is no whole archive of `sapo store export`: {error}") from error


def _members(stream: gzip.GzipFile) -> Iterator[tuple[str, int]]:
    """Name and size of every member, whose content the caller reads before the next."""
    while (block := stream.read(_BLOCK)).strip(b"\0"):
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        if info.type != tarfile.REGTYPE:
            raise ValueError(f"{info.name!r} is not a plain file")
        yield info.name, info.size
        stream.read(-info.size % _BLOCK)


def _index(stream: gzip.GzipFile, member: tuple[str, int]) -> dict[str, int]:
    name, size = member
    if name != INDEX or not 0 <= size <= LARGEST_INDEX:  # a tar can say less than nothing: all, to `read`
        raise ValueError("it does not begin with an index")
    index: Any = json.loads(stream.read(size))
    if (
        not isinstance(index, dict)
        or index.get("format") != FORMAT
        or not isinstance(index.get("files"), dict)
    ):
        raise ValueError(f"its index is not of format {FORMAT}")
    for name, size in index["files"].items():
        if not _is_known(name):
            raise ValueError(f"{name!r} is nothing that a store holds")
        if type(size) is not int or size < 0:
            raise ValueError(f"{name!r} has no size")
    return dict(index["files"])


def _write(stream: gzip.GzipFile, size: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        while size:
            piece = stream.read(min(size, _PIECE))
            if not piece:
                raise EOFError(f"it ends within {path.name}")
            file.write(piece)
            size -= len(piece)


def _check_stage(folder: Path) -> None:
    """A stage is what its manifest says, and under the key of its own identity."""
    name = f"{folder.parent.name}/{folder.name[:12]}"
    _check_files(folder, name)
    identity = stored_json(folder / "identity.json") if (folder / "identity.json").is_file() else {}
    if digest(identity) != folder.name or identity.get("kind") != folder.parent.name:
        raise UserError(f"Stage {name} of the archive is not what its key says.")


def _check_run(folder: Path, scratch: Path) -> None:
    """A run has its own name, and all its stages are with it."""
    _check_files(folder, folder.name)
    record = stored_json(folder / "run.json")
    if record.get("id") != folder.name:
        raise UserError(f"Run {folder.name} of the archive has another id.")
    for stage in record["stages"]:
        if stage["kind"] not in KINDS or not _KEY.fullmatch(stage["key"]):
            raise UserError(f"Run {folder.name} of the archive refers to what is no stage.")
        if not (scratch / "stages" / stage["kind"] / stage["key"]).is_dir():
            raise UserError(f"Stage {stage['kind']}/{stage['key'][:12]} of run {folder.name} is missing.")


def _check_files(folder: Path, name: str) -> None:
    for line in damage(folder):
        raise UserError(f"Damaged in the archive: {Path(line.split()[0]).name} of {name} ({line}).")
    listed = {MANIFEST, *stored_json(folder / MANIFEST)}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if listed != found:
        raise UserError(f"{name} of the archive holds {sorted(found ^ listed)[0]}, unlike its manifest.")
    config = folder / "config.yaml"
    if config.is_file() and _is_unsafe(_settings(config.read_text(encoding="utf-8"))):
        raise UserError(
            f"The settings of {name} run code of a model's, or may read this machine's environment "
            "(model.trust_remote_code, ${…}): it is not imported. Run it here yourself if you trust it."
        )


def _settings(text: str) -> Any:
    """The values of a config file; ValueError if it repeats parts of itself, a million times perhaps."""
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
        raise ValueError("an alias in config.yaml")
    return yaml.safe_load(text)


def _is_unsafe(settings: Any) -> bool:
    if isinstance(settings, dict):
        return bool(settings.get("trust_remote_code")) or any(map(_is_unsafe, settings.values()))
    if isinstance(settings, list):
        return any(map(_is_unsafe, settings))
    # A resolver's name can be put together from other values: only what is known to be harmless passes.
    return isinstance(settings, str) and "${" in settings and settings != ParaphrasesConfig.folder


def _has_already(store: Store, stage: Path) -> bool:
    """Whether the store has the stage; UserError if its tables or weights are others there."""
    stored = store.find(stage.parent.name, stage.name)
    if stored is None:
        return False
    if _results(stored.folder) != _results(stage):
        raise UserError(
            f"Stage {stage.parent.name}/{stage.name[:12]} is in {store.root} with another result: it was "
            "computed on another device or with other versions. Import into another store: --root FOLDER."
        )
    return True


def _results(folder: Path) -> dict[str, str]:
    """The digests of tables and weights: seconds and environment differ from one time to the next."""
    manifest = stored_json(folder / MANIFEST)
    return {
        name: facts["sha256"]
        for name, facts in manifest.items()
        if name.endswith((".parquet", ".safetensors"))
    }
