"""The real `transformers serve`."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest

LONGEST_START = 120  # seconds


@contextmanager
def serving(scratch: Path, *model: Path) -> Iterator[str]:
    """The address of a server of one model, or of whatever folder is asked for; it ends with the block.

    Skips where none is installed.
    """
    for package in ("openai", "fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no package {package}: pip install 'sapo-prompts[endpoint]' 'transformers[serving]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    command = [*program, "serve", *model, "--host", "127.0.0.1", "--port", port, "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    log = scratch / "server.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        for _ in range(LONGEST_START * 4):
            with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            if process.poll() is not None:
                pytest.fail(f"the server did not come up:\n{log.read_text()[-2000:]}")
            time.sleep(0.25)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
