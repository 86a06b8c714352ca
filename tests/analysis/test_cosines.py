"""Means of gradient cosines by loss rank, and the difference between lowest and highest."""

from dataclasses import replace

import pandas as pd
import pytest

from sapo.analysis.probes.gradients import alignments, rank_difference
from sapo.analysis.probes.results import load_probe


@pytest.fixture(scope="module")
def probe(mini_probe):
    return load_probe(mini_probe)


def test_means_by_role_and_rank_are_those_of_pandas(probe):
    cells = alignments(probe)
    assert [(cell.role, cell.rank) for cell in cells] == [
        (role, rank) for role in ("trained", "unseen") for rank in (1, 7, 13, 20)
    ]
    means = probe.gradients.groupby(["role", "rank"])["cosine"].mean()
    for cell in cells:
        assert cell.cosine.value == pytest.approx(means[cell.role, cell.rank])
        assert cell.cosine.low < cell.cosine.value < cell.cosine.high
    # 12 modules, and three unseen tasks.
    assert [cell.cosine.n for cell in cells] == [12] * 4 + [36] * 4


def test_the_difference_pairs_modules(probe):
    rows = [
        {"prompt": rank, "rank": rank, "task": "t", "role": "trained", "module": module, "cosine": cosine}
        for module, (first, last) in enumerate([(0.5, 0.1), (0.3, 0.1), (0.9, 0.6)])
        for rank, cosine in ((1, first), (4, last), (2, 0.0))
    ]
    difference = rank_difference(replace(probe, gradients=pd.DataFrame(rows)), "trained")
    assert difference.value == pytest.approx((0.4 + 0.2 + 0.3) / 3)
    assert difference.reason == "3 modules: an interval needs 5 or more"


def test_nothing_to_compare_says_so(probe):
    without = replace(probe, gradients=None)
    assert alignments(without) == []
    assert rank_difference(without, "trained").reason == "a difference needs two ranked prompts"
    one_rank = replace(probe, gradients=probe.gradients[probe.gradients["rank"] == 1])
    assert rank_difference(one_rank, "unseen").value is None
