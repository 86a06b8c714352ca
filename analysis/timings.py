"""Wall time with and without selecting prompts (the paper's Table 10)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sapo.analysis.intervals import DRAWS, Array, resample_counts
from sapo.analysis.metrics import rounded
from sapo.analysis.published import BASE, paper_csv, plain
from sapo.analysis.results import RunResult
from sapo.analysis.tables import DEMONSTRATION, grouped

HOUR = 3600.0
COLUMNS = (
    "source",
    "model",
    "sequence",
    "hardware",
    "method",
    "policy",
    "base_seconds",
    "extra_seconds",
    "overhead_percent",
    "low",
    "high",
    "test_seconds",
    "n_tasks",
    "n_seeds",
)
NOTE = (
    "Training: the trainings of `static`, which selects nothing. Selection: what scoring the candidates took "
    "in the policy's run of the same seed. Both in wall time as measured when a stage was computed, without "
    "loading the model; means over seeds. Overhead: selection over training; in brackets its 95 % interval, "
    "bootstrap over tasks within each seed."
)


def timings(runs: Sequence[RunResult], draws: int = DRAWS) -> tuple[pd.DataFrame, list[str], list[str]]:
    """A row for each method and policy that scores candidates, the paper's rows after ours; warnings; notes.

    Columns: `source` (ours, paper), `model`, `sequence`, `hardware`, `method`, `policy`, `base_seconds`,
    `extra_seconds`, `overhead_percent` with `low` and `high` (None for one task), `test_seconds`, `n_tasks`
    and `n_seeds` (None where the paper does not say).
    """
    rows, warnings = [], [DEMONSTRATION] if any(run.demonstration for run in runs) else []
    for (model, sequence, method, _), variants in grouped(runs).items():
        bases = {run.seed: run for run in variants.get(BASE, [])}
        for variant, members in variants.items():
            scored = [run for run in members if _seconds(run, "score")]
            matched = [(bases[run.seed], run) for run in scored if run.seed in bases]
            pairs = [(base, run) for base, run in matched if len(_hardware(base, run)) == 1]
            for left, reason in (
                ([run.id for run in scored if run.seed not in bases], f"no {BASE} run has their seed"),
                (
                    [run.id for base, run in matched if len(_hardware(base, run)) > 1],
                    f"they or their {BASE} run were computed on several kinds of hardware",
                ),
            ):
                warnings += [f"Left out, since {reason}: {', '.join(left)}."] if left else []
            if pairs:
                names = {"source": "ours", "model": model, "sequence": sequence, "policy": variant}
                rows.append(names | {"method": method} | _row(pairs, draws))
        rows += _paper_rows(method)
    frame = pd.DataFrame(rows, columns=COLUMNS).drop_duplicates(ignore_index=True)
    if not any(row["source"] == "ours" for row in rows):
        warnings.append("No run here has both a scoring policy's times and those of a `static` run.")
    hardware = sorted({device for run in runs for device in run.devices()})
    where = f"Hardware: {'; '.join(hardware)}. The paper's: 8x H20, marked *: another setting than ours."
    return frame, warnings, [NOTE, where]


def _hardware(base: RunResult, run: RunResult) -> set[str]:
    """What the times of a pair were measured on: the base's trainings, the other's scorings and tests."""
    return base.devices("train") | run.devices("score", "evaluate")


def _row(pairs: Sequence[tuple[RunResult, RunResult]], draws: int) -> dict[str, object]:
    """The times of (static run, scoring run) pairs of equal seed."""
    tasks = sorted(_seconds(pairs[0][0], "train"))
    base, extra = (
        np.array([[_seconds(pair[side], kind).get(task, 0.0) for task in tasks] for pair in pairs])
        for side, kind in ((0, "train"), (1, "score"))
    )
    low, high = _interval(base, extra, draws) if len(tasks) > 1 else (None, None)
    tested = [sum(_seconds(run, "evaluate").values()) for run, _ in pairs]
    return {
        "hardware": "; ".join(sorted(_hardware(*pairs[0]))),
        "base_seconds": rounded(base.sum() / len(pairs)),
        "extra_seconds": rounded(extra.sum() / len(pairs)),
        "overhead_percent": rounded(100 * extra.sum() / base.sum()),
        "low": low,
        "high": high,
        "test_seconds": rounded(float(np.mean(tested))),
        "n_tasks": len(tasks),
        "n_seeds": len(pairs),
    }


def _interval(base: Array, extra: Array, draws: int) -> tuple[float, float]:
    """The 95 % interval of the overhead in percent; tasks (columns) are resampled within seeds (rows)."""
    rng = np.random.default_rng(0)
    sums = np.zeros((2, draws))
    for seconds in zip(base, extra, strict=True):
        counts = resample_counts(base.shape[1], draws, rng)
        sums += np.stack([counts @ side for side in seconds])
    low, high = np.percentile(100 * sums[1] / sums[0], [2.5, 97.5])
    return rounded(low), rounded(high)


def _seconds(run: RunResult, kind: str) -> dict[str, float]:
    """Seconds of the run's stages of a kind, by task."""
    seconds: dict[str, float] = {}
    for stage in run.stages:
        if stage["kind"] == kind:
            seconds[stage["task"]] = seconds.get(stage["task"], 0.0) + stage["seconds"]
    return seconds


def _paper_rows(method: str) -> list[dict[str, object]]:
    values = paper_csv("table10")
    same = values[values["method"].map(plain) == plain(method.partition(" (")[0])]
    return [
        {
            "source": "paper",
            **{name: row[name] for name in ("model", "sequence", "hardware", "method", "overhead_percent")},
            "policy": "sapo",
            "base_seconds": row["base_hours"] * HOUR,
            "extra_seconds": row["sapo_extra_hours"] * HOUR,
        }
        for _, row in same.iterrows()
    ]


def timing_text(frame: pd.DataFrame) -> pd.DataFrame:
    """The table of `timings` for people: a row a method and policy, times with their units."""
    return pd.DataFrame(
        {
            "Method": [
                f"{row['method']}, {row['policy']}"
                if row["source"] == "ours"
                else f"paper: {row['method']} *"
                for _, row in frame.iterrows()
            ],
            "Training": [_time(seconds) for seconds in frame["base_seconds"]],
            "Selection": [_time(seconds) for seconds in frame["extra_seconds"]],
            "Overhead": [_percent(row) for _, row in frame.iterrows()],
            "Testing": [_time(seconds) for seconds in frame["test_seconds"]],
            "Tasks": [_count(number) for number in frame["n_tasks"]],
            "Seeds": [_count(number) for number in frame["n_seeds"]],
        }
    )


def _time(seconds: float) -> str:
    if pd.isna(seconds):
        return "-"
    return f"{seconds / HOUR:.2f} h" if seconds >= 0.1 * HOUR else f"{seconds:.1f} s"


def _percent(row: pd.Series) -> str:
    interval = "" if pd.isna(row["low"]) else f" [{row['low']:.1f}, {row['high']:.1f}]"
    return f"{row['overhead_percent']:.1f} %{interval}"


def _count(number: float) -> str:
    return "-" if pd.isna(number) else str(int(number))
