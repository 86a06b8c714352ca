"""`sapo show …`: one thing, looked at closely."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapo.cli.console import Json, Overrides, emit

if TYPE_CHECKING:
    from rich.console import Console

    from sapo.conf.schema import Config
    from sapo.data.tasks import Task

group = typer.Typer(help="A config, run, task, pool, model, or example token by token.", no_args_is_help=True)


@group.command("config")
def show_config(overrides: Overrides = None, json: Json = False) -> None:
    """The resolved config, every setting with what it means."""
    from dataclasses import asdict

    from sapo.cli.settings import commented_yaml
    from sapo.conf.load import load_one

    config = load_one(overrides or [])
    text = commented_yaml(config)
    emit(asdict(config), json, lambda console: console.print(text, markup=False, soft_wrap=True, end=""))


@group.command("run")
def show_run(run: Annotated[str, typer.Argument(help="Run folder or id")], json: Json = False) -> None:
    """A finished run: its settings, chosen prompts, metrics, stages and environment."""
    from json import loads

    from sapo.analysis.matrices import metrics_of
    from sapo.analysis.results import load_run
    from sapo.cli.console import find_run

    folder = find_run(run)
    result = load_run(folder)
    record = loads((folder / "run.json").read_text(encoding="utf-8"))
    record |= {"dir": str(folder)}
    record |= {"metrics": metrics_of(result), "metrics_common": metrics_of(result, "common")}
    emit(record, json, lambda console: _render_run(console, folder, record))


def _render_run(console: "Console", folder: Path, record: dict[str, Any]) -> None:
    from sapo.analysis.render import prompts_terminal
    from sapo.analysis.results import load_run
    from sapo.analysis.tables import chosen_prompts
    from sapo.cli.console import duration
    from sapo.cli.views import run_scores

    result = load_run(folder)
    seconds = sum(stage["seconds"] for stage in record["stages"])
    environment = record["environment"]
    console.rule(result.facts, align="left")
    for part in run_scores(result, "reference"):
        console.print(part)
    console.print(prompts_terminal(chosen_prompts([result])))
    lines = [
        f"{len(record['stages'])} stages, computed in {duration(seconds)}, on {environment['device']}",
        *_kept_lines(record["kept"]),
        *(f"{task}: {n} inputs shortened" for task, n in record["shortened"].items() if n),
        *record["notes"],
        f"In {folder}",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _kept_lines(kept: dict[str, dict[str, int]]) -> Iterator[str]:
    """What each training left for the next one, in bytes."""
    for after, (key, files) in enumerate(kept.items(), start=1):
        sizes = ", ".join(f"{Path(name).name} {size:,} bytes" for name, size in files.items())
        yield f"Kept after training {after} ({key[:12]}): {sizes}"


@group.command("task")
def show_task(overrides: Overrides = None, json: Json = False) -> None:
    """A task (task=NAME): rows and what is amiss in them, labels, instruction, suffix, lengths, pool."""
    from dataclasses import asdict

    from sapo.conf.errors import UserError
    from sapo.data.benchmarks import cut, load_whole_task
    from sapo.data.hygiene import findings
    from sapo.data.pools import unchecked_pool
    from sapo.data.render import control_tokens
    from sapo.experiments.model.load import load_tokenizer

    config = _config_of_task(overrides)
    whole = load_whole_task(config.task or "", config)
    task = cut(whole, config)
    try:
        paraphrases: int | None = len(unchecked_pool(task, config.paraphrases).paraphrases)
    except UserError:
        paraphrases = None
    document = {
        "name": task.name,
        "kind": task.kind,
        "language": task.language,
        "train": len(task.train),
        "test": len(task.test),
        "labels": list(task.labels),
        "instruction": task.instruction,
        "suffix": task.suffix,
        "input_characters": _spread([len(example.input) for example in task.train]),
        "target_characters": _spread([len(example.target) for example in task.train]),
        "paraphrases": paraphrases,
    }
    notes = list(task.notes)
    try:
        control = control_tokens(load_tokenizer(config.model))
    except UserError:
        control = []
        notes.append(f"control tokens are not looked for: no tokenizer of {config.model.name} here")
    found = findings(whole, task, control)
    emit(
        {**document, "notes": notes, "findings": [asdict(finding) for finding in found]},
        json,
        lambda console: _render_task(console, document, notes + [finding.message for finding in found]),
    )


def _render_task(console: "Console", facts: dict[str, Any], messages: list[str]) -> None:
    _render_facts(console, facts)
    for number, message in enumerate(messages or ["nothing amiss"]):
        name = "" if number else "rows checked"
        console.print(f"{name:<20} {message}", markup=False, soft_wrap=True)


@group.command("pool")
def show_pool(overrides: Overrides = None, json: Json = False) -> None:
    """The prompt pool of a task (task=NAME), with what the validator says; exit 1 if it refuses any."""
    from sapo.cli.console import notice
    from sapo.data.benchmarks import load_task, without_rows

    config = _config_of_task(overrides)
    name = config.task or ""
    task = None if config.data.root else without_rows(name)
    if task:
        notice(f"sapo: without data (data.root, SAPO_DATA) the labels of {name} are not known, nor checked.")
    document = _pool_document(config, task or load_task(name, config))
    emit(document, json, lambda console: _render_pool(console, document))
    if not document["valid"]:
        raise typer.Exit(1)


def _pool_document(config: "Config", task: "Task") -> dict[str, Any]:
    from sapo.cli.console import notice
    from sapo.data.pool_checks import WHOLE_POOL, check_pool
    from sapo.data.pools import unchecked_pool

    pool = unchecked_pool(task, config.paraphrases)
    of_prompt: dict[int, list[str]] = {}

    def tell(done: int) -> None:
        if done % 2000 == 0:
            notice(f"[{done:,}/{len(pool.paraphrases):,}] prompts checked")

    for problem in check_pool(pool, task, tell) if task.instruction.strip() else []:
        of_prompt.setdefault(problem.index, []).append(problem.reason)
    of_pool = of_prompt.pop(WHOLE_POOL, [])
    return {
        "task": task.name,
        "source": pool.source,
        "valid": not of_pool and not of_prompt,
        "problems": of_pool,
        "prompts": [
            {"index": prompt.index, "text": prompt.text, "problems": of_prompt.get(prompt.index, [])}
            for prompt in pool.candidates(include_original=True)
        ],
    }


def _render_pool(console: "Console", document: dict[str, Any]) -> None:
    for row in document["prompts"]:
        mark = "original" if row["index"] == -1 else f"{row['index']:>8}"
        console.print(f"{mark}  {row['text']}", markup=False, soft_wrap=True)
        for reason in row["problems"]:
            console.print(f"{'':>8}  not valid: {reason}", markup=False, soft_wrap=True)
    verdict = "valid" if document["valid"] else "; ".join(["not valid", *document["problems"]])
    count = len(document["prompts"]) - 1
    console.print(f"{count} paraphrases ({document['source']}): {verdict}", markup=False, soft_wrap=True)


@group.command("model")
def show_model(
    model: Annotated[
        list[str], typer.Argument(metavar="NAME|OVERRIDES…", help="A model's name, or overrides")
    ],
    json: Json = False,
) -> None:
    """A model: where its Hugging Face folder lies, precision, LoRA targets."""
    from sapo.conf.load import load_one
    from sapo.experiments.model.fetch import model_folder
    from sapo.experiments.model.identity import dtype_of

    config = load_one(_overrides(model, "model"))
    document = {
        "name": config.model.name,
        "path": str(model_folder(config.model)),
        "source": config.model.source,
        "revision": config.model.revision,
        "dtype": dtype_of(config),
        "lora_targets": list(config.model.lora_targets),
        "parameters_billions": config.model.parameters or None,
    }
    emit(document, json, lambda console: _render_facts(console, document))


def _render_facts(console: "Console", facts: dict[str, Any]) -> None:
    """A line a fact: its name and its value."""
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number}" for key, number in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        shown = "-" if value in (None, "") else value
        console.print(f"{name.replace('_', ' '):<20} {shown}", markup=False, soft_wrap=True)


@group.command("example")
def show_example(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="task=T index=I [prompt=K] [split=train|test] [OVERRIDES]…", help="Which example"
        ),
    ],
    json: Json = False,
) -> None:
    """One example as the model sees it, token by token, with the target marked."""
    from sapo.cli.example import render_example, rendered_example

    document = rendered_example(arguments)
    emit(document, json, lambda console: render_example(console, document))


def _config_of_task(overrides: list[str] | None) -> "Config":
    """The config, which names a task: `task=NAME`, or NAME alone."""
    from sapo.conf.errors import UserError
    from sapo.conf.load import load_one

    config = load_one(_overrides(overrides or [], "task"))
    if not config.task:
        raise UserError("Which task? Say task=NAME (`sapo ls tasks` lists them).")
    return config


def _overrides(parts: list[str], name: str) -> list[str]:
    """The overrides, one of which may be a value alone: that of `name`."""
    from sapo.conf.errors import UserError

    alone = [part for part in parts if "=" not in part]
    if len(alone) > 1:
        raise UserError(f"This shows one {name}, and {len(alone)} are named: {', '.join(alone)}.")
    return [part if "=" in part else f"{name}={part}" for part in parts]


def _spread(lengths: list[int]) -> dict[str, int]:
    from statistics import median

    return {"shortest": min(lengths), "median": round(median(lengths)), "longest": max(lengths)}
