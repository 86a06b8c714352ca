"""Imports `sapo` once, then starts a fork for every command: a process that is killed costs no imports.

Reads a JSON object a line from stdin: `{"start": {...}}` answers the child's id, `{"wait": id}` its exit
code.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot  # noqa: F401 (imported late otherwise, in every fork)
import peft  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

from sapo.analysis import matrices, render, tables  # noqa: F401
from sapo.cli import app, console, train, views  # noqa: F401
from sapo.conf.load import load
from sapo.experiments.engine.store import Store
from sapo.experiments.run import require_ready


def note(path: str, line: str) -> None:
    """Appends a line at once: it is there even if the process is killed right after."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def note_stages(log: str) -> None:
    """Has this process note the stages that it begins and stores."""
    building = Store.building

    @contextmanager
    def noted(store: Store, kind: str, key: str) -> Iterator[Path]:
        note(log, f"begin {kind} {key} {os.getpid()}")
        with building(store, kind, key) as folder:
            yield folder
        note(log, f"stored {kind} {key} {os.getpid()}")

    Store.building = noted  # type: ignore[method-assign]


def note_workers(log: str) -> None:
    """Has Ray's workers note theirs, too: being of `__main__`, the class goes to them as it is."""
    from sapo.experiments.engine import ray

    class Noting(ray.StageWorker):
        def __init__(self, root: str, folder: str) -> None:
            super().__init__(root, folder)
            note_stages(log)

    ray.StageWorker = Noting  # type: ignore[misc]


def prepare(order: dict[str, Any]) -> None:
    """Output to files, stages noted as they begin and are stored, and whatever fault is asked for."""
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if order.get("ray"):
        os.environ["RAY_TMPDIR"] = order["ray"]
        note_workers(order["log"])
    else:
        note_stages(order["log"])
    if order.get("largest_file"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"], resource.RLIM_INFINITY))
    if order.get("clock"):
        now = time.time
        time.time = lambda: now() + order["clock"]


def start(order: dict[str, Any]) -> int:
    """The id of a new process that runs a command."""
    child = os.fork()
    if child:
        return child
    try:
        prepare(order)
        app.main(order["arguments"])
    except SystemExit as exit_:
        os._exit(int(exit_.code or 0))
    except BaseException as error:
        os.write(2, repr(error).encode())
        os._exit(99)
    os._exit(0)


def say(answer: Any) -> None:
    """Answers on stdout."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Answers until stdin ends."""
    for line in sys.stdin:
        order = json.loads(line)
        if "warm" in order:
            require_ready(load(order["warm"][1:]))  # what it imports and reads, all forks have
            answer: Any = "ready"
        elif "start" in order:
            answer = start(order["start"])
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        say(answer)


main()
