"""What a reproduced table or figure of the paper looks like: parts for a terminal, and files."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import RenderableType

from sapo.analysis import render
from sapo.analysis.figures import remark, save
from sapo.analysis.files import write_text
from sapo.analysis.page.html import write_report
from sapo.analysis.pool_sizes import size_figure, size_points
from sapo.analysis.probes.output import ProbeReport
from sapo.analysis.probes.prompts import prompt_table, prompts_title, tie_of
from sapo.analysis.probes.report import probe_report
from sapo.analysis.report import Report, analyze, remarks
from sapo.analysis.results import DRAWN, leading_measure, load_run
from sapo.analysis.tables import chosen_prompts
from sapo.analysis.timings import timing_text, timings


@dataclass
class Reproduced:
    """A target: `parts` for a terminal, `tables` by title, `notes` with the warnings first, and all files."""

    parts: list[RenderableType]
    tables: dict[str, pd.DataFrame]
    notes: list[str]
    files: list[Path] = field(default_factory=list)

    @property
    def document(self) -> dict[str, Any]:
        """Files, tables and notes as JSON values; None for what is undefined."""
        tables = {title: json.loads(frame.to_json(orient="records")) for title, frame in self.tables.items()}
        return {"files": [str(path) for path in self.files], "tables": tables, "notes": self.notes}


def scores(
    target: str, folders: Sequence[Path], output: Path, definition: str, warnings: Sequence[str] = ()
) -> Reproduced:
    """Tables 1, 2, 3 and 11: AP, BWT and FWT of policies and pools, and the prompts that were chosen.

    `warnings`, here and in every other drawing, are what went wrong on the way: they are kept with the rest.
    """
    report = analyze(folders, output, None, definition, target, warnings)
    return _of_scores(report, [*report.files, write_report(report, output)])


def pool_sizes(
    target: str, folders: Sequence[Path], output: Path, definition: str, warnings: Sequence[str] = ()
) -> Reproduced:
    """Figure 15: the same against the size of the pool, drawn for NLL and for ROUGE-L."""
    report = analyze(folders, output, None, definition, target, warnings)
    drawn = [path for measure in _leading_first(report) for path in _draw_sizes(report, measure, output)]
    if drawn:
        report.notes.append("The paper's rows are of 20 paraphrases; of its Figure 15 no values are at hand.")
    else:
        report.warnings.append(f"No {report.title}: it needs runs of a policy that chooses from a pool.")
    return _of_scores(report, [*report.files, *drawn, write_report(report, output, drawn)])


def _leading_first(report: Report) -> list[str]:
    return sorted(DRAWN, key=lambda measure: measure != report.measure)


def _draw_sizes(report: Report, measure: str, output: Path) -> list[Path]:
    """The figure and its points; nothing where no policy of the table reads a pool."""
    points = pd.DataFrame() if report.table is None else size_points(report.table, measure)
    if points.empty:
        return []
    seeds = sorted({run.seed for run in report.runs})
    is_demonstration = any(run.demonstration for run in report.runs)
    facts = [
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}",
        *(["demonstration"] if is_demonstration else []),
        *filter(None, [remark(is_demonstration, measure)]),
    ]
    title = f"Size of the prompt pool (bars: 95 % intervals)\n{' · '.join(facts)}"
    stem = output / f"{report.name}_{measure}"
    return [*save(size_figure(points, measure, title), stem), _write(points, stem)]


def _of_scores(report: Report, files: list[Path]) -> Reproduced:
    table: RenderableType = "One run only: a table needs more. Its matrix and metrics are in its folder."
    parts = [
        render.terminal(report.table) if report.table else table,
        render.prompts_terminal(report.prompts),
    ]
    tables = {report.name: render.long_frame(report.table)} if report.table else {}
    return Reproduced(parts, tables, [*report.warnings, *report.notes], files)


def wall_time(
    target: str, folders: Sequence[Path], output: Path, definition: str, warnings: Sequence[str] = ()
) -> Reproduced:
    """Table 10: wall time with and without selection."""
    del definition  # of metrics, which have no part in times
    runs = [load_run(folder) for folder in folders]
    leading = leading_measure(any(run.demonstration for run in runs))
    report = Report(runs, [], chosen_prompts(runs), measure=leading, name=target)
    frame, left_out, report.notes = timings(runs)
    report.warnings += [*warnings, *left_out]
    text = timing_text(frame)
    files = [
        _write(frame, output / target),
        write_text(output / f"{target}.md", "\n".join([render.frame_markdown(text), *remarks(report)])),
        write_text(output / f"{target}.tex", render.frame_latex(text)),
        write_report(report, output, tables={report.title: text}),
    ]
    where = dict.fromkeys(f"{run.model} · {run.sequence}" for run in runs)
    part = render.frame_terminal(text, f"{report.title}: {', '.join(where)}")
    return Reproduced([part], {target: frame}, [*report.warnings, *report.notes], files)


def probes(
    name: str,
    drawings: Sequence[str],
    folders: Sequence[Path],
    output: Path,
    warnings: Sequence[str] = (),
    measures: Sequence[str] = DRAWN,
    with_page: bool = True,
) -> Reproduced:
    """Figures 1 to 14: what `drawings` show of the probes in `folders`, for each measure.

    Files of texts and tables are called `name`; the page is `report.html`.
    """
    found = probe_report(folders, drawings, output, measures)
    report = _of_probes(found, name, warnings)
    prompts = {prompts_title(probe): prompt_table(probe) for probe in found.probes}
    stems = [f"prompts_{probe.id}" for probe in found.probes]
    tables = {title: frame.astype(str) for title, frame in found.tables.items()}
    lines = [f"## {title}\n\n{render.frame_markdown(frame)}" for title, frame in (tables | prompts).items()]
    latex = [render.frame_latex(frame) for frame in tables.values()]
    files = [
        *found.files,
        *(_write(frame, output / stem) for frame, stem in zip(prompts.values(), stems, strict=True)),
        write_text(output / f"{name}.md", "\n".join([*lines, *remarks(report)])),
        write_text(output / f"{name}.tex", "\n".join(latex)),
    ]
    if with_page:
        files.append(write_report(report, output, found.files, found.tables | prompts))
    parts: list[RenderableType] = [render.frame_terminal(frame, title) for title, frame in tables.items()]
    return Reproduced(parts, found.tables, [*report.warnings, *report.notes], files)


def _of_probes(found: ProbeReport, name: str, warnings: Sequence[str]) -> Report:
    """What ran for the probes, and what to know of them."""
    runs = [run for probe in found.probes for run in probe.runs.values()]
    ties = [text for text in map(tie_of, found.probes) if text]
    measure = leading_measure(any(run.demonstration for run in runs))
    return Report(
        runs,
        [],
        chosen_prompts(runs),
        warnings=[*warnings, *found.warnings, *ties],
        notes=found.notes,
        measure=measure,
        name=name,
    )


def _write(frame: pd.DataFrame, stem: Path) -> Path:
    """`frame` as `stem`.csv."""
    return write_text(stem.with_name(f"{stem.name}.csv"), frame.to_csv(index=False, lineterminator="\n"))


DRAWINGS: dict[str, Callable[[str, Sequence[Path], Path, str, Sequence[str]], Reproduced]] = {
    "scores": scores,
    "pool_sizes": pool_sizes,
    "timings": wall_time,
}
