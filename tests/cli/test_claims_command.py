"""`sapo claims` and `sapo reproduce claims`, from training to the verdicts."""

from pathlib import Path

import pytest

from sapo.cli.console import report_folder

FIELDS = {"id", "claim", "measure", "column", "estimate", "low", "high", "n", "verdict", "p", "paper"}


def test_claims_of_a_store(sapo, trained, tmp_path):
    out = tmp_path / "out"
    document = sapo("claims", "-o", out, "--json").document
    assert all(set(claim) >= FIELDS for claim in document["claims"])
    assert {claim["verdict"] for claim in document["claims"]} == {"undecided"}
    reasons = {claim["id"]: claim["reason"] for claim in document["claims"]}
    assert reasons["d-static-AP"] == "1 seed: 2 needed"
    assert reasons["a"] == reasons["d-random"] == reasons["e-prompt"] == "no runs"
    assert all(Path(file).is_file() for file in document["files"])
    text = sapo("claims", trained.static["id"], trained.adaptive["id"])
    assert "SAPO is better than static prompts (AP)" in text.out
    folder = report_folder("claims", [Path(run["dir"]) for run in (trained.adaptive, trained.static)])
    assert f"Written to {folder}." in text.out
    assert (folder / "badges.md").is_file()
    alone = sapo("claims", trained.static["id"])  # another set, another folder
    assert f"Written to {trained.root}/reports/claims-{trained.static['id']}." in alone.out
    refused = sapo("claims", "nothing")
    assert (refused.code, "Unknown run 'nothing'" in refused.err) == (2, True)


@pytest.mark.slow  # trains nine runs
def test_reproduce_claims_runs_what_they_need(sapo, small, tmp_path):
    root = tmp_path / "s"
    overrides = ("sequence.unseen=[mini_price]", "policy.index=-1,0,1", "seed=0", f"store.root='{root}'")
    planned = sapo("reproduce", "claims", *small, *overrides, "--dry-run", "--json").document
    assert planned["runs"] == 3 + 1 + 2 + 3
    document = sapo("reproduce", "claims", *small, *overrides, "--json").document
    assert document["failed"] == []
    assert len(list((root / "probes").iterdir())) == 1
    claims = document["tables"]["claims"]
    reasons = {claim["id"]: claim["reason"] for claim in claims}
    assert reasons["a"] == "1 pair: 3 needed"
    rivals = [claim for claim in claims if claim["id"].startswith(("e-rate-", "e-prompt-"))]
    assert rivals
    assert {claim["reason"] for claim in rivals} == {"1 seed: 2 needed"}
    again = sapo("claims", root, "-o", tmp_path / "out", "--json").document
    assert again["claims"] == claims
