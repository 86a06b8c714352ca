"""The `sapo` command: its subcommands, and what errors look like."""

import logging
import os
import signal
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

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
WORKING = (
    "train",
    "eval",
    "export",
    "check",
    "analyze",
    "claims",
    "reproduce",
    "plan",
    "select",
    "compare",
    "paraphrase",
)
LOOKING = ("metrics", "ls", "show", "fetch", "doctor", "store")
for _name in WORKING + LOOKING:
    _module = import_module(f"sapo.cli.{_name}")  # a file a command, or a group of them
    _epilog = "\n\n".join(["Examples:", *getattr(_module, "EXAMPLES", ())]).replace(
        "[", r"\["
    )  # else Rich takes it for markup
    if hasattr(_module, "group"):
        app.add_typer(_module.group, name=_name, epilog=_epilog)
    else:
        app.command(_name, epilog=_epilog)(_module.command)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 the work failed, 2 the command is wrong, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = DEBUG in arguments
    try:
        _prepare(debug, downloads="fetch" in arguments[:1])
        # `--debug` is taken wherever it stands, since people add it to the end of what has failed.
        app([argument for argument in arguments if argument != DEBUG], prog_name="sapo")
    except Exception as error:  # one legible line
        known = error if isinstance(error, UserError) else None
        if known is None and (isinstance(error, OSError) or is_full(error)):
            known = system_error(error)
        if debug:
            import traceback

            notice("".join(traceback.format_exception(error)).rstrip())
        hint = "" if debug else "; run again with --debug for the traceback"
        message = " ".join(str(error).split()) or "no message"
        notice(f"sapo: {known or f'{type(error).__name__}: {message}{hint}'}")
        raise SystemExit(known.exit_code if known else 1) from None


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(DEBUG, help="Show tracebacks, warnings and logs")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version", callback=lambda is_asked: _version(is_asked), is_eager=True
        ),
    ] = False,
) -> None:
    del debug, version  # `main` and the callback have dealt with them


def _version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"sapo {version('sapo-prompts')}")
        raise typer.Exit


def _prepare(debug: bool, downloads: bool) -> None:
    """Lets interrupts stop at once, and keeps libraries from talking but of downloads' progress."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that the terminal does not have fails nothing
            stream.reconfigure(errors="backslashreplace")
    # asyncio would put Ctrl-C off to the next `await`, behind a training; with a handler of ours it does not.
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)  # how a scheduler takes a machine back
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UserError("The present folder has been deleted: `cd` to one that is there.") from error
    if debug:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO)
        return
    warnings.filterwarnings("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # speaks of kernels that nobody asked for
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not downloads:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def interrupt(*_: Any) -> None:
    """What a signal to stop does: the command ends where it stands, and what is finished is kept."""
    raise KeyboardInterrupt
