"""Whatever strikes an experiment, the same command ends with the numbers of one that nothing disturbed."""

import itertools
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from disturbing import DAMAGES, cut, flip, noted, processes_noted, stored_files, until, wait

from sapo.data.records import MANIFEST
from sapo.experiments.engine.garbage import verify
from sapo.experiments.engine.store import Store


def test_killed_at_random_moments(start, whole, kills, tmp_path):
    """SIGKILL, and the same command again, until the experiment is done; then from the beginning."""
    draw = random.Random(20)  # noqa: S311
    left = kills
    for number in itertools.count():
        if not left:
            break
        root, killed = tmp_path / f"store-{number}", 0
        while True:
            before = noted(root, "begin").total()
            driver = start(root)
            driver.until_begun(before + 1)  # nothing is at stake earlier
            wait(draw.uniform(0, 0.4) * whole.seconds, driver)
            code = driver.signal(signal.SIGKILL) if killed < left else driver.code
            if code == 0:
                break
            assert code == -signal.SIGKILL, driver.text
            killed += 1
        whole.assert_nothing_lost(root)
        begun = noted(root, "begin")
        assert begun.keys() == whole.digests.keys()
        assert begun.total() <= len(begun) + killed  # a kill loses the one stage that it strikes
        left -= killed
        shutil.rmtree(root)


def test_interrupted_by_a_clock_that_jumps(start, whole, tmp_path):
    """By SIGINT, SIGTERM and SIGKILL in turn, decades apart for the experiment."""
    root, year = tmp_path / "store", 365 * 86400.0
    ends = {signal.SIGINT: 30 * year, signal.SIGTERM: -20 * year, signal.SIGKILL: 10 * year}
    for place, (number, clock) in enumerate(ends.items(), start=1):
        driver = start(root, clock=clock)
        driver.until_begun(3 * place)
        if number == signal.SIGKILL:
            driver.kill()
        else:
            assert driver.signal(number) == 130, driver.text
            assert "the same command goes on from here" in driver.text
    assert start(root, clock=-year).code == 0
    whole.assert_nothing_lost(root)


def test_a_file_that_cannot_be_written_whole(start, whole, tmp_path, is_long):
    """As a full disk or a quota would have it: writing fails in the midst of a file."""
    root = tmp_path / "store"
    sizes = [path.stat().st_size for path in whole.root.glob("stages/*/*/**/*") if path.is_file()]
    limits = sorted(set(sizes))[-3:] if is_long else [max(sizes)]
    for limit in limits:
        driver = start(root, largest_file=limit - 1)
        assert driver.code == 1
        assert f"Cannot write to the store {root}: " in driver.text
        assert "File too large" in driver.text
        assert not list(root.glob("building/*"))
        assert not verify(Store(root))
    assert start(root).code == 0
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


def test_a_full_disk_and_one_that_is_read_only(start, whole, disk, is_long):
    root = disk / "store"
    room = sum(path.stat().st_blocks * 512 for path in whole.root.rglob("*"))
    for share in (2, 5, 8) if is_long else (5,):
        remount(disk, f"size={room // 1024 * share // 10}k")
        driver = start(root)
        assert driver.code == 1, driver.text
        assert "No space left" in driver.text
        assert not verify(Store(root))
    remount(disk, "size=64m,ro")
    driver = start(root)
    assert (driver.code, "Cannot write to the store" in driver.text) == (2, True)
    remount(disk, "rw")
    assert start(root).code == 0
    whole.assert_same(root)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_when_it_is_read_and_mended_by_one_command(start, whole, tmp_path, damage, is_long):
    draw = random.Random(22)  # noqa: S311
    root = shutil.copytree(whole.root, tmp_path / "store")
    files = [path for kind, path in stored_files(root).items() if kind[0] == "stages"]
    victims = files if is_long else draw.sample(files, 1)
    for path in victims:
        DAMAGES[damage](path, draw)
        driver = start(root)
        assert driver.code == 1
        assert f"Damaged: {root}" in driver.text or f"Damaged: cannot read {root}" in driver.text
        assert next(part for part in path.parts if len(part) == 64) in driver.text
        assert start(root, "store", "verify", "--delete", "--root", str(root)).code == 0
        assert start(root).code == 0
        whole.assert_same(root)
    assert noted(root, "begin").total() == noted(root, "stored").total() == len(victims)


def test_a_damaged_checkpoint(start, whole, tmp_path, is_long):
    """Killed inside a training, whose checkpoint is then damaged or half-written."""
    draw = random.Random(24)  # noqa: S311
    for number in range(9 if is_long else 1):
        root = tmp_path / f"store-{number}"
        driver = start(root)
        until(lambda root=root: bool(list(root.glob(f"checkpoints/*/*/{MANIFEST}"))), driver)
        driver.kill()
        files = [path for path in root.glob("checkpoints/*/*/*") if path.is_file()]
        if files:  # the kill may have come just after the training
            draw.choice([flip, cut])(files[number % len(files)], draw)
        assert start(root).code == 0
        whole.assert_nothing_lost(root)


def test_several_drivers_on_one_store(start, whole, tmp_path, is_long):
    root, number = tmp_path / "store", 8 if is_long else 3
    several = [start(root) for _ in range(number)]
    assert [driver.code for driver in several] == [0] * number, several[0].text
    whole.assert_nothing_lost(root)
    assert noted(root, "begin") == dict.fromkeys(whole.digests, 1)


def test_a_dead_process_holds_no_lock(start, whole, tmp_path):
    """One of two drivers is killed inside a stage that the other waits for."""
    root = tmp_path / "store"
    several = [start(root), start(root)]
    several[0].until_begun(4)
    at_work = processes_noted(root)[-1]
    several.sort(key=lambda driver: driver.process.pid != at_work)
    several[0].kill()
    assert several[1].code == 0, several[1].text
    whole.assert_nothing_lost(root)


def test_what_is_killed_leaves_nothing_but_what_gc_finds(start, whole, tmp_path):
    """Killed and never started again: `gc` takes the remains, and leaves what was stored."""
    root = tmp_path / "store"
    driver = start(root)
    driver.until_begun(6)
    driver.kill()
    stored = [folder.key for _, folder in Store(root).stages()]
    assert start(root, "store", "gc", "--yes", "--root", str(root)).code == 0
    assert not list(root.glob("building/*"))
    assert not list(root.glob("locks/*"))
    assert [folder.key for _, folder in Store(root).stages()] == stored
    assert start(root).code == 0
    whole.assert_nothing_lost(root)
