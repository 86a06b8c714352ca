"""A sequence of tasks that nobody has prepared: one YAML file, and the task files of Natural Instructions."""

import json
from pathlib import Path

import pytest

from sapo.analysis.results import load_run


@pytest.mark.slow  # trains a run of its own
def test_a_new_sequence_needs_one_yaml(sapo, small, tmp_path, monkeypatch):
    for number, definition in ((9001, "Say whether the number is even."), (9002, "Say whether it is odd.")):
        rows = [{"input": f"{number} {i}", "output": [("even", "odd")[i % 2]]} for i in range(30)]
        task = {"Definition": [definition], "Instances": rows}
        path = tmp_path / "tasks" / f"task{number}_evenness.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(task))
    yaml = tmp_path / "conf" / "sequence" / "numbers.yaml"
    yaml.parent.mkdir(parents=True)
    yaml.write_text("name: numbers\nbenchmark: superni\ntasks: [NI9001]\nunseen: [NI9002]\n")
    monkeypatch.setenv("SAPO_CONF", str(tmp_path / "conf"))
    where = ("sequence=numbers", "policy=static", f"data.root={tmp_path}", f"store.root='{tmp_path}/own'")
    checks = sapo("doctor", "model=tiny_llama", *where)
    assert f"2 tasks of Natural Instructions in {tmp_path}" in checks.out
    rest = [override for override in small if not override.startswith("sequence")]
    done = sapo("train", *rest, *where, "--json")
    (run,) = done.document["runs"]
    assert "NI9001: 30 rows of Natural Instructions (task9001_evenness.json), 3 of them drawn" in done.err
    record = load_run(Path(run["dir"])).record
    assert (record.tasks, record.unseen) == (("NI9001",), ("NI9002",))
    named = [note for note in record.notes if "not the reference's split" in note]
    assert [note.partition(":")[0] for note in named] == ["NI9001", "NI9002"]
