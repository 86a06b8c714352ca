"""Runs with all their stages as one file, which another machine imports and goes on from.

A gzipped tar of plain files: `index.json` (names and sizes), then `stages/KIND/KEY/…`, `runs/ID/…` and
`probes/ID/…`. What it holds is whole and fits together, or it is refused; who made it, nothing in it can
show. One of results alone has no stages: it can be analyzed, not gone on from.
"""

import gzip
import hashlib
import io
import json
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self, cast

import yaml

from sapo.conf.errors import UserError, WorkError, is_full
from sapo.conf.names import why_no_run
from sapo.conf.schema import ParaphrasesConfig
from sapo.data.files import sha256, unreadable
from sapo.data.records import MANIFEST, FileFacts, ProbeRecord, mend, read_manifest, read_record
from sapo.experiments.engine.garbage import RECORDS, verify
from sapo.experiments.engine.store import KINDS, PROBE_FILES, RUN_FILES, Store, put_record

FORMAT = 1
INDEX = "index.json"
LARGEST_INDEX = 2**26
_STAGE = re.compile(
    rf"stages/(?:{'|'.join(KINDS)})/[0-9a-f]{{64}}/(?:\w[\w.-]*/){{0,3}}\w[\w.-]*\.(?:json|yaml|parquet|safetensors|md)",
    re.ASCII,
)
_RECORD = re.compile(
    rf"(?:runs/([^/]*)/(?:{'|'.join(map(re.escape, RUN_FILES))})"
    rf"|probes/([^/]*)/(?:{'|'.join(map(re.escape, PROBE_FILES))}))"
)


@dataclass(frozen=True)
class Archived:
    """What an archive holds, or what an import did: ids, stages, those that were there already, bytes."""

    runs: list[str]
    probes: list[str]
    stages: int
    kept: int
    bytes: int


def export_runs(folders: Sequence[Path], target: Path, with_stages: bool = True) -> Archived:
    """Writes finished runs and probes, these with their runs, and every stage that they refer to.

    Every file is compared with its manifest. Raises UserError if the target exists or a stage is not in the
    store, WorkError if anything is damaged.
    """
    if target.exists():
        raise UserError(f"{target} exists already. Name a new file; nothing is overwritten.")
    probes = [folder for folder in folders if (folder / ProbeRecord.FILE).is_file()]
    of_probes = (
        f.parent.parent / "runs" / name for f in probes for name in read_record(ProbeRecord, f).runs.values()
    )
    runs = [*dict.fromkeys([*of_probes, *(folder for folder in folders if folder not in probes)])]
    folders = [*runs, *probes]
    with ExitStack() as held:
        for root in dict.fromkeys(folder.parent.parent for folder in folders):
            held.enter_context(Store(root).at_work(required=False))
        files, n_stages = _listed(folders, with_stages)
        try:
            _pack(files, target)
        except OSError as error:
            kind = WorkError if is_full(error) else UserError
            raise kind(f"Cannot write {target}: {error}.") from error
    n_bytes = sum(facts.bytes for _, facts in files.values())
    return Archived([run.name for run in runs], [probe.name for probe in probes], n_stages, 0, n_bytes)


def _listed(folders: Sequence[Path], with_stages: bool) -> tuple[dict[str, tuple[Path, FileFacts]], int]:
    """The files of records and of their stages, by their names in an archive, and how many stages."""
    parts = {f"{folder.parent.name}/{folder.name}": folder for folder in folders}
    for folder in folders:
        store = Store(folder.parent.parent)
        record = read_record(RECORDS[folder.parent.name], folder)
        for stage in record.stages if with_stages else ():
            stored = store.find(stage.kind, stage.key)
            if stored is None:
                what = f"Stage {stage.kind}/{stage.key[:12]} of {record.WHAT} {folder.name}"
                raise UserError(f"{what} is not in {store.root}. {mend(folder)}")
            parts[f"stages/{stage.kind}/{stage.key}"] = stored.folder
    files: dict[str, tuple[Path, FileFacts]] = {}
    for name, folder in parts.items():
        path = folder / MANIFEST
        own = FileFacts(sha256=sha256(path), bytes=path.stat().st_size)
        for file, facts in sorted({**read_manifest(folder), MANIFEST: own}.items()):
            if not _is_known(f"{name}/{file}"):
                raise UserError(f"{name}/{file} is nothing that an import would take.")
            files[f"{name}/{file}"] = folder / file, facts
    return files, len(parts) - len(folders)


def _pack(files: dict[str, tuple[Path, FileFacts]], target: Path) -> None:
    """Writes the archive beside its place, and moves it there when it is whole.

    WorkError, and no file, if a file is not what was listed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sizes = {name: facts.bytes for name, (_, facts) in files.items()}
    index = json.dumps({"format": FORMAT, "files": sizes}).encode()
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        packed = Path(scratch) / "archive"
        # Weights do not compress: the fastest level is nearly as small as the best.
        with tarfile.open(packed, "w:gz", compresslevel=1, format=tarfile.USTAR_FORMAT) as tar:
            _add(tar, INDEX, index)
            for name, (path, facts) in files.items():
                try:
                    content = path.read_bytes() if path.exists() else b""
                except OSError as error:
                    raise unreadable(path, error) from error
                if hashlib.sha256(content).hexdigest() != facts.sha256:
                    raise WorkError(f"{name} is written again by another command: export when that is done.")
                _add(tar, name, content)
        packed.rename(target)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def import_archive(file: Path, store: Store) -> Archived:
    """Takes the runs and stages of an archive into the store, after all of it was verified.

    What the store has already stays. Runs come last: a run is there when all its stages are. Raises
    UserError if the file is no whole archive, holds anything else, does not fit on the disk, or if a stage
    of the store has another result.
    """
    with _opened(file):  # what is no archive makes no store
        pass
    with store.at_work(), store.lock("import"), store.scratch("import") as scratch:
        free = shutil.disk_usage(store.root).free
        with _opened(file) as (stream, tar, sizes):
            n_bytes = sum(sizes.values())
            if n_bytes > free:
                raise UserError(f"{file} needs {n_bytes:,} bytes, and {free:,} are free. Set --root FOLDER.")
            while member := tar.next():
                if sizes.pop(member.name, None) != member.size:
                    raise UserError(f"{file}: {member.name} is not as its index says, or comes twice.")
                tar.extract(member, scratch, set_attrs=False, filter="data")
            if stream.read(2**20).strip(b"\0") or stream.read(1):  # its end, where the sum is checked
                raise ValueError("more follows its end")
        if sizes:
            raise UserError(f"{file} is not whole: {next(iter(sizes))} is missing.")
        stages = sorted(scratch.glob("stages/*/*"))
        records = [*sorted(scratch.glob("runs/*")), *sorted(scratch.glob("probes/*"))]
        try:
            _check(scratch, records)
        except (OSError, ValueError, RecursionError, yaml.YAMLError, UserError) as error:
            reason = str(error).replace(f"{scratch}/", "")
            raise UserError(f"{file} is not as `sapo store export` writes it: {reason}") from error
        new, n_new = [stage for stage in stages if not _has_already(store, stage)], 0
        for stage in new:
            with store.lock(stage.name):
                if not _has_already(store, stage):  # else a command has computed it meanwhile
                    with store.building(stage.parent.name, stage.name) as folder:
                        stage.rename(folder)
                    n_new += 1
        for record in records:
            final = store.root / record.relative_to(scratch)
            with store.lock(record.name):
                if not (final / RECORDS[final.parent.name].FILE).is_file():
                    put_record(record, final)
    runs, probes = ([path.name for path in records if path.parent.name == kind] for kind in RECORDS)
    return Archived(runs, probes, len(stages), len(stages) - n_new, n_bytes)


def _is_known(name: str) -> bool:
    record = _RECORD.fullmatch(name)
    return bool(_STAGE.fullmatch(name) or (record and not why_no_run(record[1] or record[2])))


class _PlainFile(tarfile.TarInfo):
    """A header of a plain file; any other is refused before anything that it announces is read."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Self:
        """The header in a block of the archive."""
        info = super().frombuf(buf, encoding, errors)
        if info.type != tarfile.REGTYPE or info.size < 0:
            raise ValueError(f"{info.name!r} is not a plain file")
        return info


@contextmanager
def _opened(file: Path) -> Iterator[tuple[gzip.GzipFile, tarfile.TarFile, dict[str, int]]]:
    """An archive that is read, after its index, and the sizes that this declares."""
    try:
        with gzip.open(file) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_PlainFile) as tar:
            member = tar.next()
            if member is None or member.name != INDEX or member.size > LARGEST_INDEX:
                raise ValueError("it does not begin with an index")
            index: Any = json.loads(cast(IO[bytes], tar.extractfile(member)).read())
            files = index.get("files") if isinstance(index, dict) and index.get("format") == FORMAT else None
            if not isinstance(files, dict):
                raise ValueError(f"its index is not of format {FORMAT}")
            for name, size in files.items():
                if not _is_known(name) or type(size) is not int or size < 0:
                    raise ValueError(f"{name!r} is nothing that a store holds, or has no size")
            yield stream, tar, files
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, RecursionError) as error:
        if is_full(error):  # the store's disk: the archive may well be whole
            raise
        raise UserError(f"{file} is no whole archive of `sapo store export`: {error}") from error


def _check(scratch: Path, records: Sequence[Path]) -> None:
    """What came is a sound store by itself, and its settings run nothing."""
    for config in sorted(scratch.rglob("config.yaml")):
        text = config.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ValueError(f"an alias in {config}")  # it may stand for a million values
        if _is_unsafe(yaml.safe_load(text)):
            raise UserError(
                f"{config} runs code of a model's, or may read this machine's environment "
                "(model.trust_remote_code, ${…}): it is not imported. Run it here yourself if you trust it."
            )
    for record in records:
        kind = RECORDS[record.parent.name]
        if read_record(kind, record).id != record.name:
            raise UserError(f"{record} holds another {kind.WHAT} than its name says")
        if extra := {path.name for path in record.iterdir()} - {*read_manifest(record), MANIFEST}:
            raise UserError(f"{record / min(extra)} is not in its {kind.WHAT}'s manifest")
    for problem in verify(Store(scratch), with_stages=any(scratch.glob("stages/*/*"))):
        raise UserError(problem.line)


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
    results = (".parquet", ".safetensors")  # seconds and environment differ from one time to the next
    there, here = (
        {name: facts.sha256 for name, facts in read_manifest(folder).items() if name.endswith(results)}
        for folder in (stored.folder, stage)
    )
    if there != here:
        raise UserError(
            f"Stage {stage.parent.name}/{stage.name[:12]} is in {store.root} with another result: it was "
            "computed on another device or with other versions. Import into another store: --root FOLDER."
        )
    return True
