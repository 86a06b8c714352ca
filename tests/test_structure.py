"""The shape of the code: imports go down, packages are complete, files and functions stay small."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A folder may import from itself and from folders of a lower level.
LEVELS = {"conf": 0, "data": 1, "analysis": 2, "experiments": 3, "cli": 4}
# So may the parts of experiments/; what is not named here stands at the top.
LEVELS_OF_PARTS = (
    *("model", "methods paraphrase policies jobs", "engine", "stages", "costs runs reevaluation export"),
    "continual compare probe plan select targets ready doctor serving harness",
)
PARTS = {name: level for level, names in enumerate(LEVELS_OF_PARTS) for name in names.split()}
TOP = 6
MODULES = sorted(path.relative_to(ROOT) for folder in LEVELS for path in (ROOT / folder).glob("**/*.py"))
LONGEST_FILE = 600
LONGEST_FUNCTION = 60


@cache
def tree_of(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"))


def imports_of(module: Path) -> Iterator[str]:
    """Dotted names of all modules imported anywhere in a file, relative imports as they are written."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def modules_after(statement: str) -> set[str]:
    """What a fresh process has imported after a statement."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_imports_go_down_the_table_of_folders():
    for module in MODULES:
        here = module.parts[0]
        for name in imports_of(module):
            assert not name.startswith("."), f"{module}: write {name} as an import from sapo.{here}"
            root, _, rest = name.partition(".")
            assert root not in LEVELS, f"{module} imports {name}: the package is called sapo.{root}"
            there = rest.split(".")[0]
            if root == "sapo" and there != here:
                assert LEVELS[there] < LEVELS[here], f"{module} imports {name}, which does not stand below it"
            is_tensor = root in {"torch", "transformers", "peft"}
            assert not (is_tensor and here == "analysis"), f"{module} imports {name}"


def test_imports_go_down_the_parts_of_experiments():
    for module in MODULES:
        if module.parts[0] != "experiments":
            continue
        here = Path(module.parts[1]).stem
        for name in imports_of(module):
            there = name.split(".")[2] if name.startswith("sapo.experiments.") else here
            is_above = PARTS.get(there, TOP) > PARTS.get(here, TOP)
            assert not is_above, f"{module} imports {name}, which stands above it"


@pytest.mark.parametrize(
    ("names", "heavy"),
    [
        ("sapo.analysis.metrics", {"pandas", "scipy", "rich"}),
        ("sapo.analysis.figures, sapo.analysis.tables", {"matplotlib.pyplot"}),
        ("sapo.cli.app, sapo.cli.metrics, sapo.cli.analyze", {"pandas", "numpy", "matplotlib"}),
    ],
)
def test_what_needs_no_tensors_starts_without_torch(names, heavy):
    assert not ({"torch", "transformers", "peft"} | heavy) & modules_after(f"import {names}")


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=str,
)
def test_threads_spin_briefly_from_before_torch_is_imported_unless_the_user_says(given, spins):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    code = "import os, sys, sapo.experiments; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    assert done.stdout.split() == [spins, "False"]


def test_every_folder_with_code_is_a_package_and_every_package_is_there():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert table["package-dir"] == {f"sapo.{folder}": folder for folder in LEVELS}
    with_code = {module.parent for module in MODULES}
    packages = {".".join(("sapo", *folder.parts)) for folder in with_code}
    assert set(table["packages"]) == packages, "mend the list of packages in pyproject.toml"
    assert {folder for folder in with_code if folder / "__init__.py" not in MODULES} == set()


def test_files_and_functions_stay_small():
    for module in MODULES:
        n_lines = len((ROOT / module).read_text(encoding="utf-8").splitlines())
        assert n_lines <= LONGEST_FILE, f"{module} has {n_lines} lines: does it still have one subject?"
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= LONGEST_FUNCTION, f"{module}: {node.name} has {length} lines"


MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:work|farm|root|home|Users)/\w")
PACKAGE_INDEX = re.compile(r"index[-]url|find[-]links|https?://\S*/simple(?:/|\b)")


def published_files() -> list[Path]:
    """Files of the repository, tracked or about to be, that are texts."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for path in map(ROOT.joinpath, listed.stdout.splitlines()) if path.is_file()]


@pytest.mark.parametrize(
    ("pattern", "what"), [(MACHINE_PATH, "a path of one machine"), (PACKAGE_INDEX, "a package index")]
)
def test_no_file_names_one_machine_or_its_package_index(pattern, what):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in published_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found, f"{what} is named in\n" + "\n".join(found)


def test_nothing_built_or_downloaded_is_published():
    built = {".pyc", ".safetensors", ".gguf", ".bin", ".pt", ".parquet", ".whl"}
    found = [str(path.relative_to(ROOT)) for path in published_files() if path.suffix in built]
    assert found == []
