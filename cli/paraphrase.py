"""`sapo paraphrase`: a prompt pool from a model's answers, checked and written to a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapo.cli.console import Json, emit, notice

if TYPE_CHECKING:
    from rich.console import Console

    from sapo.conf.schema import Config
    from sapo.data.tasks import Task
    from sapo.experiments.paraphrase.chat import Reply
    from sapo.experiments.paraphrase.expand import Expansion
    from sapo.experiments.paraphrase.writing import Pool

OWN = ("instruction", "suffix", "labels")


def command(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="instruction=TEXT|task=NAME [suffix=TEXT] [labels=A,B] [OVERRIDES]…",
            help="What to paraphrase, and whom to ask: paraphrases=openai paraphrases.base_url=URL",
        ),
    ],
    write: Annotated[
        Path | None, typer.Option(metavar="POOL.yaml", help="Where to [default: the store's pools]")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the request; nothing is sent")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Ask for all anew, and replace the file")] = False,
    tags: Annotated[
        Path | None,
        typer.Option(metavar="TAGS.jsonl", help="Write tags of a sequence's rows instead (method.tags)"),
    ] = None,
    json: Json = False,
) -> None:
    """Ask a model for paraphrases of an instruction, check each, and write them to a prompt pool."""
    if tags:
        _tag(tags, arguments, json)
        return
    config, task = _config_and_task(arguments)
    if dry_run:
        from sapo.experiments.paraphrase.writing import dry_request

        request = dry_request(task, config)
        emit(request, json, lambda console: _render_request(console, request))
        return
    pool = _made(task, config, write, force)
    document = _document(task, config, pool)
    emit(document, json, lambda console: _render(console, document))
    if not document["complete"]:
        notice(
            f"sapo: {len(pool.expansion.accepted)} of {config.paraphrases.count} paraphrases; {_mend(pool)}"
        )
        raise typer.Exit(1)


def _tag(path: Path, overrides: list[str], json: bool) -> None:
    from sapo.cli.console import nothing_on_stdout
    from sapo.conf.load import load_one
    from sapo.experiments.paraphrase.tags import write_tags

    config = load_one(overrides)
    with nothing_on_stdout():
        document = write_tags(config, path, lambda done, of: notice(f"[{done}/{of}] rows"))
    tagged = f"{document['tagged']} of {document['rows']} rows have tags of {document['model']}"
    line = f"{tagged}: {document['file']}"
    emit(document, json, lambda console: console.print(line, markup=False, soft_wrap=True))
    for failed in document["failed"]:
        notice(f"{failed['count']} without an answer: {failed['error']}")
    if document["no_list"]:
        notice(f"{document['no_list']} answers held no list of tags; these rows count as without any.")
    if document["failed"]:
        notice("sapo: the same command asks for the rest.")
        raise typer.Exit(1)


def _config_and_task(arguments: list[str]) -> tuple["Config", "Task"]:
    """The config, and the named task or one that is an instruction only."""
    from sapo.cli.console import take
    from sapo.conf.errors import UserError
    from sapo.conf.load import load_one
    from sapo.data.benchmarks import load_task
    from sapo.data.own import names
    from sapo.data.pools import instruction_name
    from sapo.data.tasks import own_task

    own, overrides = take(arguments, OWN)
    config = load_one(overrides)
    instruction = own.get("instruction", "")
    if bool(config.task) == bool(instruction.strip()):
        raise UserError("What shall be paraphrased? Say either instruction=TEXT or task=NAME.")
    if config.task:
        if own:
            raise UserError(
                f"{next(iter(own))}= belongs to instruction=TEXT; task={config.task} has its own."
            )
        return config, load_task(config.task, config)
    labels = tuple(names(own.get("labels", "")))
    return config, own_task(instruction_name(instruction), instruction, own.get("suffix", ""), labels)


def _made(task: "Task", config: "Config", write: Path | None, force: bool) -> "Pool":
    from sapo.cli.console import nothing_on_stdout
    from sapo.conf.errors import UserError
    from sapo.data.pools import written_path
    from sapo.experiments.paraphrase.writing import copy_pool, write_paraphrases

    path = write or written_path(task, config.paraphrases)
    if config.paraphrases.source == "bank" and not config.task:
        raise UserError(
            "The bank has no paraphrases by instruction, only by task (task=NAME). Say who is to write them: "
            "paraphrases=openai paraphrases.base_url=URL, or paraphrases=local."
        )
    if config.paraphrases.source in ("bank", "file"):
        return copy_pool(task, config, path, force)

    def tell(answer: "Reply", expansion: "Expansion") -> None:
        found = answer.error or (f"rejected: {answer.reason}" if answer.reason else "accepted")
        notice(f"[{len(expansion.accepted)}/{config.paraphrases.count}] {found}")

    try:
        with nothing_on_stdout():
            return write_paraphrases(task, config, path, force, tell)
    except KeyboardInterrupt:
        notice("sapo: interrupted. Accepted paraphrases are kept: the same command goes on from here.")
        raise


def _document(task: "Task", config: "Config", pool: "Pool") -> dict[str, Any]:
    expansion = pool.expansion
    return {
        "task": task.name,
        "original": task.instruction,
        "language": task.language,
        "paraphraser": config.paraphrases.name,
        "model": pool.model,
        "asked": config.paraphrases.count,
        "accepted": pool.expansion.accepted,
        "rejected": expansion.rejected(),
        "failed": [{"error": error, "count": count} for error, count in expansion.errors.most_common()],
        "requests": len(expansion.answers),
        "tokens": expansion.tokens(),
        "cost_usd": expansion.cost(config.paraphrases.prices),
        "seconds": round(pool.seconds, 3),
        "file": str(pool.path) if pool.path else None,
        "complete": len(pool.expansion.accepted) >= config.paraphrases.count,
    }


def _render(console: "Console", document: dict[str, Any]) -> None:
    from sapo.cli.console import duration

    def line(text: str = "") -> None:
        console.print(text, markup=False, soft_wrap=True)

    line(f"original  {document['original']}")
    for number, text in enumerate(document["accepted"]):
        line(f"{number:>8}  {text}")
    for row in document["rejected"]:
        line(f"{row['count']} rejected: {row['reason']}")
        line(f"          {_shortened(row['example'])}")
    for row in document["failed"]:
        line(f"{row['count']} without an answer: {row['error']}")
    tokens = document["tokens"]
    counted = "tokens not told" if tokens["in"] is None else f"{tokens['in']} tokens in, {tokens['out']} out"
    cost = "" if document["cost_usd"] is None else f", about ${document['cost_usd']:.4f}"
    line(
        f"{len(document['accepted'])} of {document['asked']} paraphrases from {document['model']}: "
        f"{document['requests']} requests, {counted}{cost}, {duration(document['seconds'])}"
    )
    if document["file"]:
        line(f"Written to {document['file']}")


def _render_request(console: "Console", request: dict[str, Any]) -> None:
    """The request with its message as it is read, not as JSON writes it."""
    from json import dumps

    body = request.get("body")
    message = body["messages"][0]["content"] if body else request["message"]
    shown = dict(request) | (
        {"body": {**body, "messages": "the message below, as the user's"}} if body else {}
    )
    shown.pop("message", None)
    for name, value in shown.items():
        text = dumps(value, ensure_ascii=False) if isinstance(value, dict) else value or "none"
        console.print(f"{name.replace('_', ' '):<14} {text}", markup=False, soft_wrap=True)
    console.rule("message", align="left")
    console.print(message, markup=False, soft_wrap=True)
    console.rule("nothing was sent", align="left")


def _shortened(text: str, longest: int = 200) -> str:
    """One line of a text."""
    flat = " ".join(text.split())
    return flat if len(flat) <= longest else f"{flat[:longest]}…"


def _mend(pool: "Pool") -> str:
    if not pool.expansion.accepted:
        return "nothing was written. Another model, or paraphrases.temperature, may write better ones."
    if not pool.expansion.answers:
        return "there are no more in the pool that they come from."
    return (
        "the pool holds these. The same command asks for the rest again; another model may write better ones."
    )
