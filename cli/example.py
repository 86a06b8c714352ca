"""`sapo show example`: what one example looks like to a model."""

from typing import Any

from rich.console import Console
from rich.text import Text

from sapo.cli.console import take
from sapo.conf.errors import UserError, unknown
from sapo.conf.load import load_one
from sapo.conf.schema import Config
from sapo.data.benchmarks import load_task
from sapo.data.pools import load_pool
from sapo.data.prompts import ORIGINAL, Prompt
from sapo.data.tasks import Example, Task
from sapo.experiments.model.load import load_renderer

SPLITS = ("train", "test")


def rendered_example(arguments: list[str]) -> dict[str, Any]:
    """The example as JSON values; `input_ids[target_start:]` are the `target_ids`."""
    own, overrides = take(arguments, ("index", "prompt", "split"))
    config = load_one(overrides)
    if not config.task:
        raise UserError("Which task? Say task=NAME (`sapo ls tasks` lists them).")
    task = load_task(config.task, config)
    split, index, example = _chosen_row(own, task)
    number = _number("prompt", own.get("prompt", str(ORIGINAL)))
    prompt = (
        Prompt(task.instruction) if number == ORIGINAL else load_pool(task, config.paraphrases).at(number)
    )
    facts = {"task": task.name, "split": split, "index": index, "model": config.model.name}
    facts |= {"prompt": {"index": prompt.index, "text": prompt.text}, "target": example.target}
    return facts | _tokens(config, task, prompt, example, split == "test")


def _chosen_row(own: dict[str, str], task: Task) -> tuple[str, int, Example]:
    """Split, row number and example; UserError naming what there is."""
    split = own.get("split", "train")
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    rows = task.train if split == "train" else task.test
    index = _number("index", own.get("index", "0"))
    if not 0 <= index < len(rows):
        raise UserError(
            f"index={index}: task {task.name} has {split} rows 0 to {len(rows) - 1} here "
            f"(data.{split}_examples={len(rows)})."
        )
    return split, index, rows[index]


def _tokens(config: Config, task: Task, prompt: Prompt, example: Example, for_test: bool) -> dict[str, Any]:
    renderer = load_renderer(config)
    (rendered,) = renderer.render(task, prompt.text, [example], for_test)
    whole = renderer.full_text(task, prompt.text, example)
    return {
        "text": renderer.tokenizer.decode(rendered.input_ids) if rendered.is_shortened else whole,
        "input_ids": rendered.input_ids,
        "target_start": rendered.target_start,
        "target_ids": rendered.target_ids,
        "tokens": [renderer.tokenizer.decode([token]) for token in rendered.input_ids],
        "shortened": rendered.is_shortened,
    }


def render_example(console: Console, document: dict[str, Any]) -> None:
    """The tokens between bars, then the target's tokens with their places and ids."""
    start, tokens = document["target_start"], document["tokens"]
    prompt = document["prompt"]
    which = "the original prompt" if prompt["index"] == ORIGINAL else f"prompt {prompt['index']}"
    console.print(
        f"{document['task']}, {document['split']} row {document['index']}, {which}, {document['model']}",
        markup=False,
    )
    shortened = ", input shortened" if document["shortened"] else ""
    console.rule(f"prompt: tokens 0 to {start - 1}{shortened}", align="left")
    console.print(_joined(tokens[:start], "dim"), soft_wrap=True)
    console.rule(f"target: tokens {start} to {len(tokens) - 1}, the only ones with a loss", align="left")
    console.print(_joined(tokens[start:], "bold green"), soft_wrap=True)
    for place, (token, text) in enumerate(
        zip(document["target_ids"], tokens[start:], strict=True), start=start
    ):
        console.print(f"{place:>6} {token:>7}  {text!r}", markup=False)


def _joined(tokens: list[str], style: str) -> Text:
    """Tokens with a bar between them; a line break is shown as a sign and kept."""
    text = Text()
    for number, token in enumerate(tokens):
        if number and not tokens[number - 1].endswith("\n"):
            text.append("|", style="red")
        text.append(token.replace("\n", "⏎\n"), style=style)
    return text


def _number(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise UserError(f"{name}={value}: must be a whole number.") from error
