"""The figures of the probe study (the paper's 1 to 14) from finished probes, with their data and tables."""

from collections.abc import Callable, Sequence
from pathlib import Path

from sapo.analysis.probes.draw_effects import figure1, figure2
from sapo.analysis.probes.draw_indicators import figure3, figure4
from sapo.analysis.probes.output import ProbeReport
from sapo.analysis.probes.results import load_probe, require_poolable
from sapo.analysis.resampling import FEWEST_FOR_INTERVAL
from sapo.analysis.results import check_measure
from sapo.analysis.tables import DEMONSTRATION
from sapo.conf.errors import UserError, unknown

FIGURES: dict[str, Callable[[ProbeReport, Sequence[str]], None]] = {
    "figure1": figure1,
    "figure2": figure2,
    "figure3": figure3,
    "figure4": figure4,
}
PROBE_MEASURES = ("nll", "rougeL")
INTERVALS = (
    "In brackets: 95 % percentile bootstrap intervals over prompts (of a regret: over test examples; of a "
    f"mean over pairs: over pairs), none for fewer than {FEWEST_FOR_INTERVAL}. Those over prompts speak of "
    "other prompts for these tasks, model and seed only."
)


def probe_report(
    folders: Sequence[Path],
    figures: Sequence[str],
    output: Path,
    measures: Sequence[str] = PROBE_MEASURES,
) -> ProbeReport:
    """Draws `figures` (of FIGURES) of the probes in `folders` into `output`, each for every measure.

    Demonstrations lead with NLL, others with the paper's ROUGE-L. Raises UserError, before anything is
    written, for unknown names, damaged probes, and probes of one model and method that cannot be compared.
    """
    for figure in figures:
        if figure not in FIGURES:
            raise unknown("probe figure", figure, FIGURES)
    for measure in measures:
        check_measure(measure)
    if not folders or not figures or not measures:
        raise UserError("Name at least one probe, one figure and one measure.")
    probes = [load_probe(folder) for folder in {folder.resolve(): folder for folder in folders}.values()]
    require_poolable(probes)
    report = ProbeReport(probes, output)
    leads = "nll" if any(probe.demonstration for probe in probes) else "rougeL"
    ordered = sorted(dict.fromkeys(measures), key=lambda measure: measure != leads)
    _general_notes(report, ordered)
    for figure in dict.fromkeys(figures):
        FIGURES[figure](report, ordered)
    return report


def _general_notes(report: ProbeReport, measures: Sequence[str]) -> None:
    if any(probe.demonstration for probe in report.probes):
        report.note(DEMONSTRATION)
        if len(measures) > 1:
            report.note("NLL leads: at this size effects show in it that ROUGE-L is too coarse for.")
    report.note(INTERVALS)
