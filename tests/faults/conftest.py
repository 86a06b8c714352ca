"""The short and the long version of the faults, and the experiment that nothing disturbs."""

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disturbing import EXPERIMENT, FORKS, Driver, Whole, command, log_of, outcome

KILLS = 8  # of the short version


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--kills", type=int, default=KILLS, help="How often the experiment is killed")


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> int:
    """How many kills; many in the long version, in which every stored file is damaged, too."""
    return request.config.getoption("--kills", default=KILLS)


@pytest.fixture(scope="session")
def is_long(kills: int) -> bool:
    """Whether this is the long version."""
    return kills > KILLS


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Driver]:
    """`start(root, …)`: the experiment, or another command, on a store, with faults: see `command`."""
    outputs = tmp_path_factory.mktemp("output")

    def start(root: Path, *arguments: str, **faults: Any) -> Driver:
        output = outputs / uuid.uuid4().hex
        output.touch()
        given = arguments or (*EXPERIMENT, f"store.root='{root}'")
        process = FORKS.Process(target=command, args=(given, output, log_of(root)), kwargs=faults)
        process.start()
        return Driver(process, output, root)

    return start


@pytest.fixture(scope="session")
def whole(start: Callable[..., Driver], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The undisturbed experiment."""
    driver = start(tmp_path_factory.mktemp("whole") / "store")
    driver.until_begun(1)
    begun = time.monotonic()
    assert driver.code == 0, driver.text
    return Whole(driver.root, time.monotonic() - begun, *outcome(driver.root))
