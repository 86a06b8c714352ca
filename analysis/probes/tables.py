"""Tables of probes, ready to print: our values with their intervals, the paper's beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sapo.analysis.correlations import MapSummary, PromptEffects, pair_interval
from sapo.analysis.intervals import COEFFICIENTS, Interval, holm, mean_interval, share_interval
from sapo.analysis.probes.results import ProbeResult
from sapo.analysis.probes.statistics import (
    GRADIENT_ROLES,
    INDICATORS,
    Choice,
    Pooled,
    Power,
    Spread,
    alignments,
    rank_difference,
)
from sapo.analysis.published import paper_csv, plain
from sapo.analysis.results import LOWER_IS_BETTER, measure_name
from sapo.data.prompts import ORIGINAL
from sapo.data.tasks import short_name

NONE = "-"
PAPER_MEASURE = "rougeL"
SHOWN_UNSEEN = 3  # scatter plots show the trained task and the first three unseen ones, as the paper's


def p_text(p: float | None) -> str:
    """`0.012`, or a dash."""
    return NONE if p is None else f"{p:.2g}"


def spread_table(results: Sequence[Spread]) -> pd.DataFrame:
    """In-task against cross-task spread: a row a probe and measure."""
    adjusted = holm([result.p for result in results])
    return pd.DataFrame(
        {
            **_who(result.probe),
            "measure": measure_name(result.measure),
            "in-task CV (%)": result.in_task.text(2),
            "cross-task CV (%)": result.cross_task.text(2),
            "cross / in": result.ratio.text(2),
            "p": p_text(result.p) if result.why_no_p is None else result.why_no_p,
            "p (Holm)": p_text(p),
            "prompts": len(result.changes),
            "other tasks": sum(result.variation[t].value is not None for t in result.probe.others),
        }
        for result, p in zip(results, adjusted, strict=True)
    )


def map_table(
    maps: Sequence[tuple[ProbeResult, PromptEffects, MapSummary]], adjusted: Sequence[float | None]
) -> pd.DataFrame:
    """The mean correlation of every map, `adjusted` being its p values after Holm."""
    return pd.DataFrame(
        {
            **_who(probe),
            "measure": measure_name(effects.measure),
            "coefficient": found.coefficient.capitalize(),
            "mean off the diagonal": found.mean.text(),
            "p": p_text(found.p),
            "p (Holm)": p_text(p),
            "pairs of tasks": f"{found.n_pairs} of {len(effects.correlations)}",
            "prompts": len(effects.scores),
        }
        for (probe, effects, found), p in zip(maps, adjusted, strict=True)
    )


def first_pairs(probe: ProbeResult) -> dict[str, str]:
    """The tasks that scatter plots show, by the names that the paper's coefficients go under here."""
    shown = probe.unseen[:SHOWN_UNSEEN]
    return {"T1": probe.trained} | {f"T3_{place}": task for place, task in enumerate(shown, start=1)}


def pair_table(effects: Sequence[tuple[ProbeResult, PromptEffects]]) -> pd.DataFrame:
    """The trained task against the first unseen ones, with the paper's coefficients of the same sequence."""
    paper = paper_csv("figure2_correlations")
    rows = [
        {
            **_who(probe),
            "measure": measure_name(found.measure),
            "tasks": f"{short_name(probe.trained)} / {short_name(task)}",
            "coefficient": coefficient.capitalize(),
            "ours": pair_interval(found.scores, probe.trained, task, coefficient).text(),
            "prompts": len(found.scores),
            **_paper_values(paper, probe, found.measure, coefficient, ("y_task", key), "r"),
        }
        for probe, found in effects
        for coefficient in COEFFICIENTS
        for key, task in first_pairs(probe).items()
        if key != "T1"
    ]
    return pd.DataFrame(rows)


def indicator_table(pools: Sequence[tuple[str, Sequence[Pooled]]]) -> pd.DataFrame:
    """Every indicator's mean correlation, by model and measure."""
    rows = []
    for who, pool in pools:
        found = {(cell.measure, cell.indicator, cell.coefficient): cell for cell in pool}
        for measure in dict.fromkeys(cell.measure for cell in pool):
            for indicator in INDICATORS:
                cells = [found[measure, indicator, coefficient] for coefficient in COEFFICIENTS]
                values = {cell.coefficient.capitalize(): cell.mean.text() for cell in cells}
                row = {"model, method": who, "measure": measure_name(measure), "indicator": indicator}
                counts: dict[str, Any] = {"pairs": len(cells[0].points)}
                counts["tasks"] = f"{cells[0].n_defined} of {cells[0].n_tasks}"
                rows.append(row | values | counts)
    return pd.DataFrame(rows)


def loss_table(powers: Sequence[Power]) -> pd.DataFrame:
    """-loss against scores after training, for the tasks that the paper prints coefficients of."""
    paper = paper_csv("figure3_correlations")
    value = "r_negative_loss_vs_performance"
    rows = [
        {
            **_who(power.probe),
            "measure": measure_name(power.measure),
            "task": short_name(task),
            "coefficient": power.coefficient.capitalize(),
            "ours": power.by_task[task].text(),
            "prompts": power.by_task[task].n,
            **_paper_values(
                paper, power.probe, power.measure, power.coefficient, ("target_task", key), value
            ),
        }
        for power in powers
        if power.indicator == "-loss"
        for key, task in first_pairs(power.probe).items()
    ]
    return pd.DataFrame(rows)


def _paper_values(
    paper: pd.DataFrame,
    probe: ProbeResult,
    measure: str,
    coefficient: str,
    key: tuple[str, str],
    value: str,
) -> dict[str, str]:
    """The paper's coefficients by model; a dash where it has none, or for a measure that it does not have."""
    rows = paper[(paper["sequence"].map(plain) == plain(probe.sequence)) & (paper[key[0]] == key[1])]
    rows = rows[(rows["coefficient"] == coefficient) & (measure == PAPER_MEASURE)]
    found = dict(zip(rows["model"], rows[value], strict=True))
    return {
        f"paper: {model}": f"{found[model]:.2f}" if model in found else NONE
        for model in dict.fromkeys(paper["model"])
    }


def choice_table(found: Mapping[tuple[ProbeResult, str], Choice | str]) -> pd.DataFrame:
    """What the lowest loss chooses, by probe and measure: a row each, and over a model's and method's."""
    rows = []
    for measure in dict.fromkeys(measure for _, measure in found):
        here = {probe: choice for (probe, name), choice in found.items() if name == measure}
        rows += [
            {
                **_who(probe),
                "measure": measure_name(measure),
                "best": choice,
                "prompts": str(len(probe.prompts)),
            }
            if isinstance(choice, str)
            else _choice_row(choice)
            for probe, choice in here.items()
        ]
        groups: dict[tuple[str, str], list[Choice]] = {}
        for choice in here.values():
            if isinstance(choice, Choice):
                groups.setdefault((choice.probe.model, choice.probe.method), []).append(choice)
        rows += [_all_choices(members) for members in groups.values() if len(members) > 1]
    return pd.DataFrame(rows).fillna(NONE)


def _choice_row(choice: Choice) -> dict[str, object]:
    digits = 3 if choice.measure in LOWER_IS_BETTER else 2
    return {
        **_who(choice.probe),
        "measure": measure_name(choice.measure),
        "lowest loss": prompt_name(choice.chosen),
        "best": prompt_name(choice.best),
        "above the median": "yes" if choice.above_median else "no",
        "tasks above": _count(choice.tasks_above, choice.n_tasks, choice.tasks_above_by_chance),
        "regret": choice.regret.text(digits),
        "of the original": f"{choice.of_original:.{digits}f}",
        "of a random prompt": f"{choice.of_random:.{digits}f}",
        "prompts": str(choice.n_prompts),
    }


def _count(count: int, n: int, by_chance: float) -> str:
    """`6 of 9 (by chance 4.3)`."""
    return f"{count} of {n} (by chance {by_chance:.1f})"


def prompt_name(index: int) -> str:
    """`original`, or `prompt 3`."""
    return "original" if index == ORIGINAL else f"prompt {index}"


def _all_choices(choices: Sequence[Choice]) -> dict[str, object]:
    """Of one model and method: counts over probes, and means over pairs, each the mean of its probes."""
    first, n = choices[0], len(choices)
    digits = 3 if first.measure in LOWER_IS_BETTER else 2
    values = pd.DataFrame(
        {
            "regret": [choice.regret.value for choice in choices],
            "of the original": [choice.of_original for choice in choices],
            "of a random prompt": [choice.of_random for choice in choices],
        }
    )
    by_pair = values.groupby([choice.probe.pair for choice in choices], sort=False).mean()
    means = {name: mean_interval(list(by_pair[name]), "pairs").text(digits) for name in by_pair}
    above = sum(choice.above_median for choice in choices)
    counted = _count(above, n, sum(choice.above_by_chance for choice in choices))
    tasks_above, n_tasks, tasks_by_chance = (
        sum(getattr(choice, name) for choice in choices)
        for name in ("tasks_above", "n_tasks", "tasks_above_by_chance")
    )
    return {
        "probe": f"{n} probes of {len(by_pair)} pair{'s' if len(by_pair) > 1 else ''}",
        "model, method": f"{first.probe.model}, {first.probe.method}",
        "measure": measure_name(first.measure),
        "lowest loss": NONE,
        "best": NONE,
        "above the median": f"{counted}: {share_interval(above, n).text()}",
        "tasks above": _count(tasks_above, n_tasks, tasks_by_chance),
        **means,
        "prompts": NONE,
    }


def gradient_table(probes: Sequence[ProbeResult]) -> pd.DataFrame:
    """Mean cosines by loss rank, and lowest minus highest, a row a probe and role."""
    rows = []
    for probe in probes:
        cells = alignments(probe)
        for role, name in GRADIENT_ROLES.items():
            of_role = [cell for cell in cells if cell.role == role]
            if not of_role:
                continue
            by_rank = {f"rank {cell.rank}": cell.cosine.text(3, signed=True) for cell in of_role}
            difference: Interval = rank_difference(probe, role)
            rows.append(
                {
                    **_who(probe),
                    "other tasks": name,
                    **by_rank,
                    "lowest - highest loss": difference.text(3, signed=True),
                    "modules x tasks": of_role[0].cosine.n,
                }
            )
    return pd.DataFrame(rows).fillna(NONE)


def _who(probe: ProbeResult) -> dict[str, str]:
    return {
        "probe": f"{probe.sequence}, seed {probe.seed}",
        "model, method": f"{probe.model}, {probe.method}",
    }


def prompts_title(probe: ProbeResult) -> str:
    """The title of `prompt_table`."""
    where = f"{probe.sequence}, {probe.model}, {probe.method}, seed {probe.seed}"
    return f"Prompts of {short_name(probe.current)} and their losses before training: {where}"


def prompt_table(probe: ProbeResult) -> pd.DataFrame:
    """Every prompt of the current task, the lowest loss first; cells are ready to print.

    Losses are in nats, of the scored training examples in the state before the task.
    """
    losses = probe.pre_update_losses().sort_values(kind="stable")
    examples = probe.losses.groupby("prompt")["example"].nunique()
    return pd.DataFrame(
        {
            "prompt": prompt_name(index),
            "loss": f"{loss:.4f}",
            "against the original": f"{loss - losses[ORIGINAL]:+.4f}",
            "examples": str(examples[index]),
            "text": probe.prompts[index],
        }
        for index, loss in losses.items()
    )


def tie_of(probe: ProbeResult) -> str | None:
    """A warning if prompts share the lowest loss of those that SAPO can choose from."""
    losses = probe.pre_update_losses()[probe.candidates]
    tied = losses.index[np.isclose(losses, losses.min(), rtol=1e-12, atol=0)]
    if len(tied) == 1:
        return None
    names = ", ".join(map(prompt_name, tied))
    where = f"{probe.sequence}, seed {probe.seed}, {short_name(probe.current)}"
    return f"{where}: {names} tie: one lowest loss, of which the first was taken."
