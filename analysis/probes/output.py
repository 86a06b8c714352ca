"""What the drawings of probes leave behind: files, tables ready to print, and notes."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from sapo.analysis.figures import remark, save
from sapo.analysis.files import write_text
from sapo.analysis.intervals import Interval
from sapo.analysis.probes.results import ProbeResult


@dataclass
class ProbeReport:
    """What was drawn: the files, and the tables by their titles (cells are ready to print).

    `warnings` say what to beware of and what is left out, `notes` how to read the rest.
    """

    probes: list[ProbeResult]
    output: Path
    files: list[Path] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Adds a warning once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def note(self, text: str) -> None:
        """Adds a note once."""
        if text not in self.notes:
            self.notes.append(text)

    def note_missing(self, where: str, estimate: Interval) -> None:
        """Warns that an estimate has no value, or no interval, and why."""
        if estimate.reason:
            what = "not defined" if estimate.value is None else "no interval"
            self.warn(f"{where}: {what}: {estimate.reason}.")

    def draw(self, name: str, figure: Figure | None, data: pd.DataFrame) -> None:
        """Writes a figure (PNG and PDF) and its data as CSV beside it."""
        if figure is not None:
            self.files += save(figure, self.output / name)
        self.files.append(
            write_text(self.output / f"{name}.csv", data.to_csv(index=False, lineterminator="\n"))
        )

    def tell(self, name: str, title: str, table: pd.DataFrame) -> None:
        """Keeps a table under its title and writes it as `name`.csv."""
        if len(table):
            self.tables[title] = table
            text = table.to_csv(index=False, lineterminator="\n")
            self.files.append(write_text(self.output / f"{name}.csv", text))


def facts(probe: ProbeResult, measure: str) -> str:
    """The line under a figure's title: the probe's facts and the remark."""
    return " · ".join(filter(None, [probe.facts, remark(probe.demonstration, measure)]))


def note_paper(report: ProbeReport) -> None:
    """Says what the paper's coefficients beside ours are of."""
    report.note(
        "The paper's coefficients are of ROUGE-L, for some pairs of tasks and models, and stand beside the "
        "same pair whatever our model; it does not name its three unseen tasks: ours are the first listed."
    )
