"""Ray's workers killed, and their driver: the numbers are those of the undisturbed experiment."""

import itertools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from disturbing import EXPERIMENT, Driver, Drivers, Tally, Whole, stages_noted, until, workers_noted

pytest.importorskip("ray", reason="Ray is not installed: pip install 'sapo-prompts[ray]'")


def start(drivers: Drivers, root: Path, folder: Path) -> Driver:
    several = ("engine=ray", "engine.workers=2", "engine.retries=1000")
    return drivers.start(root, *EXPERIMENT, f"store.root='{root}'", *several, ray=str(folder))


def count(root: Path, tally: Tally, fault: str, n_stages: int, tried: int, struck: int) -> None:
    """Notes what became of faults, each of which may have struck `struck` stages at work."""
    begun, stored = stages_noted(root, "begin"), stages_noted(root, "stored")
    lost = sum(times - 1 for times in stored.values())
    assert lost == 0
    assert begun.total() <= n_stages + struck * tried
    tally.add(
        fault,
        tried=tried,
        survived=tried,
        begun=begun.total(),
        lost=lost,
        recomputed=begun.total() - n_stages,
    )


def test_workers_killed_at_random_moments(
    drivers: Drivers, whole: Whole, kills: int, tally: Tally, tmp_path: Path, ray_folder: Path
):
    """SIGKILL to one of two workers, busy or idle; the driver goes on with new ones."""
    draw = random.Random(21)  # noqa: S311 (no secret)
    n_stages = len(whole.outcome.digests)
    left = max(2, kills // 8)  # a new worker takes seconds to start
    for number in itertools.count():
        if not left:
            break
        root, killed, begun = tmp_path / f"store-{number}", 0, 0
        driver = start(drivers, root, ray_folder)
        while killed < left:
            until(lambda: stages_noted(root, "begin").total() > begun, driver)  # noqa: B023
            end = time.monotonic() + draw.uniform(0, 2) * whole.seconds / n_stages
            until(lambda: time.monotonic() > end, driver)  # noqa: B023
            if not driver.is_running:
                break
            begun = stages_noted(root, "begin").total()
            with suppress(IndexError, ProcessLookupError):  # all have just died
                os.kill(draw.choice(workers_noted(root)), signal.SIGKILL)
                killed += 1
        assert driver.wait() == 0, driver.text
        assert driver.text.count(" died while ") <= killed  # an idle one may never be missed
        whole.assert_same(root)
        assert not workers_noted(root)
        count(root, tally, "`SIGKILL` to a worker on Ray", n_stages, killed, struck=1)
        left -= killed
        shutil.rmtree(root)


def test_the_driver_of_workers_interrupted_and_killed(
    drivers: Drivers,
    whole: Whole,
    tally: Tally,
    tmp_path: Path,
    ray_folder: Path,
    ray_processes: Callable[[], list[str]],
):
    """Its workers end with it, and hold no stage's lock against the next one."""
    root = tmp_path / "store"
    ends = {signal.SIGINT: 130, signal.SIGTERM: 130, signal.SIGKILL: -signal.SIGKILL}
    for number, code in ends.items():
        begun = stages_noted(root, "begin").total()
        driver = start(drivers, root, ray_folder)
        until(lambda: stages_noted(root, "begin").total() >= begun + 3, driver)  # noqa: B023
        assert driver.signal(number) == code, driver.text
        if number == signal.SIGKILL:
            until(lambda: not workers_noted(root))
        else:
            assert "the same command goes on from here" in driver.text
            assert "BWT" not in driver.text  # no result
            assert not ray_processes()
            assert not os.listdir(ray_folder)
    again = start(drivers, root, ray_folder)
    assert again.wait() == 0, again.text
    whole.assert_same(root)
    assert not os.listdir(ray_folder)  # what the killed one's Ray has left is swept by the next
    fault = "`SIGINT`, `SIGTERM`, `SIGKILL` to the driver of workers on Ray"
    count(root, tally, fault, len(whole.outcome.digests), len(ends), struck=2)  # one of each worker
