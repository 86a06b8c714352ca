"""What a job needs of this machine, what is there, and how to get what is missing."""

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

from sapo.conf.errors import UserError
from sapo.conf.schema import Config
from sapo.data.benchmarks import FOLDERS, load_tasks
from sapo.data.natural import task_files
from sapo.data.pools import load_pool
from sapo.experiments.model.fetch import model_folder
from sapo.experiments.model.identity import device_of, dtype_of
from sapo.experiments.model.memory import device_memory
from sapo.experiments.model.preflight import preflight

DISTRIBUTION = "sapo-prompts"
LEAST_FREE = 2**30  # a small model's run takes megabytes; below this, something else will soon fail


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `mend` says how to get it; only `required` things can stop the job."""

    name: str
    ok: bool
    detail: str
    mend: str = ""
    required: bool = True


def checks(config: Config) -> Iterator[Check]:
    """Everything that the config's job needs, in the order in which one would mend it."""
    yield Check("python", True, platform.python_version())  # which pip compares before it installs us
    for requirement in requires(DISTRIBUTION) or ():
        name = re.match(r"[\w.-]*", requirement)
        if name and "extra ==" not in requirement:
            yield _installed(name[0], requirement)
    yield _installed("ray", f"{DISTRIBUTION}[ray]", required=config.engine.name == "ray")

    def device() -> str:
        found = device_of(config)
        kind = f"{os.cpu_count()} CPU cores" if found.type == "cpu" else found.type
        if found.type == "cuda":
            kind = torch.cuda.get_device_name(found)
        return f"{kind}, {device_memory(config) / 2**30:.0f} GiB, {dtype_of(config)}"

    def model() -> str:
        preflight(config)
        return str(model_folder(config.model))

    def pools() -> str:
        tasks = [task for group in load_tasks(config) for task in group]
        found = [load_pool(task, config.paraphrases) for task in tasks]
        return f"{sum(len(pool.paraphrases) for pool in found)} valid paraphrases of {len(found)} tasks"

    yield _tried("device", device)
    yield _tried(f"model {config.model.name}", model)
    yield _benchmarks(config)
    yield _tried(f"data and prompt pools of {config.sequence.name}", pools)
    root = Path(config.store.root)
    existing = next(folder for folder in (root.resolve(), *root.resolve().parents) if folder.is_dir())
    free, writable = shutil.disk_usage(existing).free, os.access(existing, os.W_OK)
    detail = f"{free / 2**30:.0f} GiB free at {root}" if writable else f"cannot write to {existing}"
    yield Check("store", writable and free >= LEAST_FREE, detail, "Set store.root=FOLDER or SAPO_STORE")


def _installed(name: str, requirement: str, required: bool = True) -> Check:
    try:
        return Check(name, True, version(name), required=required)
    except PackageNotFoundError:
        return Check(name, False, "not installed", f"pip install '{requirement}'", required)


def _benchmarks(config: Config) -> Check:
    """Needed only by a sequence of SuperNI or TRACE."""
    root, required = config.data.root, config.sequence.benchmark in FOLDERS
    names = [n for n in FOLDERS.values() if not (root and (Path(root) / n / "instructions.json").is_file())]
    if not names:
        return Check("benchmarks", True, str(root), required=required)
    if config.sequence.benchmark == "superni" and root and (natural := task_files(Path(root))):
        return Check("benchmarks", True, f"{len(natural):,} tasks of Natural Instructions in {root}")
    detail = f"no {' and '.join(names)} in {root}" if root else "no folder is set (SAPO_DATA or data.root)"
    return Check("benchmarks", False, detail, "sapo fetch benchmarks", required)


def _tried(name: str, look: Callable[[], str]) -> Check:
    """What `look` found, or the message of its error, whose last line tells the mend."""
    try:
        return Check(name, True, look())
    except UserError as error:
        return Check(name, False, str(error))
