"""`sapo paraphrase`: a prompt pool from a model's answers, checked and written to a file."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.json import JSON

from sapo.cli.console import DryRun, Json, duration, emit, keeping, notice, take
from sapo.conf.errors import UserError

if TYPE_CHECKING:
    from sapo.conf.schema import Config
    from sapo.data.tasks import Task


def command(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="instruction=TEXT|task=NAME [suffix=TEXT] [labels=A,B] [OVERRIDES]…",
            help="What to paraphrase, and whom to ask: paraphrases=openai paraphrases.base_url=URL",
        ),
    ],
    write: Annotated[Path | None, typer.Option(help="POOL.yaml (default: among the store's pools)")] = None,
    dry_run: DryRun = False,
    force: Annotated[bool, typer.Option("--force", help="Ask for all anew, and replace the file")] = False,
    tags: Annotated[Path | None, typer.Option(help="TAGS.jsonl: tags of a sequence's rows instead")] = None,
    json: Json = False,
) -> None:
    """Ask a model for paraphrases of an instruction, check each, and write them to a prompt pool."""
    from sapo.conf.load import load_one

    if tags:
        _tag(load_one(arguments), tags, json)
        return
    own, overrides = take(arguments, ("instruction", "suffix", "labels"))
    config = load_one(overrides)
    task = _task(own, config)
    from sapo.data.pools import written_path
    from sapo.experiments.paraphrase.writing import copy_pool, dry_request, write_paraphrases

    if dry_run:
        request = dry_request(task, config)
        message = request.get("message") or request["body"]["messages"][0]["content"]
        emit(request, json, [JSON.from_data(request), message, "Nothing was sent."])
        return
    asked = config.paraphrases.count

    def tell(answer: Any, expansion: Any) -> None:
        found = answer.error or (f"rejected: {answer.reason}" if answer.reason else "accepted")
        notice(f"[{len(expansion.accepted)}/{asked}] {found}")

    path = write or written_path(task, config.paraphrases)
    if config.paraphrases.source in ("bank", "file"):
        pool = copy_pool(task, config, path, force)
        more = "There are no more in the pool that they come from."
    else:
        with keeping("Accepted paraphrases"), redirect_stdout(sys.stderr):
            pool = write_paraphrases(task, config, path, force, tell)
        more = "The same command asks for the rest again; another model may write better ones."
    document = pool.as_json(task, config)
    emit(document, json, _lines(document))
    if not document["complete"]:
        held = "the pool holds these." if document["file"] else "nothing was written."
        notice(f"sapo: {len(document['accepted'])} of {asked} paraphrases; {held} {more}")
        raise typer.Exit(1)


def _tag(config: "Config", path: Path, json: bool) -> None:
    from sapo.experiments.paraphrase.tags import write_tags

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


def _task(own: Mapping[str, str], config: "Config") -> "Task":
    """The named task, or one that is an instruction only."""
    from sapo.data.benchmarks import load_task
    from sapo.data.own import labels_of
    from sapo.data.pools import instruction_name
    from sapo.data.tasks import own_task

    instruction = own.get("instruction", "")
    if bool(config.task) == bool(instruction.strip()):
        raise UserError("What shall be paraphrased? Say either instruction=TEXT or task=NAME.")
    if config.task:
        for name in own:
            raise UserError(f"{name}= belongs to instruction=TEXT; task={config.task} has its own.")
        return load_task(config.task, config)
    if config.paraphrases.source == "bank":
        raise UserError(
            "The bank has no paraphrases by instruction, only by task (task=NAME). Say who is to write them: "
            "paraphrases=openai paraphrases.base_url=URL, or paraphrases=local."
        )
    labels = tuple(dict.fromkeys(labels_of(own.get("labels", "")).values()))
    return own_task(instruction_name(instruction), instruction, own.get("suffix", ""), labels)


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
    tokens, cost = document["tokens"], document["cost_usd"]
    counted = "tokens not told" if tokens["in"] is None else f"{tokens['in']} tokens in, {tokens['out']} out"
    yield (
        f"{len(document['accepted'])} of {document['asked']} paraphrases from {document['model']}: "
        f"{document['requests']} requests, {counted}{'' if cost is None else f', about ${cost:.4f}'}, "
        f"{duration(document['seconds'])}"
    )
    if document["file"]:
        yield f"Written to {document['file']}"
