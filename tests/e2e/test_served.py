"""`sapo check` and `sapo paraphrase` against the real `transformers serve`."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from urllib.request import urlopen

import pytest
from tiny import LARGE_STEPS, read_json

from sapo.conf.load import load_one
from sapo.experiments.model.fetch import model_folder

LONGEST_START = 120  # seconds


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The address of a server of whatever model folder is asked for."""
    for package in ("openai", "fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no package {package}: pip install 'sapo-prompts[endpoint]' 'transformers[serving]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
    command = [*program, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    log = tmp_path_factory.mktemp("server") / "server.txt"
    with log.open("w") as file:
        streams = {"stdout": file, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, **streams, env=environment, start_new_session=True)
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


def test_a_served_export_passes_and_what_is_wrong_is_named(sapo, small, url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = [word for word in small if word != "trainer.epochs=1"]
    (run,) = sapo("train", *few, *LARGE_STEPS, "policy=static", "--json").document["runs"]
    assert sapo("export", run["id"], "--to", tmp_path / "merged", "--merge").code == 0
    (tmp_path / "sent.json").write_text('{"messages": [{"role": "user", "content": "{input}"}]}')

    def checked(model, *options):
        done = sapo("check", f"serve={url}", run["id"], "--model", model, *options, "--json")
        document = read_json(done.out)
        assert done.code == (not document["served"])
        return {each["name"]: each for each in document["checks"]}

    right = checked(tmp_path / "merged")
    assert right["tokens"]["ok"]
    assert "as many tokens as in training" in right["tokens"]["detail"]
    assert "4 of 4 are the run's" in right["answers"]["detail"]
    assert (right["weights"]["ok"], right["weights"]["required"]) == (False, False)
    lost = checked(tmp_path / "merged", "--request", "sent.json")
    assert not lost["tokens"]["ok"]
    assert "the layout is missing" in lost["tokens"]["detail"]
    base = checked(model_folder(load_one(["model=tiny_llama"]).model))
    assert base["tokens"]["ok"]
    assert "They are the untouched base model's: 4 of 4" in base["answers"]["detail"]
    absent = sapo("check", f"serve={url}", run["id"], "--model", "no/model")
    assert "chat/completions answered " in absent.err


def test_a_poor_model_writes_poor_paraphrases_and_the_validator_says_so(sapo, url, tmp_path):
    """What is sent to a real server, and what of its answers is read, counted and let through."""
    model = model_folder(load_one(["model=tiny_llama"]).model)
    asked = ("instruction=Name the city that is mentioned in the text.", "paraphrases=openai")
    asked += (f"paraphrases.base_url={url}", "paraphrases.max_tokens=24", "paraphrases.count=2")
    asked += ("paraphrases.rounds=0", "paraphrases.concurrency=1", "paraphrases.retries=0")
    path = tmp_path / "pool.yaml"
    done = sapo("paraphrase", *asked, f"paraphrases.model={model}", "--write", path, "--json")
    document = read_json(done.out)
    refused = sum(row["count"] for row in document["rejected"])
    assert document["failed"] == []
    assert refused + len(document["accepted"]) == document["requests"]
    assert document["tokens"]["in"] > 100 * document["requests"]
    assert 0 < document["tokens"]["out"] <= 24 * document["requests"]
    assert document["complete"] == (done.code == 0) == (len(document["accepted"]) == 2)
    assert all(row["reason"] and "example" in row for row in document["rejected"])
    assert done.err.count("rejected: ") == refused
    assert path.exists() == bool(document["accepted"])
