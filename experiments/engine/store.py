"""The store: a folder a stage, under the key of its meaning, there entirely or not at all.

Layout: `ROOT/stages/<kind>/<key>/` with `result.json`, `config.yaml`, `identity.json`, `environment.json`,
tables as parquet, adapters as PEFT folders, and `manifest.json` with every file's SHA-256, written last.
A folder is built under `ROOT/building` and moved in by one rename.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from sapo.conf.errors import UserError, WorkError

MANIFEST = "manifest.json"
EXAMPLES = "examples.parquet"
KINDS = ("score", "train", "evaluate")


@dataclass(frozen=True)
class Stored:
    """A finished stage."""

    key: str
    folder: Path

    @cached_property
    def result(self) -> dict[str, Any]:
        """The stage's facts: seconds, tokens, counts."""
        return read_json(self.folder / "result.json")

    def examples(self) -> pd.DataFrame:
        """The stage's table of examples."""
        return pd.read_parquet(self.folder / EXAMPLES)


class Store:
    """Finished stages and runs under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, kind: str, key: str) -> Stored | None:
        """The finished stage, or None. Raises WorkError if its files are not those of its manifest."""
        folder = self.root / "stages" / kind / key
        if not (folder / MANIFEST).is_file():
            return None
        for name, facts in read_json(folder / MANIFEST).items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != facts["bytes"]:
                raise WorkError(
                    f"Damaged: {path} is not what was stored. Delete {folder} to compute it again."
                )
        return Stored(key, folder)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Held while a stage is computed, so that processes that share the store wait for each other."""
        self._make(self.root / "locks")
        with FileLock(self.root / "locks" / f"{key}.lock"):
            yield

    @contextmanager
    def building(self, kind: str, key: str) -> Iterator[Path]:
        """A folder to build a stage in; left without an error, it moves into place with its manifest."""
        self._make(self.root / "building")
        # The caller holds the stage's lock, so what lies here under its key is a killed process's.
        for leftover in (self.root / "building").glob(f"{kind}-{key[:12]}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{kind}-{key[:12]}-", dir=self.root / "building"))
        try:
            yield scratch
            write_json(scratch / MANIFEST, _manifest(scratch))
            final = self.root / "stages" / kind / key
            final.parent.mkdir(parents=True, exist_ok=True)
            # A folder without a manifest is what an interrupted copy left; it is not a stage.
            shutil.rmtree(final, ignore_errors=True)
            scratch.rename(final)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def checkpoints(self, key: str) -> Path:
        """Where a training keeps its checkpoints until it is done."""
        return self.root / "checkpoints" / key

    def run_folder(self, run: str) -> Path:
        """The folder of a run."""
        return self.root / "runs" / run

    def stages(self) -> Iterator[tuple[str, Stored]]:
        """Every finished stage with its kind."""
        for kind in KINDS:
            for path in sorted((self.root / "stages" / kind).glob(f"*/{MANIFEST}")):
                yield kind, Stored(path.parent.name, path.parent)

    def damaged(self) -> Iterator[str]:
        """A line for every stored file whose SHA-256 is not the manifest's, or that is gone."""
        for kind, stored in self.stages():
            try:
                manifest = read_json(stored.folder / MANIFEST)
            except WorkError as error:
                yield str(error)
                continue
            for name, facts in manifest.items():
                path = stored.folder / name
                if not path.is_file():
                    yield f"{path} is gone ({kind} {stored.key[:12]})"
                elif sha256(path) != facts["sha256"]:
                    yield f"{path} has changed ({kind} {stored.key[:12]})"

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"Cannot write to the store {self.root}: {error}. Set store.root=FOLDER."
            ) from error


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in files
    }


def sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a stored file; WorkError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkError(
            f"Damaged: cannot read {path} ({error}). Delete {path.parent} to make it again."
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Writes JSON by way of a temporary file and one rename, so that the file is never half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
