"""What a comparison of prompts says: the train x serve matrix, what is forgotten, and sentences with error.

Units are distinct test rows: a value is their mean, its interval the bootstrap's over rows and seeds. Two
cells are compared row by row; p is that of the permutation of signs (Fisher's randomization test of paired
differences), Holm's over all comparisons that the sentences make.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sapo.analysis.figures import canvas, heat, save
from sapo.analysis.intervals import PERMUTATIONS, bootstrap, holm, permutation_p
from sapo.analysis.metrics import Array
from sapo.analysis.page import Report, html
from sapo.analysis.render import csv, markdown, records
from sapo.analysis.results import LOWER_IS_BETTER, MEASURES, measure_name
from sapo.conf.text import markdown_safe
from sapo.data.files import write_result

UNTOUCHED, TRAINED, RETAINED = "untouched", "trained", "retained"
LEVEL = 0.05
NOTES = (
    "Values are means over distinct test rows, in brackets or in `matrix.csv` with 95 % intervals; ± is the "
    "standard deviation over the unseen prompts.",
    "p: signs of the rows' differences permuted, Holm over all sentences and measures. With one seed, what "
    "another seed of the training would change is not in them.",
)
# Standard normal quantiles of a two-sided test of 5 % and of 80 % power.
DETECTABLE = 1.96 + 0.84
SHORT_ANSWER = 5  # words; longer answers are seldom right to the letter


@dataclass(frozen=True)
class Sentence:
    """One thing that was asked of the rows: what differs by how much, or that it is noise.

    `estimate`, `low`, `high` and `p` (after Holm) are of `measure`, positive where it is better: a gain.
    """

    about: str
    text: str
    measure: str
    estimate: float
    low: float
    high: float
    p: float

    @property
    def is_noise(self) -> bool:
        """Whether no difference cannot be ruled out."""
        return self.p >= LEVEL


@dataclass(frozen=True)
class Comparison:
    """A model trained under several prompts and served under several.

    `answers` has a row for every seed, state, served prompt, task and test row. `prompts` are the texts
    behind the rows by name, `losses` the pre-update losses of the pool (nats a token) by index. `measures`:
    the leading one, then NLL.
    """

    task: str
    model: str
    answers: pd.DataFrame = field(repr=False)
    prompts: dict[str, list[str]] = field(repr=False)
    losses: dict[int, float] = field(repr=False)
    measures: tuple[str, ...] = ("nll",)

    @property
    def trained(self) -> list[str]:
        """The rows of the matrix, the untouched model first."""
        return list(self.answers["trained"].unique())

    @property
    def served(self) -> list[str]:
        """The columns of the matrix."""
        names = [name for name in self.answers["served"].unique() if name != RETAINED]
        return sorted(names, key=lambda name: name != TRAINED)  # which the untouched model does not have

    @property
    def base(self) -> str:
        """The row that others are compared with: the original, or the first that was trained."""
        return "original" if "original" in self.trained else self.trained[1]

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row a cell and measure: `trained`, `served`, `measure`, `value`, `low`, `high`, `n`, `spread`.

        `spread` is the standard deviation over the prompts of `unseen`.
        """
        rows = []
        for trained, served, measure in product(self.trained, self.served, self.measures):
            values = self._scores(trained, served, measure)
            if values.size:
                spread = self._cell(trained, served).groupby("prompt")[measure].mean().std()
                rows.append((trained, served, measure, *_interval(values), spread))
        return pd.DataFrame(
            rows, columns=["trained", "served", "measure", "value", "low", "high", "n", "spread"]
        )

    @cached_property
    def retained(self) -> pd.DataFrame:
        """What each training did to the retention tasks: NLL minus the untouched model's, by row and task."""
        rows = [
            (trained, task, "nll", *_interval(self._change(trained, task)))
            for trained in self.trained[1:]
            for task in self._cell(trained, RETAINED)["task"].unique()
        ]
        return pd.DataFrame(rows, columns=["trained", "task", "measure", "change", "low", "high", "n"])

    def _cell(self, trained: str, served: str) -> pd.DataFrame:
        answers = self.answers
        return answers[(answers["trained"] == trained) & (answers["served"] == served)]

    def _scores(self, trained: str, served: str, measure: str, task: str | None = None) -> Array:
        """Scores (seeds x distinct rows) of a cell, the mean over several prompts; empty if there are none.

        Of the test rows of one task, or of all.
        """
        cell = self._cell(trained, served)
        cell = cell if task is None else cell[cell["task"] == task]
        if cell.empty or cell[measure].isna().any():
            return np.empty((0, 0))
        means = cell.groupby(["seed", "task", "row"])[measure].mean().to_numpy(dtype=float)
        return means.reshape(cell["seed"].nunique(), -1)

    def _change(self, trained: str, task: str | None = None) -> Array:
        """NLL on retention tasks, or one of them, minus the untouched model's: seeds x distinct rows."""
        after, before = (self._scores(name, RETAINED, "nll", task) for name in (trained, UNTOUCHED))
        return after - before

    # --- sentences -----------------------------------------------------------------------------------------

    @cached_property
    def chosen(self) -> str:
        """The row to train with: the best of those that beat the original by more than noise, else that."""
        better = [
            s for s in self.verdict if s.about.startswith("train ") and not s.is_noise and s.estimate > 0
        ]
        best = max(better, key=lambda sentence: sentence.estimate, default=None)
        return best.about.removeprefix("train ") if best else self.base

    @cached_property
    def verdict(self) -> list[Sentence]:
        """What these rows tell, a sentence a question, after Holm over all questions and measures."""
        asked = self._questions()
        tests = {(about, measure): gain for about, gains in asked.items() for measure, gain in gains.items()}
        adjusted = dict(zip(tests, holm([_p_of(gain) for gain in tests.values()]), strict=True))
        found = []
        for about, gains in asked.items():
            # The leading measure decides; where it does not, a smaller one may: NLL sees what labels do not.
            order = sorted(gains, key=lambda measure: not gains[measure].any())
            measure = next((m for m in order if (adjusted[about, m] or 0.0) < LEVEL), order[0])
            found.append(self._sentence(about, measure, gains[measure], adjusted[about, measure] or 0.0))
        return found

    def _sentence(self, about: str, measure: str, gain: Array, p: float) -> Sentence:
        """The answer to a question: the mean gain of its rows (seeds x rows), its interval and p."""
        value, low, high, n = _interval(gain)
        decimals = 3 if measure == "nll" else 1
        unit = "nats a token" if measure == "nll" else f"points of {measure_name(measure)}"
        verb, size = "gains" if value > 0 else "costs", f"{abs(value):.{decimals}f} {unit}"
        kind, name, row = (*about.split(" "), "", "")[:3]
        less = "less" if value > 0 else "more"
        what = {
            "training": f"Training with {self.base} {verb} {size} over the untouched model",
            "train": f"Training with {name} instead of {self.base} {verb} {size}, each served as trained",
            "serve": f"{_SERVED.get(name, name)} to the model trained with {row} {verb} {size}",
            "forget": f"Trained with {name} it forgets {less} than with {self.base}, by {size}",
        }[kind]
        error = f"[{low:+.{decimals}f}, {high:+.{decimals}f}], "
        error += "p < 0.001" if p < 1e-3 else f"p = {p:.2g}"
        if p >= LEVEL:
            least = DETECTABLE * float(gain.mean(axis=0).std(ddof=1)) / math.sqrt(n)
            error += f": noise. {n} distinct rows tell differences from {least:.{decimals}f} on"
            if value:
                error += f", and this one would take about {n * (least / value) ** 2:,.0f}"
        return Sentence(about, f"{what}: {error}.", measure, value, low, high, p)

    def _questions(self) -> dict[str, dict[str, Array]]:
        """What is asked, with the gain of each test row (seeds x rows) by measure: positive is better.

        Rows that train with the very prompts of the base, and comparisons of a cell with itself, say nothing.
        """
        base, own = self.base, TRAINED if TRAINED in self.served else self.served[0]
        plain = "original" if "original" in self.served else own
        others = [n for n in self.trained[1:] if self.prompts[n] != self.prompts[base]]
        pairs = {"training": ((base, plain), (UNTOUCHED, plain))}
        pairs |= {f"train {name}": ((name, own), (base, own)) for name in others}
        for row in (base, *(name for name in others if name == "chosen")):
            pairs |= {f"serve {name} {row}": ((row, name), (row, own)) for name in self.served if name != own}
        asked: dict[str, dict[str, Array]] = {about: {} for about in pairs}
        for (about, cells), measure in product(pairs.items(), self.measures):
            one, other = (self._scores(*cell, measure) for cell in cells)
            if one.size and other.size:
                asked[about][measure] = (other - one) if measure in LOWER_IS_BETTER else (one - other)
        if (lost := self._change(base)).size:
            asked |= {f"forget {name}": {"nll": lost - self._change(name)} for name in others}
        return {about: gains for about, gains in asked.items() if any(map(np.any, gains.values()))}

    # --- looks ---------------------------------------------------------------------------------------------

    def _pivot(self, measure: str, shown: Callable[[Any], Any]) -> pd.DataFrame:
        """What is shown of each cell of the matrix, a row a training; missing where there is no such cell."""
        cells = self.table[self.table["measure"] == measure]
        cells = cells.assign(shown=[shown(cell) for cell in cells.itertuples()])
        pivot = cells.pivot(index="trained", columns="served", values="shown")
        return pivot.reindex(index=self.trained, columns=self.served)

    def matrix(self, measure: str) -> pd.DataFrame:
        """The matrix of a measure as texts, a row a training."""
        digits = 2 if measure == "nll" else 1

        def text(cell: Any) -> str:
            spread = "" if pd.isna(cell.spread) else f" ±{cell.spread:.{digits}f}"
            return f"{cell.value:.{digits}f}{spread}"

        texts = self._pivot(measure, text).fillna("-")
        return texts.rename_axis(index="trained with", columns=None).reset_index()

    def plot(self, measure: str | None = None) -> Figure:
        """The matrix as a heat map: trained down, served across, value and interval in each cell."""
        measure = measure or self.measures[0]
        lower, digits = measure in LOWER_IS_BETTER, 2 if measure == "nll" else 0
        values = self._pivot(measure, lambda cell: cell.value)
        texts = self._pivot(
            measure, lambda c: f"{c.value:.{digits}f}\n[{c.low:.{digits}f}, {c.high:.{digits}f}]"
        )
        figure, (axes,) = canvas(2.6 + 1.35 * len(self.served), 1.9 + 0.62 * len(self.trained))
        names = [_COLUMNS.get(name, name) for name in self.served]
        image = heat(axes, values, texts, self.trained, names, "cividis_r" if lower else "cividis")
        axes.set_xticks(range(len(names)), names, rotation=0, ha="center", fontsize=9)
        axes.set_xlabel("served with")
        axes.set_ylabel("trained with")
        better = "lower" if lower else "higher"
        figure.colorbar(image, ax=axes, label=f"{MEASURES[measure]}\n({better} is better)")
        n = self.table.loc[self.table["measure"] == measure, "n"].max()
        n_seeds = self.answers["seed"].nunique()
        seeds = f"{n_seeds} seeds" if n_seeds > 1 else "one seed"
        name = self.task.replace("$", r"\$")  # no formula
        title = f"{name} · {self.model}: {n} distinct test rows, {seeds}, 95 % intervals"
        figure.suptitle(title, fontsize=10)
        return figure

    def document(self) -> dict[str, Any]:
        """The comparison as JSON holds it."""
        return {
            "trained": self.trained,
            "served": self.served,
            "cells": records(self.table),
            "retained": records(self.retained),
            "sentences": [{**asdict(sentence), "is_noise": sentence.is_noise} for sentence in self.verdict],
            "chosen": self.chosen,
            "task": self.task,
            "model": self.model,
            "seeds": sorted(int(seed) for seed in self.answers["seed"].unique()),
            "prompts": self.prompts,
            "losses": {str(index): loss for index, loss in self.losses.items()},
        }

    def write(self, folder: Path, commands: Sequence[str] = ()) -> list[Path]:
        """Writes the matrix and what is retained as CSV, heat maps, JSON, Markdown and a page."""
        files = [
            write_result(folder / "matrix.csv", csv(self.table)),
            write_result(folder / "retained.csv", csv(self.retained)),
            write_result(folder / "compare.json", json.dumps(self.document(), indent=1, ensure_ascii=False)),
        ]
        for measure in self.measures:
            files += save(self.plot(measure), folder / f"matrix_{measure}")
        said = [sentence.text for sentence in self.verdict]
        title = f"{self.task}: which prompt to train with, and to serve ({self.model})"
        lines = [f"# {markdown_safe(title)}", "", *(f"- {text}" for text in said), ""]
        lines += [markdown(self.matrix(self.measures[0])), "", *(f"    {command}" for command in commands)]
        files.append(write_result(folder / "compare.md", "\n".join(lines) + "\n"))
        sentences = pd.DataFrame(
            (s.about, s.measure, s.estimate, s.low, s.high, s.p, "noise" if s.is_noise else "differs")
            for s in self.verdict
        ).set_axis(["asked", "measure", "gain", "low", "high", "p", "verdict"], axis=1)
        prompts = [(name, text) for name, texts in self.prompts.items() for text in texts]
        title = "{}: trained with (down), served with (across)"
        tables = {
            "What these rows say (gains are positive)": sentences.round(4),
            **{title.format(MEASURES[name]): self.matrix(name) for name in self.measures},
            "NLL on other tasks, against the untouched model": self.retained.round(3),
            "Prompts": pd.DataFrame(prompts, columns=["trained with", "prompt"]),
        }
        trained = f"Train with {self.chosen}: " + "; ".join(f"`{command}`" for command in commands)
        report = Report([], folder, files=files, notes=[*said, trained, *NOTES], texts=tables)
        report.write("report.html", html(report))
        return report.files


_COLUMNS = {TRAINED: "what it was\ntrained with", "none": "no instruction", "unseen": "unseen prompts"}
_SERVED = {
    "original": "Serving the original",
    "none": "Serving no instruction",
    "short": "Serving the short prompt",
    "unseen": "Serving prompts that it has not seen (on average)",
}


def leading_measures(answers: pd.DataFrame, targets: Sequence[str]) -> tuple[str, ...]:
    """The measure that suits the rows, then NLL: label match, exact match of short answers, or ROUGE-L."""
    own = answers[answers["served"] != RETAINED]
    if own["label_match"].notna().all():
        return "label_match", "nll"
    if own["exact_match"].isna().any():  # nothing was generated
        return ("nll",)
    words = float(np.median([len(target.split()) for target in targets]))
    return ("exact_match" if words <= SHORT_ANSWER else "rougeL"), "nll"


def _interval(values: Array) -> tuple[float, float, float, int]:
    """The mean of scores (seeds x rows), its bootstrap interval over both, and the number of rows."""
    low, high = np.percentile(bootstrap([(values, np.ones(values.shape[1]))]), [2.5, 97.5])
    return float(values.mean()), float(low), float(high), values.shape[1]


def _p_of(gain: Array) -> float:
    """p that there is no gain (seeds x rows), by random signs of the rows; a row keeps its seeds."""
    rows = gain.mean(axis=0)
    return permutation_p(abs(float(rows.mean())), np.abs(_signs(len(rows)) @ rows) / len(rows))


@lru_cache(maxsize=4)
def _signs(n: int) -> Array:
    """Signs of `n` rows in each permutation."""
    return 1.0 - 2.0 * np.random.default_rng(0).integers(0, 2, (PERMUTATIONS, n)).astype(np.float64)
