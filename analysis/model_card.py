"""The model card of an exported state: what it is, how it is used, and what it was measured to do."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
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

IN_4_BITS = (
    " It was trained and measured on the base model in 4 bits: load that with `quantization_config="
    'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)`.'
)


def model_card(run: RunResult, exported: dict[str, Any]) -> str:
    """The page `README.md` of an export, in Markdown with the facts that model hubs read.

    `exported` says what is exported: `kind` (adapter or merged), `state`, `base`, `is_on_hub`, `rank`,
    `template_options`, `max_new_tokens`, `tasks` (with their prompts), `tested`, and the `definition` of BWT
    and FWT.
    """
    is_merged, base = exported["kind"] == "merged", exported["base"]
    hub = ModelCardData(
        library_name="transformers" if is_merged else "peft",
        pipeline_tag="text-generation",
        tags=["sapo", "continual-learning", "instruction-tuning", *([] if is_merged else ["lora"])],
        base_model=base["load"] if exported["is_on_hub"] else None,
    )
    name = markdown_safe(base["load"] if exported["is_on_hub"] else base["model"])
    adapter = f"LoRA adapter of rank {exported['rank']}"
    what = f"{name} with a {adapter} merged into its weights" if is_merged else f"A {adapter} for {name}"
    tasks = [markdown_safe(task["task"]) for task in exported["tasks"]]
    together = "together" if run.method == "multitask" else "one after the other"
    counts, environment, comparable = n_examples(run), run.record.environment, run.record.comparable
    scores, metrics = _scores(run, exported, counts)
    digests = [
        [task, *(comparable.get(part, {}).get(task, NONE) for part in ("train", "data"))]
        for task in exported["tested"]
    ]
    values = {
        "run": run,
        "record": run.record,
        "environment": environment,
        "demonstration": DEMONSTRATION,
        "summary": f"{what}, trained on {', '.join(tasks)}{f', {together}' if len(tasks) > 1 else ''}."
        + (IN_4_BITS if base.get("in_4_bits") else ""),
        "adapter": {name: run.record.identity["method"][name] for name in ("rank", "alpha", "dropout")},
        "options": "".join(f", {key}={value!r}" for key, value in exported["template_options"].items()),
        "scores": scores,
        "definition_text": DEFINITIONS[exported["definition"]],
        "n_examples": sum(counts.get(task, 0) for task in run.tasks),
        "metrics": metrics,
        "data": _table(("data", "SHA-256 of the training rows", "SHA-256 of the test rows"), digests),
        "packages": ", ".join([environment["python"], _listed(environment["packages"])]),
        "safe": markdown_safe,
        "code": code,
        "fenced": fenced,
        "listed": _listed,
        "as_json": partial(json.dumps, ensure_ascii=False),
    }
    template = Path(__file__).with_suffix(".jinja").read_text(encoding="utf-8")
    card = ModelCard.from_template(hub, template_str=template, **(exported | values))
    return str(card).rstrip("\n") + "\n"


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
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _listed(facts: Mapping[str, Any]) -> str:
    """`rank 8, alpha 32`."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts without headings of numbers."""
    return markdown(pd.DataFrame(rows, columns=header), len(header))


def _scores(run: RunResult, exported: dict[str, Any], counts: dict[str, int]) -> tuple[str, str]:
    """The exported state's scores on every tested task; and AP, BWT and FWT of the whole run."""
    after, learned = exported["state"]["after"], {task["task"] for task in exported["tasks"]}
    matrices = {measure: score_matrix(run, measure) for measure in MEASURES}
    rows = [
        [
            task + ("" if task in learned else " (not trained)"),
            *(_number(matrix.loc[after, task], measure) for measure, matrix in matrices.items()),
            str(counts.get(task, 0)),
        ]
        for task in exported["tested"]
    ]
    higher = {name: matrix for name, matrix in matrices.items() if name not in LOWER_IS_BETTER}
    values = {name: continual_metrics(matrix)[exported["definition"]] for name, matrix in higher.items()}
    metrics = [
        [MEASURES[name], *(_number(found[metric], name) for metric in METRICS)]
        for name, found in values.items()
        if found["AP"] is not None
    ]
    return _table(("task", *MEASURES.values(), "n"), rows), _table(("score", *METRICS), metrics)


def _number(value: float | None, measure: str) -> str:
    if value is None or pd.isna(value):
        return NONE
    return f"{value:.4f}" if measure == "nll" else f"{value:.2f}"
