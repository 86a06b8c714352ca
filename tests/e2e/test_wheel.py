"""The built wheel, installed as people do, without the repository: the whole way, from any folder.

Each command is a process of its own that finds what the last one left.
"""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from tiny import SMALL, read_json

REPOSITORY = Path(__file__).resolve().parents[2]


def said(*command, **options):
    """What a process that ends well says on stdout."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The `sapo` of an environment that holds the wheel, beside the packages that it depends on."""
    scratch = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input"]
    source = scratch / "source"  # setuptools builds in the folder of the sources
    for name in said("git", "ls-files", cwd=REPOSITORY).splitlines():
        if (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    said(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", scratch, source)
    (wheel,) = scratch.glob("sapo_prompts-*.whl")
    venv.create(scratch / "env", with_pip=False)
    python = scratch / "env" / "bin" / "python"
    said(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    (site,) = (scratch / "env" / "lib").glob("python*/site-packages")
    # A line of a .pth file adds a folder, and none of the .pth files in it: no editable install of ours.
    shared = [path for path in sys.path if path.endswith("site-packages")] or [sysconfig.get_path("purelib")]
    (site / "shared.pth").write_text("\n".join(shared))
    return python.with_name("sapo")


@pytest.fixture
def document(installed, tmp_path):
    """`document("train", …)` in an empty folder, with the models of this machine; the store is `runs`."""
    names = ("SAPO_STORE", "SAPO_DATA", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["OMP_NUM_THREADS"] = "1"
    # And nothing else on stdout.
    return lambda *words: read_json(said(installed, *words, "--json", cwd=tmp_path, env=environment))


def test_the_wheel_is_what_runs(installed):
    code = "import sapo.cli, sapo.data.prompts as p; print(sapo.cli.__file__); print(*p.BANK.glob('*.yaml'))"
    where, bank = said(installed.with_name("python"), "-c", code, cwd="/").splitlines()
    assert where.startswith(str(installed.parents[1]))
    assert len(bank.split()) == len([*(REPOSITORY / "data" / "bank").glob("*.yaml")])


def test_from_training_to_the_table(document, tmp_path):
    def stages():
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/stages/**/*") if path.is_file()}

    # What `reproduce table1 --scale mini` runs.
    policies = "policy=static,sapo"
    trained = document("train", "experiment=table1_mini", *SMALL, policies)
    assert [run["policy"] for run in trained["runs"]] == ["static", "sapo"]
    assert (before := stages())
    analyzed = document("analyze", *(run["id"] for run in trained["runs"]))
    assert [run["metrics"] for run in analyzed["runs"]] == [run["metrics"] for run in trained["runs"]]
    ours = [row for row in analyzed["table"]["rows"] if row["source"] == "ours"]
    assert [(row["policy"], row["difference"]) for row in ours] == [("static", False), ("sapo", True)]
    reproduced = document("reproduce", "table1", *SMALL, policies)
    assert reproduced["stages"]["computed"] == 0
    assert {run["id"] for run in reproduced["runs"]} == {run["id"] for run in trained["runs"]}
    assert {row["source"] for row in reproduced["tables"]["table1"]} == {"ours", "paper"}
    assert all((tmp_path / file).is_file() for file in reproduced["files"])
    assert stages() == before
