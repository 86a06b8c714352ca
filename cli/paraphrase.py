"""`sapo paraphrase`: a prompt pool from a model's answers, checked and written to a file."""

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.json import JSON

from sapo.cli.console import Json, duration, emit, keeping, notice, take
from sapo.conf.errors import UserError

if TYPE_CHECKING:
    from sapo.conf.schema import Config
    from sapo.data.tasks import Task
    from sapo.experiments.paraphrase.chat import Reply
    from sapo.experiments.paraphrase.expand import Expansion

EXAMPLES = (
    "sapo paraphrase instruction=TEXT paraphrases=openai paraphrases.base_url=http://HOST:8000/v1",
    "sapo paraphrase task=mini_topic paraphrases=local paraphrases.count=10",
)


def command(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="instruction=TEXT|task=NAME [suffix=TEXT] [labels=A,B] [OVERRIDES]…",
            help="What to paraphrase, and whom to ask: paraphrases=openai paraphrases.base_url=URL",
        ),
    ],
    write: Annotated[
        Path | None, typer.Option(metavar="POOL.yaml", help="Where to (default: the store's pools)")
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
        message = request.get("message") or request["body"]["messages"][0]["content"]
        emit(request, json, [JSON.from_data(request), message, "Nothing was sent."])
        return
    from sapo.data.pools import written_path
    from sapo.experiments.paraphrase.writing import copy_pool, write_paraphrases

    def tell(answer: "Reply", expansion: "Expansion") -> None:
        found = answer.error or (f"rejected: {answer.reason}" if answer.reason else "accepted")
        notice(f"[{len(expansion.accepted)}/{config.paraphrases.count}] {found}")

    path, is_there = (
        write or written_path(task, config.paraphrases),
        config.paraphrases.source in ("bank", "file"),
    )
    if is_there:
        pool = copy_pool(task, config, path, force)
    else:
        with keeping("Accepted paraphrases"), redirect_stdout(sys.stderr):
            pool = write_paraphrases(task, config, path, force, tell)
    document = pool.as_json(task, config)
    emit(document, json, _lines(document))
    if not document["complete"]:
        count, asked = len(document["accepted"]), document["asked"]
        held = "the pool holds these." if document["file"] else "nothing was written."
        more = "The same command asks for the rest again; another model may write better ones."
        if is_there:
            more = "There are no more in the pool that they come from."
        notice(f"sapo: {count} of {asked} paraphrases; {held} {more}")
        raise typer.Exit(1)


def _tag(path: Path, overrides: list[str], json: bool) -> None:
    from sapo.conf.load import load_one
    from sapo.experiments.paraphrase.tags import write_tags

    config = load_one(overrides)
    with redirect_stdout(sys.stderr):
        document = write_tags(config, path, lambda done, rows: notice(f"[{done}/{rows}] rows"))
    tagged = f"{document['tagged']} of {document['rows']} rows have tags of {document['model']}"
    emit(document, json, [f"{tagged}: {document['file']}"])
    for failed in document["failed"]:
        notice(f"{failed['count']} without an answer: {failed['error']}")
    if document["no_list"]:
        notice(f"{document['no_list']} answers held no list of tags; these rows count as without any.")
    if document["failed"]:
        notice("sapo: the same command asks for the rest.")
        raise typer.Exit(1)


def _config_and_task(arguments: list[str]) -> tuple["Config", "Task"]:
    """The config, and the named task or one that is an instruction only."""
    from sapo.conf.load import load_one
    from sapo.data.benchmarks import load_task
    from sapo.data.own import labels_of
    from sapo.data.pools import instruction_name
    from sapo.data.tasks import own_task

    own, overrides = take(arguments, ("instruction", "suffix", "labels"))
    config = load_one(overrides)
    instruction = own.get("instruction", "")
    if bool(config.task) == bool(instruction.strip()):
        raise UserError("What shall be paraphrased? Say either instruction=TEXT or task=NAME.")
    if config.task:
        for name in own:
            raise UserError(f"{name}= belongs to instruction=TEXT; task={config.task} has its own.")
        return config, load_task(config.task, config)
    if config.paraphrases.source == "bank":
        raise UserError(
            "The bank has no paraphrases by instruction, only by task (task=NAME). Say who is to write them: "
            "paraphrases=openai paraphrases.base_url=URL, or paraphrases=local."
        )
    labels = tuple(dict.fromkeys(labels_of(own.get("labels", "")).values()))
    return config, own_task(instruction_name(instruction), instruction, own.get("suffix", ""), labels)


def _lines(document: dict[str, Any]) -> Iterator[str]:
    yield f"original  {document['original']}"
    for number, text in enumerate(document["accepted"]):
        yield f"{number:>8}  {text}"
    for row in document["rejected"]:
        yield f"{row['count']} rejected: {row['reason']}: {' '.join(row['example'].split())[:200]}"
    if document["rejected"]:
        yield "paraphrases.allow=[RULE] leaves out a rule that stands in brackets."
    for row in document["failed"]:
        yield f"{row['count']} without an answer: {row['error']}"
    tokens = document["tokens"]
    counted = "tokens not told" if tokens["in"] is None else f"{tokens['in']} tokens in, {tokens['out']} out"
    cost = "" if document["cost_usd"] is None else f", about ${document['cost_usd']:.4f}"
    yield (
        f"{len(document['accepted'])} of {document['asked']} paraphrases from {document['model']}: "
        f"{document['requests']} requests, {counted}{cost}, {duration(document['seconds'])}"
    )
    if document["file"]:
        yield f"Written to {document['file']}"
