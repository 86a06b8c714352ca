"""The check of a card is rehearsed on a CPU: all of it runs, and its tables say what was measured."""

import json

import gpu_check as check
import pytest

from sapo.conf.load import load_one
from sapo.experiments.model.fetch import model_folder


def test_the_rehearsal(tmp_path, capsys):
    shape = model_folder(load_one(["model=tiny_qwen3"]).model)
    arguments = f"engine.device=cpu --tiny --rounds 1 --shape {shape} --out {tmp_path}".split()
    found = check.main(arguments)
    assert found["not_done"] == []
    assert found == json.loads((tmp_path / "gpu_check.json").read_text())
    assert set(found["agreement"]) == {
        "training 1, losses", "training 2, losses", "adapter", "scoring, full", "scoring, race",
        "evaluation, NLL", "evaluation, KL", "gradient",
    }  # fmt: skip
    for name, row in found["agreement"].items():
        assert 0 < row["plain"] < 1, name  # 0 would mean that bfloat16 was compared to itself
        assert row["agrees"], (name, row)
    assert [row["kind"] for row in found["speed"]] == ["scoring", "training", "evaluation"]
    for row in found["speed"]:
        for way in (row["plain"], row["ours"]):
            assert way["share"] * found["peak"] == pytest.approx(way["tflops"] * 1e12)
    table = (tmp_path / "gpu_check.md").read_text()
    assert table in capsys.readouterr().out
    assert found["device"] in table
    assert all(word in table for word in ("gradient ", "mini_topic", "of peak", "A pass costs"))
    late = check.main([*arguments, "--minutes", "0"])
    assert late["not_done"] == ["agreement", "speed"]
