"""What a job needs of this machine, what is there, and how to get what is missing."""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

from sapo.conf.errors import UserError
from sapo.conf.schema import Config
from sapo.data.benchmarks import FOLDERS, load_tasks
from sapo.data.pools import load_pool
from sapo.experiments.model.fetch import model_folder
from sapo.experiments.model.identity import device_of, dtype_of
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
    yield Check(
        "python", sys.version_info >= (3, 11), platform.python_version(), "Install Python 3.11 or newer"
    )
    yield from _packages()
    yield _ray(config)
    yield _device(config)
    yield _model(config)
    yield _benchmarks(config)
    yield _pools(config)
    yield _disk(Path(config.store.root))


def _packages() -> Iterator[Check]:
    for requirement in requires(DISTRIBUTION) or ():
        if "extra ==" in requirement:
            continue
        name = _name(requirement)
        try:
            yield Check(name, True, version(name))
        except PackageNotFoundError:
            yield Check(name, False, "not installed", f"pip install '{requirement}'")


def _ray(config: Config) -> Check:
    """Needed only by engine=ray."""
    required = config.engine.name == "ray"
    try:
        return Check("ray", True, version("ray"), required=required)
    except PackageNotFoundError:
        return Check("ray", False, "not installed", "pip install 'sapo-prompts[ray]'", required)


def _name(requirement: str) -> str:
    return next(
        (requirement[:i] for i, c in enumerate(requirement) if not (c.isalnum() or c in "-_.")), requirement
    )


def _device(config: Config) -> Check:
    def look() -> str:
        device = device_of(config)
        if device.type == "cuda":
            facts = torch.cuda.get_device_properties(device)
            kind, memory = facts.name, facts.total_memory
        else:
            kind = f"{os.cpu_count()} CPU cores" if device.type == "cpu" else device.type
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return f"{kind}, {memory / 2**30:.0f} GiB, {dtype_of(config)}"

    return _tried("device", look)


def _model(config: Config) -> Check:
    def look() -> str:
        preflight(config)
        return str(model_folder(config.model))

    return _tried(f"model {config.model.name}", look)


def _benchmarks(config: Config) -> Check:
    """Needed only by a sequence of SuperNI or TRACE."""
    root = config.data.root
    required = config.sequence.benchmark in FOLDERS
    missing = [
        name
        for name in FOLDERS.values()
        if not (root and (Path(root) / name / "instructions.json").is_file())
    ]
    if not missing:
        return Check("benchmarks", True, str(root), required=required)
    detail = f"no {' and '.join(missing)} in {root}" if root else "no folder is set (SAPO_DATA or data.root)"
    return Check("benchmarks", False, detail, "sapo fetch benchmarks", required)


def _pools(config: Config) -> Check:
    def look() -> str:
        tasks = [task for group in load_tasks(config) for task in group]
        pools = [load_pool(task, config.paraphrases) for task in tasks]
        return f"{sum(len(pool.paraphrases) for pool in pools)} valid paraphrases of {len(pools)} tasks"

    return _tried(f"data and prompt pools of {config.sequence.name}", look)


def _disk(root: Path) -> Check:
    existing = next(folder for folder in (root.resolve(), *root.resolve().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    writable = os.access(existing, os.W_OK)
    detail = f"{free / 2**30:.0f} GiB free at {root}" if writable else f"cannot write to {existing}"
    return Check("store", writable and free >= LEAST_FREE, detail, "Set store.root=FOLDER or SAPO_STORE")


def _tried(name: str, look: Callable[[], str]) -> Check:
    """What `look` found, or the message of its error, whose last line tells the mend."""
    try:
        return Check(name, True, look())
    except UserError as error:
        return Check(name, False, str(error))
