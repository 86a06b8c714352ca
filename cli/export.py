"""`sapo export RUN --to FOLDER`, `--push OWNER/NAME`: a trained state for other programs, with its card."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from shlex import join
from typing import Annotated

import typer
from rich.filesize import decimal

from sapo.cli.console import Json, Overrides, Run, State, emit, find_run
from sapo.conf.errors import UserError


def command(
    run: Run,
    overrides: Overrides = None,
    to: Annotated[Path | None, typer.Option(help="New folder to write (default with --push: NAME)")] = None,
    push: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Upload it to the hub")] = None,
    public: Annotated[bool, typer.Option("--public", help="A repository made by --push is public")] = False,
    state: State = "last",
    merge: Annotated[bool, typer.Option("--merge", help="The whole model, with the adapter in it")] = False,
    json: Json = False,
) -> None:
    """Write a trained state as one PEFT adapter, or as a merged model, with tokenizer and model card."""
    from sapo.analysis.model_card import model_card
    from sapo.analysis.results import load_run
    from sapo.conf.load import choices
    from sapo.experiments.export import export, exportable, require_free, require_repository, upload
    from sapo.experiments.reevaluation import open_run

    if push:
        require_repository(push)
    if not (to or push):
        raise UserError("Where to? Say --to FOLDER, --push OWNER/NAME, or both.")
    to = (to or Path(str(push).rpartition("/")[2])).expanduser()
    require_free(to)
    folder = find_run(run, overrides)
    with redirect_stdout(sys.stderr):
        opened = open_run(folder, overrides or [])
        source = exportable(opened, state)
        facts = source.facts(merge)
        difference = export(source, to, merge, model_card(load_run(folder), facts))
    commit = upload(to, push, public) if push else None
    files = sorted(path for path in to.rglob("*") if path.is_file())
    sizes = {path.relative_to(to).as_posix(): path.stat().st_size for path in files}
    base, rank, test = facts["base"], facts["rank"], None
    tasks = ", ".join(learned["task"] for learned in facts["tasks"])
    lines = [f"{facts['run']} after {tasks}: {decimal(sum(sizes.values()))} in {to}"]
    if merge:
        named = [f"model={opened.record.model}"] if opened.record.model in choices("model") else []
        model = join([*named, f"model.path={to}"])
        test = f"sapo train {opened.sequence} method=zero_shot policy=static {model}"
        lines += [
            f"{base['model']} with an adapter of rank {rank} merged into its weights; its logits differ "
            f"from the adapter's by at most {difference:.1g} of the largest one",
            f"Test it: {test}",
        ]
    else:
        lines.append(f"An adapter of rank {rank} for {base['load']}")
    if commit:
        lines.append(f"Uploaded: {commit}")
    lines.append("README.md there has the prompts that it needs, and Python code to use it.")
    found = {"dir": str(to), "files": sizes, "logits_difference": difference, "test": test, "commit": commit}
    emit(facts | found, json, lines)
