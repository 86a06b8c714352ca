"""Finished runs as they lie on disk: what was run, and every prediction with its scores."""

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sapo.conf.errors import UserError, WorkError, unknown
from sapo.data.prompts import ORIGINAL
from sapo.data.records import MANIFEST, damage
from sapo.data.tasks import short_name

MEASURES = {
    "rougeL": "ROUGE-L (0-100)",
    "exact_match": "exact match (%)",
    "label_match": "label match (%)",
    "nll": "NLL (nats per target token)",
}
LABELS = "label_match"  # the measure that only classification tasks have
DRAWN = ("rougeL", "nll")  # figures are drawn for the paper's measure, and for one that shows small effects
LOWER_IS_BETTER = frozenset({"nll"})
RUN, PROBE = "run.json", "probe.json"  # the file that makes a folder a finished run, or a finished probe
EVERYWHERE = tuple(measure for measure in MEASURES if measure != LABELS)
NEEDED = ("after", "task", "prompt_index", "example", "prediction", "target", *EVERYWHERE, "target_tokens")
# The prompt that learned tasks are tested with.
COLUMNS = {"trained": "the prompt it was trained with", "common": "its original instruction"}


@dataclass(frozen=True, eq=False)
class RunResult:
    """One run: its facts (`run.json`) and its predictions (a row per state, task and example)."""

    path: Path
    id: str
    sequence: str
    tasks: tuple[str, ...]
    unseen: tuple[str, ...]
    model: str
    method: str
    policy: str
    seed: int
    parity: Any
    demonstration: bool
    prompts: dict[str, str]
    choices: list[dict[str, Any]]
    comparable: dict[str, Any]
    has_common: bool
    pool: str | None  # where the paraphrases came from; None without any, or in an older run folder
    pool_size: int | None
    stages: list[dict[str, Any]]  # kind, task, device, seconds, tokens of each
    predictions: pd.DataFrame = field(repr=False)

    @property
    def facts(self) -> str:
        """Model, sequence, method, policy and seed in one line, for titles."""
        parts = [self.model, self.sequence, self.method, self.policy, f"seed {self.seed}"]
        return " · ".join([*parts, "demonstration"] if self.demonstration else parts)

    def devices(self, *kinds: str) -> set[str]:
        """The hardware that its stages were computed on: those of some kinds, or all."""
        return {stage["device"] for stage in self.stages if not kinds or stage["kind"] in kinds}


def load_run(path: Path) -> RunResult:
    """The run in folder `path`; UserError names what is missing, WorkError what is damaged, and the mend."""
    record = _record(path)
    if (path / MANIFEST).is_file():
        for line in damage(path):
            raise WorkError(f"Damaged: {line}. {_again(path, record)}")
    predictions = _predictions(path, record)
    derived = {"path", "predictions", "has_common", "pool", "pool_size", "stages"}
    of_record = {part.name for part in fields(RunResult)} - derived
    pool = record.get("pool") or {}
    # In older run folders stages do not say their hardware: it was that of the run's first.
    device = (record.get("environment") or {}).get("device", "unknown")
    values = {name: record[name] for name in of_record} | {
        "pool": pool.get("name"),
        "pool_size": pool.get("size"),
        "stages": [{"device": device} | stage for stage in record.get("stages") or []],
        "tasks": tuple(record["tasks"]),
        "unseen": tuple(record["unseen"]),
        # `inscl (lexical)`: variants of a method are told apart wherever it is shown or grouped by.
        "method": str(record.get("label", record["method"])),
    }
    # A run that was asked for the common column has rows of it wherever the prompts differ.
    asked = "common_prompt" in record.get("identity", {}) and record["identity"]["common_prompt"]
    has_common = bool(asked) or bool((predictions["prompt_index"] == ORIGINAL).all())
    return RunResult(path=path, has_common=has_common, predictions=predictions, **values)


def _record(path: Path) -> dict[str, Any]:
    again = _again(path, {})
    file = path / "run.json"
    if not file.is_file():
        raise UserError(f"{path} has no run.json: it is not a finished run. {again}")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WorkError(f"{file} is damaged: {error}. {again}") from error
    kinds: dict[str, type | tuple[type, ...]] = dict.fromkeys(("tasks", "unseen", "choices"), list)
    kinds |= dict.fromkeys(("id", "sequence", "model", "method", "policy"), str)
    kinds |= {"seed": int, "demonstration": bool, "prompts": dict, "comparable": dict, "parity": object}
    wrong = [name for name, kind in kinds.items() if not isinstance(record, dict) or name not in record]
    wrong = wrong or [name for name, kind in kinds.items() if not isinstance(record[name], kind)]
    optional = {"pool": dict, "stages": list, "environment": dict}
    if not wrong:
        wrong = [name for name, kind in optional.items() if not isinstance(record.get(name) or kind(), kind)]
    if not wrong and not all(isinstance(stage, dict) for stage in record.get("stages") or []):
        wrong = ["stages"]
    wrong += ["tasks"] if not wrong and not record["tasks"] else []
    if wrong:
        raise WorkError(f"{file} is damaged: {', '.join(wrong)} missing or of the wrong type. {again}")
    return record


def _predictions(path: Path, record: dict[str, Any]) -> pd.DataFrame:
    again = _again(path, record)
    file = path / "predictions.parquet"
    if not file.is_file():
        raise UserError(f"{path} has no predictions.parquet. {again}")
    try:
        frame = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise WorkError(f"{file} is damaged: {error}. {again}") from error
    if "column" not in frame:
        frame["column"] = "trained"
    if LABELS not in frame:
        frame[LABELS] = np.nan
    problem = _problem(frame, [*record["tasks"], *record["unseen"]], len(record["tasks"]))
    if problem:
        raise WorkError(f"{file} is damaged: {problem}. {again}")
    frame[LABELS] = frame[LABELS].astype(float)
    return frame.sort_values(["after", "task", "column", "example"], ignore_index=True)


def _problem(frame: pd.DataFrame, tasks: list[str], n: int) -> str | None:
    """What is wrong with a table of predictions, or None."""
    missing = [column for column in NEEDED if column not in frame]
    if missing:
        return f"without column {', '.join(missing)}"
    strangers = sorted(set(frame["task"]) - set(tasks))
    if strangers:
        return f"task {strangers[0]} is not in run.json"
    if not frame["after"].isin(range(n + 1)).all():
        return f"a state `after` outside 0..{n}"
    if not frame["column"].isin(COLUMNS).all():
        return f"`column` is none of {', '.join(COLUMNS)}"
    if frame.duplicated(["after", "task", "column", "example"]).any():
        return "an example is scored twice for one state and task"
    for measure in EVERYWHERE:
        values = pd.to_numeric(frame[measure], errors="coerce").to_numpy(dtype=float)
        if not np.isfinite(values).all():
            return f"{measure} is not a finite number in row {int(np.argmin(np.isfinite(values)))}"
    # No example comes twice: equal numbers are equal rows.
    whole = frame.groupby("task")["example"].nunique()
    found = frame.groupby(["after", "task", "column"])["example"].nunique().reset_index()
    uneven = found[found["example"] != found["task"].map(whole)]
    if len(uneven):
        return f"task {uneven['task'].iloc[0]} has other test rows in one state than in another"
    labelled = frame.groupby("task")[LABELS].agg(lambda values: values.notna().mean())
    partly = labelled[(labelled > 0) & (labelled < 1)]
    return f"{LABELS} is missing in some rows of task {partly.index[0]}" if len(partly) else None


def _again(path: Path, record: dict[str, Any]) -> str:
    """The command that mends a run."""
    names = ("sequence", "model", "method", "policy", "seed")
    options = " ".join(f"{name}={record[name]}" for name in names if name in record) or "…"
    settings = path / "config.yaml"
    return f"Run `sapo train {options}` again (settings: {settings}): only what is missing is computed."


def find_runs(names: Sequence[str], root: Path) -> list[Path]:
    """The run folders meant by `names`: folders, ids under `root`/runs, patterns, or folders of several runs.

    Each folder once, in the order of the names. Raises UserError for a name that means no run.
    """
    found: dict[Path, Path] = {}
    for name in names:
        try:
            for path in _runs_named(name, root):
                found.setdefault(path.resolve(), path)
        except OSError as error:  # such as a name that is too long for any file
            raise UserError(f"No run '{name[:60]}': {error.strerror or error}.") from error
    return list(found.values())


def find_probes(names: Sequence[str], root: Path) -> list[Path]:
    """The probe folders meant by `names`, as `find_runs` finds runs; none if the names mean runs, or nothing.

    Raises UserError if some of the names mean probes and others do not.
    """
    found: dict[Path, Path] = {}
    others = []
    for name in names:
        paths = _probes_named(name, root)
        found |= {path.resolve(): path for path in paths}
        others += [] if paths else [name]
    if found and others:
        raise UserError(f"Not of a probe: {', '.join(others)}. Probes and runs are analyzed apart.")
    return list(found.values())


def _probes_named(name: str, root: Path) -> list[Path]:
    try:
        return [] if _named(name, root / "runs", RUN) else _named(name, root / "probes", PROBE)
    except OSError:
        return []  # find_runs says what is wrong with the name


def _named(name: str, store: Path, record: str) -> list[Path]:
    """The folders with a file `record` that a name means: itself, here or in `store`, or those within."""
    paths = [Path(name), store / name]
    if glob.has_magic(name):
        matches = [match for pattern in paths for match in sorted(glob.glob(str(pattern), recursive=True))]
        return [path for path in map(Path, matches) if (path / record).is_file()]
    for path in paths:
        if (path / record).is_file():
            return [path]
        # Names with a leading dot are being written.
        patterns = (f"[!.]*/{record}", f"{store.name}/[!.]*/{record}")
        inside = [file.parent for pattern in patterns for file in sorted(path.glob(pattern))]
        if inside:
            return inside
    return []


def _runs_named(name: str, root: Path) -> list[Path]:
    store = root / "runs"
    found = _named(name, store, RUN)
    if found:
        return found
    if glob.has_magic(name):
        raise UserError(f"No run matches '{name}', neither here nor in {store}.")
    probes = _probes_named(name, root)
    if probes:
        raise UserError(f"{probes[0]} is a probe, not a run: `sapo analyze {probes[0]}` draws it.")
    for path in (Path(name), store / name):
        if path.is_dir():
            raise UserError(f"{path} holds no finished run (no {RUN}). {_again(path, {})}")
    raise unknown("run", name, [file.parent.name for file in store.glob(f"[!.]*/{RUN}")])


def column_rows(run: RunResult, column: str) -> pd.DataFrame:
    """The predictions of a column of COLUMNS: a row per state, task and example.

    Tasks that were tested with their original instruction anyway count for both columns. Raises UserError if
    the run has no such column.
    """
    if column not in COLUMNS:
        raise unknown("column", column, COLUMNS)
    frame = run.predictions
    trained = frame[frame["column"] == "trained"]
    if column == "trained":
        return trained
    if not run.has_common:
        raise UserError(
            f"Run {run.id} tested learned tasks with their training prompts only. For their original "
            "instructions too, run it again with evaluator.common_prompt=true."
        )
    common = frame[frame["column"] == "common"]
    cells = ["after", "task"]
    tested_apart = pd.MultiIndex.from_frame(trained[cells]).isin(pd.MultiIndex.from_frame(common[cells]))
    return pd.concat([trained[~tested_apart], common]).sort_values([*cells, "example"], ignore_index=True)


def tests_apart(run: RunResult) -> bool:
    """Whether the columns of the run differ: a learned task was tested with two prompts."""
    return bool((run.predictions["column"] == "common").any())


def score_matrix(run: RunResult, measure: str, column: str = "trained") -> pd.DataFrame:
    """Mean score per state (index `after` 0..N) and task (trained, then unseen); NaN = not evaluated.

    Learned tasks are tested with their training prompt or, in the column `common`, with their original
    instruction. `label_match` is also NaN for tasks without labels.
    """
    check_measure(measure)
    means = column_rows(run, column).groupby(["after", "task"])[measure].mean().unstack("task")
    states = pd.RangeIndex(len(run.tasks) + 1, name="after")
    matrix = means.reindex(index=states, columns=[*run.tasks, *run.unseen])
    matrix.columns.name = None
    return matrix


def example_scores(
    run: RunResult, measure: str, column: str = "trained"
) -> dict[tuple[int, str], NDArray[np.float64]]:
    """Scores of every test example, ordered by example, for each (state, task) that was evaluated."""
    check_measure(measure)
    groups = column_rows(run, column).dropna(subset=[measure]).groupby(["after", "task"])[measure]
    return {(int(after), str(task)): values.to_numpy(dtype=float) for (after, task), values in groups}


def test_rows(run: RunResult, task: str) -> NDArray[np.int64]:
    """For each test example of a task the number of the first that has the same input and target.

    Run folders that do not say so are of an earlier version: there each example is a row of its own.
    """
    frame = run.predictions[run.predictions["task"] == task].drop_duplicates("example").sort_values("example")
    return frame["row" if "row" in frame else "example"].to_numpy(dtype=np.int64)


def why_no_labels(run: RunResult) -> str | None:
    """Why AP, BWT and FWT of `label_match` are not defined for the run, or None if they are."""
    has_labels = run.predictions.groupby("task")[LABELS].agg(lambda values: values.notna().all())
    if not has_labels.any():
        return "no task has labels, or the run is older than this measure"
    free = [short_name(task) for task in run.tasks if not has_labels.get(task, False)]
    return f"no label set: {', '.join(free)}" if free else None


def n_examples(run: RunResult) -> dict[str, int]:
    """Number of test examples of each evaluated task."""
    counts = run.predictions.groupby("task")["example"].nunique()
    return {task: int(counts[task]) for task in (*run.tasks, *run.unseen) if task in counts}


def require_comparable(runs: Sequence[RunResult]) -> None:
    """UserError, with every difference, unless the runs share model, test data and evaluator."""
    for other in runs[1:]:
        found = differences(runs[0].comparable, other.comparable)
        if found:
            raise UserError(
                f"Runs {runs[0].id} and {other.id} cannot be compared:\n  "
                + "\n  ".join(found)
                + "\nAnalyze them apart, or run one of them again with the settings of the other."
            )


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """What differs between two nested records, a line each: `where: this against that`."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = [*first, *(key for key in second if key not in first)]
        parts = [differences(first.get(key), second.get(key), f"{where} {key}".strip()) for key in keys]
        return [difference for part in parts for difference in part]
    return [] if first == second else [f"{where}: {_shown(first)} against {_shown(second)}"]


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def leading_measure(is_demonstration: bool) -> str:
    """The measure that comes first: the paper's, or that in which a small model's effects show."""
    return "nll" if is_demonstration else "rougeL"


def shown_measures(measure: str) -> list[str]:
    """The measure asked for, and those that stand beside it: ROUGE-L and NLL are shown with each other."""
    if measure not in DRAWN:
        return [measure]
    return [measure, *(name for name in DRAWN if name != measure), "exact_match"]


def check_measure(measure: str) -> None:
    """UserError unless `measure` is one of MEASURES."""
    if measure not in MEASURES:
        raise unknown("measure", measure, MEASURES)
