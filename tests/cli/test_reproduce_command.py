"""`sapo reproduce`."""

from pathlib import Path

import pytest
import torch


def test_table1_at_mini_scale(sapo, small, trained):
    done = sapo("reproduce", "table1", *small, "--json")
    document = done.document
    assert (document["target"], document["scale"], document["failed"]) == ("table1", "mini", [])
    assert len(document["runs"]) == 3
    assert document["command"].startswith("sapo reproduce table1 --scale mini model=tiny_llama")
    reports = trained.root / "reports" / "table1-mini"
    names = {Path(file).name for file in document["files"] if Path(file).parent == reports}
    assert {"table1.md", "table1.tex", "table1.csv", "prompts.md", "report.md"} <= names
    assert all(Path(file).is_file() for file in document["files"])
    assert any(Path(file).name == "matrix_rougeL.csv" for file in document["files"])
    text = (reports / "table1.md").read_text()
    assert "Demonstration" in text
    assert "sapo - static" in text
    again = sapo("reproduce", "table1", *small)
    assert "0 computed" in again.out
    assert "Again with: sapo reproduce table1 --scale mini" in again.out


def test_dry_run(sapo, small, tmp_path):
    document = sapo(
        "reproduce", "table1", *small, f"store.root='{tmp_path / 's'}'", "--dry-run", "--json"
    ).document
    assert document["runs"] == 3
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_papers_scale_without_a_gpu_is_refused_with_a_plan(sapo, benchmarks):
    done = sapo("reproduce", "table1", "--scale", "paper", "model=qwen3_8b", "sequence=trace", "--json")
    assert (done.code, done.out) == (2, "")
    assert "needs a GPU" in done.err
    assert "No plan: " in done.err  # no data here
    small = ("model=llama2_7b_chat", "sequence=ni_seq_c1", "seed=0", f"data.root={benchmarks}")
    done = sapo(
        "reproduce",
        "table1",
        "--scale",
        "paper",
        *small,
        "data.train_examples=2",
        "data.test_examples=2",
        "method.buffer=4",
    )
    assert done.code == 2
    assert "Memory of llama2_7b_chat's weights: " in done.err
    assert not done.out
