"""What identifies a model: every file that loading it reads, or the hub's commit; and its precision."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from sapo.conf.errors import UserError
from sapo.conf.schema import Config, ModelConfig
from sapo.data.files import sha256, write_json
from sapo.data.render import CLOCK
from sapo.experiments.model.fetch import cache_folder, is_random, model_folder

TEMPLATES = Path(__file__).parents[2] / "data" / "templates"
# What configs, tokenizers, templates and code that comes with a model are kept in.
_SUFFIXES = {".json", ".jinja", ".txt", ".model", ".py", ".tiktoken", ".bpe", ".codes", ".spm"}
_LARGE = 2**20  # hashed in milliseconds: digests of smaller files are not worth a place on disk
# A file may change again within one tick of its file system's clock; the coarsest, FAT's, has 2 seconds.
_TICK = 2_000_000_000

_held: ContextVar[dict[str, dict[str, Any]] | None] = ContextVar("held", default=None)


def device_of(config: Config) -> torch.device:
    """The configured device; UserError if it is not there."""
    name, has_gpu = config.engine.device, torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if has_gpu else "cpu"
    if name.startswith("cuda") and not has_gpu:
        raise UserError(
            "engine.device=cuda, and PyTorch sees no GPU. Try engine.device=cpu, or `sapo doctor`."
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("engine.device=mps, and PyTorch sees no such device. Try engine.device=cpu.")
    return torch.device(name)


def cpu_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_devices(config: Config) -> None:
    """UserError unless `engine.devices` devices of one kind are here."""
    wanted, device = config.engine.devices, device_of(config).type
    if wanted == 1:
        return
    names = [device]  # of Apple's there is one
    if device == "cuda":
        names = list(map(torch.cuda.get_device_name, range(torch.cuda.device_count())))
    elif device == "cpu":
        names *= cpu_cores()
    if wanted > len(names):
        there = f"{len(names)} cores" if device == "cpu" else f"{len(names)} of kind {device}"
        raise UserError(f"engine.devices={wanted}: here are only {there}. Set engine.devices={len(names)}.")
    if len(kinds := dict.fromkeys(names[:wanted])) > 1:
        raise UserError(
            f"engine.devices={wanted}: different kinds ({', '.join(kinds)}): results would differ, "
            "and the fast ones wait. Choose equal ones with CUDA_VISIBLE_DEVICES."
        )


def dtype_of(config: Config) -> str:
    """The configured precision; `auto` is bfloat16 on a GPU and float32 elsewhere."""
    if config.model.dtype != "auto":
        return config.model.dtype
    return "bfloat16" if device_of(config).type == "cuda" else "float32"


@contextmanager
def looked_at_once() -> Iterator[None]:
    """Inside, a model's files are looked at once: a plan asks for thousands of stages in a few seconds."""
    before = _held.set({})
    try:
        yield
    finally:
        _held.reset(before)


def model_identity(config: Config) -> dict[str, Any]:
    """What of a model can change a result: weights, tokenizer, template, precision, LoRA targets.

    The weights are the hub's commit, or the digest of the folder; of a model that is not here to run the
    source alone.
    """
    key, held = repr((config.model, config.engine.device)), _held.get()
    if held is not None and key in held:
        return held[key]
    model = config.model
    is_folder = bool(model.path) or model.source.startswith(("path:", "random:"))
    try:
        folder = model_folder(model)
    except UserError:
        if is_folder:
            raise
        weights = f"{model.source}@{model.revision}" if model.revision else model.source
    else:
        if not is_folder and folder.parent.name == "snapshots":
            weights = f"{model.source}@{folder.name}"
        else:  # of a random model only the shape is the folder's
            weights = folder_digest(folder, weights=False) if is_random(model) else folder_digest(folder)
    identity: dict[str, Any] = {
        "weights": weights,
        "template_options": dict(model.template_options),
        "clock": CLOCK.isoformat(),  # what a template that writes the date is given
        "dtype": dtype_of(config),
        "lora_targets": sorted(model.lora_targets),
    }
    if model.load != "full":
        identity["load"] = model.load
    if is_random(model):
        identity["drawn_on"] = device_of(config).type
    if model.tokenizer:
        identity["tokenizer"] = folder_digest(Path(model.tokenizer), weights=False)
    if model.chat_template:
        identity["chat_template"] = hashlib.sha256(template_text(model).encode()).hexdigest()
    if held is not None:
        held[key] = identity
    return identity


def folder_digest(folder: Path, weights: bool = True) -> str:
    """SHA-256 over names and contents of all files of a folder that loading a model or tokenizer reads.

    These are config, tokenizer, chat templates, code, and `weights`. A file's own SHA-256 is remembered by
    path, size, time and inode.
    """
    if not folder.is_dir():
        raise UserError(f"No model folder {folder}.")
    files = [path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file()]
    files += folder.glob("additional_chat_templates/*.jinja")  # Transformers' name
    digest = hashlib.sha256()
    for path in sorted([*files, *(weight_files(folder) if weights else ())]):
        real = path.resolve()
        facts = real.stat()
        mark = facts.st_size, facts.st_mtime_ns, facts.st_ino
        is_settled = time.time_ns() - facts.st_mtime_ns > _TICK
        content = _remembered_digest(real, *mark) if is_settled else sha256(real)
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors that loading reads, as Transformers chooses them; UserError if these are none."""
    named = _json(folder / "config.json").get("transformers_weights")
    candidates = [str(named)] if named else ["model.safetensors", "model.safetensors.index.json"]
    found = next((name for name in candidates if (folder / name).is_file()), None)
    if found is None:
        what = " and no ".join(candidates)
        raise UserError(f"No {what} in the model folder {folder}; weights in other formats are not loaded.")
    names = [found]
    if found.endswith(".json"):
        shards = _json(folder / found).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise UserError(f"{folder / found} names no weights: it has no weight_map.")
        names = sorted({str(name) for name in shards.values()})
    for name in names:
        place = PurePosixPath(name.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or not name.endswith(".safetensors"):
            raise UserError(
                f"{folder / found} names {name!r}: weights are read from *.safetensors in the model's folder."
            )
        if not (folder / name).is_file():
            raise UserError(f"The weights {name} of {folder / found} are not there. Get a whole copy.")
    return [folder / name for name in names]


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"Cannot read {path}: {error}. Replace it by a whole copy.") from error


@cache
def _remembered_digest(path: Path, size: int, *mark: int) -> str:
    """SHA-256 of a file that stays as it is; that of a large one is remembered on disk, too."""
    if size <= _LARGE:
        return sha256(path)
    memory, known = cache_folder() / "digests.json", {}
    with suppress(OSError, ValueError, AttributeError):  # it only saves time
        known = {name: str(digest) for name, digest in json.loads(memory.read_bytes()).items()}
    name = f"{path} {size} {mark}"
    if name not in known:
        known[name] = sha256(path)
        with suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(memory, known)
    return known[name]


def template_text(model: ModelConfig) -> str:
    """The chat template that the config names, in data/templates or in a file; UserError if there is none."""
    name = str(model.chat_template)
    path = Path(name).expanduser() if name.endswith(".jinja") else TEMPLATES / f"{name}.jinja"
    try:
        return path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, ValueError) as error:
        names = ", ".join(sorted(p.stem for p in TEMPLATES.glob("*.jinja")))
        raise UserError(f"No chat template {name}. Known: {names}, or a file FILE.jinja.") from error
