"""Stages and runs that were never computed: folders in the shape that commands leave."""

from pathlib import Path
from typing import Any

from made_up import record_of, seal

from sapo.data.files import write_json
from sapo.data.records import RunRecord, StageResult, write_record
from sapo.data.tasks import digest
from sapo.experiments.engine.store import Store

TABLES = {"train": "adapter/adapter_model.safetensors"}
RUN = "three-tiny-lorainc-sapo-s0-0123abcd"


def add_stage(
    store: Store, kind: str, state: str = "base", seed: int = 0, content: bytes = b"numbers"
) -> dict[str, Any]:
    """A stage of made-up numbers; what a run's record says of it."""
    identity = {"kind": kind, "state": state, "seed": seed}
    key = digest(identity)
    with store.building(kind, key) as folder:
        write_json(folder / "identity.json", identity)
        result = StageResult(task="t", model="m", seconds=1.0, tokens=3)
        write_record(folder / "result.json", result)
        (folder / "config.yaml").write_text("seed: 0\nmodel: {trust_remote_code: false}\n")
        table = folder / TABLES.get(kind, "examples.parquet")
        table.parent.mkdir(exist_ok=True)
        table.write_bytes(content)
    return {"kind": kind, "key": key, "task": "t", "device": "cpu", "seconds": 1.0, "tokens": 3}


def record(name: str, stages: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """What `run.json` says of a run of some stages."""
    states = [{"after": 1, "key": s["key"], "tasks": ["t"]} for s in stages if s.get("kind") == "train"]
    return record_of(name, ["t"], **{"stages": stages, "states": states} | changes)


def add_run(store: Store, name: str, stages: list[dict[str, Any]]) -> Path:
    """A finished run of some stages, with what the analysis puts beside it."""
    folder = store.run_folder(name)
    folder.mkdir(parents=True)
    write_json(folder / RunRecord.FILE, record(name, stages))
    (folder / "predictions.parquet").write_bytes(b"predictions")
    (folder / "config.yaml").write_text("paraphrases: {folder: '${store.root}/pools'}\n")
    seal(folder)
    (folder / "metrics.json").write_text("{}")
    return folder
