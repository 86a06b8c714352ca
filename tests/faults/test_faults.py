"""Whatever strikes an experiment, the same command ends with the numbers of one that nothing disturbed."""

import itertools
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from damaging import DAMAGES, cut, flip, stored_files
from disturbing import Driver, Whole, log_of, stages_noted, until

from sapo.data.records import MANIFEST
from sapo.experiments.engine.garbage import verify
from sapo.experiments.engine.store import Store


def assert_same_and_nothing_lost(whole: Whole, root: Path) -> None:
    """The numbers are those of the undisturbed experiment, and nothing that was stored was computed again."""
    whole.assert_same(root)
    assert set(stages_noted(root, "stored").values()) == {1}


def kill(driver: Driver) -> None:
    """SIGKILL to a driver that is at work."""
    assert driver.signal(signal.SIGKILL) == -signal.SIGKILL, driver.text


def test_killed_at_random_moments(drivers, whole, kills, tmp_path):
    """SIGKILL, and the same command again, until the experiment is done; then from the beginning."""
    draw = random.Random(20)  # noqa: S311
    left = kills
    for number in itertools.count():
        if not left:
            break
        root, killed = tmp_path / f"store-{number}", 0
        while True:
            before = stages_noted(root, "begin").total()
            driver = drivers.start(root)
            # Nothing is at stake before the first stage begins.
            until(lambda: stages_noted(root, "begin").total() > before, driver)  # noqa: B023
            end = time.monotonic() + draw.uniform(0, 0.4) * whole.seconds
            until(lambda: time.monotonic() > end, driver)  # noqa: B023
            code = driver.signal(signal.SIGKILL) if killed < left else driver.wait()
            if code == 0:
                break
            assert code == -signal.SIGKILL, driver.text
            killed += 1
        assert_same_and_nothing_lost(whole, root)
        begun = stages_noted(root, "begin")
        assert begun.keys() == whole.outcome.digests.keys()
        assert begun.total() <= len(begun) + killed  # a kill loses the one stage that it strikes
        left -= killed
        shutil.rmtree(root)


def test_interrupted_by_a_clock_that_jumps(drivers, whole, tmp_path):
    """By SIGINT, SIGTERM and SIGKILL in turn, decades apart for the experiment."""
    root, year = tmp_path / "store", 365 * 86400.0
    ends = {signal.SIGINT: 30 * year, signal.SIGTERM: -20 * year, signal.SIGKILL: 10 * year}
    for place, (number, clock) in enumerate(ends.items(), start=1):
        driver = drivers.start(root, clock=clock)
        until(lambda n=place: stages_noted(root, "begin").total() >= 3 * n, driver)
        if number == signal.SIGKILL:
            kill(driver)
        else:
            assert driver.signal(number) == 130, driver.text
            assert "the same command goes on from here" in driver.text
    assert drivers.run(root, clock=-year).code == 0
    assert_same_and_nothing_lost(whole, root)


def test_a_file_that_cannot_be_written_whole(drivers, whole, tmp_path, is_long):
    """As a full disk or a quota would have it: writing fails in the midst of a file."""
    root = tmp_path / "store"
    sizes = [path.stat().st_size for path in whole.root.glob("stages/*/*/**/*") if path.is_file()]
    limits = sorted(set(sizes))[-3:] if is_long else [max(sizes)]
    for limit in limits:
        driver = drivers.run(root, largest_file=limit - 1)
        assert driver.code == 1
        assert f"Cannot write to the store {root}: " in driver.text
        assert "File too large" in driver.text
        assert not list(root.glob("building/*"))
        assert not verify(Store(root))
    assert drivers.run(root).code == 0
    whole.assert_same(root)


@pytest.fixture
def disk(tmp_path):
    """A disk of its own in memory, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a disk: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def test_a_full_disk_and_one_that_is_read_only(drivers, whole, disk, is_long):
    root = disk / "store"
    room = sum(path.stat().st_blocks * 512 for path in whole.root.rglob("*"))
    for share in (2, 5, 8) if is_long else (5,):
        remount(disk, f"size={room // 1024 * share // 10}k")
        driver = drivers.run(root)
        assert driver.code == 1, driver.text
        assert "No space left" in driver.text
        assert not verify(Store(root))
    remount(disk, "size=64m,ro")
    driver = drivers.run(root)
    assert (driver.code, "Cannot write to the store" in driver.text) == (2, True)
    remount(disk, "rw")
    assert drivers.run(root).code == 0
    whole.assert_same(root)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_when_it_is_read_and_mended_by_one_command(
    drivers, whole, tmp_path, damage, is_long
):
    draw = random.Random(22)  # noqa: S311
    root = whole.copy(tmp_path / "store")
    files = [path for kind, path in stored_files(root).items() if kind[0] == "stages"]
    victims = files if is_long else draw.sample(files, 1)
    for path in victims:
        DAMAGES[damage](path, draw)
        driver = drivers.run(root)
        assert driver.code == 1
        assert f"Damaged: {root}" in driver.text or f"Damaged: cannot read {root}" in driver.text
        assert next(part for part in path.parts if len(part) == 64) in driver.text
        assert drivers.run(root, "store", "verify", "--delete", "--root", str(root)).code == 0
        assert drivers.run(root).code == 0
        whole.assert_same(root)
    assert stages_noted(root, "begin").total() == stages_noted(root, "stored").total() == len(victims)


def test_a_damaged_checkpoint(drivers, whole, tmp_path, is_long):
    """Killed inside a training, whose checkpoint is then damaged or half-written."""
    draw = random.Random(24)  # noqa: S311
    for number in range(9 if is_long else 1):
        root = tmp_path / f"store-{number}"
        driver = drivers.start(root)
        until(lambda root=root: bool(list(root.glob(f"checkpoints/*/*/{MANIFEST}"))), driver)
        kill(driver)
        files = [path for path in root.glob("checkpoints/*/*/*") if path.is_file()]
        if files:  # the kill may have come just after the training
            draw.choice([flip, cut])(files[number % len(files)], draw)
        assert drivers.run(root).code == 0
        assert_same_and_nothing_lost(whole, root)


def test_several_drivers_on_one_store(drivers, whole, tmp_path, is_long):
    root, number = tmp_path / "store", 8 if is_long else 3
    several = [drivers.start(root) for _ in range(number)]
    assert [driver.wait() for driver in several] == [0] * number, several[0].text
    assert_same_and_nothing_lost(whole, root)
    assert stages_noted(root, "begin") == dict.fromkeys(whole.outcome.digests, 1)


def test_a_dead_process_holds_no_lock(drivers, whole, tmp_path):
    """One of two drivers is killed inside a stage that the other waits for."""
    root = tmp_path / "store"
    several = [drivers.start(root), drivers.start(root)]
    until(lambda: stages_noted(root, "begin").total() >= 4, several[0])
    at_work = int(log_of(root).read_text(encoding="utf-8").split()[-1])
    several.sort(key=lambda driver: driver.id != at_work)
    kill(several[0])
    assert several[1].wait() == 0, several[1].text
    assert_same_and_nothing_lost(whole, root)


def test_what_is_killed_leaves_nothing_but_what_gc_finds(drivers, whole, tmp_path):
    """Killed and never started again: `gc` takes the remains, and leaves what was stored."""
    root = tmp_path / "store"
    driver: Driver = drivers.start(root)
    until(lambda: stages_noted(root, "begin").total() >= 6, driver)
    kill(driver)
    stored = [folder.key for _, folder in Store(root).stages()]
    assert drivers.run(root, "store", "gc", "--yes", "--root", str(root)).code == 0
    assert not list(root.glob("building/*"))
    assert not list(root.glob("locks/*"))
    assert [folder.key for _, folder in Store(root).stages()] == stored
    assert drivers.run(root).code == 0
    assert_same_and_nothing_lost(whole, root)
