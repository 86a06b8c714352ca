"""What a reproduced table or figure of the paper looks like: parts for a terminal, and files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from rich.console import RenderableType

from sapo.analysis import render
from sapo.analysis.figures import save
from sapo.analysis.files import write_text
from sapo.analysis.page.html import write_report
from sapo.analysis.pool_sizes import size_figure, size_points
from sapo.analysis.probes.report import probe_report
from sapo.analysis.report import Report, analyze
from sapo.analysis.results import load_run
from sapo.analysis.tables import chosen_prompts
from sapo.analysis.timings import timing_text, timings

MEASURE = "rougeL"  # the measure of the paper's tables


@dataclass
class Reproduced:
    """A target: `parts` for a terminal, `tables` by title, notes, and the files that hold all that."""

    parts: list[RenderableType]
    tables: dict[str, pd.DataFrame]
    notes: list[str]
    files: list[Path] = field(default_factory=list)


def scores(target: str, folders: Sequence[Path], output: Path, definition: str) -> Reproduced:
    """Tables 1, 2, 3 and 11: AP, BWT and FWT of policies and pools, and the prompts that were chosen."""
    report = analyze(folders, output, MEASURE, definition, target)
    page = write_report(report, output)
    return Reproduced(_parts(report), _tables(report), report.notes, [*report.files, page])


def pool_sizes(target: str, folders: Sequence[Path], output: Path, definition: str) -> Reproduced:
    """Figure 15: the same against the size of the pool, drawn."""
    report = analyze(folders, output, MEASURE, definition, target)
    points = pd.DataFrame() if report.table is None else size_points(report.table)
    drawn: list[Path] = []
    if points.empty:
        report.notes.append(f"No {report.title}: it needs runs of a policy that chooses from a pool.")
    else:
        report.notes.append("The paper's rows are of 20 paraphrases; of its Figure 15 no values are at hand.")
        demonstration = any(run.demonstration for run in report.runs)
        title = f"Size of the prompt pool{' (demonstration)' if demonstration else ''}"
        csv = points.to_csv(index=False, lineterminator="\n")
        drawn = [
            write_text(output / f"{target}_points.csv", csv),
            *save(size_figure(points, MEASURE, title), output / target),
        ]
    page = write_report(report, output, drawn)
    return Reproduced(_parts(report), _tables(report), report.notes, [*report.files, *drawn, page])


def wall_time(target: str, folders: Sequence[Path], output: Path, definition: str) -> Reproduced:
    """Table 10: wall time with and without selection."""
    del definition  # of metrics, which have no part in times
    runs = [load_run(folder) for folder in folders]
    frame, notes = timings(runs)
    text = timing_text(frame)
    files = [
        write_text(output / f"{target}.csv", frame.to_csv(index=False, lineterminator="\n")),
        write_text(output / f"{target}.md", "\n".join([render.frame_markdown(text), *notes, ""])),
        write_text(output / f"{target}.tex", render.frame_latex(text)),
    ]
    report = Report(runs, [], chosen_prompts(runs), name=target)
    files.append(write_report(report, output, tables={report.title: text}, notes=notes))
    where = dict.fromkeys(f"{run.model} · {run.sequence}" for run in runs)
    part = render.frame_terminal(text, f"{report.title}: {', '.join(where)}")
    return Reproduced([part], {target: frame}, notes, files)


def probes(target: str, drawing: str, folders: Sequence[Path], output: Path) -> Reproduced:
    """Figures 1 to 14: what `drawing` shows of the probes in `folders`, for the paper's measure and NLL."""
    found = probe_report(folders, [drawing], output)
    texts = {title: frame.astype(str) for title, frame in found.tables.items()}
    lines = [f"## {title}\n\n{render.frame_markdown(frame)}" for title, frame in texts.items()]
    latex = [render.frame_latex(frame) for frame in texts.values()]
    report = Report([], [], chosen_prompts([]), name=target)
    files = [
        *found.files,
        write_text(output / f"{target}.md", "\n".join([*lines, *(f"{note}\n" for note in found.notes)])),
        write_text(output / f"{target}.tex", "\n".join(latex)),
        write_report(report, output, found.files, found.tables, found.notes),
    ]
    parts: list[RenderableType] = [render.frame_terminal(frame, title) for title, frame in texts.items()]
    return Reproduced(parts, found.tables, found.notes, files)


def _parts(report: Report) -> list[RenderableType]:
    table: RenderableType = "One run only: a table needs more. Its matrix and metrics are in its folder."
    return [
        render.terminal(report.table) if report.table else table,
        render.prompts_terminal(report.prompts),
    ]


def _tables(report: Report) -> dict[str, pd.DataFrame]:
    return {report.name: render.long_frame(report.table)} if report.table else {}


DRAWINGS: dict[str, Callable[[str, Sequence[Path], Path, str], Reproduced]] = {
    "scores": scores,
    "pool_sizes": pool_sizes,
    "timings": wall_time,
}
