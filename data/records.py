"""Records: what a finished run, probe or stage says of itself. One type each, one writer, one reader.

A finished folder has a manifest with the SHA-256 of its files, which is written last.
"""

import errno
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sapo.conf.errors import UserError, WorkError
from sapo.conf.names import why_no_name, why_no_run
from sapo.data.files import sha256, unreadable, write_json
from sapo.data.prompts import ORIGINAL
from sapo.data.remembering import stamp

MANIFEST = "manifest.json"
LOSSES = "losses.csv"  # in a run's folder: task, step, loss
PROGRESS = "progress.json"  # beside a training's checkpoints: step, steps, loss, seconds left
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)  # errors of a name that leads nowhere
BASE = "base"  # the state of the untouched model


def _unless(why_not: Callable[[str], str | None]) -> pydantic.AfterValidator:
    """A validator that refuses a text for which a function has a reason."""

    def check(text: str) -> str:
        if reason := why_not(text):
            raise ValueError(reason)
        return text

    return pydantic.AfterValidator(check)


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, _unless(why_no_name)]
RunId = Annotated[str, _unless(why_no_run)]
Kind = Annotated[str, Field(pattern="^(score|train|evaluate|gradient)$")]
Count = Annotated[int, Field(ge=0)]


class _Typed(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class Candidate(_Typed):
    """A prompt that a policy could choose, with its pre-update loss (nats)."""

    index: int
    text: str
    loss: float
    n_examples: Count
    n_tokens: Count


class ChoiceRecord(_Typed):
    """The prompt of a task; `drawn` are those that training drew from, for a policy that settles on none."""

    task: Name
    index: int
    text: str
    candidates: tuple[Candidate, ...] | None = None
    drawn: tuple[str, ...] | None = None


class StateRecord(_Typed):
    """A state of the model after `after` tasks: the key of its training, and the tasks it is tested on."""

    after: Count
    key: Annotated[str, Field(pattern=rf"^([0-9a-f]{{64}}|{BASE})$")]
    tasks: tuple[str, ...]


class StageRecord(_Typed):
    """A stage behind a run or probe, with what it took on which hardware."""

    kind: Kind
    key: Digest
    task: str
    device: str
    seconds: float
    tokens: Count
    shortened: Count = 0


class PoolRecord(_Typed):
    """The pools that a run read: their name, the paraphrases of the largest, the digest of their texts."""

    name: str
    size: Count
    digest: Digest


class _Record(_Typed):
    FILE: ClassVar[str]
    WHAT: ClassVar[str]

    id: RunId
    sequence: Name
    model: Name
    method: str
    seed: int
    unseen: tuple[Name, ...]
    demonstration: bool
    comparable: dict[str, Any]
    identity: dict[str, Any]
    stages: tuple[StageRecord, ...]


class RunRecord(_Record):
    """`run.json`: what was run, with which prompts, and the stages that it is made of.

    `label` is the method as it is shown (`inscl (lexical)`), `kept` the bytes of what each training left, and
    `shortened` the most inputs of a task that a stage had to shorten.
    """

    FILE = "run.json"
    WHAT = "run"

    tasks: Annotated[tuple[Name, ...], Field(min_length=1)]
    label: str
    policy: str
    parity: str
    trainer: str
    prompts: dict[str, str]
    choices: tuple[ChoiceRecord, ...]
    states: tuple[StateRecord, ...]
    kept: dict[Digest, dict[str, Count]]
    shortened: dict[str, Count]
    notes: tuple[str, ...]
    environment: dict[str, Any]
    pool: PoolRecord | None


class ProbeRecord(_Record):
    """`probe.json`: a pair of tasks, and the run of each prompt of the second.

    `missing` are prompts whose runs failed; `n_scored` examples were measured before the second training, and
    `n_cut` were left out because their target is cut off under some prompt.
    """

    FILE = "probe.json"
    WHAT = "probe"

    tasks: tuple[Name, Name]
    prompts: dict[int, str]
    runs: dict[int, RunId]
    missing: tuple[int, ...]
    n_scored: Count
    n_cut: Count

    @pydantic.model_validator(mode="after")
    def _numbered_alike(self) -> Self:
        if ORIGINAL not in self.prompts or self.runs.keys() != self.prompts.keys():
            raise ValueError(f"prompts and runs must be numbered alike, with {ORIGINAL}, the original")
        return self


class StageResult(_Typed):
    """`result.json` of a stage: its task and model, what it took, and what its kind measured."""

    model_config = ConfigDict(extra="allow")

    task: str
    model: str
    seconds: float
    tokens: Count
    shortened: Count = 0
    examples: Count | None = None
    # score
    prompts: Count | None = None
    full_tokens: Count | None = None
    # train
    losses: tuple[float, ...] | None = None
    penalties: tuple[float, ...] | None = None
    gradient_norms: tuple[float, ...] | None = None
    steps: Count | None = None
    replayed: Count | None = None
    kept: dict[str, Count] | None = None
    earlier_seconds: float | None = None
    # evaluate
    rougeL: float | None = None  # noqa: N815 (the column's name)
    exact_match: float | None = None
    nll: float | None = None
    kl: float | None = None
    unfinished: Count = 0


class FileFacts(_Typed):
    """What a manifest says of a file."""

    sha256: Digest
    bytes: Count


T = TypeVar("T", bound=_Typed)
R = TypeVar("R", bound=_Record)
_FILES = TypeAdapter(Annotated[dict[str, FileFacts], Field(min_length=1)])


def write_record(path: Path, record: _Typed) -> None:
    """Writes a record as JSON, at once or not at all; fields that a stage does not have are left out."""
    write_json(path, record.model_dump(mode="json", exclude_none=isinstance(record, StageResult)))


def parse(kind: type[T], path: Path, mend: str) -> T:
    """The record in a file; WorkError names the file, what is wrong in it, and the mend."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise WorkError(f"Damaged: {path}: {_wrong(error)}. {mend}") from error
    except OSError as error:
        raise unreadable(path, error) from error


def read_record(kind: type[R], folder: Path) -> R:
    """The record of a finished run or probe, whose files are those of its manifest; errors name the mend."""
    if not (folder / kind.FILE).is_file():
        raise UserError(f"{folder} has no {kind.FILE}: it is not a finished {kind.WHAT}. {mend(folder)}")
    if not (folder / MANIFEST).is_file():
        what = "whether its numbers are those that were stored cannot be told"
        raise WorkError(f"{folder} has no {MANIFEST}: {what}. {mend(folder)}")
    for line in lasting_damage(folder):
        raise WorkError(f"Damaged: {line}. {mend(folder)}")
    return parse(kind, folder / kind.FILE, mend(folder))


def mend(folder: Path) -> str:
    """How a run or probe is made again, as far as its folder still says with which settings."""
    settings: dict[str, Any] = {}
    for name in (RunRecord.FILE, ProbeRecord.FILE):
        with suppress(OSError, ValueError, RecursionError, TypeError):
            settings |= json.loads((folder / name).read_bytes())
    names = ("sequence", "model", "method", "policy", "seed")
    options = " ".join(f"{name}={settings[name]}" for name in names if name in settings) or "…"
    if folder.parent.name == "probes":
        return f"Make the probe again ({options}): `sapo reproduce` computes only what is missing."
    again = f"Run `sapo train {options}` again (settings: {folder / 'config.yaml'})"
    return f"{again}: only what is missing is computed."


def _wrong(error: ValidationError) -> str:
    """The first faults of a record, each with its place."""
    faults = [
        f"{'.'.join(str(part) for part in fault['loc'] if part != '[key]')}: {fault['msg']}".lstrip(": ")
        for fault in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return "; ".join(faults[:3]) + (f" and {len(faults) - 3} more" if len(faults) > 3 else "")


def manifest_of(folder: Path, names: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """SHA-256 and bytes of the named files of a folder, or of all that lie in it at any depth."""
    files = [folder / name for name in names] or [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in sorted(files)
        if path.name != MANIFEST
    }


def read_manifest(folder: Path) -> dict[str, FileFacts]:
    """The files that a finished folder is made of; WorkError if its manifest is damaged or names none."""
    path = folder / MANIFEST
    try:
        return _FILES.validate_json(path.read_bytes())
    except ValidationError as error:
        raise WorkError(f"cannot read {path} ({_wrong(error)})") from error
    except FileNotFoundError as error:
        raise WorkError(f"{path} is gone") from error
    except OSError as error:
        raise unreadable(path, error) from error


def damage(folder: Path, whole: bool = True) -> Iterator[str]:
    """A line for every file that is not what the folder's manifest says, or if that itself is damaged.

    With `whole` files are compared by SHA-256, without by size, which reads none of them. A file that a name
    leads to outside the folder is never opened. Raises UserError if a file may not be read, which is none.
    """
    try:
        manifest = read_manifest(folder)
    except WorkError as error:
        yield str(error)
        return
    for name, facts in manifest.items():
        file = folder / name
        if not file.is_relative_to(folder) or ".." in file.relative_to(folder).parts:
            yield f"{folder / MANIFEST} names {file}, which does not lie in its folder"
            continue
        try:
            if file.stat().st_size != facts.bytes or (whole and sha256(file) != facts.sha256):
                yield f"{file} is not what was stored"
        except OSError as error:
            if error.errno not in _GONE:
                raise unreadable(file, error) from error
            yield f"{file} is gone"
        except ValueError as error:  # a name that no file can have
            yield f"cannot read {file!r} ({error})"


def lasting_damage(folder: Path, whole: bool = True) -> list[str]:
    """The lines of `damage`, after a second look.

    Another command may put new files in the place of those that are being read: it is damage only if two
    readings in a row find the same in the same place.
    """
    before = None
    while True:
        found = (list(damage(folder, whole)), stamp(folder / MANIFEST))
        if not found[0] or found == before:
            return found[0]
        before = found


def differences(stored: Any, asked: Any, where: str = "") -> Iterator[str]:
    """What differs between two nested JSON values, a line each: `dotted.path: stored -> asked`."""
    if isinstance(stored, list) and isinstance(asked, list) and len(stored) == len(asked):
        stored, asked = dict(enumerate(stored)), dict(enumerate(asked))
    if isinstance(stored, dict) and isinstance(asked, dict):
        for name in stored | asked:
            yield from differences(stored.get(name), asked.get(name), f"{where}.{name}".lstrip("."))
    elif stored != asked:
        texts = (json.dumps(value) for value in (stored, asked))
        first, second = (text if len(text) <= 60 else f"{text[:59]}…" for text in texts)
        yield f"{where}: {first} -> {second}"


def require_same(names: str, first: Any, other: Any, way: str) -> None:
    """UserError, with every difference and the way out, if two things that are compared are not alike."""
    if found := list(differences(first, other)):
        raise UserError("\n  ".join([f"{names} cannot be compared:", *found]) + f"\n{way}")
