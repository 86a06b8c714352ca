"""Finished runs as they lie on disk: what was run, and every prediction with its scores."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sapo.conf.errors import UserError, WorkError, unknown
from sapo.conf.names import DIGEST
from sapo.data.files import read_yaml
from sapo.data.prompts import ORIGINAL
from sapo.data.records import LOSSES, RunRecord, mend, read_record
from sapo.data.tasks import digest, short_name

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
NUMBERS = ("rougeL", "exact_match", "nll")  # the measures that every prediction has
ROWS = ("after", "task", "column", "prompt_index", "example", "row", "prediction", "target")
FRAME = ("separator", "label_blanks")  # the settings of the data that are part of a task's frame
# The prompt that learned tasks are tested with.
COLUMNS = {"trained": "the prompt it was trained with", "common": "its original instruction"}


def measure_name(measure: str) -> str:
    """`ROUGE-L`, `NLL`: a measure without its unit."""
    return MEASURES[measure].split(" (")[0]


@dataclass(frozen=True, eq=False)
class RunResult:
    """One run: its record, of which the usual facts are attributes, and its predictions.

    `method` tells a method's variants apart (`inscl (lexical)`). `predictions` has a row per state, task and
    test example; `has_common` says whether learned tasks were tested with their original instruction, too.
    """

    path: Path
    id: str
    sequence: str
    tasks: tuple[str, ...]
    unseen: tuple[str, ...]
    model: str
    method: str
    policy: str
    seed: int
    demonstration: bool
    has_common: bool
    record: RunRecord = field(repr=False)
    predictions: pd.DataFrame = field(repr=False)

    @property
    def setting(self) -> str:
        """Model, sequence, method and seed in one line."""
        return " · ".join([self.model, self.sequence, self.method, f"seed {self.seed}"])

    @property
    def facts(self) -> str:
        """Model, sequence, method, policy and seed in one line, for titles."""
        parts = [self.model, self.sequence, self.method, self.policy, f"seed {self.seed}"]
        return " · ".join([*parts, *["demonstration"] * self.demonstration])

    @property
    def pool_size(self) -> int | None:
        """How many paraphrases the policy chose from."""
        return self.record.pool.size if self.record.pool else None

    def has(self, measure: str) -> bool:
        """Whether the run was measured so: without answers there is the NLL alone."""
        return bool(self.predictions[measure].notna().any())

    @cached_property
    def test_rows(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """Input and target of each trained task's test examples; of runs that do not store inputs, none."""
        if "input" not in self.predictions:
            return {}
        frame = self.predictions.drop_duplicates(["task", "example"]).sort_values("example")
        frame = frame[frame["task"].isin(self.tasks)]
        by_task = frame.groupby("task")[["input", "target"]]
        return {str(task): tuple(rows.itertuples(index=False, name=None)) for task, rows in by_task}

    @property
    def losses(self) -> pd.DataFrame | None:
        """The loss of each step of its trainings; None of a run that has none."""
        file = self.path / LOSSES
        frame = pd.read_csv(file) if file.is_file() else pd.DataFrame()
        return None if frame.empty else frame

    def devices(self, *kinds: str) -> set[str]:
        """The hardware that its stages were computed on: those of some kinds, or all."""
        return {stage.device for stage in self.record.stages if not kinds or stage.kind in kinds}


def load_run(path: Path) -> RunResult:
    """The run in folder `path`; UserError names what is missing, WorkError what is damaged, and the mend."""
    record = read_record(RunRecord, path)
    file = path / "predictions.parquet"
    # Without answers (evaluator.answers=false) there is nothing but the NLL.
    has_answers = record.identity.get("evaluator", {}).get("answers", True)
    frame = read_table(file, (*ROWS, *MEASURES, "is_unfinished"), NUMBERS if has_answers else ("nll",))
    frame[LABELS] = frame[LABELS].astype(float)
    cells, states = ["after", "task", "column"], range(len(record.tasks) + 1)
    strange = frame.loc[~frame["task"].isin([*record.tasks, *record.unseen]), "task"]
    # No example comes twice: equal numbers are equal rows.
    tested = frame.groupby(cells)["example"].agg(frozenset).groupby("task").nunique()
    labelled = frame.groupby("task")[LABELS].agg(lambda values: values.isna().nunique())
    problems = {
        f"task {next(iter(strange), '')} is not in {RUN}": len(strange),
        f"a state `after` outside 0..{states[-1]}": not frame["after"].isin(states).all(),
        f"`column` is none of {', '.join(COLUMNS)}": not frame["column"].isin(COLUMNS).all(),
        "an example is scored twice for one state and task": frame.duplicated([*cells, "example"]).any(),
        f"task {tested.idxmax()} has other test rows in one state than in another": tested.max() > 1,
        f"{LABELS} is missing in some rows of task {labelled.idxmax()}": labelled.max() > 1,
    }
    for problem, is_so in problems.items():
        if is_so:
            raise damaged(file, problem)
    predictions = frame.sort_values([*cells, "example"], ignore_index=True)
    names = ("id", "sequence", "tasks", "unseen", "model", "policy", "seed", "demonstration")
    # A run that was asked for the common column has rows of it wherever the prompts differ.
    is_original = bool((predictions["prompt_index"] == ORIGINAL).all())
    return RunResult(
        path=path,
        method=record.label,
        has_common=bool(record.identity.get("common_prompt")) or is_original,
        record=record,
        predictions=predictions,
        **{name: getattr(record, name) for name in names},
    )


def settings_of(run: RunResult) -> dict[str, str]:
    """What the run was made with, by name: `trainer.epochs`, `3`; rows are digests.

    The `test frame` is what the trained tasks are tested with as recorded: instruction, suffix, separator,
    labels and rows, of which no other file of a run tells the first two and labels.
    """
    identity, config = run.record.identity, run.path / "config.yaml"
    groups = ("model", "method", "policy", "scorer", "trainer", "evaluator", "common_prompt")
    facts: dict[str, Any] = {group: identity[group] for group in groups if group in identity}
    if config.is_file():
        data = read_yaml(config).get("data", {})
        facts["data"] = {name: data.get(name) or "all" for name in ("train_examples", "test_examples")}
        facts["data"] |= {name: data.get(name) or "default" for name in (*FRAME, "layout")}
    # Settings of the data that decide what a model is tested with.
    own, names = facts.get("evaluator", {}), ("truncation", "max_input_tokens", "layout")
    facts["evaluator"] = {name: value for name, value in own.items() if name not in names}
    facts["data"] = facts.get("data", {}) | {name: own[name] for name in names if name in own}
    facts["training rows"] = digest(identity.get("train"))[:DIGEST]
    facts["test rows"] = digest(run.test_rows)[:DIGEST] if run.test_rows else None
    tested = run.record.comparable.get("data", {})
    facts["test frame"] = digest([tested.get(task) for task in run.tasks])[:DIGEST]
    return flat(facts)


def flat(facts: dict[str, Any]) -> dict[str, str]:
    """Nested facts by their dotted names, as texts; what is None is left out."""
    (found,) = pd.json_normalize(facts).to_dict("records")
    return {
        str(name): ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in found.items()
        if value is not None
    }


def read_table(file: Path, columns: Sequence[str], numbers: Sequence[str]) -> pd.DataFrame:
    """A parquet file of a finished folder, with `columns` and finite `numbers`; an error names the mend."""
    if not file.is_file():
        raise UserError(f"{file.parent} has no {file.name}. {mend(file.parent)}")
    try:
        frame = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise damaged(file, str(error)) from error
    if missing := [column for column in columns if column not in frame]:
        raise damaged(file, f"without column {', '.join(missing)}")
    if frame.empty:
        raise damaged(file, "it has no rows")
    for column in numbers:
        is_number = np.isfinite(pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=float))
        if not is_number.all():
            raise damaged(file, f"{column} is not a finite number in row {int(np.argmin(is_number))}")
    return frame


def damaged(file: Path, problem: str) -> WorkError:
    """The error for a file of a finished folder that is not what it should be."""
    return WorkError(f"{file} is damaged: {problem}. {mend(file.parent)}")


# --- folders -----------------------------------------------------------------------------------------------


def find(names: Sequence[str], root: Path, both: bool = False) -> list[Path]:
    """The folders of finished runs and probes that `names` mean, each once; all of `root` without a name.

    A name is a folder, an id in `root`, a pattern, or a folder of several; UserError if it means nothing. One
    that means runs and probes means the runs, or with `both` the probes and the runs.
    """
    store = root / "runs"
    found: list[Path] = []
    for name in names or [str(root)]:
        runs, probes = _named(name, store, RUN), _named(name, root / "probes", PROBE)
        found += [*probes, *runs] if both else runs or probes
        if runs or probes or not names:
            continue
        if glob.has_magic(name):
            raise UserError(f"No run matches '{name}', neither here nor in {store}.")
        for path in filter(os.path.isdir, (Path(name), store / name)):
            raise UserError(f"{path} holds no finished run (no {RUN}). {mend(path)}")
        raise unknown("run", name[:80], [file.parent.name for file in store.glob(f"[!.]*/{RUN}")])
    return list({path.resolve(): path for path in found}.values())


def find_runs(names: Sequence[str], root: Path) -> list[Path]:
    """The same of runs alone; UserError for a name that means a probe."""
    found = find(names, root)
    if probe := next((path for path in found if (path / PROBE).is_file()), None):
        raise UserError(f"{probe} is a probe, not a run: `sapo analyze {probe}` draws it.")
    return found


def find_probes(names: Sequence[str], root: Path) -> list[Path]:
    """The same of probes alone; none if the names mean runs, and UserError if they mean both."""
    found = find(names, root)
    runs = [path for path in found if not (path / PROBE).is_file()]
    if runs and len(runs) < len(found):
        others = ", ".join(path.name for path in runs)
        raise UserError(f"Not of a probe: {others}. Probes and runs are analyzed apart.")
    return [] if runs else found


def _named(name: str, store: Path, record: str) -> list[Path]:
    """The folders with a file `record` that a name means: itself, here or in `store`, or those within.

    A pattern means those that match. Names with a leading dot, which are being written, match none.
    """
    if "\0" in name:  # which no file can have: glob takes other such names for absent
        return []
    places = [glob.escape(str(path)) for path in (Path(name), store / name)]
    choices = [(place, f"{place}/*", f"{place}/{store.name}/*") for place in places]
    for patterns in (*choices, (name, f"{glob.escape(str(store))}/{name}")):
        files = [glob.glob(f"{pattern}/{record}", recursive=True) for pattern in patterns]
        if any(files):
            return [folder for each in files for folder in sorted(Path(file).parent for file in each)]
    return []


# --- scores ------------------------------------------------------------------------------------------------


def column_rows(run: RunResult, column: str) -> pd.DataFrame:
    """The predictions of a column of COLUMNS, a row per state, task and example; UserError if it has none.

    Tasks that were tested with their original instruction anyway count for both columns.
    """
    if column == "trained":
        return run.predictions[run.predictions["column"] == "trained"]
    if not run.has_common:
        raise UserError(
            f"Run {run.id} tested learned tasks with their training prompts only. For their original "
            "instructions too, run it again with evaluator.common_prompt=true."
        )
    rows = run.predictions.sort_values(["after", "task", "example", "column"])  # `common` before `trained`
    return rows.drop_duplicates(["after", "task", "example"], ignore_index=True)


def tests_apart(run: RunResult) -> bool:
    """Whether the columns of the run differ: a learned task was tested with two prompts."""
    return bool((run.predictions["column"] == "common").any())


def score_matrix(run: RunResult, measure: str, column: str = "trained") -> pd.DataFrame:
    """Mean score per state (index `after` 0..N) and task (trained, then unseen); NaN = not evaluated.

    `column` is one of COLUMNS; `label_match` is also NaN for tasks without labels.
    """
    check_measure(measure)
    means = column_rows(run, column).groupby(["after", "task"])[measure].mean().unstack("task")
    states = pd.RangeIndex(len(run.tasks) + 1, name="after")
    return means.reindex(index=states, columns=pd.Index([*run.tasks, *run.unseen], name=None))


@lru_cache(maxsize=1024)  # each metric and comparison asks for the same
def example_scores(
    run: RunResult, measure: str, column: str = "trained"
) -> dict[tuple[int, str], NDArray[np.float64]]:
    """Scores of every test example, ordered by example, for each (state, task) that was evaluated."""
    groups = column_rows(run, column).dropna(subset=[measure]).groupby(["after", "task"])[measure]
    return {(int(after), str(task)): values.to_numpy(dtype=float) for (after, task), values in groups}


def row_numbers(run: RunResult, task: str) -> NDArray[np.int64]:
    """For each test example of a task the number of the first that has the same input and target."""
    frame = run.predictions[run.predictions["task"] == task].drop_duplicates("example").sort_values("example")
    return frame["row"].to_numpy(dtype=np.int64)


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


def row_remarks(runs: Sequence[RunResult]) -> list[str]:
    """What a reader must know of test rows: which repeat each other, and which answers were cut off."""
    found = []
    for run in runs:
        for task in n_examples(run):
            rows = row_numbers(run, task)
            if len(set(rows)) < len(rows):
                found.append(
                    f"{short_name(task)}: its {len(rows)} test examples are {len(set(rows))} distinct rows; "
                    "intervals and n count these."
                )
    answers = pd.concat([run.predictions[["task", "is_unfinished"]] for run in runs])
    for task, cut in answers.groupby("task", sort=False)["is_unfinished"]:
        if cut.any():
            found.append(
                f"{short_name(str(task))}: {int(cut.sum())} of {len(cut)} answers ran into the limit of new "
                "tokens (evaluator.max_new_tokens) and are scored as far as they go."
            )
    return list(dict.fromkeys(found))


def rows_apart(runs: Sequence[RunResult], measure: str | None = None) -> str | None:
    """How the test rows of the runs differ in a task that they train; None if each score has its pair.

    A row is an input and a target: what stands around them may differ. A `label_match` is of its labels too,
    which are recorded with the frame alone: there both must be the same.
    """
    for other, task in product(runs[1:], runs[0].tasks):
        pair = runs[0], other
        if len({run.record.comparable.get("data", {}).get(task) for run in pair}) == 1:
            continue
        ours, theirs = (run.test_rows.get(task, ()) for run in pair)
        if not ours or ours != theirs:
            n, m = (n_examples(run).get(task, 0) for run in pair)
            common = (Counter(ours) & Counter(theirs)).total()
            how = ", the same in another order" if common == n == m else f", {common} in both"
            return f"{short_name(task)}: {n} and {m} test rows{how if ours and theirs else ''}"
        if measure == LABELS:
            return f"{short_name(task)}: the same test rows, with other labels or words around them"
    return None


def shared(facts: dict[str, Any], others: dict[str, Any], by_name: Sequence[str]) -> dict[str, Any]:
    """The facts that others have, too; of those in `by_name`, which are facts by task or the like, alike."""
    common = {name: fact for name, fact in facts.items() if name in others}
    return common | {name: shared(common[name], others[name], ()) for name in by_name if name in common}


def leading_measure(is_demonstration: bool) -> str:
    """The measure that comes first: the paper's, or that in which a small model's effects show."""
    return "nll" if is_demonstration else "rougeL"


def shown_measures(measure: str) -> list[str]:
    """The measure asked for, and those that stand beside it: ROUGE-L and NLL are shown with each other."""
    beside = [*(name for name in DRAWN if name != measure), "exact_match"]
    return [measure, *(beside if measure in DRAWN else [])]


def check_measure(measure: str) -> None:
    """UserError unless `measure` is one of MEASURES."""
    if measure not in MEASURES:
        raise unknown("measure", measure, MEASURES)
