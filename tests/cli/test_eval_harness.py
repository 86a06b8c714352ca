"""`sapo eval RUN tasks=lm_eval:…`: the harness's own metrics of a run's states."""

import json

import pytest
import torch

pytest.importorskip("lm_eval", reason="no package lm_eval: pip install 'sapo-prompts[lm-eval]'")

from sapo.conf.load import load_one
from sapo.experiments.model.fetch import model_folder
from sapo.experiments.model.load import load_tokenizer, read_model

QUESTIONS = [
    {"question": f"What is {i} and one more?", "choices": [str(i + 1), "nothing at all"], "answer": i % 2}
    for i in range(4)
]
TASK = """
task: more
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{metric: acc}]
"""


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A task of the harness in a local file."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    path = tmp_path / "more.yaml"
    path.write_text(TASK.replace("FILE", str(tmp_path / "rows.jsonl")))
    return path


@torch.inference_mode()
def plain_accuracy():
    """How often the untouched model gives the right choice the higher probability."""
    model = load_one(["model=tiny_llama"]).model
    assert model_folder(model).is_dir()
    base, tokenizer, right = read_model(model, torch.float32).eval(), load_tokenizer(model), 0
    for row in QUESTIONS:
        scores = []
        for choice in row["choices"]:
            start = tokenizer(row["question"])["input_ids"]
            ids = torch.tensor([start + tokenizer(" " + choice)["input_ids"]])
            losses = base(input_ids=ids).logits[0].log_softmax(-1)
            scores.append(sum(losses[i - 1, ids[0, i]].item() for i in range(len(start), ids.shape[1])))
        right += scores.index(max(scores)) == row["answer"]
    return right / len(QUESTIONS)


def test_a_states_metrics_are_the_harness_own_and_stored(sapo, trained, copy, task):
    run = trained.static["id"]
    document = sapo("eval", run, f"tasks=lm_eval:{task}", "--json").document
    rows = document["evaluations"]
    expected = [(after, "lm_eval:more", 4) for after in range(3)]
    assert [(row["after"], row["task"], row["examples"]) for row in rows] == expected
    assert rows[0]["metrics"]["acc"] == plain_accuracy()
    assert all(set(row["metrics"]) == {"acc"} for row in rows)
    shown = sapo("eval", run, f"tasks=lm_eval:{task}", "--state", "base")
    assert "evaluating" not in shown.err  # stored
    assert f"{plain_accuracy():.4f}" in shown.out
    fewer = sapo("eval", run, f"tasks=lm_eval:{task}", "data.test_examples=2", "--state", "0", "--json")
    assert fewer.document["evaluations"][0]["examples"] == 2


def test_tasks_that_are_none(sapo, trained, task):
    run = trained.static["id"]
    assert "Did you mean arc_easy" in sapo("eval", run, "tasks=lm_eval:arc_eazy").refused()
    assert "there is no such file" in sapo("eval", run, "tasks=lm_eval:none.yaml").refused()
    assert "stands alone" in sapo("eval", run, "mini_city", f"tasks=lm_eval:{task}").refused()
    assert "name tasks of the harness" in sapo("eval", run, "tasks=lm_eval:").refused()
    task.write_text(TASK.replace("FILE", "nowhere.jsonl"))
    assert "cannot be loaded" in sapo("eval", run, f"tasks=lm_eval:{task}").refused(1)
