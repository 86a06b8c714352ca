"""What commands share: results on stdout, everything else on stderr, and the options that many have."""

import codecs
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from json import dumps, loads
from pathlib import Path
from statistics import fmean
from threading import Event, Thread
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from sapo.conf.errors import UserError, WorkError
from sapo.conf.text import json_safe, printable

if TYPE_CHECKING:
    from sapo.conf.schema import Config
    from sapo.experiments.doctor import Check
    from sapo.experiments.engine.local import LocalEngine
    from sapo.experiments.jobs import Job
    from sapo.experiments.stages import Stage


def complete_override(context: typer.Context, incomplete: str) -> list[str]:
    """Shell completion of an override: names of groups, after a dot of settings; then what they can be."""
    from sapo.conf.load import GROUPS, choices
    from sapo.conf.schema import settings

    # Bash gives `model=tiny` as three words, and takes the last one's completion.
    given: list[str] = list(context.params.get("overrides") or [])
    *_, before, equals = ["", "", *given]
    start = f"{before}=" if equals == "=" else ""
    key, has_value, _ = f"{start}{incomplete}".partition("=")
    known = settings()
    if not has_value:
        names = [name for name in known if name not in GROUPS] if "." in key else GROUPS
        return [f"{name}=" for name in names if name.startswith(key)]
    members = (
        choices(key) if key in GROUPS else known[key].metadata.get("choices", ()) if key in known else ()
    )
    found = [f"{key}={name}".removeprefix(start) for name in members]
    return [override for override in found if override.startswith(incomplete)]


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[GROUP=NAME|KEY=VALUE]…",
        help="Hydra overrides; `seed=range(2)` makes two runs. See `sapo ls` and `sapo show config`. "
        "JOB.yaml: a file of them, also a run's config.yaml.",
        autocompletion=complete_override,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print what there is to do")]
Force = Annotated[bool, typer.Option(help="Compute stages again that are stored")]
Run = Annotated[str, typer.Argument(help="Run folder or id")]
State = Annotated[str, typer.Option(help="last, a number of trained tasks, or the task trained last")]
Definition = Annotated[str, typer.Option(help="Definition of BWT and FWT: reference, paper or gem")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder of what they say together; by default one for this set"),
]


class Terminal(Console):
    """A console that shows foreign text as it is: no markup, emoji codes or control characters act."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        """What tables and lines measure and wrap is what is shown."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What comes as styled text passes here alone."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def show(self, parts: Iterable[RenderableType]) -> None:
        """Prints all parts; lines of a plain text are whole in a file, a terminal breaks them."""
        for part in parts:
            self.print(part, soft_wrap=isinstance(part, str), crop=False)


def emit(document: Any, as_json: bool, shown: Iterable[RenderableType]) -> None:
    """Prints a result on stdout: the document as JSON, or what people are shown of it."""
    try:
        if as_json:
            encoding = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name
            text = dumps(document, ensure_ascii=not encoding.startswith("utf"), allow_nan=False)
            typer.echo(json_safe(text))
        else:
            Terminal().show(shown)
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.filename:
            raise
        _discard(sys.stdout)
        raise WorkError(
            f"Cannot write the result to the output: {error.strerror or error}. "
            "What was computed is kept: the same command shows it again."
        ) from error


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> RenderableType:
    """An open table: a text column, then right-aligned ones."""
    found = Table(box=box.SIMPLE_HEAD, collapse_padding=True)
    found.add_column(columns[0], overflow="fold")
    for name in columns[1:]:
        found.add_column(name, justify="right")
    for row in rows:
        found.add_row(*map(str, row))
    # Not as the title of the table, which would be broken to its width.
    return Group(title, found) if title else found


def check_lines(found: "Iterable[Check]", wrong: str, absent: str) -> Iterator[str]:
    """What was looked at, and the mend of what is not as it should be."""
    for check in found:
        mark = "ok" if check.ok else wrong if check.required else absent
        text = f"{check.name}: {check.detail}\n{'' if check.ok else check.mend}".rstrip()
        for number, line in enumerate(text.split("\n")):
            yield f"{'' if number else mark:<8}{line}"


def duration(seconds: "float | Sequence[float] | None") -> str:
    """`45 s`, `12 min`, `3.5 h`, for people; of the least and the most `45 s to 2 min`."""
    if seconds is None:
        return "unknown"
    if isinstance(seconds, Sequence):
        return " to ".join(dict.fromkeys(map(duration, seconds)))
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def take(arguments: Sequence[str] | None, names: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """The values of a command's own KEY=VALUE arguments, which Hydra would not know, and the overrides.

    Both may stand in job files.
    """
    from sapo.conf.job_files import with_job_files

    own, overrides = {}, []
    for argument in with_job_files(arguments or []):
        key, equals, value = argument.partition("=")
        if equals and key in names:
            own[key] = value
        else:
            overrides.append(argument)
    return own, overrides


def store_root(overrides: Sequence[str] | None = None) -> Path:
    """The store that commands about finished runs look in: `store.root=`, else SAPO_STORE, else `runs`."""
    given = [override for override in overrides or () if override.startswith("store.root=")]
    if given:
        from sapo.conf.load import load_one

        return Path(load_one(given).store.root)
    return Path(os.environ.get("SAPO_STORE") or "runs").expanduser()


def report_folder(what: str, folders: Sequence[Path]) -> Path:
    """Where the report of these runs or probes lies: the same for the same ones, in any order."""
    from sapo.conf.names import DIGEST
    from sapo.data.tasks import digest

    names = sorted(folder.name for folder in folders)
    name = names[0] if len(names) == 1 else f"{len(names)}-{digest(names)[:DIGEST]}"
    return store_root() / "reports" / f"{what}-{name}"


def find_run(name: str, overrides: Sequence[str] | None = None) -> Path:
    """The one run folder that a folder or a run id means; UserError otherwise."""
    from sapo.analysis.results import find_runs

    folders = find_runs([name], store_root(overrides))
    if len(folders) != 1:
        names = ", ".join(folder.name for folder in folders)
        raise UserError(f"'{name}' means {len(folders)} runs; this command takes one: {names}")
    return folders[0]


def may_replace(path: Path) -> bool:
    """Whether a file that is there may be replaced: a person at a terminal is asked, nobody else agrees."""
    is_asked = path.is_file() and sys.stdin.isatty() and sys.stderr.isatty()
    return is_asked and typer.confirm(f"{printable(str(path))} is there already. Replace it?", err=True)


def notice(text: str) -> None:
    """A line on stderr; where nothing can be written, the work goes on without."""
    try:
        typer.echo(printable(text), err=True)
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """What lies in the buffer of a stream that is full would fail again when Python ends."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def notice_rows(configs: "Sequence[Config]") -> None:
    """Lines on stderr, each once: what was left out of users' own tasks; how many rows are taken of how many.

    None where data is missing, which is said where the tasks are needed.
    """
    from sapo.data.benchmarks import load_whole_task, rows_taken

    lines: dict[str, str] = {}
    notes: dict[str, None] = {}
    for config in {repr((each.sequence, each.data, each.scale)): each for each in configs}.values():
        with suppress(UserError):
            lines.setdefault(rows_taken(config), config.sequence.name)
            for name in config.sequence.tasks:
                notes.update(dict.fromkeys(load_whole_task(name, config).notes))
    for note in notes:
        notice(f"sapo: {note}")
    for line, sequence in lines.items():
        notice(f"sapo: {line}" if len(lines) == 1 else f"sapo: {sequence}: {line}")


class Progress:
    """How many pieces of how many are finished, on stderr: a bar on a terminal, a line a piece elsewhere.

    As an engine's watcher it shows the stages, how long the rest will take, and of each training that goes on
    in the store at `root` its step, loss and time left: elsewhere than on a terminal once a minute. Stdout is
    for results: what libraries print meanwhile goes to stderr as well.
    """

    def __init__(self, root: Path | None = None) -> None:
        from rich import progress

        console = Terminal(stderr=True)
        columns = (
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.description}", markup=False),
        )
        self._bar = progress.Progress(
            *columns, console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal
        )
        self._bar.add_task("", total=0)
        self._all = self._bar.tasks[0]
        self._redirected = redirect_stdout(sys.stderr)
        self._root = root
        self._rows: dict[int, progress.Task] = {}  # of each stage under way; those of trainings are seen
        self._what = "starting" if root else ""
        self._left: Counter[str] = Counter()
        self._took: dict[str, list[float]] = {}
        self._over = Event()

    def __enter__(self) -> "Progress":
        self._redirected.__enter__()
        self._bar.start()
        self._over.clear()
        Thread(target=self._look, args=(60.0 if self._bar.disable else 1.0,), daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._over.set()
        self._bar.stop()
        self._redirected.__exit__(*error)

    def __call__(self, stage: "Stage", event: str) -> None:
        """Gets a stage's `begin` and its end, `done` or `failed`, or that it was `stored`."""
        if row := self._rows.pop(id(stage), None):
            self._bar.remove_task(row.id)
        if event == "begin":  # again, if its worker has died
            from sapo.data.records import PROGRESS

            told = self._root and stage.kind == "train" and self._root / "checkpoints" / stage.key / PROGRESS
            self._bar.add_task(str(stage), total=None, visible=bool(told), stage=stage, told=told)
            self._rows[id(stage)] = self._bar.tasks[-1]
            self._show(str(stage))
            return
        took = (row and row.elapsed) or 0.0
        self._left[stage.kind] -= 1
        if event == "done":
            self._took.setdefault(stage.kind, []).append(took)
        if event != "failed":
            self.advance(f"{stage}: {took:.1f} s" if event == "done" else "")
            self._show("")

    def _show(self, what: str | None = None) -> None:
        """What goes on, and about how long the rest takes, once each kind that it has was computed here."""
        self._what = what = self._what if what is None else what
        left = {kind: count for kind, count in list(self._left.items()) if count > 0}
        if left and left.keys() <= self._took.keys():
            takes = {kind: fmean(self._took[kind]) for kind in left}
            rows = list(self._rows.values())
            seconds = sum(count * takes[kind] for kind, count in left.items())
            seconds -= sum(min(takes.get(row.fields["stage"].kind, 0.0), row.elapsed or 0.0) for row in rows)
            rest = f"about {duration(seconds / max(1, len(rows)))} left" if seconds > 0 else ""
            what = "; ".join(filter(None, [rest, what]))
        self._bar.update(self._all.id, description=what)

    def _look(self, every: float) -> None:
        while not self._over.wait(every):
            self._show()
            self.show_trainings()

    def show_trainings(self) -> None:
        """Shows how far the trainings are that go on."""
        for row in [row for row in list(self._rows.values()) if row.visible]:
            with suppress(OSError, ValueError, KeyError):
                told, what = loads(row.fields["told"].read_bytes()), row.fields["stage"]
                step, steps = told["step"], told["steps"]
                text = f"loss {told['loss']:.3f}, {duration(told['left'])} left"
                self._bar.update(row.id, total=steps, completed=step, description=f"{text}; {what}")
                if self._bar.disable:
                    notice(f"{what}: step {step} of {steps}, {text}")

    def expect(self, pieces: "int | Counter[str]") -> None:
        """So many more are to come, or so many of each kind of stage."""
        found = pieces if isinstance(pieces, Counter) else Counter({"": pieces})
        self._left.update(found)
        self._bar.update(self._all.id, total=(self._all.total or 0) + found.total())
        self._show()

    def advance(self, line: str) -> None:
        """A piece is finished; where there is no bar the line says which, unless it is empty."""
        self._bar.advance(self._all.id)
        if line and self._bar.disable:
            notice(f"[{self._all.completed:.0f}/{self._all.total:.0f}] {line}")

    def tell(self, line: str) -> None:
        """A line for people, above the bar."""
        if self._bar.disable:
            notice(line)
        else:
            self._bar.console.out(line)


@contextmanager
def keeping(what: str) -> Iterator[None]:
    """Says of an interrupted command what is kept of its work."""
    try:
        yield
    except KeyboardInterrupt:
        notice(f"sapo: interrupted. {what} are kept: the same command goes on from here.")
        raise


@contextmanager
def computing(jobs: "Sequence[Job]", force: bool = False) -> Iterator[tuple["LocalEngine", Progress]]:
    """The one engine of a command and what it shows: what is computed by force is so once for all jobs."""
    from sapo.experiments.run import open_engine

    progress = Progress(Path(jobs[0].config.store.root))
    with keeping("Finished stages"), open_engine(jobs, progress, progress.tell, force) as engine:
        engine.expect = progress.expect
        yield engine, progress
