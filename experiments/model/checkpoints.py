"""Checkpoints inside a training as safetensors and JSON: no pickle is written, and none is ever loaded.

A checkpoint is whole when it has its manifest, which is written last, and its files are those of it.
"""

import json
import logging
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sapo.conf.errors import WorkError
from sapo.data.files import flush, sync
from sapo.data.records import MANIFEST, damage, manifest_of

PREFIX = "checkpoint-"
WEIGHTS = "trainable.safetensors"
_OPTIMIZER = "optimizer"
_SCHEDULE = "schedule.json"
_RANDOM = "random"
_SECONDS = "seconds.json"

_log = logging.getLogger(__name__)


def newest(scratch: Path) -> str | None:
    """The checkpoint to go on from, None to begin anew; deletes those that are not whole."""
    whole = []
    for folder in _checkpoints(scratch):
        if not (folder / MANIFEST).is_file():  # a killed process was just writing it
            shutil.rmtree(folder)
        elif lines := list(damage(folder)):
            _log.warning("Damaged: %s. The training goes on without this checkpoint.", lines[0])
            shutil.rmtree(folder)
        else:
            whole.append(folder)
    return str(max(whole, key=_step)) if whole else None


def seal(folder: Path) -> None:
    """Makes a checkpoint count, now that all is written, and deletes the others.

    Which one is the latest is told by its number: a clock can jump.
    """
    _write(folder / MANIFEST, manifest_of(folder))
    flush(folder)
    sync(folder.parent)
    for other in _checkpoints(folder.parent):
        if other != folder:
            shutil.rmtree(other)


def save_weights(parameters: Mapping[str, Tensor], folder: Path) -> None:
    """Writes the trainable weights: the base model and frozen adapters do not change."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_on_cpu(parameters), folder / WEIGHTS)


def load_weights(parameters: Mapping[str, Tensor], folder: Path) -> None:
    """Puts the weights of a checkpoint into the parameters; WorkError if they are others."""
    weights = load_file(folder / WEIGHTS)
    if weights.keys() != parameters.keys():
        raise WorkError(f"The checkpoint in {folder} is of other weights. Delete it.")
    with torch.no_grad():
        for key, value in weights.items():
            parameters[key].copy_(value)


def save_seconds(seconds: float, folder: Path) -> None:
    """Writes how long the training took until here, its earlier parts included."""
    _write(folder / _SECONDS, seconds)


def load_seconds(folder: Path) -> float:
    """What `save_seconds` wrote."""
    return _read(folder / _SECONDS)


def save_optimizer(optimizer: Any, schedule: Any, folder: Path) -> None:
    """Writes the moments of every parameter as tensors, and everything else, with the schedule, as JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    others: dict[str, dict[str, Any]] = {}
    for number, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{name}"] = value
            else:
                others.setdefault(str(number), {})[name] = value
    save_file(_on_cpu(tensors), folder / f"{_OPTIMIZER}.safetensors")
    _write(folder / f"{_OPTIMIZER}.json", {"state": others, "param_groups": state["param_groups"]})
    _write(folder / _SCHEDULE, schedule.state_dict())


def load_optimizer(optimizer: Any, schedule: Any, folder: Path) -> None:
    """Puts optimizer and schedule back where `save_optimizer` found them."""
    facts = _read(folder / f"{_OPTIMIZER}.json")
    state: dict[int, dict[str, Any]] = {int(number): values for number, values in facts["state"].items()}
    for key, value in load_file(folder / f"{_OPTIMIZER}.safetensors").items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": facts["param_groups"]})
    schedule.load_state_dict(_read(folder / _SCHEDULE))


def save_random_state(folder: Path) -> None:
    """Writes the state of every generator: Python's, NumPy's, PyTorch's on the CPU and on every GPU."""
    version, numbers, gauss = random.getstate()
    numpy_state: Any = np.random.get_state()
    name, keys, *rest = numpy_state
    generators = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    save_file(generators, folder / f"{_RANDOM}.safetensors")
    facts = {
        "python": [version, list(numbers), gauss],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
    }
    _write(folder / f"{_RANDOM}.json", facts)


def load_random_state(folder: Path) -> None:
    """Puts every generator back where `save_random_state` found it."""
    facts = _read(folder / f"{_RANDOM}.json")
    version, numbers, gauss = facts["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = facts["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    generators = load_file(folder / f"{_RANDOM}.safetensors")
    torch.set_rng_state(generators.pop("cpu"))
    for device, state in generators.items():
        number = int(device.removeprefix("cuda."))
        if number < torch.cuda.device_count():  # checkpoints may go on elsewhere
            torch.cuda.set_rng_state(state, number)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}


def _checkpoints(scratch: Path) -> list[Path]:
    return [path for path in scratch.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix(PREFIX))


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
