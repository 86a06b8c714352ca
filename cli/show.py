"""`sapo show …`: one thing, looked at closely."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from sapo.cli.console import Json, Overrides, duration, emit, find_run, notice, say, take
from sapo.conf.errors import UserError, unknown
from sapo.conf.text import printable

if TYPE_CHECKING:
    from sapo.conf.schema import Config

group = typer.Typer(help="A config, run, task, pool, model, or example token by token.", no_args_is_help=True)
SPLITS = ("train", "test")


@group.command("config")
def show_config(overrides: Overrides = None, json: Json = False) -> None:
    """The resolved config, every setting with what it means."""
    from sapo.conf.load import load_one

    config = load_one(overrides or [])
    emit(asdict(config), json, lambda console: say(console, commented_yaml(config).rstrip()))


def commented_yaml(config: Any, indent: str = "") -> str:
    """The config's fields as YAML, each with its doc as a comment; read back, it is the same config."""
    import yaml

    from sapo.conf.schema import described

    lines = []
    for field in fields(config):
        value, doc = getattr(config, field.name), described(field)
        if is_dataclass(value):
            lines.append(f"{indent}{field.name}:  # {doc}\n{commented_yaml(value, indent + '  ')}")
        else:
            text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
            text = text.removesuffix("...\n").strip()
            lines.append(f"{indent}{field.name}: {text}  # {doc}\n")
    return "".join(lines)


@group.command("run")
def show_run(
    run: Annotated[str, typer.Argument(help="Run folder or id")],
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """A finished run: its settings, chosen prompts, metrics, stages and environment."""
    from sapo.analysis.matrices import metrics_of
    from sapo.analysis.results import load_run

    folder = find_run(run, overrides)
    result = load_run(folder)
    record = result.record
    document = {
        **record.model_dump(mode="json"),
        "dir": str(folder),
        "metrics": metrics_of(result),
        "metrics_common": metrics_of(result, "common"),
    }

    def render(console: Console) -> None:
        from sapo.cli.views import render_run

        render_run(console, result, "reference")
        seconds = duration(sum(stage.seconds for stage in record.stages))
        say(console, f"{len(record.stages)} stages, computed in {seconds}, on {record.environment['device']}")
        for after, (key, files) in enumerate(record.kept.items(), start=1):
            sizes = ", ".join(f"{Path(name).name} {size:,} bytes" for name, size in files.items())
            say(console, f"Kept after training {after} ({key[:12]}): {sizes}")
        shortened = [f"{task}: {n} inputs shortened" for task, n in record.shortened.items() if n]
        say(console, *shortened, *record.notes, f"In {folder}")

    emit(document, json, render)


@group.command("task")
def show_task(overrides: Overrides = None, json: Json = False) -> None:
    """A task (task=NAME): rows and what is amiss in them, labels, instruction, suffix, lengths, pool."""
    from sapo.data.benchmarks import cut, load_whole_task
    from sapo.data.hygiene import findings
    from sapo.data.pools import unchecked_pool
    from sapo.data.render import control_tokens
    from sapo.experiments.model.load import load_tokenizer

    config = _config_of_task(overrides)
    whole = load_whole_task(config.task or "", config)
    task = cut(whole, config)
    paraphrases, control, notes = None, [], list(task.notes)
    with suppress(UserError):
        paraphrases = len(unchecked_pool(task, config.paraphrases).paraphrases)
    try:
        control = control_tokens(load_tokenizer(config.model))
    except UserError:
        notes.append(f"control tokens are not looked for: no tokenizer of {config.model.name} here")
    found = findings(whole, task, control)
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

    def render(console: Console) -> None:
        _render_facts(console, document)
        messages = notes + [finding.message for finding in found] or ["nothing amiss"]
        for number, message in enumerate(messages):
            say(console, f"{'' if number else 'rows checked':<20} {message}")

    emit({**document, "notes": notes, "findings": [asdict(finding) for finding in found]}, json, render)


def _spread(lengths: list[int]) -> dict[str, int]:
    return {"shortest": min(lengths), "median": round(median(lengths)), "longest": max(lengths)}


@group.command("pool")
def show_pool(overrides: Overrides = None, json: Json = False) -> None:
    """The prompt pool of a task (task=NAME), with what the validator says; exit 1 if it refuses any."""
    from sapo.data.benchmarks import load_task, without_rows
    from sapo.data.pool_checks import WHOLE_POOL, check_pool
    from sapo.data.pools import unchecked_pool

    config = _config_of_task(overrides)
    name = config.task or ""
    task = None if config.data.root else without_rows(name)
    if task:
        notice(f"sapo: without data (data.root, SAPO_DATA) the labels of {name} are not known, nor checked.")
    task = task or load_task(name, config)
    pool = unchecked_pool(task, config.paraphrases)
    problems: dict[int, list[str]] = {}
    for problem in check_pool(pool, task) if task.instruction.strip() else []:
        problems.setdefault(problem.index, []).append(problem.reason)
    of_pool = problems.pop(WHOLE_POOL, [])
    document = {
        "task": task.name,
        "source": pool.source,
        "valid": not problems and not of_pool,
        "problems": of_pool,
        "prompts": [
            {"index": prompt.index, "text": prompt.text, "problems": problems.get(prompt.index, [])}
            for prompt in pool.candidates(include_original=True)
        ],
    }
    emit(document, json, lambda console: _render_pool(console, document))
    if not document["valid"]:
        raise typer.Exit(1)


def _render_pool(console: Console, document: dict[str, Any]) -> None:
    for row in document["prompts"]:
        mark = "original" if row["index"] == -1 else row["index"]
        say(console, f"{mark:>8}  {row['text']}", *(f"{'':>8}  not valid: {why}" for why in row["problems"]))
    verdict = "valid" if document["valid"] else "; ".join(["not valid", *document["problems"]])
    say(console, f"{len(document['prompts']) - 1} paraphrases ({document['source']}): {verdict}")


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


def _render_facts(console: Console, facts: Mapping[str, Any]) -> None:
    """A line a fact: its name and its value."""
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number}" for key, number in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        say(console, f"{name.replace('_', ' '):<20} {'-' if value in (None, '') else value}")


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
    """One example as the model sees it, token by token, with the target marked.

    A test example is shown as an evaluation reads it, a training example as training does.
    """
    from sapo.data.benchmarks import load_task
    from sapo.data.pools import load_pool
    from sapo.data.prompts import ORIGINAL, Prompt
    from sapo.data.render import explained
    from sapo.experiments.model.load import load_renderer

    own, overrides = take(arguments, ("index", "prompt", "split"))
    config = _config_of_task(overrides)
    split, index, number = (
        own.get("split", "train"),
        _number(own, "index", 0),
        _number(own, "prompt", ORIGINAL),
    )
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    task = load_task(config.task or "", config)
    rows = task.train if split == "train" else task.test
    if not 0 <= index < len(rows):
        raise UserError(
            f"index={index}: task {task.name} has {split} rows 0 to {len(rows) - 1} here "
            f"(data.{split}_examples={len(rows)})."
        )
    pool = None if number == ORIGINAL else load_pool(task, config.paraphrases)
    prompt = pool.at(number) if pool else Prompt(task.instruction)
    document = {
        "task": task.name,
        "split": split,
        "index": index,
        "model": config.model.name,
        "prompt": {"index": prompt.index, "text": prompt.text},
        "target": rows[index].target,
        **explained(load_renderer(config), task, prompt.text, rows[index], for_test=split == "test"),
    }
    emit(document, json, lambda console: _render_example(console, document))


def _number(own: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(own.get(name, default))
    except ValueError as error:
        raise UserError(f"{name}={own[name]}: must be a whole number.") from error


def _render_example(console: Console, document: dict[str, Any]) -> None:
    """The tokens between bars, then the target's tokens with their places and ids."""
    start, tokens, index = document["target_start"], document["tokens"], document["prompt"]["index"]
    which = "the original prompt" if index == -1 else f"prompt {index}"
    say(
        console,
        f"{document['task']}, {document['split']} row {document['index']}, {which}, {document['model']}",
    )
    shortened = ", input shortened" if document["shortened"] else ""
    console.rule(f"prompt: tokens 0 to {start - 1}{shortened}", align="left")
    console.print(_between_bars(tokens[:start], "dim"), soft_wrap=True)
    console.rule(f"target: tokens {start} to {len(tokens) - 1}, the only ones with a loss", align="left")
    console.print(_between_bars(tokens[start:], "bold green"), soft_wrap=True)
    for place, (token, text) in enumerate(zip(document["target_ids"], tokens[start:], strict=True), start):
        say(console, f"{place:>6} {token:>7}  {text!r}")


def _between_bars(tokens: Sequence[str], style: str) -> Text:
    """Tokens with a bar between them; a line break is shown as a sign and kept."""
    text = Text()
    for number, token in enumerate(tokens):
        if number and not tokens[number - 1].endswith("\n"):
            text.append("|", style="red")
        text.append(printable(token).replace("\n", "⏎\n"), style=style)
    return text


def _config_of_task(overrides: list[str] | None) -> "Config":
    """The config, which names a task: `task=NAME`, or NAME alone."""
    from sapo.conf.load import load_one

    config = load_one(_overrides(overrides or [], "task"))
    if not config.task:
        raise UserError("Which task? Say task=NAME (`sapo ls tasks` lists them).")
    return config


def _overrides(parts: list[str], name: str) -> list[str]:
    """The overrides, one of which may be a value alone: that of `name`."""
    alone = [part for part in parts if "=" not in part]
    if len(alone) > 1:
        raise UserError(f"This shows one {name}, and {len(alone)} are named: {', '.join(alone)}.")
    return [part if "=" in part else f"{name}={part}" for part in parts]
