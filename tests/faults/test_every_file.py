"""Damage in every kind of stored file: named by `sapo store verify`, refused where it is read."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from disturbing import DAMAGES, stored_files
from tiny import SMALL

from sapo.conf.errors import WorkError
from sapo.conf.load import load, load_one
from sapo.data.records import read_record
from sapo.experiments.engine.garbage import RECORDS, verify
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store
from sapo.experiments.jobs import Job
from sapo.experiments.run import run

FEW = (*SMALL, "data.train_examples=4", "data.test_examples=2")
PROBE = ("policy=fixed", "policy.last_only=true", "policy.index=-1", "scorer.examples=3")
# What methods keep between tasks, and what probes are made of.
KEPT = {
    "ewc": ("fisher.safetensors", "anchor.safetensors"),
    "inscl": ("tasks.json", "examples.jsonl", "selection.json"),
}
PROBED = ("probe.json", "losses.parquet", "answers.parquet", "gradients.parquet", "manifest.json")


@pytest.fixture(scope="session")
def others(tmp_path_factory, run_probes):
    """A store with all that the experiment does not leave: other methods' memories, gradients, a probe."""
    root = tmp_path_factory.mktemp("others") / "store"
    engine = LocalEngine(Store(root))
    for method in KEPT:
        buffer = () if method == "ewc" else ("method.buffer=3",)
        configs = load([*FEW, "policy=static", f"method={method}", *buffer])
        run([Job(config) for config in configs], engine, keep_going=False)
    config = load_one([*FEW, *PROBE])
    policies = (replace(config.policy, index=index) for index in (-1, 0, 1))
    run_probes([replace(config, policy=policy) for policy in policies], engine, gradients=True)
    return root


def read(root: Path, path: Path) -> None:
    """Reads the stage, run or probe that a file is of, as commands do."""
    room, *rest = path.relative_to(root).parts
    if room == "stages":
        Store(root).find(rest[0], rest[1])
    else:
        read_record(RECORDS[room], root / room / rest[0])


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_refused_in_every_kind_of_file(whole, others, tmp_path, damage, is_long):
    draw, known = random.Random(21), set()  # noqa: S311
    for number, source in enumerate((whole.root, others)):
        root = shutil.copytree(source, tmp_path / f"store-{number}")
        for kind, path in stored_files(root).items():
            if kind in known:
                continue
            known.add(kind)
            content = path.read_bytes()
            read(root, path)
            for _ in range(10 if is_long else 1):
                DAMAGES[damage](path, draw)
                problem, *_ = verify(Store(root))
                assert problem.path in (path, *path.parents)
                assert str(problem.path) in problem.line
                with pytest.raises(WorkError, match=r"(?i)damaged"):
                    read(root, path)
                path.write_bytes(content)
        assert not verify(Store(root))
    assert {("stages", "train", "kept", name) for names in KEPT.values() for name in names} <= known
    assert {("probes", name) for name in PROBED} <= known
    assert ("stages", "gradient", "gradients.safetensors") in known
    assert {kind[1] for kind in known if kind[0] == "stages"} == {"score", "train", "evaluate", "gradient"}
