"""What all tests share: an environment of their own, the real data where it is, and tiny configs."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import settings
from tiny import SMALL, Done, call

from sapo.conf.errors import UserError
from sapo.conf.load import load_one
from sapo.conf.schema import Config

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"
GIVEN_DATA = os.environ.pop("SAPO_DATA", None)

# Libraries read these when they are imported: no test reaches the network or depends on a user's settings.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
# Tiny models are fastest on one thread, and several processes at once do not wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
for _name in ("SAPO_CONF", "SAPO_STORE", *(n for n in os.environ if n.lower().endswith("_proxy"))):
    os.environ.pop(_name, None)

settings.register_profile("sapo", deadline=None)
settings.load_profile("sapo")


SOMEWHERE = "/somewhere/store"  # in place of each test's own store
SLOW = ("e2e", "faults", "scale")  # folders of tests with real models, Ray, browsers, kills


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the slow folders and puts slow files first, so that none keeps a process waiting at the end."""
    for item in items:
        if item.path.relative_to(REPOSITORY / "tests").parts[0] in SLOW:
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results go under the test's folder, also those of processes that it starts."""
    monkeypatch.setenv("SAPO_STORE", str(tmp_path / "store"))


@pytest.fixture(scope="session")
def benchmarks() -> Path:
    """The folder of the real benchmarks: SAPO_DATA, or the one beside the repository."""
    folder = Path(GIVEN_DATA) if GIVEN_DATA else SHARED / "benchmarks"
    if not (folder / "SUPERNI" / "instructions.json").is_file():
        pytest.skip(f"no benchmark data: {folder}/SUPERNI is absent (set SAPO_DATA)")
    return folder


@pytest.fixture(scope="session")
def tokenizers() -> Path:
    """The folder of the real tokenizers, `qwen3` and `llama2`."""
    folder = SHARED / "tokenizers"
    for name in ("qwen3", "llama2"):
        if not (folder / name / "tokenizer.json").is_file():
            pytest.skip(f"no tokenizers: {folder / name} is absent")
    return folder


@pytest.fixture
def small_model() -> Config:
    """A config of the real small model, where it is on this machine."""
    from sapo.experiments.model.fetch import model_folder

    config = load_one(["model=smollm2_135m"])
    try:
        model_folder(config.model)
    except UserError as error:
        pytest.skip(str(error))
    return config


@pytest.fixture(scope="session")
def sapo() -> Callable[..., Done]:
    """`sapo("train", …)` runs the command in this process."""
    return call


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Overrides that make a run take a second."""
    return SMALL


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray has its sockets and logs: the names of sockets may not be long."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def ray_processes(ray_folder: Path) -> Callable[[], list[str]]:
    """Gives the command lines of live processes that name Ray's folder."""

    def found() -> list[str]:
        lines = (" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"]))
        return [line for line in lines if str(ray_folder) in line]

    return found


@pytest.fixture(scope="session")
def run_probes() -> Callable[..., list[Path]]:
    """`run_probes(configs, engine, gradients=True)`: the folders of the probes that the configs make up."""
    from sapo.experiments.jobs import Job
    from sapo.experiments.probe import probes_of, write_probes
    from sapo.experiments.run import run as run_jobs

    def run(configs: list[Config], engine: Any, gradients: bool = False) -> list[Path]:
        jobs = [Job(config) for config in configs]
        probes_of(jobs)
        folders = {done.job.key: done.folder for done in run_jobs(jobs, engine, keep_going=False)}
        written, failed = write_probes(jobs, folders, engine, gradients)
        assert failed == []
        return written

    return run


@pytest.fixture
def tiny_config(tmp_path: Path) -> Callable[..., Config]:
    """`tiny_config("method=olora", …)`: a config of the random two-layer model with a few examples."""
    root = str(tmp_path / "store")

    def config(*overrides: str) -> Config:
        made = deepcopy(_composed(overrides))
        made.store.root = root
        made.paraphrases.folder = made.paraphrases.folder.replace(SOMEWHERE, root)
        return made

    return config


@lru_cache(maxsize=64)
def _composed(overrides: tuple[str, ...]) -> Config:
    """Composing takes longer than most tests of the tiny model."""
    # As they come, but for what SMALL says of the generated tasks.
    kept = [each for each in SMALL if not each.startswith(("sequence", "paraphrases", "data.max_input"))]
    return load_one([*kept, f"store.root={SOMEWHERE}", *overrides])
