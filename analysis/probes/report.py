"""The figures of the probe study (the paper's 1 to 14) from finished probes, with their data and tables."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from sapo.analysis.intervals import FEWEST_FOR_INTERVAL
from sapo.analysis.probes.draw_effects import figure1, figure2
from sapo.analysis.probes.draw_indicators import figure3, figure4
from sapo.analysis.probes.output import ProbeReport
from sapo.analysis.probes.results import ProbeResult, load_probe, require_poolable
from sapo.analysis.results import check_measure, leading_measure
from sapo.analysis.tables import DEMONSTRATION, NLL_LEADS
from sapo.conf.errors import UserError, unknown
from sapo.data.tasks import short_name

FIGURES: dict[str, Callable[[ProbeReport, Sequence[str]], None]] = {
    "figure1": figure1,
    "figure2": figure2,
    "figure3": figure3,
    "figure4": figure4,
}
PROBE_MEASURES = ("nll", "rougeL")
INTERVALS = (
    "In brackets: 95 % intervals over prompts (of a regret: over test examples; of a mean over pairs: over "
    f"pairs), none for fewer than {FEWEST_FOR_INTERVAL}. Of a coefficient of variation, its mean over tasks "
    "and a ratio: jackknife on the logarithm, with Student's t; of all others: percentiles of the bootstrap, "
    "somewhat narrow with few prompts. Those over prompts speak of other prompts for these tasks, model and "
    "seed only."
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
    leads = leading_measure(any(probe.demonstration for probe in probes))
    ordered = sorted(dict.fromkeys(measures), key=lambda measure: measure != leads)
    _general_notes(report, ordered)
    for figure in dict.fromkeys(figures):
        FIGURES[figure](report, ordered)
    return report


def _general_notes(report: ProbeReport, measures: Sequence[str]) -> None:
    if any(probe.demonstration for probe in report.probes):
        report.warn(DEMONSTRATION)
        if len(measures) > 1:
            report.note(NLL_LEADS)
    for probe in report.probes:
        _warn_of_gaps(report, probe)
    pairs = Counter((probe.model, probe.method, probe.pair) for probe in report.probes)
    if max(pairs.values()) > 1:
        report.note(
            "Probes of one pair of tasks (NI-Probe-M1 and M2 share theirs; seeds do too) are averaged to one "
            "where pairs are averaged. Counts over probes and Holm's adjustment count each: the intervals of "
            "such counts are somewhat narrow."
        )
    report.note(INTERVALS)


def _warn_of_gaps(report: ProbeReport, probe: ProbeResult) -> None:
    """Names what a probe lacks: scored examples that are left out, and prompts whose runs failed."""
    if probe.n_cut:
        n_all = probe.losses["example"].nunique() + probe.n_cut
        report.warn(
            f"Probe {probe.id}: {probe.n_cut} of {n_all} scored examples of {short_name(probe.current)} are "
            "left out of losses and answers: their targets are cut off under some prompt."
        )
    if probe.missing:
        report.warn(
            f"Probe {probe.id} lacks prompt {', '.join(map(str, probe.missing))}, whose run failed: the same "
            "command tries again."
        )
