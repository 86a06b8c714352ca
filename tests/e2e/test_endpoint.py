"""`sapo paraphrase` against a real OpenAI-compatible server: `transformers serve` with the small model."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from sapo.conf.errors import UserError
from sapo.conf.load import load_one
from sapo.data.pool_checks import check_pool
from sapo.data.pools import instruction_name
from sapo.data.prompts import read_pool
from sapo.data.tasks import own_task
from sapo.experiments.model.fetch import model_folder

INSTRUCTION = "Name the city that is mentioned in the text, and say in which country it lies."
LONGEST_START = 120  # seconds


@pytest.fixture(scope="module")
def model() -> Path:
    try:
        return model_folder(load_one(["model=smollm2_135m"]).model)
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of the small model, which ends with the tests."""
    for package in ("openai", "fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no package {package}: pip install 'sapo-prompts[endpoint]' 'transformers[serving]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", model, "--host", "127.0.0.1", "--port", port, "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        _await(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _await(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(LONGEST_START * 4):
        if process.poll() is not None:
            break
        try:
            with urlopen(url, timeout=5) as response:  # noqa: S310 (loopback)
                if response.status == 200:
                    return
        except (URLError, OSError):
            time.sleep(0.25)
    pytest.fail(f"the server did not come up:\n{log.read_text()[-2000:]}")


def test_a_small_model_writes_poor_paraphrases_and_the_validator_says_so(start, server, workplace):
    asked = (
        f"instruction={INSTRUCTION}",
        "paraphrases=openai",
        f"paraphrases.base_url={server}",
        "paraphrases.max_tokens=24",
        "paraphrases.count=2",
        "paraphrases.rounds=0",
        "paraphrases.concurrency=1",
        "paraphrases.retries=0",
    )
    done = start("paraphrase", *asked, "--write", "pool.yaml", "--json")
    assert done.returncode in (0, 1), done.stderr
    document = _document(done)
    refused = sum(row["count"] for row in document["rejected"])
    assert document["failed"] == []
    assert refused + len(document["accepted"]) == document["requests"]
    assert document["tokens"]["in"] > 100 * document["requests"]
    assert 0 < document["tokens"]["out"] <= 24 * document["requests"]
    assert document["complete"] == (done.returncode == 0) == (len(document["accepted"]) == 2)
    assert all(row["reason"] and "example" in row for row in document["rejected"])
    assert done.stderr.count("rejected: ") == refused
    _check_pool(workplace / "pool.yaml", document["accepted"])


def test_a_model_that_the_server_does_not_have(start, server, workplace):
    done = start(
        "paraphrase",
        f"instruction={INSTRUCTION}",
        "paraphrases=openai",
        f"paraphrases.base_url={server}",
        "paraphrases.model=other/model",
        "paraphrases.count=1",
        "paraphrases.retries=0",
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "answered 400" in done.stderr
    assert "other/model" in done.stderr
    assert not list(workplace.iterdir())


def _document(done: subprocess.CompletedProcess) -> dict:
    return json.loads(done.stdout)


def _check_pool(path: Path, accepted: list[str]) -> None:
    """The pool holds what was accepted, and is valid; there is none where nothing was."""
    if not accepted:
        assert not path.exists()
        return
    task = own_task(instruction_name(INSTRUCTION), INSTRUCTION)
    pool = read_pool(path, task)
    assert [prompt.text for prompt in pool.paraphrases] == accepted
    assert check_pool(pool, task) == []
