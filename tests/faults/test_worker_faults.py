"""Ray's workers killed, and their driver: the numbers are those of the undisturbed experiment."""

import os
import random
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from disturbing import EXPERIMENT, noted, processes_noted, until, wait

pytest.importorskip("ray", reason="Ray is not installed: pip install 'sapo-prompts[ray]'")


def workers(root: Path) -> list[int]:
    """Live processes of Ray's workers that have begun a stage in a store."""

    def command_line(process: int) -> bytes:
        with suppress(FileNotFoundError, ProcessLookupError):
            return Path(f"/proc/{process}/cmdline").read_bytes()  # empty for a zombie
        return b""

    return [process for process in {*processes_noted(root)} if command_line(process).startswith(b"ray::")]


def test_workers_and_their_driver_killed(start, whole, kills, tmp_path, ray_folder, ray_processes, is_long):
    """Workers end with their driver, and hold no lock of a stage against the next one.

    A driver is terminated, one is killed (in the long version one is interrupted, as others are in
    test_faults), and of the next one a worker is, busy or idle.
    """
    root, n_stages = tmp_path / "store", len(whole.digests)
    options = (*EXPERIMENT, f"store.root='{root}'", "engine=ray", "engine.workers=2", "engine.retries=1000")
    ends = {signal.SIGTERM: 130, signal.SIGKILL: -signal.SIGKILL} | ({signal.SIGINT: 130} if is_long else {})
    for number, code in ends.items():
        begun = noted(root, "begin").total()
        driver = start(root, *options, ray=str(ray_folder))
        driver.until_begun(begun + 2)
        assert driver.signal(number) == code, driver.text
        if number == signal.SIGKILL:
            until(lambda: not workers(root))
        else:
            assert "the same command goes on from here" in driver.text
            assert "BWT" not in driver.text  # no result
            assert not ray_processes()
            assert not os.listdir(ray_folder)
    draw, killed, aim = random.Random(21), 0, max(1, kills // 8)  # noqa: S311 (no secret)
    driver = start(root, *options, ray=str(ray_folder))
    while killed < aim and driver.process.is_alive():
        driver.until_begun(noted(root, "begin").total() + 1)
        wait(draw.uniform(0, 2) * whole.seconds / n_stages, driver)
        with suppress(IndexError, ProcessLookupError):  # all have just died
            os.kill(draw.choice(workers(root)), signal.SIGKILL)
            killed += 1
    assert driver.code == 0, driver.text
    assert driver.text.count(" died while ") <= killed  # an idle one may never be missed
    whole.assert_nothing_lost(root)
    assert not workers(root)
    # What the killed one's Ray has left is swept by the next; a worker's death keeps that one's logs.
    assert len(os.listdir(ray_folder)) <= 1
    # What was begun again was at work with a driver's two workers, or with one that was killed.
    assert noted(root, "begin").total() <= n_stages + 2 * len(ends) + killed
