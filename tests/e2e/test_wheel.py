"""The built wheel, installed as people do, without the repository: commands run from any folder."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from tiny import SMALL

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "docs" / "examples"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The `sapo` of an environment that holds the wheel, beside the packages that it depends on."""
    scratch = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input"]
    source = scratch / "source"  # setuptools builds in the folder of the sources
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in filter(None, files.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(scratch), str(source)]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    (wheel,) = scratch.glob("sapo_prompts-*.whl")
    venv.create(scratch / "env", with_pip=False)
    python = scratch / "env" / "bin" / "python"
    subprocess.run(
        [*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)],
        check=True,
        capture_output=True,
    )
    (site,) = (scratch / "env" / "lib").glob("python*/site-packages")
    # A line of a .pth file adds a folder, and none of the .pth files in it: no editable install of ours.
    shared = [path for path in sys.path if path.endswith("site-packages")] or [sysconfig.get_path("purelib")]
    (site / "shared.pth").write_text("\n".join(shared))
    return python.with_name("sapo")


@pytest.fixture
def run(installed, tmp_path):
    """`run("train", …)` in an empty folder, with the models that are on this machine."""

    def call(*words):
        names = ("SAPO_STORE", "SAPO_DATA", "PYTHONPATH")
        environment = {name: value for name, value in os.environ.items() if name not in names}
        done = subprocess.run(
            [str(installed), *map(str, words)],
            cwd=tmp_path,
            env={**environment, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_the_wheel_is_what_runs(installed):
    code = "import sapo.cli, sapo.data.prompts as p; print(sapo.cli.__file__); print(*p.BANK.glob('*.yaml'))"
    done = subprocess.run(
        [installed.with_name("python"), "-c", code], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    where, bank = done.stdout.splitlines()
    assert where.startswith(str(installed.parents[1]))
    assert len(bank.split()) == len([*(REPOSITORY / "data" / "bank").glob("*.yaml")])


def test_a_table_is_made_and_a_wording_chosen_from_any_folder(run, tmp_path):
    shown = run("reproduce", "table1", "--scale", "mini", *SMALL, "policy=static,sapo")
    assert "paper: static" in shown
    assert (tmp_path / "runs").is_dir()
    (tmp_path / "tickets.csv").write_bytes((EXAMPLES / "tickets.csv").read_bytes())
    (tmp_path / "tickets.yaml").write_bytes((EXAMPLES / "tickets.yaml").read_bytes())
    rows = ("data=tickets.csv", "paraphrases.file=tickets.yaml", "labels=[billing,account,bug,feature]")
    few = ("model=tiny_llama", "scorer.examples=4", "paraphrases.count=2")
    run("select", *rows, *few, "--write", "out.jsonl")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 96
