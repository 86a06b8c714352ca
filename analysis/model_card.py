"""The model card of an exported state: what it is, how it is used, and what it was measured to do."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import ModelCard, ModelCardData

from sapo.analysis.metrics import DEFINITIONS, METRICS, continual_metrics
from sapo.analysis.render import NONE, markdown
from sapo.analysis.results import LOWER_IS_BETTER, MEASURES, RunResult, n_examples, score_matrix
from sapo.analysis.tables import DEMONSTRATION
from sapo.conf.text import markdown_safe


def model_card(run: RunResult, exported: dict[str, Any]) -> str:
    """The page `README.md` of an export, in Markdown with the facts that model hubs read.

    `exported` says what is exported: `kind` (adapter or merged), `state`, `base`, `is_on_hub`, `rank`,
    `template_options`, `max_new_tokens`, `tasks` (with their prompts), `tested`, and the `definition` of BWT
    and FWT.
    """
    is_merged, base, tested = exported["kind"] == "merged", exported["base"], exported["tested"]
    hub = ModelCardData(
        library_name="transformers" if is_merged else "peft",
        pipeline_tag="text-generation",
        tags=["sapo", "continual-learning", "instruction-tuning", *([] if is_merged else ["lora"])],
        base_model=base["load"] if exported["is_on_hub"] else None,
    )
    counts, comparable = n_examples(run), run.record.comparable
    after, learned = exported["state"]["after"], {task["task"] for task in exported["tasks"]}
    matrices = {measure: score_matrix(run, measure) for measure in MEASURES}
    scores = {"task": [task + ("" if task in learned else " (not trained)") for task in tested]}
    for measure, matrix in matrices.items():
        scores[MEASURES[measure]] = [_number(matrix.loc[after, task], measure) for task in tested]
    scores["n"] = [str(counts.get(task, 0)) for task in tested]
    found = {name: continual_metrics(matrices[name])[exported["definition"]] for name in MEASURES}
    metrics = [
        (MEASURES[name], *(_number(values[metric], name) for metric in METRICS))
        for name, values in found.items()
        if name not in LOWER_IS_BETTER and values["AP"] is not None
    ]
    data = {"data": tested}
    for part, rows in (("train", "training"), ("data", "test")):
        data[f"SHA-256 of the {rows} rows"] = [comparable.get(part, {}).get(task, NONE) for task in tested]
    values = exported | {
        "run": run,
        "record": run.record,
        "environment": run.record.environment,
        "demonstration": DEMONSTRATION,
        "scores": markdown(pd.DataFrame(scores)),
        "metrics": markdown(pd.DataFrame(metrics, columns=["score", *METRICS])),
        "data": markdown(pd.DataFrame(data)),
        "definition_text": DEFINITIONS[exported["definition"]],
        "n_examples": sum(counts.get(task, 0) for task in run.tasks),
        "safe": markdown_safe,
        "code": code,
        "fenced": fenced,
        "listed": lambda facts: ", ".join(f"{name} {value}" for name, value in facts.items()),
        "as_json": partial(json.dumps, ensure_ascii=False),
    }
    template = Path(__file__).with_suffix(".jinja").read_text(encoding="utf-8")
    return str(ModelCard.from_template(hub, template_str=template, **values)).rstrip("\n") + "\n"


def code(text: str) -> str:
    """A text on one line as code."""
    fence = "`" * (_backticks(text) + 1)
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{' '.join(text.split())}{pad}{fence}"


def fenced(text: str, language: str) -> str:
    """A text as a code block, which nothing in the text can end."""
    fence = "`" * max(3, _backticks(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _backticks(text: str) -> int:
    """The longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)


def _number(value: float | None, measure: str) -> str:
    if value is None or pd.isna(value):
        return NONE
    return f"{value:.4f}" if measure == "nll" else f"{value:.2f}"
