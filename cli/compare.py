"""`sapo compare`: which prompt to train with, and which to serve, on your rows and model."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from sapo.cli.console import DryRun, Json, computing, duration, emit, notice, table, take

if TYPE_CHECKING:
    from sapo.analysis.comparison import Comparison


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="data=FILE instruction=TEXT paraphrases.file=POOL | task=NAME [OVERRIDES]…",
            help="The rows, the instruction and its paraphrases, as `sapo select` takes them. Also "
            "compare.train=[…] (original, chosen, highest, mixed, none, 3), compare.serve=[…], "
            "compare.short=TEXT, compare.retain=[TASK,FILE.yaml], and seed=range(3).",
        ),
    ] = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Train under a few prompts, serve each under several, and say what the differences are worth."""
    from sapo.conf.load import load
    from sapo.data.own import ARGUMENTS, DEFAULTS
    from sapo.experiments.compare import compare, cost, prepare, write_task
    from sapo.experiments.jobs import Job

    given, overrides = take(arguments, set(ARGUMENTS) - {"adapter"})
    configs = load([*DEFAULTS, *overrides])
    setting = prepare(given, configs)
    for note in setting.notes:
        notice(f"sapo: {note}")
    with computing([Job(config) for config in configs]) as (engine, progress):
        todo = cost(setting, engine)
        for note in todo["notes"]:
            notice(f"sapo: {note}")
        hint = "unknown (measured in a minute by `sapo plan --measure model=…`)"
        time = hint if todo["seconds"] is None else duration(todo["seconds"])
        line = f"{todo['trainings']} trainings and {todo['evaluations']} evaluations to do; time: {time}"
        if dry_run:
            emit(todo, json, [line])
            return
        notice(f"sapo: {line}")
        with progress:
            wordings, found = compare(setting, engine)
    folder = Path(configs[0].store.root) / "reports" / f"compare-{setting.task.name}"
    commands = write_task(setting, given, overrides, wordings.trained[found.chosen], folder)
    files = [str(path) for path in found.write(folder, commands)]
    document = {**found.document(), "commands": commands, "files": files}
    emit(document, json, [*_parts(found), *(f"    {line}" for line in commands), f"Written to {folder}"])


def _parts(found: "Comparison") -> Iterator[RenderableType]:
    """The matrices, what other tasks lose, the sentences, and the prompts behind the rows."""
    from sapo.analysis.results import MEASURES

    for measure in found.measures:
        frame = found.matrix(measure)
        title = f"{MEASURES[measure]}: trained with (down), served with (across)"
        yield table(list(frame.columns), frame.to_numpy().tolist(), title)
    if len(found.retained):
        changes = found.retained.pivot(index="trained", columns="task", values="change")
        rows = changes.loc[found.trained[1:]].map("{:+.3f}".format).itertuples()
        title = "NLL on other tasks, against the untouched model"
        yield table(["trained with", *changes.columns], rows, title)
    yield from (f"- {sentence.text}" for sentence in found.verdict)
    for name, texts in found.prompts.items():
        yield f"{name}: {texts[0] if len(texts) == 1 else f'one of {len(texts)} for each example'}"
    yield f"\nTrain with: {found.chosen}"
