"""The model card of an exported state: what it is, how it is used, and what it was measured to do."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import ModelCard, ModelCardData

from sapo.analysis.metrics import DEFINITIONS, METRICS, continual_metrics
from sapo.analysis.results import LOWER_IS_BETTER, MEASURES, RunResult, n_examples, score_matrix
from sapo.analysis.tables import DEMONSTRATION
from sapo.conf.text import markdown_safe

NONE = "-"


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
    environment = run.record.environment
    packages = [f"{package} {number}" for package, number in environment["packages"].items()]
    counts, definition = n_examples(run), exported["definition"]
    comparable = run.record.comparable
    scores, metrics = _scores(run, exported, counts)
    values = {
        "run": run,
        "record": run.record,
        "environment": environment,
        "demonstration": DEMONSTRATION,
        "summary": f"{what}, trained on {', '.join(tasks)}{f', {together}' if len(tasks) > 1 else ''}.",
        "facts": _facts(run, exported),
        "options": "".join(f", {key}={value!r}" for key, value in exported["template_options"].items()),
        "parts_used": {key: _literal(value) for key, value in _parts(exported["tasks"][-1]).items()},
        "literal": _literal,
        "scores": scores,
        "definition_text": DEFINITIONS[definition],
        "n_examples": sum(counts.get(task, 0) for task in run.tasks),
        "metrics": metrics,
        "data": _table(
            ("data", "SHA-256 of the training rows", "SHA-256 of the test rows"),
            [
                [task, *(comparable.get(part, {}).get(task, NONE) for part in ("train", "data"))]
                for task in exported["tested"]
            ],
        ),
        "packages": ", ".join([environment["python"], *packages]),
        "safe": markdown_safe,
        "code": code,
        "fenced": fenced,
        "as_json": lambda content: json.dumps(content, ensure_ascii=False, indent=1),
        "parts": _parts,
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


def _table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(map(markdown_safe, cells))} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:], ""])


def _facts(run: RunResult, exported: dict[str, Any]) -> str:
    base, identity = exported["base"], run.record.identity
    source = base["load"] if exported["is_on_hub"] else base["source"]
    revision = f", revision {base['revision']}" if base["revision"] else ""
    trainer = ", ".join(f"{name} {value}" for name, value in identity["trainer"].items())
    method = ", ".join(f"{name} {identity['method'][name]}" for name in ("rank", "alpha", "dropout"))
    facts = {
        "Base model": f"{run.model} ({source}{revision})",
        "State": f"after {exported['state']['after']} of {len(run.tasks)} tasks",
        "Sequence": run.sequence,
        "Method": f"{run.method} (each adapter: {method})",
        "Prompt policy": run.policy,
        "Seed": str(run.seed),
        "Parity": run.record.parity,
        "Trainer": f"{run.record.trainer} ({trainer})",
        "Precision in training": identity["model"]["dtype"],
    }
    return _table(("", ""), [list(fact) for fact in facts.items()])


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


def _parts(task: dict[str, Any]) -> dict[str, str]:
    """What a task's prompt is made of."""
    return {name: task[name] for name in ("instruction", "separator", "suffix")}


def _literal(text: str) -> str:
    """A text as a Python string."""
    return json.dumps(text, ensure_ascii=False)
