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
# Every command, in the order of the help; the file of its name has it, or the group of them.
EXAMPLES = """
sapo train sequence=mini_three policy=static,sapo "seed=range(2)"
sapo train data=tickets.csv paraphrases.file=tickets.yaml policy=sapo
sapo eval RUN
sapo eval RUN mini_price --state last --prompt original
sapo export RUN --to adapter
sapo export RUN --to merged --merge
sapo check RUN serve=http://127.0.0.1:8000
sapo check RUN serve=http://127.0.0.1:8000 --rows 32 --request body.json
sapo analyze RUN OTHER_RUN
sapo analyze 'mini_three-*' --measure nll --report
sapo claims
sapo claims 'ni_probe_*' --json
sapo reproduce table1 --scale mini
sapo reproduce figure1 --scale small --dry-run
sapo plan sequence=mini_five_a policy=static,random,sapo
sapo plan job.yaml
sapo select data=tickets.csv paraphrases.file=tickets.yaml --write chosen.jsonl
sapo select task=mini_topic model=FOLDER scorer.examples=32
sapo compare data=tickets.csv paraphrases.file=tickets.yaml --dry-run
sapo compare task=mini_topic "compare.train=[original,chosen]" "seed=range(3)"
sapo paraphrase instruction=TEXT paraphrases=openai paraphrases.base_url=http://HOST:8000/v1
sapo paraphrase task=mini_topic paraphrases=local paraphrases.count=10
sapo metrics matrix.csv
sapo metrics RUN/matrix_nll.csv --json
sapo ls models
sapo ls runs policy=sapo seed=0
sapo show config policy=random
sapo show example task=mini_topic index=0 prompt=3
sapo fetch benchmarks
sapo fetch model OWNER/NAME
sapo doctor
sapo doctor --json
sapo store ls
sapo store export 'mini_three-*' runs.tar.gz
""".strip().splitlines()

app = typer.Typer(
    name="sapo",
    help="State-adaptive prompt optimization: choose an instruction's wording before you fine-tune on it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name in dict.fromkeys(line.split()[1] for line in EXAMPLES):
    _module = import_module(f"sapo.cli.{_name}")
    _shown = ["Examples:", *(line for line in EXAMPLES if line.split()[1] == _name)]
    _epilog = "\n\n".join(_shown).replace("[", r"\[")  # else Rich takes it for markup
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
        if debug:
            import traceback

            notice(traceback.format_exc().rstrip())
        if not isinstance(error, UserError) and (isinstance(error, OSError) or is_full(error)):
            error = system_error(error)
        said = str(error)
        if not isinstance(error, UserError):
            hint = "" if debug else "; run again with --debug for the traceback"
            said = f"{type(error).__name__}: {' '.join(said.split()) or 'no message'}{hint}"
        notice(f"sapo: {said}")
        raise SystemExit(getattr(error, "exit_code", 1)) from None


def _version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"sapo {version('sapo-prompts')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(DEBUG, help="Show tracebacks, warnings and logs")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    del debug, version  # `main` and the callback have dealt with them


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
