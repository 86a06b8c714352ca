"""The `sapo` command: its subcommands, and what errors look like."""

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from sapo.cli import (
    analyze,
    doctor,
    eval,  # noqa: A004
    export,
    fetch,
    ls,
    metrics,
    paraphrase,
    plan,
    reproduce,
    select,
    show,
    store,
    train,
)
from sapo.cli.console import notice
from sapo.conf.errors import UserError, is_full, system_error

DEBUG = "--debug"

app = typer.Typer(
    name="sapo",
    help="State-adaptive prompt optimization: choose an instruction's wording before you fine-tune on it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.command)
app.command("eval")(eval.command)
app.command("export")(export.command)
app.command("analyze")(analyze.command)
app.command("reproduce")(reproduce.command)
app.command("plan")(plan.command)
app.command("select")(select.command)
app.command("paraphrase")(paraphrase.command)
app.command("metrics")(metrics.command)
app.command("ls")(ls.command)
app.add_typer(show.group, name="show")
app.add_typer(fetch.group, name="fetch")
app.command("doctor")(doctor.command)
app.add_typer(store.group, name="store")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 the work failed, 2 the command is wrong, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = DEBUG in arguments
    _quiet(debug, "fetch" in arguments[:1])
    try:
        _require_folder()
        # `--debug` is taken wherever it stands, since people add it to the end of what has failed.
        app([argument for argument in arguments if argument != DEBUG], prog_name="sapo")
    except UserError as error:
        _fail(error, str(error), error.exit_code, debug)
    except Exception as error:  # the last line of defence: one legible line
        if isinstance(error, OSError) or is_full(error):
            refused = system_error(error)
            _fail(error, str(refused), refused.exit_code, debug)
        hint = "" if debug else "; run again with --debug for the traceback"
        message = " ".join(str(error).split()) or "no message"
        _fail(error, f"{type(error).__name__}: {message}{hint}", 1, debug)


def _require_folder() -> None:
    """UserError if the folder in which the command was called has been deleted."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UserError("The present folder has been deleted: `cd` to one that is there.") from error


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(DEBUG, help="Show tracebacks, warnings and logs")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version", callback=lambda asked: _version(asked), is_eager=True
        ),
    ] = False,
) -> None:
    del debug, version  # `main` and the callback have dealt with them


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"sapo {version('sapo-prompts')}")
        raise typer.Exit


def _fail(error: Exception, message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        import traceback

        notice("".join(traceback.format_exception(error)).rstrip())
    notice(f"sapo: {message}")
    raise SystemExit(code)


def _quiet(debug: bool, downloads: bool) -> None:
    """Keeps libraries from talking; a download's progress is worth showing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that the terminal does not have fails nothing
            stream.reconfigure(errors="backslashreplace")
    # asyncio would put Ctrl-C off to the next `await`, behind a training; with a handler of ours it does not.
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)  # how a scheduler takes a machine back
    if debug:
        import logging

        logging.basicConfig(stream=sys.stderr, level=logging.INFO)
        return
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not downloads:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
