"""Finished probes as they lie on disk: one pair of tasks, many prompts of the second, all else equal."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sapo.analysis.results import (
    LOWER_IS_BETTER,
    MEASURES,
    RunResult,
    column_rows,
    differences,
    load_run,
    require_comparable,
    test_rows,
)
from sapo.conf.errors import UserError, WorkError
from sapo.conf.names import shown, why_no_name
from sapo.data.losses import REDUCTIONS, prompt_losses
from sapo.data.prompts import ORIGINAL
from sapo.data.records import MANIFEST, damage

ROLES = ("forgetting", "training", "generalization")
LOSSES = ("prompt", "example", "nll", "entropy", "n_tokens")
ANSWERS = ("prompt", "example", "rougeL", "exact_match")
GRADIENTS = ("prompt", "rank", "task", "role", "module", "projection", "layer", "cosine")


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """One probe: its runs by prompt index, and what was measured before its current task was trained.

    `finals`: scores after training, a row per prompt, task and test example. `losses`, `answers`: a row per
    prompt and scored training example, without the `n_cut` examples whose target is cut off under some
    prompt; `gradients` as stored, or None. `missing`: prompts whose runs failed. `reduction` and
    `include_original` are the scorer's: what SAPO's loss of a prompt is, and whether it can choose the
    original.
    """

    path: Path
    id: str
    sequence: str
    model: str
    method: str
    seed: int
    trained: str
    current: str
    unseen: tuple[str, ...]
    demonstration: bool
    n_cut: int
    missing: tuple[int, ...]
    reduction: str
    include_original: bool
    prompts: dict[int, str] = field(repr=False)
    comparable: dict[str, Any] = field(repr=False)
    runs: dict[int, RunResult] = field(repr=False)
    finals: pd.DataFrame = field(repr=False)
    losses: pd.DataFrame = field(repr=False)
    answers: pd.DataFrame = field(repr=False)
    gradients: pd.DataFrame | None = field(repr=False)

    @property
    def others(self) -> tuple[str, ...]:
        """The tasks that are not current: the one trained before, then the unseen ones."""
        return (self.trained, *self.unseen)

    @property
    def pair(self) -> str:
        """The two trained tasks: sequences that differ in their unseen tasks only are one pair."""
        return f"{self.trained} > {self.current}"

    @property
    def candidates(self) -> list[int]:
        """The prompts that SAPO can choose from."""
        return [index for index in self.prompts if self.include_original or index != ORIGINAL]

    @property
    def facts(self) -> str:
        """Model, sequence, method and seed in one line, for titles."""
        parts = [self.model, self.sequence, self.method, f"seed {self.seed}"]
        return " · ".join([*parts, "demonstration"] if self.demonstration else parts)

    def role(self, task: str) -> str:
        """What a prompt of the current task does to `task`: one of ROLES."""
        return ROLES[0] if task == self.trained else ROLES[1] if task == self.current else ROLES[2]

    def outcomes(self, measure: str) -> pd.DataFrame:
        """Final scores: prompts (by index) x tasks (trained, current, unseen); NaN = not evaluated."""
        means = self.finals.groupby(["prompt", "task"])[measure].mean().unstack("task")
        tasks = [self.trained, self.current, *self.unseen]
        return means.reindex(index=pd.Index(self.runs, name="prompt"), columns=pd.Index(tasks, name=None))

    def final_examples(self, measure: str, task: str) -> NDArray[np.float64]:
        """Final scores on a task that every prompt was evaluated on: prompts x test examples."""
        of_task = self.finals[self.finals["task"] == task]
        return of_task.pivot_table(index="prompt", columns="example", values=measure).to_numpy(dtype=float)

    def test_rows(self, task: str) -> NDArray[np.int64]:
        """The row that each test example of a task is or repeats, as those of its runs."""
        return test_rows(next(iter(self.runs.values())), task)

    def pre_update_losses(self) -> pd.Series:
        """The loss of each prompt that SAPO ranks by (nats), by prompt index."""
        return prompt_losses(self.losses, self.reduction).set_index("prompt")["loss"]


def sign_of(measure: str) -> int:
    """-1 for measures where lower is better, which are flipped where good is to be up; else 1."""
    return -1 if measure in LOWER_IS_BETTER else 1


def load_probe(folder: Path) -> ProbeResult:
    """The probe in `folder` (ROOT/probes/ID) with its runs (ROOT/runs/…).

    UserError names what is missing and the mend, or how its runs cannot be compared, WorkError what is
    damaged.
    """
    record = _record(folder)
    again = _again(record)
    if (folder / MANIFEST).is_file():
        for line in damage(folder):
            raise WorkError(f"Damaged: {line}. {again}")
    prompts = {int(index): text for index, text in record["prompts"].items()}
    store = folder.resolve().parent.parent / "runs"
    runs = {int(index): load_run(store / name) for index, name in record["runs"].items()}
    _check_runs(folder, record, prompts, runs)
    losses = _table(folder, "losses", LOSSES, again)
    answers = _table(folder, "answers", ANSWERS, again)
    for name, frame in (("losses", losses), ("answers", answers)):
        _check_examples(folder / f"{name}.parquet", frame, sorted(prompts), again)
    has_gradients = (folder / "gradients.parquet").is_file()
    gradients = _table(folder, "gradients", GRADIENTS, again) if has_gradients else None
    facts = {
        name: record[name]
        for name in ("id", "sequence", "model", "seed", "demonstration", "comparable", "n_cut")
    }
    scorer = record["identity"]["scorer"]
    return ProbeResult(
        path=folder,
        method=next(iter(runs.values())).method,
        trained=record["tasks"][0],
        current=record["tasks"][1],
        unseen=tuple(record["unseen"]),
        missing=tuple(record["missing"]),
        reduction=scorer["reduction"],
        include_original=scorer["include_original"],
        prompts=dict(sorted(prompts.items())),
        runs=dict(sorted(runs.items())),
        finals=_finals(runs),
        losses=losses,
        answers=answers,
        gradients=gradients,
        **facts,
    )


def _record(folder: Path) -> dict[str, Any]:
    file = folder / "probe.json"
    if not file.is_file():
        raise UserError(f"{folder} has no probe.json: it is not a finished probe. {_again({})}")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WorkError(f"{file} is damaged: {error}. {_again({})}") from error
    # Probes that were whole before prompts could be missing do not say so.
    record = {"missing": [], **record} if isinstance(record, dict) else {}
    wrong = _wrong_parts(record)
    if wrong:
        raise WorkError(f"{file} is damaged: {', '.join(wrong)} missing or wrong. {_again(record)}")
    return record


def _wrong_parts(record: dict[str, Any]) -> list[str]:
    """What is missing in a probe's record or is not what it should be."""
    kinds: dict[str, type] = dict.fromkeys(("id", "sequence", "model", "method"), str)
    kinds |= {"seed": int, "n_cut": int, "demonstration": bool}
    kinds |= dict.fromkeys(("tasks", "unseen", "missing"), list)
    kinds |= dict.fromkeys(("prompts", "runs", "comparable", "identity"), dict)
    wrong = [name for name, kind in kinds.items() if not isinstance(record.get(name), kind)]
    if not wrong and len(record["tasks"]) != 2:
        wrong = ["tasks (a trained and a current one)"]
    if not wrong and (str(ORIGINAL) not in record["prompts"] or not all(map(_is_index, record["prompts"]))):
        wrong = [f"prompts (numbered, with {ORIGINAL}, the original)"]
    if not wrong and record["runs"].keys() != record["prompts"].keys():
        wrong = ["runs (one for each prompt)"]
    if not wrong and not _is_scorer(record["identity"].get("scorer")):
        wrong = ["identity (with the scorer's reduction and include_original)"]
    if not wrong and not all(isinstance(index, int) for index in record["missing"]):
        wrong = ["missing (numbers of prompts)"]
    texts = [] if wrong else [*record["tasks"], *record["unseen"], *record["prompts"].values()]
    if not all(isinstance(text, str) for text in texts):
        wrong = ["tasks, unseen and prompts (texts)"]
    # Files are named after the probe, and read from the folders of its runs: neither may lead elsewhere.
    for name in () if wrong else (record["id"], record["model"], *record["runs"].values()):
        reason = why_no_name(name) if isinstance(name, str) else "it is no text"
        wrong += [f"the name {shown(str(name))} ({reason})"] if reason else []
    return wrong


def _is_scorer(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and found.get("reduction") in REDUCTIONS
        and isinstance(found.get("include_original"), bool)
    )


def _is_index(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _again(record: dict[str, Any]) -> str:
    """The command that mends a probe."""
    names = ("sequence", "model", "method", "seed")
    options = " ".join(f"{name}={record[name]}" for name in names if name in record) or "…"
    return f"Make the probe again ({options}): `sapo reproduce` computes only what is missing."


def _check_runs(
    folder: Path, record: dict[str, Any], prompts: dict[int, str], runs: dict[int, RunResult]
) -> None:
    """UserError unless the runs are the probe's: its tasks, prompts and seed, and comparable."""
    require_comparable(list(runs.values()))
    expected = {name: record[name] for name in ("sequence", "model", "seed")}
    expected |= {name: tuple(record[name]) for name in ("tasks", "unseen")}
    expected["method"] = next(iter(runs.values())).method  # in full, as `inscl (lexical)`
    for index, run in runs.items():
        wrong = [
            f"{name} {getattr(run, name)} instead of {value}"
            for name, value in expected.items()
            if getattr(run, name) != value
        ]
        if run.prompts.get(record["tasks"][1]) != prompts[index]:
            wrong.append(f"another wording than prompt {index} of {record['tasks'][1]}")
        if wrong:
            raise UserError(
                f"Run {run.id} is not of the probe {folder}: {'; '.join(wrong)}. {_again(record)}"
            )
    for task in (*record["tasks"], *record["unseen"]):
        tested = {index: _tested(run, task) for index, run in runs.items()}
        if len({rows for rows in tested.values() if rows}) > 1:
            raise UserError(
                f"The runs of the probe {folder} were tested on different rows of {task}. {_again(record)}"
            )
    earlier = {run.prompts.get(record["tasks"][0]) for run in runs.values()}
    if len(earlier) > 1:
        raise UserError(
            f"The runs of the probe {folder} trained {record['tasks'][0]} with {len(earlier)} prompts: "
            f"only the prompt of {record['tasks'][1]} may differ. {_again(record)}"
        )


def _tested(run: RunResult, task: str) -> tuple[int, ...]:
    """The test examples of a task that the run was tested on in the end; none where it was not."""
    frame = column_rows(run, "trained")
    return tuple(frame.loc[(frame["after"] == len(run.tasks)) & (frame["task"] == task), "example"])


def _finals(runs: dict[int, RunResult]) -> pd.DataFrame:
    frames = [column_rows(run, "trained").assign(prompt=index) for index, run in sorted(runs.items())]
    frame = pd.concat(frames, ignore_index=True)
    return frame.loc[frame["after"] == 2, ["prompt", "task", "example", *MEASURES]].reset_index(drop=True)


def _table(folder: Path, name: str, columns: Sequence[str], again: str) -> pd.DataFrame:
    """The parquet file `name` of the probe; its numbers are finite."""
    file = folder / f"{name}.parquet"
    if not file.is_file():
        raise UserError(f"{folder} has no {file.name}. {again}")
    try:
        frame = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise WorkError(f"{file} is damaged: {error}. {again}") from error
    missing = [column for column in columns if column not in frame]
    if missing:
        raise WorkError(f"{file} is damaged: without column {', '.join(missing)}. {again}")
    if frame.empty:
        raise WorkError(f"{file} is damaged: it has no rows. {again}")
    texts = ("task", "role", "module", "projection")
    for column in columns:
        numbers = () if column in texts else pd.to_numeric(frame[column], errors="coerce")
        if not np.isfinite(np.asarray(numbers, dtype=float)).all():
            raise WorkError(f"{file} is damaged: {column} is not a finite number in every row. {again}")
    return frame


def _check_examples(file: Path, frame: pd.DataFrame, prompts: list[int], again: str) -> None:
    """UserError unless every prompt was measured on the same examples, each once."""
    keys = frame[["prompt", "example"]]
    counts = keys["example"].groupby(keys["example"]).size()
    if sorted(set(keys["prompt"])) != prompts:
        problem = f"it holds prompts {sorted(map(int, set(keys['prompt'])))} instead of {prompts}"
    elif keys.duplicated().any() or not (counts == len(prompts)).all():
        problem = "the prompts were not measured on the same examples, each once"
    elif "n_tokens" in frame and (frame["n_tokens"] < 1).any():
        problem = "a target without tokens"
    else:
        return
    raise WorkError(f"{file} is damaged: {problem}. {again}")


def require_poolable(probes: Sequence[ProbeResult]) -> None:
    """UserError, with every difference, unless probes of one model and method can stand in one figure.

    They train and test different tasks: the data of tasks that two of them share must be the same.
    """
    for first, other in combinations(probes, 2):
        if first.id == other.id:
            raise UserError(
                f"{first.path} and {other.path} are both probe {first.id}: leave one of them out."
            )
        if (first.model, first.method) != (other.model, other.method):
            continue
        found = differences(*_shared(first.comparable, other.comparable))
        if found:
            raise UserError(
                f"Probes {first.id} and {other.id} cannot be compared:\n  "
                + "\n  ".join(found)
                + "\nDraw them apart, or make one of them again with the settings of the other."
            )
        if (first.sequence, first.seed) == (other.sequence, other.seed):
            raise UserError(
                f"Probes {first.id} and {other.id} have the same sequence, model, method and seed: "
                "leave one of them out."
            )


def _shared(first: dict[str, Any], other: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both, with data digests only of the tasks that both have."""
    for name in ("data", "train"):
        tasks = sorted((first.get(name) or {}).keys() & (other.get(name) or {}).keys())
        first = first | {name: {task: first[name][task] for task in tasks}}
        other = other | {name: {task: other[name][task] for task in tasks}}
    return first, other
