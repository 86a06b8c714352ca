"""Endpoints that read other tokens than were trained, or have other weights, are found; right ones pass."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from stand_in import StandIn
from tiny import LARGE_STEPS, SMALL, serving
from trainings import run_folder

from sapo.conf.errors import UserError, WorkError
from sapo.conf.load import load_one
from sapo.conf.schema import ModelConfig
from sapo.data.benchmarks import load_task
from sapo.data.prompts import Prompt
from sapo.data.render import Renderer
from sapo.data.tasks import Example
from sapo.experiments.engine.garbage import locked
from sapo.experiments.engine.store import Stored
from sapo.experiments.export import exportable
from sapo.experiments.model.adapters import FOLDER, load_adapter
from sapo.experiments.model.load import load_tokenizer, read_model
from sapo.experiments.reevaluation import evaluate, open_run
from sapo.experiments.serving import (
    BARE,
    BOS,
    PART,
    SYSTEM,
    THINK,
    TWICE,
    Endpoint,
    Planted,
    Served,
    difference,
)

SETTINGS = (*SMALL, *LARGE_STEPS, "sequence.tasks=[mini_sentiment,mini_city]", "policy=static")
STYLES = ("vllm", "llama", "serve", "answers")
NAMED = {"twice": TWICE, "bos": BOS, "think": THINK, "bare": BARE, "part": PART, "system": SYSTEM}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = run_folder(SETTINGS, tmp_path_factory.mktemp("serving"))
    return exportable(open_run(folder), "last")


@pytest.fixture(scope="module")
def models(source):
    """Transformers' own: the trained state and the untouched model."""
    trained, untouched = (read_model(source.run.config.model, torch.float32).eval() for _ in range(2))
    return {"trained": load_adapter(trained, source.trained.folder / FOLDER).eval(), "adapter": untouched}


@contextmanager
def served_by(stand_in, source, **options):
    with serving(stand_in.handler()) as address:
        yield Served(source, Endpoint(f"{address}/v1"), rows=3, **options)


@pytest.fixture
def checked(source, models):
    """`checked(STYLE, FAULT)`: the checks of a stand-in, by name."""
    tokenizer = load_tokenizer(source.run.config.model)

    def check(style, fault="", **options):
        stand_in = StandIn(models.get(fault, models["trained"]), tokenizer, style, fault)
        with served_by(stand_in, source, **options) as served:
            return {each.name: each for each in served.checks()}

    return check


@pytest.mark.parametrize("style", STYLES)
def test_what_is_served_as_it_was_trained_passes(checked, style):
    found = checked(style)
    assert all(each.ok for each in found.values() if each.required), found
    seen = {"vllm": {"tokens", "weights"}, "llama": {"tokens"}, "serve": {"tokens"}, "answers": set()}[style]
    assert {name for name, each in found.items() if each.ok} == seen | {"answers"}
    assert "3 of 3" in found["answers"].detail


# Every fault where tokens are shown; where texts, or counts, or only answers are, what differs in kind.
PLANTED = [*(("vllm", fault) for fault in NAMED), ("llama", "twice"), ("llama", "bos"), ("serve", "bare")]


@pytest.mark.parametrize(
    ("style", "fault"), [*PLANTED, ("serve", "system"), ("serve", "part"), ("answers", "twice")]
)
def test_a_planted_fault_is_found_and_named(checked, style, fault):
    found = checked(style, fault)
    wrong = [each for each in found.values() if each.required and not each.ok]
    if style == "answers":
        assert [each.name for each in wrong] == ["answers"]
        return
    assert wrong[0].name == "tokens"
    assert wrong[0].mend
    assert NAMED[fault] in wrong[0].detail
    if style != "serve":
        assert "trained  token " in wrong[0].detail
        assert "served   token " in wrong[0].detail


@pytest.mark.parametrize("style", STYLES)
def test_the_untouched_model_in_place_of_the_state_is_named(checked, style):
    found = checked(style, "adapter")
    wrong = [each for each in found.values() if each.required and not each.ok]
    assert {each.name for each in wrong} == ({"weights", "answers"} if style == "vllm" else {"answers"})
    assert all("the untouched base model's" in each.detail for each in wrong)


def test_a_program_that_loses_the_layout_is_told_from_what_it_sends(checked):
    sent = {"messages": [{"role": "user", "content": "{input}"}]}
    assert BARE in checked("vllm", sent=sent)["tokens"].detail


def test_an_input_stands_in_what_a_program_sends_to_the_letter():
    """Quotes and line breaks, wherever a text of the body names it, whatever the input says itself."""
    text = 'say "yes"\n\\ or {input} \u00fc'
    sent = {"messages": [{"role": "user", "content": "Q: {input}!"}], "n": [1, None, "{input}"]}
    row = SimpleNamespace(example=Example(text, "yes"))
    content = {"role": "user", "content": f"Q: {text}!"}
    assert Served.body(SimpleNamespace(sent=sent), row) == {"messages": [content], "n": [1, None, text]}


def test_a_whole_text_is_checked_as_it_is_read_there(checked, source):
    text = source.learned[-1]["text"]
    for style in ("vllm", "llama", "serve"):
        assert all(each.ok for each in checked(style, sent={"prompt": text}).values() if each.required)
        assert BOS in checked(style, "bos", sent={"prompt": text})["tokens"].detail
        as_chat = {"messages": [{"role": "user", "content": text}]}
        assert TWICE in checked(style, sent=as_chat)["tokens"].detail


def test_nothing_is_deleted_before_it_is_read(source, monkeypatch):
    read, seen = Stored.examples, []

    def reading(stored):
        seen.append(any(key.startswith("driver-") for key in locked(source.run.store)))
        return read(stored)

    monkeypatch.setattr(Stored, "examples", reading)
    evaluate(source.run, state="last")
    Served(source, Endpoint("http://127.0.0.1:1"), rows=3)
    assert seen == [True] * 3  # two tasks, and the rows that are asked for


def test_the_key_and_the_name_go_along(source, models):
    stand_in = StandIn(models["trained"], load_tokenizer(source.run.config.model), "serve")
    with served_by(stand_in, source) as served:
        served.endpoint = Endpoint(served.endpoint.url, "adapter", "secret")
        _, count = served.reply(served.rows[0])
        assert count == len(served.rows[0].rendered.prompt_ids)
        assert stand_in.headers["Authorization"] == "Bearer secret"
        assert stand_in.requests[-1][1]["model"] == "adapter"
        assert served.endpoint.models() == ["base", "adapter"]


def test_a_server_that_is_none(source, models):
    stand_in = StandIn(models["trained"], load_tokenizer(source.run.config.model), "serve")
    with served_by(stand_in, source) as served:
        answers = [
            (404, {"detail": "Not Found"}, "answered 404: .*Not Found.*Models there: base, adapter"),
            (302, {}, "answered 302"),
            (200, {"choices": []}, "its answer is no completion"),
        ]
        for status, document, message in answers:
            stand_in.answer = lambda *_, answer=(status, document): answer
            with pytest.raises(WorkError, match=message):
                list(served.checks())
    with pytest.raises(WorkError, match=r"no answer .*Is the server up"):
        served.reply(served.rows[0])


@pytest.mark.parametrize("url", ["localhost:1", "ftp://host", "http://", "http://u:p@host", "http://host:x"])
def test_an_address_that_cannot_be(url):
    with pytest.raises(UserError, match="serve= must be"):
        Endpoint(url)


REAL = {"qwen3": {"enable_thinking": False}, "llama2": {}}


@pytest.mark.parametrize("family", REAL)
def test_faults_are_told_apart_under_real_chat_templates(tokenizers, family):
    template = {"chat_template": "llama2"} if family == "llama2" else {}
    model = ModelConfig(name=family, source="tiny:llama", tokenizer=str(tokenizers / family), **template)
    renderer = Renderer(load_tokenizer(model), REAL[family], 512)
    task = load_task("mini_city", load_one([]))
    (rendered,) = renderer.render(task, task.instruction, task.test[:1])
    row = Planted(task.test[0], rendered, "", 0.0)
    served = SimpleNamespace(renderer=renderer, task=task, prompt=Prompt(task.instruction))
    turns = renderer.messages(task, task.instruction, row.example.input)
    turn, tokenizer = turns[-1]["content"], renderer.tokenizer
    system = {"role": "system", "content": "Be brief."}
    read = {
        TWICE: renderer.asked([{"role": "user", "content": renderer.asked(turns)}]),
        SYSTEM: renderer.asked([system, *turns]),
        BARE: renderer.asked([{"role": "user", "content": row.example.input}]),
        PART: renderer.asked([{"role": "user", "content": turn.removesuffix(task.suffix)}]),
        "other tokens are read": renderer.asked(turns) + "x",
    }
    if family == "qwen3":
        read[THINK] = replace(renderer, template_options={}).asked(turns)
    for fault, text in read.items():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert difference(served, row, ids)[0] == fault
    if family == "llama2":
        doubled = [tokenizer.bos_token_id, *rendered.prompt_ids]
        fault, texts = difference(served, row, doubled)
        assert (fault, texts.splitlines()[1][:25]) == (BOS, "served   token 1: '<s><s>")
