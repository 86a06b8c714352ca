"""`sapo show …`: one thing, looked at closely."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.rule import Rule
from rich.text import Text

from sapo.cli.console import Json, Overrides, Run, duration, emit, find_run, take
from sapo.conf.errors import UserError, unknown

if TYPE_CHECKING:
    from sapo.conf.schema import Config

group = typer.Typer(help="A config, run, task, model, or example token by token.", no_args_is_help=True)


@group.command("config")
def show_config(overrides: Overrides = None, json: Json = False) -> None:
    """The resolved config, every setting with what it means."""
    from sapo.conf.load import load_one

    config = load_one(overrides or [])
    emit(asdict(config), json, _commented(config))


def _commented(config: Any, indent: str = "") -> Iterator[str]:
    """The config's fields as lines of YAML with comments; read back, they are the same config."""
    import yaml

    from sapo.conf.schema import described

    for field in fields(config):
        value, doc = getattr(config, field.name), described(field)
        if is_dataclass(value):
            yield f"{indent}{field.name}:  # {doc}"
            yield from _commented(value, f"{indent}  ")
        else:
            text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
            text = text.removesuffix("...\n").strip()
            yield f"{indent}{field.name}: {text}  # {doc}"


@group.command("run")
def show_run(run: Run, overrides: Overrides = None, json: Json = False) -> None:
    """A finished run: its settings, chosen prompts, metrics, stages and environment."""
    from sapo.analysis.matrices import metrics_of
    from sapo.analysis.results import load_run
    from sapo.cli.views import run_parts

    folder = find_run(run, overrides)
    result = load_run(folder)
    record = result.record
    metrics = {"metrics": metrics_of(result), "metrics_common": metrics_of(result, "common")}
    seconds = duration(sum(stage.seconds for stage in record.stages))
    lines = [f"{len(record.stages)} stages, computed in {seconds}, on {record.environment['device']}"]
    lines += [f"{task}: {n} inputs shortened" for task, n in record.shortened.items() if n]
    lines += [*record.notes, f"In {folder}"]
    document = {**record.model_dump(mode="json"), "dir": str(folder), **metrics}
    emit(document, json, [*run_parts(result, "reference"), *lines])


@group.command("task")
def show_task(overrides: Overrides = None, json: Json = False) -> None:
    """A task (task=NAME): rows and what is amiss in them, labels, instruction, suffix, lengths, pool."""
    from sapo.data.benchmarks import cut, load_whole_task
    from sapo.data.hygiene import findings
    from sapo.data.pools import unchecked_pool
    from sapo.data.render import control_tokens
    from sapo.experiments.model.load import load_tokenizer

    config = _config(overrides or [], "task")
    whole = load_whole_task(str(config.task), config)
    task = cut(whole, config)
    paraphrases, control, notes = None, [], list(task.notes)
    with suppress(UserError):
        paraphrases = len(unchecked_pool(task, config.paraphrases).paraphrases)
    try:
        control = control_tokens(load_tokenizer(config.model))
    except UserError:
        notes.append(f"control tokens are not looked for: no tokenizer of {config.model.name} here")
    found = findings(whole, task, control)

    def spread(part: str) -> dict[str, int]:
        lengths = [len(getattr(example, part)) for example in task.train]
        return {"shortest": min(lengths), "median": round(median(lengths)), "longest": max(lengths)}

    document = {
        "name": task.name,
        "kind": task.kind,
        "language": task.language,
        "train": len(task.train),
        "test": len(task.test),
        "labels": list(task.labels),
        "instruction": task.instruction,
        "suffix": task.suffix,
        "input_characters": spread("input"),
        "target_characters": spread("target"),
        "paraphrases": paraphrases,
    }
    checked = "; ".join([*notes, *(finding.message for finding in found)])
    lines = _facts({**document, "rows checked": checked or "nothing amiss"})
    emit({**document, "notes": notes, "findings": [asdict(finding) for finding in found]}, json, lines)


@group.command("model")
def show_model(
    model: Annotated[list[str], typer.Argument(help="A name, folder or OWNER/NAME, or overrides")],
    json: Json = False,
) -> None:
    """A model: where its Hugging Face folder lies, precision, LoRA targets."""
    from sapo.experiments.model.fetch import model_folder
    from sapo.experiments.model.identity import dtype_of

    config = _config(model, "model")
    document = {
        "name": config.model.name,
        "path": str(model_folder(config.model)),
        "source": config.model.source,
        "revision": config.model.revision,
        "dtype": dtype_of(config),
        "lora_targets": list(config.model.lora_targets),
        "parameters_billions": config.model.parameters or None,
    }
    emit(document, json, _facts(document))


def _facts(facts: Mapping[str, Any]) -> Iterator[str]:
    """A line a fact: its name and its value."""
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number}" for key, number in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        yield f"{name.replace('_', ' '):<20} {'-' if value in (None, '') else value}"


@group.command("example")
def show_example(
    which: Annotated[
        list[str], typer.Argument(metavar="task=T index=I [prompt=K] [split=train|test] [OVERRIDES]…")
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

    own, overrides = take(which, ("index", "prompt", "split"))
    config, split = _config(overrides, "task"), own.get("split", "train")
    if split not in ("train", "test"):
        raise unknown("split", split, ("train", "test"))
    try:
        index, number = int(own.get("index", 0)), int(own.get("prompt", ORIGINAL))
    except ValueError as error:
        raise UserError(f"index= and prompt= must be a whole number each: {error}.") from error
    task = load_task(str(config.task), config)
    rows = task.train if split == "train" else task.test
    if not 0 <= index < len(rows):
        raise UserError(
            f"index={index}: task {task.name} has {split} rows 0 to {len(rows) - 1} here "
            f"(data.{split}_examples={len(rows)})."
        )
    prompt = Prompt(task.instruction)
    if number != ORIGINAL:
        prompt = load_pool(task, config.paraphrases).at(number)
    document = {
        "task": task.name,
        "split": split,
        "index": index,
        "model": config.model.name,
        "prompt": {"index": prompt.index, "text": prompt.text},
        "target": rows[index].target,
        **explained(load_renderer(config), task, prompt.text, rows[index], for_test=split == "test"),
    }
    emit(document, json, _tokens(document, prompt.name))


def _tokens(document: dict[str, Any], prompt: str) -> Iterator[RenderableType]:
    """The tokens of prompt and target with bars between them, then the target's one by one."""
    start, tokens = document["target_start"], document["tokens"]
    shortened = ", input shortened" if document["shortened"] else ""
    yield f"{document['task']}, {document['split']} row {document['index']}, {prompt}, {document['model']}"
    yield Rule(f"prompt: tokens 0 to {start - 1}{shortened}", align="left")
    yield _between_bars(tokens[:start], "dim")
    yield Rule(f"target: tokens {start} to {len(tokens) - 1}, the only ones with a loss", align="left")
    yield _between_bars(tokens[start:], "bold green")
    for place, token in enumerate(document["target_ids"], start):
        yield f"{place:>6} {token:>7}  {tokens[place]!r}"


def _between_bars(tokens: list[str], style: str) -> Text:
    """Tokens with a bar between them; a line break is shown as a sign and kept."""
    text = Text(no_wrap=True, overflow="ignore")
    for number, token in enumerate(tokens):
        if number and not tokens[number - 1].endswith("\n"):
            text.append("|", style="red")
        text.append(token.replace("\n", "⏎\n"), style=style)
    return text


def _config(words: list[str], name: str) -> "Config":
    """The config of overrides, one of which may be a value alone: that of `name`, task or model."""
    from sapo.conf.load import load_one

    alone = [word for word in words if "=" not in word]
    if len(alone) > 1:
        raise UserError(f"This shows one {name}, and {len(alone)} are named: {', '.join(alone)}.")
    config = load_one([word if "=" in word else f"{name}={word}" for word in words])
    if name == "task" and not config.task:
        raise UserError("Which task? Say task=NAME (`sapo ls tasks` lists them).")
    return config
