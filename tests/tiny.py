"""The command line in this process, runs of the random two-layer model, and a server on this machine."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from threading import Thread
from typing import Any

import pytest

from sapo.cli.app import main
from sapo.conf.errors import UserError

# What makes a run take a second.
SMALL = (
    "model=tiny_llama",
    "sequence.tasks=[mini_city,mini_topic]",
    "data.train_examples=8",
    "data.test_examples=4",
    "scorer.examples=4",
    "paraphrases.count=3",
    "evaluator.max_new_tokens=4",
    "data.max_input_tokens=512",  # the tiny tokenizer has one token a byte
    "trainer.epochs=1",
    "engine.device=cpu",
)
# Steps large enough that every task moves the logits far.
LARGE_STEPS = ("trainer.epochs=2", "trainer.global_batch=2", "trainer.learning_rate=0.05")


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        assert self.code == 0, self.err
        return read_json(self.out)

    def refused(self, code: int = 2) -> str:
        """The one legible message of a refused command, which wrote nothing else."""
        assert (self.code, self.out) == (code, ""), self
        assert self.err.startswith("sapo: ")
        # But for the line on how many rows are taken.
        assert [" training rows a task" in line for line in self.err.split("sapo: ")[1:]].count(False) == 1
        assert "Traceback" not in self.err
        assert len(self.err) < 6000
        return self.err


def read_json(text: str) -> Any:
    """The document, in which no number is NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)


def call(*arguments: object) -> Done:
    """Runs `sapo ARGUMENTS` in this process."""
    out, err = StringIO(), StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Done(int(exit_.value.code or 0), out.getvalue(), err.getvalue())


def refusal(call: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """The message of the UserError (of which a WorkError is one) that the call raises."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    return str(caught.value)


class Answering(BaseHTTPRequestHandler):
    """A handler that is silent: `answer` is given what was sent, and answers with `send`."""

    answer: Callable[[bytes], None]

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def send(self, status: int, content: bytes, **headers: str | None) -> None:
        """An answer; an underscore in a header's name stands for a hyphen, and None for no such header."""
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(content))} | headers).items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server on this machine, which ends with the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
