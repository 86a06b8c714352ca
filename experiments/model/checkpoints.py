"""Checkpoints inside a training: weights as safetensors; optimizer, schedule and random state beside them.

A checkpoint is whole when it has its manifest, which is written last, and its files are those of it. Nothing
is read before that was checked, and `state.pt` with `weights_only=True`: tensors and plain values, no code.

`trainable.safetensors` holds the parameters in training, A (r, d_in) and B (d_out, r) of each module;
`state.pt` AdamW's two moments of each in the same shapes and float32, the schedule's step, and of each rank
the states of the random generators: Python's, NumPy's (624), PyTorch's on CPU (5056 bytes) and each GPU.
"""

import io
import logging
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sapo.conf.errors import WorkError
from sapo.data.files import flush, sync, write_json
from sapo.data.records import MANIFEST, damage, manifest_of
from sapo.experiments.model import ranks

PREFIX = "checkpoint-"
WEIGHTS, STATE = "trainable.safetensors", "state.pt"

_log = logging.getLogger(__name__)


def newest(scratch: Path) -> Path | None:
    """The checkpoint to go on from, None to begin anew; deletes those that are not whole."""
    whole: dict[int, Path] = {}
    for folder in _checkpoints(scratch):
        if not (lines := list(damage(folder))):
            whole[int(folder.name.removeprefix(PREFIX))] = folder
            continue
        if (folder / MANIFEST).is_file():  # else a killed process was just writing it
            _log.warning("Damaged: %s. The training goes on without this checkpoint.", lines[0])
        shutil.rmtree(folder)
    return whole[max(whole)] if whole else None  # told by its number: a clock can jump


def save(
    scratch: Path,
    weights: Mapping[str, Tensor],
    optimizer: Optimizer,
    schedule: LRScheduler,
    history: Sequence[Mapping[str, float]],
    seconds: float,
) -> None:
    """Writes a checkpoint of the trainable weights, and deletes the earlier ones when it is whole.

    `history` has what was measured at every step so far, by whose number the checkpoint is named; `seconds`
    is how long the training took until here, its earlier parts included.
    """
    name, keys, *rest = np.random.get_state()  # type: ignore[misc]
    drawn = ranks.gathered(
        {
            "python": random.getstate(),
            "numpy": (name, np.asarray(keys).tolist(), *rest),
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
    )
    if ranks.rank() > 0:
        return
    folder = scratch / f"{PREFIX}{len(history)}"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().cpu().contiguous() for key, value in weights.items()}, folder / WEIGHTS)
    state = {
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "history": [dict(facts) for facts in history],
        "seconds": seconds,
        "random": drawn,
    }
    # Written by Python: of a disk that is full, torch's own writer says nothing that can be recognized.
    content = io.BytesIO()
    torch.save(state, content)
    (folder / STATE).write_bytes(content.getvalue())
    write_json(folder / MANIFEST, manifest_of(folder))
    flush(folder)
    sync(scratch)
    for other in _checkpoints(scratch):
        if other != folder:
            shutil.rmtree(other)


def resume(
    scratch: Path, weights: Mapping[str, Tensor], optimizer: Optimizer, schedule: LRScheduler
) -> tuple[list[dict[str, float]], float]:
    """Puts weights, optimizer, schedule and random numbers back where the last `save` found them.

    Returns the history and the seconds, none of both if there is no checkpoint; WorkError if it is of other
    weights.
    """
    if not (folder := ranks.gathered(newest(scratch) if ranks.rank() == 0 else None)[0]):
        return [], 0.0
    state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    if "random" not in state:
        _log.warning("%s is of an earlier version of sapo. The training begins anew.", folder)
        return [], 0.0
    saved = load_file(folder / WEIGHTS)
    if {key: value.shape for key, value in saved.items()} != {key: p.shape for key, p in weights.items()}:
        raise WorkError(f"The checkpoint in {folder} is of other weights. Delete it.")
    with torch.no_grad():
        for key, value in saved.items():
            weights[key].copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    if ranks.rank() < len(state["random"]):  # of more ranks than before, the new ones begin at their seeds
        drawn = state["random"][ranks.rank()]
        random.setstate(drawn["python"])
        name, keys, *rest = drawn["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(drawn["cpu"])
        for number, generator in enumerate(drawn["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(generator, number)  # a checkpoint may go on where there are fewer
    return state["history"], state["seconds"]


def _checkpoints(scratch: Path) -> list[Path]:
    return [path for path in scratch.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
