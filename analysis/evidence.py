"""What claims rest on: finished probes and runs, read into arrays, refused where they are of two kinds."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sapo.analysis import results
from sapo.analysis.claims import NO_RUNS, Basis, Claim, Estimate, ProbeData, contrast_estimate
from sapo.analysis.intervals import contributions
from sapo.analysis.metrics import METRICS, check_definition
from sapo.analysis.probes.results import ProbeResult, load_probe, require_poolable, sign_of
from sapo.analysis.published import paper_csv, plain
from sapo.analysis.results import NUMBERS, RunResult
from sapo.conf.errors import UserError
from sapo.data.files import read_yaml
from sapo.data.prompts import ORIGINAL
from sapo.data.records import RunRecord, read_record, require_same
from sapo.data.tasks import digest, short_name

POLICIES, BOUNDS = ("sapo", "static", "random"), ("multitask", "single")  # runs of others stand in no claim
BY_NAME = ("data", "train", "sizes", "test examples", "tasks")  # what both have of these must agree
ZERO_SHOT, SLOWER = "zero_shot", "static prompts at a lower learning rate"
# id -> the claim, the sign of each role in a difference, and the metrics that it is of
COMPARISONS: dict[str, tuple[str, dict[str, int], Sequence[str]]] = {
    "d-static": ("SAPO is better than static prompts", {"sapo": 1, "static": -1}, METRICS),
    "d-random": ("SAPO is better than random prompts", {"sapo": 1, "random": -1}, METRICS),
    "e-prompt": (
        "Against a rival: SAPO gains more than its prompts give the untouched model",
        {"sapo": 1, "static": -1, "zero-shot sapo": -1, "zero-shot static": 1},
        ("AP",),
    ),
}


@dataclass
class Evidence:
    """Probes and differences of runs as arrays, the paper's place and number by claim.

    `measures` are those that anything has: without generated answers NLL alone.
    """

    probes: list[ProbeData]
    contrasts: list[Basis]
    papers: dict[str, dict[str, Any]]
    is_demonstration: bool
    measures: tuple[str, ...]

    def paper_of(self, claim: Claim) -> dict[str, Any]:
        """The place in the paper; its number beside the score that it is of."""
        paper = self.papers.get(claim.id, {})
        is_same = claim.measure in (None, "rougeL") and claim.column in (None, "trained")
        return paper if is_same or not paper else paper | {"value": None}


def load_evidence(folders: Sequence[Path], definition: str) -> Evidence:
    """Reads probes and runs; UserError, with the difference, if those of one claim are of two kinds."""
    check_definition(definition)
    probes = [load_probe(path) for path in folders if (path / results.PROBE).is_file()]
    of_probes = [(f"Probe {p.id}", _facts(p.runs[ORIGINAL]), len({*p.runs, *p.missing})) for p in probes]
    _require_alike([(label, facts | {"prompts": n}) for label, facts, n in of_probes])
    require_poolable(probes)
    # Runs of other policies and of bounds stand in no claim: their predictions are not even read.
    records = {path: read_record(RunRecord, path) for path in folders if (path / results.RUN).is_file()}
    compared = {p: r for p, r in records.items() if r.method not in BOUNDS and r.policy in POLICIES}
    roles = _roles([results.load_run(path) for path in compared])
    runs = [run for of_role in roles.values() for run in of_role.values()]
    _require_alike([(f"Run {run.id}", _facts(run)) for run in runs])
    measured = [*runs, *(run for probe in probes for run in probe.runs.values())]
    measures = tuple(name for name in NUMBERS if any(run.has(name) for run in measured)) or NUMBERS
    # Means of what the paper's figures and tables print, in ROUGE-L.
    places = {
        "a": ("Figure 1", pd.Series(dtype=float)),
        "b": ("Figure 2", paper_csv("figure2_correlations").query("coefficient == 'spearman'")["r"]),
        "c": ("Figure 3", paper_csv("figure3_correlations").query("coefficient == 'spearman'").iloc[:, -1]),
    }
    method = next((run.method for run in runs if run.method != ZERO_SHOT), "lorainc")
    table = pd.concat([paper_csv("table1"), paper_csv("table11")])
    for metric in METRICS:
        is_ours = (table["method"].map(plain) == plain(method)) & (table["metric"] == metric)
        places[f"d-static-{metric}"] = ("Tables 1 and 11", table.loc[is_ours, "sapo_delta"])
    return Evidence(
        probes=[_probe_data(probe) for probe in probes],
        contrasts=[each for each in _contrasts(roles, definition) if each[0].measure in (None, *measures)],
        papers={
            key: {"place": place, "value": None if values.empty else round(values.mean(), 3)}
            for key, (place, values) in places.items()
        },
        is_demonstration=any(p.demonstration for p in probes) or any(r.demonstration for r in runs),
        measures=measures,
    )


# --- what goes together ------------------------------------------------------------------------------------


def _facts(run: RunResult) -> dict[str, Any]:
    """What the runs of one claim have in common, apart from what a claim compares."""
    comparable, file = run.record.comparable, run.path / "config.yaml"
    config = read_yaml(file) if file.is_file() else {}
    benchmark = (config.get("sequence") or {}).get("benchmark", "")
    sizes = {key: (config.get("data") or {}).get(key) for key in ("train_examples", "test_examples")}
    trainer = comparable.get("trainer", {})
    facts = comparable | {  # data and rows by task, evaluator
        "model": run.model,
        "weights": comparable.get("model"),
        "definition": run.record.parity,
        # A lower learning rate is a claim of its own.
        "trainer": {name: value for name, value in trainer.items() if name != "learning_rate"},
        "scorer": run.record.identity.get("scorer"),
        "sizes": {benchmark: sizes},
        "test examples": results.n_examples(run),
        "tasks": {run.sequence: list(run.tasks)},
    }
    return facts if run.method == ZERO_SHOT else facts | {"method": run.method}


def _require_alike(labelled: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """UserError with every difference between two whose facts are not the same."""
    distinct: dict[str, tuple[str, dict[str, Any]]] = {}
    for label, facts in labelled:  # most have the same: of hundreds of runs few pairs are left to compare
        distinct.setdefault(digest(facts), (label, facts))
    for (first, facts), (other, others) in combinations(distinct.values(), 2):
        sides = results.shared(facts, others, BY_NAME), results.shared(others, facts, BY_NAME)
        way = "Name those of one kind: `sapo claims` takes folders, ids and patterns."
        require_same(f"{first} and {other}", *sides, way)


def _roles(runs: Sequence[RunResult]) -> dict[str, dict[tuple[str, int], RunResult]]:
    """Runs by their role in a comparison, then by sequence and seed. A higher learning rate has none."""
    rates = {run.id: run.record.comparable.get("trainer", {}).get("learning_rate", 0.0) for run in runs}
    ours = {rates[run.id] for run in runs if run.policy == "sapo" and run.method != ZERO_SHOT}
    base = max(ours or rates.values(), default=0.0)
    if len(ours) > 1:
        several = ", ".join(f"{rate:g}" for rate in sorted(ours))
        raise UserError(
            f"SAPO was trained at several learning rates (trainer.learning_rate {several}): name the runs of "
            "one of them, with their `static` and `random` runs."
        )
    roles: dict[str, dict[tuple[str, int], RunResult]] = {}
    for run in runs:
        role = run.policy
        if run.method == ZERO_SHOT:
            role = f"zero-shot {role}"
        elif rates[run.id] != base:
            if role != "static" or rates[run.id] > base:
                continue
            role = f"{SLOWER} {rates[run.id]:g}"
        other = roles.setdefault(role, {}).setdefault((run.sequence, run.seed), run)
        if other is not run:
            raise UserError(
                f"Runs {other.id} and {run.id} have the same sequence, policy and seed: name one of them. "
                "`sapo claims` takes folders, ids and patterns."
            )
    return roles


# --- arrays ------------------------------------------------------------------------------------------------


def _probe_data(probe: ProbeResult) -> ProbeData:
    tasks, indexes = [probe.current, *probe.others], list(probe.runs)
    kind = re.search(r"probe_([gcm])\d", probe.sequence)
    finals = probe.finals[probe.finals["task"] == probe.current].groupby("prompt")["kl"]
    kl = np.array([rows.mean() for _, rows in finals])
    return ProbeData(
        pair=f"{short_name(probe.trained)} > {short_name(probe.current)}",
        kind=kind[1].upper() if kind else "-",
        label=f"{probe.sequence}, seed {probe.seed}",
        scores={measure: probe.outcomes(measure)[tasks].to_numpy(dtype=float) for measure in NUMBERS},
        losses=probe.pre_update_losses()[indexes].to_numpy(dtype=float),
        original=indexes.index(ORIGINAL),
        candidates=[place for place, index in enumerate(indexes) if index in probe.candidates],
        kl=kl if np.isfinite(kl).all() else None,
    )


def _contrasts(roles: Mapping[str, Mapping[tuple[str, int], RunResult]], definition: str) -> Iterator[Basis]:
    """Claims (d) and (e) in every measure and column that the runs have, or bare where there are none."""
    comparisons = dict(COMPARISONS)
    for role in [role for role in roles if role.startswith(SLOWER)] or [SLOWER]:
        sentence = f"Against a rival: SAPO is better than {role}"
        key = f"e-rate{role.removeprefix(SLOWER).replace(' ', '-')}"
        comparisons[key] = (sentence, {"sapo": 1, role: -1}, METRICS)
    for key, (sentence, signs, metrics) in comparisons.items():
        members = [roles.get(role, {}) for role in signs]
        seeds: dict[str, list[list[tuple[RunResult, int]]]] = {}  # by sequence, runs with their signs
        for where in sorted(set.intersection(*map(set, members))):
            sides = [(runs[where], sign) for runs, sign in zip(members, signs.values(), strict=True)]
            seeds.setdefault(where[0], []).append(sides)
        if not seeds:
            yield Claim(key, sentence, "a difference of runs"), Estimate(reason=NO_RUNS)
            continue
        used = [run for of_seed in seeds.values() for sides in of_seed for run, _ in sides]
        is_apart = all(run.has_common for run in used) and any(map(results.tests_apart, used))
        for metric, measure, column in product(metrics, NUMBERS, results.COLUMNS):
            # Tasks that are not learned yet have one prompt, and what is served in zero shot is the prompt.
            if column == "common" and (not is_apart or metric == "FWT" or len(signs) > 2):
                continue
            whole = {}
            for name, each in seeds.items():
                if parts := contributions(each, definition, metric, measure, column):
                    whole[name] = [(sign_of(measure) * sums, sizes) for sums, sizes in parts]
            statistic = f"mean difference of {metric} over sequences and seeds"
            claim = Claim(f"{key}-{metric}", f"{sentence} ({metric})", statistic, measure, column)
            yield claim, contrast_estimate(whole)
