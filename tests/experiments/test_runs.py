"""Run folders: what their record says of the stages behind a run."""

from pathlib import Path

import pandas as pd

from sapo.data.records import StageResult, write_record
from sapo.experiments.engine.store import EXAMPLES, Stored
from sapo.experiments.runs import shortened


def stage(root: Path, kind: str, count: int) -> Stored:
    """A finished stage of task `a` that shortened some inputs."""
    folder = root / kind / "key"
    folder.mkdir(parents=True)
    result = StageResult(task="a", model="m", seconds=1.0, tokens=1, shortened=count)
    write_record(folder / "result.json", result)
    return Stored("key", folder)


def test_what_scoring_shortened_counts_too_each_example_once(tmp_path):
    scored = stage(tmp_path, "score", 3)
    rows = {"prompt": [-1, -1, 0, 0], "example": [0, 1, 0, 1], "is_shortened": [True, False, True, True]}
    pd.DataFrame(rows).to_parquet(scored.folder / EXAMPLES)
    assert shortened([stage(tmp_path, "train", 1), scored]) == {"a": 2}
