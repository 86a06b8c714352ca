"""Run folders: what their record says of the stages behind a run."""

import asyncio
from pathlib import Path

import pandas as pd

from sapo.data.records import RunRecord, StageResult, read_record, write_record
from sapo.experiments.continual import run_sequence
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import EXAMPLES, Store, Stored
from sapo.experiments.runs import shortened, write_run


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


def test_answers_of_trained_states_that_ran_into_the_limit_are_a_note(tiny_config, tmp_path):
    config = tiny_config("sequence.tasks=[mini_city]", "sequence.unseen=[]", "policy=static")
    store = Store(Path(config.store.root))
    run = asyncio.run(run_sequence(config, LocalEngine(store)))
    counts = [each.stored.result.unfinished for each in run.evaluations]
    assert [each.after for each in run.evaluations] == [0, 1]
    assert counts[1] == int(run.evaluations[1].stored.examples()["is_unfinished"].sum()) > 0
    notes = read_record(RunRecord, write_run(run, store)).notes
    assert notes == (
        f"{counts[1]} of 4 answers of trained states ran into evaluator.max_new_tokens=4 before they ended.",
    )
