"""Run folders: what their record says of the stages behind a run."""

import json
from pathlib import Path

import pandas as pd

from sapo.data.prompts import Prompt
from sapo.experiments import runs
from sapo.experiments.continual import Choice, Run
from sapo.experiments.engine.store import EXAMPLES, Stored


def stage(root: Path, kind: str, **result: object) -> Stored:
    """A finished stage with a result."""
    folder = root / kind / "key"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    return Stored("key", folder)


def test_what_scoring_shortened_counts_too_each_example_once(tiny_config, tmp_path):
    scored = stage(tmp_path, "score", task="a", shortened=3)
    rows = {"prompt": [-1, -1, 0, 0], "example": [0, 1, 0, 1], "is_shortened": [True, False, True, True]}
    pd.DataFrame(rows).to_parquet(scored.folder / EXAMPLES)
    run = Run(
        tiny_config(),
        tasks=[],
        unseen=[],
        choices=[Choice("a", Prompt("Say it."), scored=scored), Choice("b", Prompt("Do it."))],
        trained=[stage(tmp_path, "train", task="a", shortened=1)],
    )
    assert runs._shortened(run) == {"a": 2}
