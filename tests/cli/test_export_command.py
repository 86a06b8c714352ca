"""`sapo export`: what it writes, that the suite and plain Python take it, and what it refuses."""

import json
import re
import shlex
import shutil
from base64 import b64decode
from pathlib import Path

import pytest
from tiny import LARGE_STEPS, Answering, serving

from sapo.analysis.results import load_run, score_matrix
from sapo.cli.console import find_run
from sapo.conf.load import load_one
from sapo.data.benchmarks import load_tasks
from sapo.experiments.model.fetch import model_folder
from sapo.experiments.runs import read_config


@pytest.fixture
def moved(sapo, small, tmp_path_factory):
    """The document of a run whose trainings move the model far, in a store of its own."""
    root = tmp_path_factory.getbasetemp() / "far"
    overrides = (*LARGE_STEPS, "policy=static", f"store.root='{root}'")
    (run,) = sapo("train", *small, *overrides, "--json").document["runs"]
    return run


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n```", card, re.DOTALL)


def test_an_adapter_and_what_is_said_of_it(sapo, trained, tmp_path):
    run = trained.adaptive
    done = sapo("export", run["id"], "--to", tmp_path / "out", "--json")
    document, out = done.document, tmp_path / "out"
    assert document["run"] == run["id"]
    assert (document["kind"], document["rank"], document["logits_difference"]) == ("adapter", 16, None)
    assert document["state"]["after"] == 2
    assert {lesson["task"]: lesson["instruction"] for lesson in document["tasks"]} == run["prompts"]
    assert document["files"]["adapter_model.safetensors"] > 0
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == set(document["files"])

    card = (out / "README.md").read_text(encoding="utf-8")
    prompts = [json.loads(block) for block in blocks(card, "json")]
    assert [prompt["instruction"] for prompt in prompts] == list(run["prompts"].values())
    for prompt in prompts:
        (turn,) = prompt["messages"]
        expected = f"{prompt['instruction']}\n\nText:\n{{input}}\n\n{prompt['suffix']}"
        assert turn == {"role": "user", "content": expected}
        assert expected in prompt["text"]
    record = json.loads((find_run(run["id"]) / "run.json").read_text())
    facts = ("lorainc", "| sapo |", "Demonstration on a small model", "| Seed | 0 |", "| Parity | paper |")
    digests = [*record["comparable"]["train"].values(), *record["comparable"]["data"].values()]
    for fact in (*facts, *digests, record["environment"]["packages"]["torch"], document["state"]["key"]):
        assert fact in card
    metrics = run["metrics"]["rougeL"]["reference"]
    shown = " | ".join(f"{metrics[name]:.2f}" for name in ("AP", "BWT", "FWT"))
    assert f"| ROUGE-L (0-100) | {shown} |" in card
    assert str(model_folder(read_config(find_run(run["id"])).model)) not in card


@pytest.mark.slow  # trains a run of its own
@pytest.mark.parametrize("options", [(), ("--merge",)], ids=["adapter", "merged"])
def test_the_code_on_the_card_gives_the_answers_of_the_run(sapo, moved, tmp_path, capsys, options):
    out = tmp_path / "out"
    assert sapo("export", moved["dir"], "--to", out, *options).code == 0
    config = read_config(Path(moved["dir"]))
    task = load_tasks(config)[0][-1]
    run = load_run(Path(moved["dir"]))
    rows = run.predictions
    last = rows[(rows["after"] == 2) & (rows["task"] == task.name) & (rows["column"] == "trained")]
    code = blocks((out / "README.md").read_text(encoding="utf-8"), "python")[-1]
    code = code.replace("THIS FOLDER", str(out))
    code = code.replace("FOLDER OF THE BASE MODEL", str(model_folder(config.model)))
    for example, expected in zip(task.test[:2], last["prediction"], strict=False):
        exec(code.replace('"THE INPUT"', repr(example.input)), {})  # noqa: S102 (the code that we print)
        assert capsys.readouterr().out.strip() == expected.strip()


@pytest.mark.slow  # trains a run of its own
def test_a_run_of_a_folders_model_carries_its_name_to_the_card(sapo, small, tmp_path):
    folder = tmp_path / "Own model 1"
    shutil.copytree(model_folder(load_one(["model=tiny_qwen3"]).model), folder)
    settings = ("policy=static", "sequence.tasks=[mini_city]", f"store.root='{tmp_path}/own'")
    rest = [override for override in small if not override.startswith(("sequence.tasks", "model="))]
    (run,) = sapo("train", *rest, *settings, f"model={folder}", "--json").document["runs"]
    assert (run["model"], "Own_model_1" in run["id"]) == ("Own_model_1", True)
    done = sapo("export", run["dir"], "--to", tmp_path / "out")
    assert done.code == 0, done.err
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Own_model_1 (a folder)" in card.replace("\\", "")
    assert ", enable_thinking=False" in card
    assert not any(word in card for word in ("sapo fetch", "smollm2", str(tmp_path)))
    merged = sapo("export", run["dir"], "--to", tmp_path / "merged", "--merge", "--json").document
    assert merged["test"].endswith(f" model.path={tmp_path / 'merged'}")
    assert " model=" not in merged["test"]


@pytest.mark.slow  # trains a run of its own
def test_the_suite_evaluates_a_merged_model_as_it_did_the_run(sapo, small, moved, tmp_path):
    merged = tmp_path / "merged"
    done = sapo("export", moved["dir"], "--to", merged, "--merge")
    assert done.code == 0, done.err
    printed = next(line for line in done.out.splitlines() if line.startswith("Test it: sapo train "))
    words = shlex.split(printed.removeprefix("Test it: sapo train "))
    assert words[:2] == ["sequence=mini_three", "sequence.tasks=[mini_city,mini_topic]"]
    assert words[2:] == ["method=zero_shot", "policy=static", "model=tiny_llama", f"model.path={merged}"]
    settings = [override for override in small if not override.startswith(("sequence", "model="))]
    (again,) = sapo("train", *words, *settings, f"store.root='{tmp_path}/own'", "--json").document["runs"]
    before, now = (score_matrix(load_run(Path(run["dir"])), "nll") for run in (moved, again))
    assert abs(before.loc[2] - before.loc[0]).min() > 0.01
    assert now.loc[2].to_dict() == pytest.approx(before.loc[2].to_dict(), abs=1e-4)


@pytest.mark.parametrize("command", [("show", "run"), ("eval",), ("export",)], ids=" ".join)
def test_where_the_store_is_can_be_said_as_elsewhere(sapo, trained, tmp_path, monkeypatch, command):
    monkeypatch.setenv("SAPO_STORE", str(tmp_path / "none"))
    options = ("--to", tmp_path / "out") if command == ("export",) else ()
    arguments = (*command, trained.static["id"], *options, "--json")
    assert "Unknown run" in sapo(*arguments).err
    assert sapo(*arguments, f"store.root={trained.root}").document


@pytest.fixture
def hub(monkeypatch):
    """A stand-in of the hub: what it was asked, and with which token; `refusal` is answered if it is set."""

    class Hub(Answering):
        asked, tokens, refusal = [], set(), None

        def answer(self, body):
            documents = [json.loads(line) for line in body.splitlines()]
            Hub.asked.append((self.path, documents))
            Hub.tokens.add(self.headers.get("Authorization"))
            answer = {}
            if self.path == "/api/repos/create":
                answer = {"url": f"{address}/me/tickets"}
            elif self.path == "/api/models/me/tickets/preupload/main":
                regular = {"uploadMode": "regular", "shouldIgnore": False}
                answer = {"files": [{"path": file["path"], **regular} for file in documents[0]["files"]]}
            elif self.path == "/api/models/me/tickets/commit/main":
                url = f"{address}/me/tickets/commit/c0ffee"
                answer = {"success": True, "commitOid": "c0ffee", "commitUrl": url, "hookOutput": ""}
            content = json.dumps(Hub.refusal or answer).encode()
            self.send(401 if Hub.refusal else 200, content, Content_Type="application/json")

    with serving(Hub) as address:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        yield Hub


def test_an_export_is_uploaded_as_it_lies_in_its_folder(sapo, trained, tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    document = sapo("export", trained.static["id"], "--push", "me/tickets", "--json").document
    assert document["commit"].endswith("/me/tickets/commit/c0ffee")
    asked = dict(hub.asked)
    assert asked["/api/repos/create"][0].items() >= {"name": "tickets", "organization": "me"}.items()
    assert asked["/api/repos/create"][0]["visibility"] == "private"
    assert hub.tokens == {"Bearer hf_mine"}
    sent = [line["value"] for line in asked["/api/models/me/tickets/commit/main"] if line["key"] == "file"]
    assert {file["path"]: b64decode(file["content"]) for file in sent} == {
        name: (tmp_path / "tickets" / name).read_bytes() for name in document["files"]
    }
    hub.refusal = {"error": "Invalid credentials"}
    options = ("--push", "me/tickets", "--to", tmp_path / "again")
    message = sapo("export", trained.static["id"], *options).refused(1)
    assert "Cannot push to me/tickets: " in message
    assert f"hf upload me/tickets {tmp_path / 'again'}" in message
    assert (tmp_path / "again" / "README.md").is_file()
