"""What commands share: results on stdout, everything else on stderr, and the options that many have."""

import codecs
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from sapo.conf.errors import WorkError
from sapo.conf.text import json_safe, printable

if TYPE_CHECKING:
    from sapo.conf.schema import Config


def complete_override(incomplete: str) -> list[str]:
    """Shell completion of an override: names of groups, after a dot of settings; then what they can be."""
    from sapo.conf.load import GROUPS, choices
    from sapo.conf.schema import settings

    key, equals, _ = incomplete.partition("=")
    known = settings()
    if not equals:
        names = [name for name in known if name not in GROUPS] if "." in incomplete else GROUPS
        return [f"{name}=" for name in names if name.startswith(incomplete)]
    members = (
        choices(key) if key in GROUPS else known[key].metadata.get("choices", ()) if key in known else ()
    )
    found = [f"{key}={name}" for name in members]
    return [override for override in found if override.startswith(incomplete)]


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[GROUP=NAME|KEY=VALUE]…",
        help="Hydra overrides; `seed=range(2)` makes two runs. See `sapo ls` and `sapo show config`.",
        autocompletion=complete_override,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else")]


class Terminal(Console):
    """A console that shows foreign text as it is: no markup, emoji codes or control characters act."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        """What tables and lines measure and wrap is what is shown."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What comes as styled text passes here alone."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def emit(document: Any, as_json: bool, render: Callable[[Console], None]) -> None:
    """Prints a result on stdout: the document as JSON, or what `render` makes of it."""
    if as_json:
        encoding = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name
        text = dumps(document, ensure_ascii=not encoding.startswith("utf"), allow_nan=False)
        render = lambda _: typer.echo(json_safe(text))  # noqa: E731
    try:
        render(Terminal())
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.filename:
            raise
        # What lies in the buffer would fail again when Python ends.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise WorkError(
            f"Cannot write the result to the output: {error.strerror or error}. "
            "What was computed is kept: the same command shows it again."
        ) from error


def take(arguments: list[str], names: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """The values of a command's own KEY=VALUE arguments, and the overrides."""
    # Hydra would not know the former.
    pairs = [argument.partition("=") for argument in arguments]
    own = {key: value for key, equals, value in pairs if equals and key in names}
    return own, [argument for argument, pair in zip(arguments, pairs, strict=True) if pair[0] not in names]


def notice(text: str) -> None:
    """A line on stderr; where nothing can be written, the work goes on without."""
    with suppress(OSError):
        typer.echo(printable(text), err=True)


def notice_rows(configs: "Sequence[Config]") -> None:
    """A line on stderr for each way in which configs take rows of their tasks; none where data is missing.

    Before it what was read of users' own tasks, and what was left out.
    """
    from sapo.conf.errors import UserError
    from sapo.data.benchmarks import load_whole_task, rows_taken

    different = {repr((config.sequence, config.data, config.scale)): config for config in configs}
    lines: dict[str, str] = {}
    notes: dict[str, None] = {}
    for config in different.values():
        try:
            lines.setdefault(rows_taken(config), config.sequence.name)
            tasks = [load_whole_task(name, config) for name in config.sequence.tasks]
            notes.update(dict.fromkeys(note for task in tasks for note in task.notes))
        except UserError:  # is said where the tasks are needed
            continue
    for note in notes:
        notice(f"sapo: {note}")
    for line, sequence in lines.items():
        notice(f"sapo: {line}" if len(lines) == 1 else f"sapo: {sequence}: {line}")


@contextmanager
def nothing_on_stdout() -> Iterator[None]:
    """Sends to stderr what libraries print while the work goes on: stdout is for results."""
    with redirect_stdout(sys.stderr):
        yield


def store_root() -> Path:
    """The store that commands about finished runs look in: SAPO_STORE, else `runs`."""
    return Path(os.environ.get("SAPO_STORE") or "runs").expanduser()


def find_run(name: str) -> Path:
    """The one run folder that a folder or a run id means; UserError otherwise."""
    from sapo.analysis.results import find_runs
    from sapo.conf.errors import UserError

    folders = find_runs([name], store_root())
    if len(folders) != 1:
        raise UserError(
            f"'{name}' means {len(folders)} runs; this command takes one: "
            + ", ".join(f.name for f in folders)
        )
    return folders[0]


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`, for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
