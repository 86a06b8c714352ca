"""The model card of an exported state: what it is, how it is used, and what it was measured to do."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pandas as pd
import yaml

from sapo.analysis.metrics import DEFINITIONS, METRICS, continual_metrics
from sapo.analysis.results import MEASURES, RunResult, n_examples, score_matrix
from sapo.analysis.tables import DEMONSTRATION

SCORES = ("rougeL", "exact_match", "label_match")
NONE = "-"


def model_card(run: RunResult, record: dict[str, Any], exported: dict[str, Any]) -> str:
    """The page `README.md` of an export, in Markdown.

    `record` is the run's `run.json`; `exported` says what is exported: `kind` (adapter or merged), `state`,
    `base`, `is_on_hub`, `rank`, `template_options`, `max_new_tokens`, `tasks` (with their prompts), `tested`,
    and the `definition` of BWT and FWT.
    """
    blocks = [
        _front_matter(exported),
        f"# {escaped(run.id)}",
        *([f"**{DEMONSTRATION}**"] if run.demonstration else []),
        _summary(run, exported),
        _table(("", ""), _facts(run, record, exported)),
        *_prompts(exported),
        *_usage(exported),
        *_scores(run, exported),
        *_provenance(record, exported),
    ]
    return "\n\n".join(blocks) + "\n"


def escaped(text: object) -> str:
    """A text on one line, in which no character means anything to Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~$&])", r"\\\1", " ".join(str(text).split()))


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


def _front_matter(exported: dict[str, Any]) -> str:
    """What model hubs read."""
    is_merged = exported["kind"] == "merged"
    facts = {
        "library_name": "transformers" if is_merged else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["sapo", "continual-learning", "instruction-tuning", *([] if is_merged else ["lora"])],
    }
    if exported["is_on_hub"]:
        facts["base_model"] = exported["base"]["load"]
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---"


def _summary(run: RunResult, exported: dict[str, Any]) -> str:
    base = escaped(exported["base"]["load"] if exported["is_on_hub"] else exported["base"]["model"])
    what = (
        f"{base} with a LoRA adapter of rank {exported['rank']} merged into its weights"
        if exported["kind"] == "merged"
        else f"A LoRA adapter of rank {exported['rank']} for {base}"
    )
    tasks = [escaped(lesson["task"]) for lesson in exported["tasks"]]
    together = "together" if run.method == "multitask" else "one after the other"
    order = f", {together}" if len(tasks) > 1 else ""
    return f"{what}, trained on {', '.join(tasks)}{order}."


def _facts(run: RunResult, record: dict[str, Any], exported: dict[str, Any]) -> Iterator[tuple[str, str]]:
    base = exported["base"]
    identity = record["identity"]
    source = base["load"] if exported["is_on_hub"] else base["source"]
    revision = f", revision {base['revision']}" if base["revision"] else ""
    trainer = ", ".join(f"{name} {value}" for name, value in identity["trainer"].items())
    method = ", ".join(f"{name} {identity['method'][name]}" for name in ("rank", "alpha", "dropout"))
    yield "Base model", f"{escaped(run.model)} ({escaped(source)}{escaped(revision)})"
    yield "State", f"after {exported['state']['after']} of {len(run.tasks)} tasks"
    yield "Sequence", escaped(run.sequence)
    yield "Method", f"{escaped(run.method)} (each adapter: {escaped(method)})"
    yield "Prompt policy", escaped(run.policy)
    yield "Seed", str(run.seed)
    yield "Parity", escaped(run.parity)
    yield "Trainer", f"{escaped(record['trainer'])} ({escaped(trainer)})"
    yield "Precision in training", escaped(identity["model"]["dtype"])


def _table(header: tuple[str, ...], rows: Any) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def _prompts(exported: dict[str, Any]) -> Iterator[str]:
    """Every task's prompt, character by character."""
    yield "## Prompts"
    yield (
        "The model answers one user turn in its chat template. It was trained with this layout and must be "
        "used with it:"
    )
    yield fenced(r'instruction + "\n\n" + separator + "\n" + input + "\n\n" + suffix', "python")
    yield "A task's parts, as JSON strings:"
    for lesson in exported["tasks"]:
        yield f"### {escaped(lesson['task'])}"
        yield fenced(_as_json(_parts(lesson)), "json")
        if lesson["drawn"]:
            yield (
                f"Training drew from {len(lesson['drawn'])} wordings instead; the one above is what the task "
                "was tested with:"
            )
            yield fenced(_as_json(lesson["drawn"]), "json")


def _parts(lesson: dict[str, Any]) -> dict[str, str]:
    return {name: lesson[name] for name in ("instruction", "separator", "suffix")}


def _as_json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1)


def _usage(exported: dict[str, Any]) -> Iterator[str]:
    """Python that answers a text with the last trained task's prompt."""
    yield "## Use"
    yield fenced("\n".join([*_loading(exported), "", *_answering(exported)]), "python")
    if exported["kind"] == "adapter" and not exported["is_on_hub"]:
        base = exported["base"]["model"]
        yield (
            f"Where `sapo` is installed, {code('sapo fetch model ' + base)} gets the base model and "
            f"{code('sapo show model ' + base)} says in which folder it lies."
        )
    yield "The base model's licence holds for this model too."


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
    lesson = {name: _literal(text) for name, text in _parts(exported["tasks"][-1]).items()}
    return [
        f"instruction = {lesson['instruction']}",
        f"separator, suffix = {lesson['separator']}, {lesson['suffix']}",
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


def _scores(run: RunResult, exported: dict[str, Any]) -> Iterator[str]:
    after, tested = exported["state"]["after"], exported["tested"]
    counts = n_examples(run)
    matrices = {measure: score_matrix(run, measure) for measure in MEASURES}
    learned = {lesson["task"] for lesson in exported["tasks"]}
    yield "## Scores"
    yield (
        "Of this state on test examples, one run with one seed. Learned tasks were tested with the prompts "
        "above, others with their original instruction."
    )
    rows = (
        (
            escaped(task) + ("" if task in learned else " (not trained)"),
            *(_number(matrix.loc[after, task], measure) for measure, matrix in matrices.items()),
            str(counts.get(task, 0)),
        )
        for task in tested
    )
    yield _table(("task", *MEASURES.values(), "n"), rows)
    definition = exported["definition"]
    yield (
        f"Of the whole run of {len(run.tasks)} tasks; BWT and FWT by definition {code(definition)}: "
        f"{DEFINITIONS[definition]}. n: {sum(counts.get(task, 0) for task in run.tasks)} test examples."
    )
    values = {name: continual_metrics(matrices[name])[definition] for name in SCORES}
    yield _table(
        ("score", *METRICS),
        (
            (MEASURES[name], *(_number(values[name][metric], name) for metric in METRICS))
            for name in SCORES
            if values[name]["AP"] is not None
        ),
    )


def _number(value: float | None, measure: str) -> str:
    if value is None or pd.isna(value):
        return NONE
    return f"{value:.4f}" if measure == "nll" else f"{value:.2f}"


def _provenance(record: dict[str, Any], exported: dict[str, Any]) -> Iterator[str]:
    """What this can be traced back to."""
    yield "## Provenance"
    yield _table(
        ("data", "SHA-256 of the training rows", "SHA-256 of the test rows"),
        (
            (
                escaped(task),
                record["comparable"]["train"].get(task, NONE),
                record["comparable"]["data"].get(task, NONE),
            )
            for task in exported["tested"]
        ),
    )
    environment = record["environment"]
    packages = [f"{name} {number}" for name, number in environment["packages"].items()]
    yield f"Trained with Python {escaped(', '.join([environment['python'], *packages]))}."
    commit = environment.get("commit")
    dirty = ", with changes" if environment.get("dirty") else ""
    version = f"; code at commit {code(commit)}{dirty}" if commit else ""
    weights = escaped(record["identity"]["model"]["weights"])
    yield (
        f"Run {code(record['id'])}, training {code(exported['state']['key'])}; base model weights {weights}; "
        f"computed on {escaped(environment['device'])}{version}."
    )
    for note in record["notes"]:
        yield f"- {escaped(note)}"
