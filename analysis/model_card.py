"""The model card of an exported state: what it is, how it is used, and what it was measured to do."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import ModelCard, ModelCardData

from sapo.analysis.metrics import DEFINITIONS, METRICS, continual_metrics
from sapo.analysis.results import MEASURES, RunResult, n_examples, score_matrix
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
    card = ModelCard.from_template(
        hub,
        template_str=Path(__file__).with_suffix(".jinja").read_text(encoding="utf-8"),
        **exported,
        run=run,
        record=run.record,
        environment=environment,
        demonstration=DEMONSTRATION,
        summary=f"{what}, trained on {', '.join(tasks)}{f', {together}' if len(tasks) > 1 else ''}.",
        facts=_facts(run, exported),
        usage="\n".join([*_loading(exported), "", *_answering(exported)]),
        scores=_scores(run, exported, counts),
        definition_text=DEFINITIONS[definition],
        n_examples=sum(counts.get(task, 0) for task in run.tasks),
        metrics=_metrics(run, definition),
        data=_table(
            ("data", "SHA-256 of the training rows", "SHA-256 of the test rows"),
            [
                [task, *(comparable.get(part, {}).get(task, NONE) for part in ("train", "data"))]
                for task in exported["tested"]
            ],
        ),
        packages=", ".join([environment["python"], *packages]),
        safe=markdown_safe,
        code=code,
        fenced=fenced,
        as_json=lambda content: json.dumps(content, ensure_ascii=False, indent=1),
        parts=_parts,
    )
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


def _scores(run: RunResult, exported: dict[str, Any], counts: dict[str, int]) -> str:
    """The exported state's scores on every tested task."""
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
    return _table(("task", *MEASURES.values(), "n"), rows)


def _metrics(run: RunResult, definition: str) -> str:
    """AP, BWT and FWT of the whole run, of the scores that are higher for better answers."""
    values = {
        name: continual_metrics(score_matrix(run, name))[definition] for name in MEASURES if name != "nll"
    }
    rows = [
        [MEASURES[name], *(_number(found[metric], name) for metric in METRICS)]
        for name, found in values.items()
        if found["AP"] is not None
    ]
    return _table(("score", *METRICS), rows)


def _number(value: float | None, measure: str) -> str:
    if value is None or pd.isna(value):
        return NONE
    return f"{value:.4f}" if measure == "nll" else f"{value:.2f}"


def _parts(task: dict[str, Any]) -> dict[str, str]:
    return {name: task[name] for name in ("instruction", "separator", "suffix")}


def _loading(exported: dict[str, Any]) -> list[str]:
    """Lines that load model and tokenizer."""
    imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    folder = 'FOLDER = "THIS FOLDER"'
    if exported["kind"] == "merged":
        return [
            imports,
            "",
            folder,
            'model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype="auto")',
            "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
        ]
    base = exported["base"]
    name = _literal(base["load"]) if exported["is_on_hub"] else '"FOLDER OF THE BASE MODEL"'
    revision = f", revision={_literal(base['revision'])}" if base["revision"] else ""
    return [
        "from peft import PeftModel",
        imports,
        "",
        folder,
        f'base = AutoModelForCausalLM.from_pretrained({name}{revision}, dtype="auto")',
        "model = PeftModel.from_pretrained(base, FOLDER)",
        'tokenizer = AutoTokenizer.from_pretrained(f"{FOLDER}/tokenizer")',
    ]


def _answering(exported: dict[str, Any]) -> list[str]:
    """Lines that answer a text with the last trained task's prompt."""
    options = "".join(f", {name}={value!r}" for name, value in exported["template_options"].items())
    parts = {name: _literal(text) for name, text in _parts(exported["tasks"][-1]).items()}
    return [
        f"instruction = {parts['instruction']}",
        f"separator, suffix = {parts['separator']}, {parts['suffix']}",
        'text = "THE INPUT"',
        'turn = instruction + "\\n\\n" + separator + "\\n" + text + "\\n\\n" + suffix',
        "prompt = tokenizer.apply_chat_template(",
        f'    [{{"role": "user", "content": turn}}], tokenize=False, add_generation_prompt=True{options}',
        ")",
        'ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids',
        f"answer = model.generate(ids, do_sample=False, max_new_tokens={exported['max_new_tokens']})",
        "print(tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True))",
    ]


def _literal(text: str) -> str:
    """A text as a Python string."""
    return json.dumps(text, ensure_ascii=False)
