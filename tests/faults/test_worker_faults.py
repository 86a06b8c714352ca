"""Ray's workers killed, and their driver: the numbers are those of the undisturbed experiment."""

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from disturbing import EXPERIMENT, Driver, Drivers, stages_noted, until, workers_noted

pytest.importorskip("ray", reason="Ray is not installed: pip install 'sapo-prompts[ray]'")


def start(drivers: Drivers, root: Path, folder: Path) -> Driver:
    several = ("engine=ray", "engine.workers=2", "engine.retries=1000")
    return drivers.start(root, *EXPERIMENT, f"store.root='{root}'", *several, ray=str(folder))


def test_workers_and_their_driver_killed(drivers, whole, kills, tmp_path, ray_folder, ray_processes, is_long):
    """Workers end with their driver, and hold no lock of a stage against the next one.

    A driver is terminated, one is killed (in the long version one is interrupted, as others are in
    test_faults), and of the next one a worker is, busy or idle.
    """
    root, n_stages = tmp_path / "store", len(whole.outcome.digests)
    ends = {signal.SIGTERM: 130, signal.SIGKILL: -signal.SIGKILL} | ({signal.SIGINT: 130} if is_long else {})
    for number, code in ends.items():
        begun = stages_noted(root, "begin").total()
        driver = start(drivers, root, ray_folder)
        until(lambda: stages_noted(root, "begin").total() >= begun + 2, driver)  # noqa: B023
        assert driver.signal(number) == code, driver.text
        if number == signal.SIGKILL:
            until(lambda: not workers_noted(root))
        else:
            assert "the same command goes on from here" in driver.text
            assert "BWT" not in driver.text  # no result
            assert not ray_processes()
            assert not os.listdir(ray_folder)
    draw, killed, aim = random.Random(21), 0, max(1, kills // 8)  # noqa: S311 (no secret)
    driver = start(drivers, root, ray_folder)
    while killed < aim and driver.is_running:
        begun = stages_noted(root, "begin").total()
        until(lambda: stages_noted(root, "begin").total() > begun, driver)  # noqa: B023
        end = time.monotonic() + draw.uniform(0, 2) * whole.seconds / n_stages
        until(lambda: time.monotonic() > end, driver)  # noqa: B023
        with suppress(IndexError, ProcessLookupError):  # all have just died
            os.kill(draw.choice(workers_noted(root)), signal.SIGKILL)
            killed += 1
    assert driver.wait() == 0, driver.text
    assert driver.text.count(" died while ") <= killed  # an idle one may never be missed
    whole.assert_same(root)
    assert not workers_noted(root)
    # What the killed one's Ray has left is swept by the next; a worker's death keeps that one's logs.
    assert len(os.listdir(ray_folder)) <= 1
    assert set(stages_noted(root, "stored").values()) == {1}  # nothing is lost
    # What was begun again was at work with a driver's two workers, or with one that was killed.
    assert stages_noted(root, "begin").total() <= n_stages + 2 * len(ends) + killed
