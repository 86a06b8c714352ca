"""What commands share: results on stdout, everything else on stderr, and the options that many have."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console


def complete_override(incomplete: str) -> list[str]:
    """Shell completion of an override: group names, then a group's members."""
    from sapo.conf.load import GROUPS, choices

    group, equals, _ = incomplete.partition("=")
    if not equals:
        return [f"{name}=" for name in GROUPS if name.startswith(incomplete)]
    found = [f"{group}={name}" for name in choices(group)] if group in GROUPS else []
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


def emit(document: Any, as_json: bool, render: Callable[["Console"], None]) -> None:
    """Prints a result on stdout: the document as JSON, or what `render` makes of it."""
    if as_json:
        from json import dumps

        typer.echo(dumps(document, ensure_ascii=False, allow_nan=False))
        return
    from rich.console import Console

    render(Console(highlight=False))


def take(arguments: list[str], names: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """The values of a command's own KEY=VALUE arguments, and the overrides."""
    # Hydra would not know the former.
    pairs = [argument.partition("=") for argument in arguments]
    own = {key: value for key, equals, value in pairs if equals and key in names}
    return own, [argument for argument, pair in zip(arguments, pairs, strict=True) if pair[0] not in names]


def notice(text: str) -> None:
    """A line on stderr."""
    typer.echo(text, err=True)


@contextmanager
def nothing_on_stdout() -> Iterator[None]:
    """Sends to stderr what libraries print while the work goes on: stdout is for results."""
    import sys

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
