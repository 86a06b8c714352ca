"""The short and the long version of the faults, and the experiment that nothing disturbs."""

import os
import time
from collections.abc import Iterator

import pytest
from disturbing import Drivers, Whole, outcome, stages_noted, until

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
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drivers]:
    """Starts commands."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    drivers = Drivers(tmp_path_factory.mktemp("output"))
    yield drivers
    drivers.close()


@pytest.fixture(scope="session")
def whole(drivers: Drivers, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The undisturbed experiment."""
    root = tmp_path_factory.mktemp("whole") / "store"
    driver = drivers.start(root)
    until(lambda: bool(stages_noted(root, "begin")), driver)
    begun = time.monotonic()
    assert driver.wait() == 0, driver.text
    return Whole(root, outcome(root), time.monotonic() - begun)
