"""What a run, probe or stage says of itself is read as it was written, or refused with its place."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_up import candidate, record_of, seal
from tiny import refusal

from sapo.conf.errors import UserError, WorkError
from sapo.data.files import write_json
from sapo.data.records import MANIFEST, ProbeRecord, RunRecord, StageResult, damage, read_record, write_record

KEY = "a" * 64
STAGE = {"kind": "train", "key": KEY, "task": "a", "device": "cpu (x)", "seconds": 1.5, "tokens": 7}
CHOICE = {"task": "a", "index": 3, "text": "Say.", "candidates": [candidate(3, 0.5)], "drawn": None}
RUN = record_of(
    "pair-tiny-lorainc-sapo-s0-0123abcd",
    ["a", "b"],
    sequence="pair",
    model="tiny",
    policy="sapo",
    unseen=["c"],
    stages=[STAGE],
    choices=[CHOICE],
    states=[{"after": 0, "key": "base", "tasks": ["a"]}, {"after": 1, "key": KEY, "tasks": ["a"]}],
    kept={KEY: {"adapter/x.safetensors": 10}},
    shortened={"a": 0},
    pool={"name": "bank", "size": 20},
)
SHARED = "sequence model method seed demonstration tasks unseen comparable identity stages"
PROBE = {name: RUN[name] for name in SHARED.split()} | {
    "id": "pair-tiny-lorainc-s0-0123abcd",
    "prompts": {"-1": "Do.", "0": "Act."},
    "runs": {"-1": "run-1", "0": "run-2"},
    "missing": [4],
    "n_scored": 4,
    "n_cut": 0,
}


def sealed(folder: Path, name: str, content: Any) -> Path:
    """A folder with a record and a manifest that fits."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    write_json(folder / name, content)
    return seal(folder)


@pytest.fixture
def run(tmp_path):
    return sealed(tmp_path / "runs" / "r", "run.json", RUN)


@pytest.mark.parametrize(("kind", "content"), [(RunRecord, RUN), (ProbeRecord, PROBE)])
def test_a_record_is_read_as_it_was_written(tmp_path, kind, content):
    record = read_record(kind, sealed(tmp_path / "runs" / "r", kind.FILE, content))
    write_record(tmp_path / "again.json", record)
    stages = [STAGE | {"shortened": 0}]
    assert json.loads((tmp_path / "again.json").read_text()) == content | {"stages": stages}
    assert record.tasks == ("a", "b")
    assert record.stages[0].seconds == 1.5


def test_a_stage_keeps_what_its_kind_measured_and_nothing_else(tmp_path):
    facts = {"task": "a", "model": "m", "seconds": 1.0, "tokens": 3, "losses": [2.0, 1.5], "own": {"x": 1}}
    write_record(tmp_path / "result.json", StageResult.model_validate(facts, strict=False))
    written = json.loads((tmp_path / "result.json").read_text())
    assert written.items() >= facts.items()
    assert not {"penalties", "kept", "rougeL"} & written.keys()


WRONG_RUNS = {
    "seed: ": {"seed": "0"},
    "tasks: ": {"tasks": []},
    "unseen.0: .*slash": {"unseen": ["../c"]},
    "model: .*dot": {"model": "..hidden"},
    "stages.0.key: ": {"stages": [STAGE | {"key": "a"}]},
    "stages.0.seconds: ": {"stages": [STAGE | {"seconds": "1"}]},
    "stages: ": {"stages": {"0": STAGE}},
    "states.0.key: ": {"states": [{"after": 0, "key": "x", "tasks": []}]},
    "choices.0.candidates.0.loss: ": {"choices": [{"task": "a", "index": 0, "text": "", "candidates": [{}]}]},
    "pool.digest: ": {"pool": {"name": "p", "size": 1, "digest": "x"}},
    "notes: .*policy: |policy: .*notes: ": {"notes": None, "policy": None},
    "id: .*letters, digits": {"id": "a b"},
    "id: .*empty": {"id": ""},
}
WRONG_PROBES = {
    "tasks": {"tasks": ["a"]},
    "prompts and runs must be numbered alike": {"runs": {"-1": "run-1"}},
    "with -1, the original": {"prompts": {"0": "x"}, "runs": {"0": "r"}},
    "runs.0: .*letters": {"runs": {"-1": "run-1", "0": "../r"}},
}


def _without(name):
    return {key: value for key, value in RUN.items() if key != name}


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        *((RunRecord, RUN | change, message) for message, change in WRONG_RUNS.items()),
        *((RunRecord, _without(name), f"{name}: Field required") for name in RUN),
        *((ProbeRecord, PROBE | change, message) for message, change in WRONG_PROBES.items()),
        (RunRecord, [], "should be an object"),
    ],
)
def test_what_is_wrong_in_a_record_is_named_with_its_file_and_field(tmp_path, kind, content, message):
    folder = sealed(tmp_path / "runs" / "r", kind.FILE, content)
    with pytest.raises(WorkError, match=rf"Damaged: \S+/{kind.FILE}: (?s:.*)(?:{message})"):
        read_record(kind, folder)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b'{"id": "\\ud800"}', b"[" * 100_000])
def test_what_is_no_json_is_damage(run, text):
    (run / "run.json").write_bytes(text)
    seal(run)
    with pytest.raises(WorkError, match=r"Damaged: \S+/run\.json: .*sapo train"):
        read_record(RunRecord, run)


def test_the_mend_names_the_settings_that_are_left(run):
    file = run / "config.yaml"
    file.write_text("seed: 1\n")
    assert refusal(read_record, RunRecord, run) == (
        f"Damaged: {file} is not what was stored. Run `sapo train sequence=pair model=tiny method=lorainc "
        f"policy=sapo seed=0` again (settings: {file}): only what is missing is computed."
    )


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [("run.json", UserError, "is not a finished run"), (MANIFEST, WorkError, "cannot be told")],
)
def test_a_run_without_its_record_or_manifest_is_refused(run, name, error, message):
    (run / name).unlink()
    with pytest.raises(error, match=rf"has no {name}: .*{message}.*sapo train"):
        read_record(RunRecord, run)


@pytest.mark.parametrize(
    "content",
    ["{}", "[]", "{", '{"config.yaml": 1}', '{"config.yaml": {"bytes": -1, "sha256": "' + KEY + '"}}'],
)
def test_a_manifest_that_says_nothing_is_damage(run, content):
    (run / MANIFEST).write_text(content)
    (line,) = damage(run)
    assert line.startswith(f"cannot read {run / MANIFEST} (")
