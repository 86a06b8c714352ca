"""Paraphrasers: what is asked, what an endpoint may do wrong, what is let through, where the key is not."""

import gzip
import json
import logging
import re
import sys
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_in import Scripted
from tiny import Answering, serving

from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import Config, ParaphrasesConfig
from sapo.data.pool_checks import check_pool
from sapo.data.pools import instruction_name, load_pool, write_pool, written_path
from sapo.data.prompts import pool_of, read_pool
from sapo.data.tasks import digest, own_task
from sapo.experiments.paraphrase import Chat, Reply, chat_of
from sapo.experiments.paraphrase.openai import OpenAIChat, spellings
from sapo.experiments.paraphrase.writing import answer_in, checked, meta_prompt, write_paraphrases

INSTRUCTION = 'Classify the sentiment of the tweet as "positive" or "negative".'
LABELS = ("positive", "negative")
TASK = own_task(instruction_name(INSTRUCTION), INSTRUCTION, "Output one word.", LABELS)
GOOD = [
    'Is the sentiment of this tweet "positive" or "negative"?',
    'Decide which sentiment a tweet has: it can be "positive", and it can be "negative".',
    'Your job is the sentiment of tweets. Call each of them "negative" or "positive", as its words tell.',
    'Given a tweet, say "positive" where its sentiment is good and "negative" where it is bad.',
    'Read the tweet and tell its sentiment. There are two: "negative" and "positive".',
    'The sentiment in a tweet is to be classified. Choose between "positive" and "negative".',
]
CANARY = "sk-canary-0123456789"

# --- a server on loopback that does what a test says -------------------------------------------------------

Act = Callable[[Answering], None]


class Server:
    """Does its acts in order, the last of them again and again, and keeps what it was sent."""

    def __init__(self) -> None:
        self.acts: list[Act] = []
        self.seen: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.url, self.release = "", Event()

    def handler(self) -> type[Answering]:
        outer = self

        class Handler(Answering):
            def answer(self, body: bytes) -> None:
                outer.seen.append((dict(self.headers), sent := json.loads(body)))
                self.text = sent["messages"][0]["content"]
                (outer.acts.pop(0) if len(outer.acts) > 1 else outer.acts[0])(self)

        return Handler


def answer(status: int, body: str, **headers: str) -> Act:
    return lambda handler: handler.send(status, body.encode(), **headers)


def says(text: Any, finish: str = "stop") -> Act:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    return answer(200, json.dumps({"choices": [choice], "usage": usage}))


def dies_half_way(handler: Answering) -> None:
    handler.send(200, b'{"choices": [', Content_Length="1000")
    handler.close_connection = True


def echoes_the_key(status: int) -> Act:
    return lambda handler: answer(status, f"we do not like {handler.headers['Authorization']}")(handler)


def endless(status: int, first: bytes = b"", **headers: str) -> Act:
    """A body of unknown length: `first`, then mebibytes without end, or until nobody reads them."""

    def act(handler: Answering) -> None:
        handler.send(status, first, **headers, Content_Length=None)
        handler.close_connection = True
        with suppress(OSError):
            for _ in range(200):
                handler.wfile.write(b" " * (1 << 20))

    return act


@pytest.fixture
def server(monkeypatch):
    """Nobody waits between two attempts."""

    async def at_once(_: float) -> None:
        pass

    monkeypatch.setattr("openai._base_client.anyio.sleep", at_once)
    server = Server()
    with serving(server.handler()) as address:
        server.url = f"{address}/v1"
        yield server
        server.release.set()


@pytest.fixture
def chat(server):
    """`chat(retries=0, …)` asks the server."""
    near = {"source": "openai", "base_url": server.url, "timeout": 5.0}
    return lambda **settings: OpenAIChat(ParaphrasesConfig("openai", **{**near, **settings}))


def ask(chat: Chat, *texts: str) -> list[Reply]:
    """The replies in the order of their texts."""
    told: dict[int, Reply] = {}
    chat.ask(texts, told.__setitem__)
    return [told[i] for i in sorted(told)]


def asking(server: Server, *overrides: str) -> list[str]:
    return ["paraphrases=openai", f"paraphrases.base_url={server.url}", "paraphrases.timeout=5", *overrides]


# --- requests and answers ----------------------------------------------------------------------------------


def test_replies_keep_the_order_of_their_texts_and_many_requests_are_open_at_once(server, chat):
    together = Barrier(3)

    def echo(handler: Any) -> None:
        together.wait(30)
        says(f"re: {handler.text}")(handler)

    server.acts = [echo]
    texts = [f"text {i}" for i in range(6)]
    replies = ask(chat(concurrency=3), *texts)
    assert [reply.text for reply in replies] == [f"re: {text}" for text in texts]


def test_what_is_sent_and_read(server, chat):
    server.acts = [says("yes")]
    assert ask(chat(model="some/model", max_tokens=50), "hello") == [Reply("yes", None, 7, 3)]
    assert server.seen[0][1] == {
        "model": "some/model",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0.6,
        "max_tokens": 50,
        "stream": False,
    }
    nameless = chat()
    server.acts = [answer(200, '{"model": "m", "choices": [{"message": {"content": "yes"}}]}')]
    assert ask(nameless, "hello") == [Reply("yes")]
    assert nameless.name == "m"
    assert server.seen[1][1].keys() == {"messages", "temperature", "stream"}
    server.acts = [says(None), says("half a sen", "length"), says("half a pair \ud83d")]
    empty, cut, half = ask(chat(concurrency=1), "a", "b", "c")
    assert (empty.text, empty.error, cut.is_cut) == ("", None, True)
    assert "its answer is not a text that can be written" in half.error


@pytest.mark.parametrize(
    "failure",
    [
        answer(429, "slow down", Retry_After="0"),  # a back-off of hours would follow if it were not heard
        answer(429, "wait", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
        answer(503, "<html>busy</html>"),
        dies_half_way,
    ],
)
def test_what_may_pass_is_asked_again(server, chat, failure):
    server.acts = [failure, failure, says("fine")]
    assert ask(chat(), "a")[0].text == "fine"
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    ("act", "attempts", "error"),
    [
        (answer(500, "\n<html>\n<b>broken</b>"), 3, "answered 500: <html>, asked 3 times"),
        (answer(429, "come back tomorrow", Retry_After="86400"), 1, "answered 429: come back tomorrow"),
        (answer(400, "a bad word"), 1, "answered 400: a bad word"),
        (endless(200, b'{"choices": ['), 1, ": the answer is longer than 8,388,608 bytes"),
        (endless(500, b"oops"), 1, ": the answer is longer than 8,388,608 bytes"),
        (endless(200, gzip.compress(b" " * 99), Content_Encoding="gzip"), 1, ": the answer is compressed"),
    ],
)
def test_a_request_without_an_answer_says_why_and_costs_no_other(server, chat, act, attempts, error):
    server.acts = [*[act] * attempts, says("fine")]
    failed, fine = ask(chat(retries=2, concurrency=1), "a", "b")
    assert (failed.error or "").replace(f"{server.url} ", server.url).startswith(f"{server.url}{error}")
    assert (fine.text, len(server.seen)) == ("fine", attempts + 1)


def test_a_server_that_hangs_or_trickles_or_is_not_there(server, chat):
    def trickle(piece: bytes, has_headers: bool) -> Act:
        def act(handler: Answering) -> None:
            handler.send_response(200)
            if has_headers:
                handler.end_headers()
            handler.close_connection = True
            with suppress(OSError):
                while not server.release.wait(0.05):
                    handler.wfile.write(piece)

        return act

    hasty = chat(timeout=0.3, retries=0)
    for act, error in (
        (lambda _: server.release.wait(30), "no answer within 0.3 s"),
        (trickle(b" ", True), "no whole answer within 0.3 s"),
        (trickle(b"X-A: b\r\n", False), "no answer within 0.3 s"),
    ):
        server.acts = [act]
        assert ask(hasty, "a")[0].error == f"{server.url}: {error}"
    assert "no connection" in ask(chat(base_url="http://127.0.0.1:9/v1", retries=0), "a")[0].error


def test_a_server_that_is_down_is_not_asked_for_everything(server, chat):
    server.acts = [answer(500, "down")]
    replies = ask(chat(retries=0, concurrency=2), *["a"] * 50)
    assert all(reply.error for reply in replies)
    assert len(server.seen) <= 3 + 2


ELSEWHERE = answer(307, "", Location="/v1/elsewhere")


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (answer(200, "<!doctype html>\n<title>x</title>"), WorkError, "html>\nThat is no chat completion"),
        (answer(200, ""), WorkError, "answered 200: an empty body\nThat is no chat completion"),
        (answer(200, '{"choices": ['), WorkError, "answered 200: {"),
        (answer(200, "[]"), WorkError, "answered 200: []"),
        (answer(200, '{"choices": [{"text": "old"}]}'), WorkError, "no chat completion"),
        (answer(404, '{"error": "no model x"}'), UserError, "answered 404: .*paraphrases.model"),
        (answer(401, "who are you?"), UserError, "answered 401: .*paraphrases.key_variable=NAME"),
        (ELSEWHERE, UserError, "answered 307: .*points to another address"),
    ],
)
def test_what_every_request_would_meet_ends_it_with_one_message(server, chat, act, kind, message):
    server.acts = [act, says("wrong")]
    with pytest.raises(kind) as error:
        ask(chat(concurrency=1), "a", "b")
    assert re.search(message.replace("[]", r"\[\]").replace("{", r"\{"), str(error.value), re.DOTALL)
    assert len(server.seen) == 1


# --- keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "key", "message"),
    [
        ({"key_variable": "MY_KEY"}, None, "the environment variable MY_KEY is not set"),
        ({"key_variable": "MY_KEY"}, "  ", "MY_KEY is not set"),
        ({"key_variable": "MY_KEY"}, f"{CANARY}\nX: y", "MY_KEY holds blanks"),
        ({"base_url": "https://api.invalid/v1", "model": "m"}, None, "OPENAI_API_KEY is not set"),
        ({"base_url": "http://far.invalid/v1", "model": "m"}, None, "not encrypted"),
        ({"base_url": None}, None, "Which endpoint"),
    ],
)
def test_without_a_key_or_with_a_wrong_one_nothing_is_sent(server, chat, monkeypatch, settings, key, message):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(UserError, match=message) as error:
        chat(**settings)
    assert CANARY not in str(error.value)


def test_a_server_on_this_machine_gets_no_secret_unasked(server, chat, monkeypatch):
    for name in ("MY_KEY", "OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Token: {CANARY}")
    server.acts = [says("hello")]
    ask(chat(), "a")
    assert CANARY not in str(server.seen)
    ask(chat(key_variable="MY_KEY"), "a")
    assert server.seen[1][0]["Authorization"] == f"Bearer {CANARY}"
    assert str(server.seen).count(CANARY) == 1


@settings(max_examples=30)
@given(st.binary(max_size=9), st.binary(max_size=9), st.sampled_from([b64encode, urlsafe_b64encode]))
def test_a_key_in_base64_is_hidden_wherever_it_begins(before, after, encode):
    encoded = encode(before + CANARY.encode() + after).decode()
    found = max((text for text in spellings(CANARY) if text in encoded), key=len)
    # Of the key at most what its first and last character share with their neighbours is left.
    assert len(encoded) - len(found) <= (len(before) + len(after)) * 4 / 3 + 6


ESCAPED = f'{CANARY} tweet sentiment "positive" "negative"'
FAILURES: dict[str, Act] = {
    "401": echoes_the_key(401),
    "500": echoes_the_key(500),
    "base64": answer(500, b64encode(f"Bearer {CANARY}".encode()).decode()),
    "307": answer(307, "", Location=f"http://127.0.0.1:9/{CANARY}"),
    "not json": echoes_the_key(200),
    "nobody": dies_half_way,
    "answer": says(f'Is the sentiment of the tweet {CANARY} "positive" or "negative"?'),
    "escaped": answer(
        200, json.dumps({"choices": [{"message": {"content": ESCAPED}}]}).replace("sk-", "sk\\u002d")
    ),
    "good": says(GOOD[0]),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_the_key_is_nowhere(server, sapo, monkeypatch, caplog, tmp_path, failure):
    monkeypatch.setenv("MY_KEY", CANARY)
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG if failure == "nobody" else logging.INFO)
    server.acts = [FAILURES[failure]]
    few = ("paraphrases.retries=1", "paraphrases.count=2", "paraphrases.rounds=0", "--debug", "--json")
    asked = (f"instruction={INSTRUCTION}", *asking(server, "paraphrases.key_variable=MY_KEY"), *few)
    done = sapo("paraphrase", *asked)
    assert done.code in (1, 2)
    assert server.seen[0][0]["Authorization"] == f"Bearer {CANARY}"
    assert CANARY not in done.out + done.err + caplog.text
    assert b64encode(CANARY.encode()).decode()[4:-4] not in done.out + done.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(CANARY not in path.read_text(errors="replace") for path in files)
    assert bool(files) == (failure == "good")


def test_without_the_package(chat, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install 'sapo-prompts\[endpoint\]'"):
        chat()


# --- what is asked and read --------------------------------------------------------------------------------


def test_the_message_holds_instruction_labels_and_suffix_in_the_task_s_language():
    text = meta_prompt(TASK)
    assert text.endswith(f"<original>\n{INSTRUCTION}\n</original>")
    assert "`positive`, `negative`" in text
    assert "Output one word." in text
    more = "- It must also differ clearly from these wordings:\n  Another one.\n"
    assert meta_prompt(TASK, ["Another one."]).replace(more, "") == text
    task = own_task("态度", "判断文本的态度，输出{支持}或{反对}。", labels=("支持", "反对"))
    text = meta_prompt(task)
    assert "`支持`、`反对`" in text
    assert text.endswith(f"<original>\n{task.instruction}\n</original>")
    assert "Rules" not in text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<instruction> Do it. </instruction>", "Do it."),
        ("Sure! <instruction>Do it.</instruction> Anything else?", "Do it."),
        ("<think>Perhaps <instruction>No.</instruction></think>\n<instruction>Yes.</instruction>", "Yes."),
        ("thoughts without a beginning</think>Do it.", "Do it."),
        ("Do it.\n", "Do it."),
        ("<instruction>Do i", None),
        ("<think>and so on", ""),
        ("", ""),
    ],
)
def test_the_paraphrase_in_an_answer(text, found):
    assert answer_in(text) == found


def test_what_is_not_let_through():
    for text, reason in ((GOOD[0], "None"), ("", "it is empty"), ('Is it "positive"?', "label 'negative'")):
        assert reason in str(checked(Reply(text), TASK, []).reason)
    assert checked(Reply(GOOD[0], is_cut=True), TASK, []).reason == "it breaks off before its end"
    task = own_task("t", "Summarize the article briefly, naming persons.")  # five words that count
    assert checked(Reply("A summary, please!"), task, []).reason is None
    reason = "it has none of the original's 5 words, and may ask for another thing [words]"
    assert checked(other := Reply("What a lovely day."), task, []).reason == reason
    assert checked(other, task, [], ["words"]).reason is None


# --- asking until there are enough, into a pool ------------------------------------------------------------


@pytest.fixture
def written(monkeypatch, tmp_path):
    """`written(chat, count, …)` writes `pool.yaml` with the scripted chat's answers."""
    settings = ParaphrasesConfig("openai", source="openai")

    def write(chat: Scripted, count: int, rounds: int = 0, path: Path | None = None, force: bool = False):
        monkeypatch.setattr("sapo.experiments.paraphrase.writing.chat_of", lambda config: chat)
        config = Config(paraphrases=replace(settings, count=count, rounds=rounds))
        return write_paraphrases(TASK, config, path or tmp_path / "pool.yaml", force, lambda *_: None)

    return write


def test_what_is_rejected_is_counted_and_asked_for_again(written):
    chat = Scripted(GOOD[0], GOOD[0], "nonsense", GOOD[1], "nonsense too", GOOD[2])
    expansion = written(chat, 3, rounds=4)
    assert expansion.accepted == GOOD[:3]
    assert [(row["kind"], row["count"]) for row in expansion.rejected()] == [
        ("it lost the labels …, … [labels]", 2),
        ("it is the same as paraphrase … [same]", 1),
    ]
    assert expansion.rejected()[0]["example"] == "nonsense"
    assert expansion.tokens() == {"in": 60, "out": 12}
    assert chat.seeds == [0, 3, 5]
    assert chat.asked[:3] == [meta_prompt(TASK)] * 3
    assert chat.asked[3:] == [meta_prompt(TASK, GOOD[:1])] * 2 + [meta_prompt(TASK, GOOD[:2])]


def test_rounds_are_bounded_and_one_without_answers_is_the_last(written):
    expansion = written(Scripted("nonsense"), 2, rounds=2)
    assert (expansion.accepted, len(expansion.answers)) == ([], 6)
    with pytest.raises(WorkError, match=r"^no answer\n1 of 2 paraphrases"):
        written(chat := Scripted(GOOD[0], None), 2, rounds=4)
    assert len(chat.asked) == 3


def test_a_pool_says_where_it_comes_from_and_that_it_was_edited(written, tmp_path):
    path = tmp_path / "pool.yaml"
    pool = written(Scripted(GOOD[0], "nonsense", GOOD[1], None), 4)
    document = pool.as_json(TASK, Config(paraphrases=ParaphrasesConfig("openai")))
    assert (document["accepted"], document["failed"]) == (GOOD[:2], [{"error": "no answer", "count": 1}])
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    source = content["source"]
    assert (content["prompts"], content["original"], content["task"]) == (GOOD[:2], INSTRUCTION, TASK.name)
    assert (source["model"], source["parameters"]) == ("scripted", {"temperature": 0.6})
    assert source["prompts_sha256"] == digest(GOOD[:2])
    assert source["instruction_sha256"] == digest(INSTRUCTION)
    assert (source["requests"], source["rejected"], source["tokens"]) == (4, 1, {"in": 30, "out": 6})
    assert check_pool(read_pool(path, TASK), TASK) == []
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["pool.yaml"]
    assert "edited" not in read_pool(path, TASK).source
    path.write_text(path.read_text(encoding="utf-8").replace(GOOD[1], GOOD[2]), encoding="utf-8")
    assert read_pool(path, TASK).source.endswith("edited since")


def test_a_killed_command_and_a_server_that_dies_leave_what_was_accepted(written, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        written(Scripted(GOOD[0], "nonsense", GOOD[1], KeyboardInterrupt()), 5)
    with pytest.raises(WorkError, match=r"2 of 5 paraphrases are accepted and kept in .*pool\.yaml\.partial"):
        written(Scripted(None, None, None), 5)
    assert not (tmp_path / "pool.yaml").exists()
    chat = Scripted(*GOOD[2:5])
    assert written(chat, 5).accepted == GOOD[:5]
    assert (len(chat.asked), chat.seeds) == (3, [3])
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["pool.yaml"]
    larger = Scripted(GOOD[5])  # begins with the smaller one
    assert written(larger, 6).accepted == GOOD
    assert (len(larger.asked), larger.seeds) == (1, [6])
    assert written(Scripted(), 3).accepted == GOOD


def test_two_at_once_ask_for_each_paraphrase_once(written, caplog):
    """The second waits for the first, and finds its pool."""
    pools = []
    first = Scripted(
        *GOOD[:3], beside=Thread(target=lambda: pools.append(written(Scripted(), 3))), log=caplog
    )
    pools.append(written(first, 3))
    first.beside.join(30)
    assert [pool.accepted for pool in pools] == [GOOD[:3]] * 2


def test_another_pool_is_not_overwritten(written, tmp_path):
    written(Scripted(*GOOD[:2]), 2)
    before = (tmp_path / "pool.yaml").read_bytes()
    other = Scripted(*GOOD[2:4])
    other.parameters = {"temperature": 1.0}
    with pytest.raises(UserError, match="another request"):
        written(other, 2)
    assert (tmp_path / "pool.yaml").read_bytes() == before
    assert written(other, 2, force=True).accepted == GOOD[2:4]


def test_where_nothing_can_be_written_nothing_is_asked_and_nothing_accepted_writes_nothing(written, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "pool.yaml"):
        with pytest.raises(UserError, match="Cannot write"):
            written(Scripted(), 2, path=path)
    pool = written(Scripted("nonsense"), 2, path=tmp_path / "new" / "pool.yaml")
    assert (pool.path, pool.accepted) == (None, [])
    assert list((tmp_path / "new").iterdir()) == []


# --- runs and commands -------------------------------------------------------------------------------------


def test_a_run_reads_the_pool_and_asks_nobody(server, tmp_path):
    config = ParaphrasesConfig("openai", source="openai", base_url=server.url, folder=str(tmp_path))
    with pytest.raises(UserError, match=f"sapo paraphrase task={TASK.name} paraphrases=openai"):
        load_pool(TASK, config)
    source = {"paraphraser": "openai", "date": "2030-01-01"}
    write_pool(written_path(TASK, config), pool_of(TASK, GOOD, "test"), source)
    for task in (TASK, replace(TASK, name="mine")):  # by its name, and by its instruction
        pool = load_pool(task, config)
        assert [prompt.text for prompt in pool.paraphrases] == GOOD
        assert pool.source == "openai, 2030-01-01"
    assert server.seen == []


def test_the_command_writes_a_pool_and_tells_what_happened(server, sapo, tmp_path):
    server.acts = [says("nonsense"), *map(says, GOOD[:3])]
    write = tmp_path / "mine.yaml"
    own = (f"instruction={INSTRUCTION}", "suffix=Output one word.", "labels=positive,negative")
    settings = ("paraphrases.count=3", "paraphrases.concurrency=1", "paraphrases.prices=[1,10]")
    arguments = ("paraphrase", *own, *asking(server))
    document = sapo(*arguments, *settings, "--write", write, "--json").document
    assert document["accepted"] == GOOD[:3]
    assert [row["count"] for row in document["rejected"]] == [1]
    assert (document["requests"], document["tokens"]) == (4, {"in": 28, "out": 12})
    assert document["cost_usd"] == pytest.approx((28 * 1 + 12 * 10) / 1e6)
    assert (document["file"], document["complete"]) == (str(write), True)
    assert yaml.safe_load(write.read_text(encoding="utf-8"))["prompts"] == GOOD[:3]
    assert server.seen[0][1]["messages"][0]["content"] == meta_prompt(TASK)
    server.acts = [says(GOOD[3]), says("nonsense")]  # too few are a failure that keeps what there is
    more = ("paraphrases.count=5", "paraphrases.rounds=0", "paraphrases.concurrency=1")
    done = sapo(*arguments, *more, "--write", write)
    assert done.code == 1
    assert "4 of 5 paraphrases" in done.out
    assert "1 rejected: it lost the labels 'positive', 'negative'" in done.out
    assert "4 of 5 paraphrases; the pool holds these" in done.err


def test_a_dry_run_shows_the_request_and_sends_nothing(server, sapo, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    settings = asking(server, "paraphrases.key_variable=MY_KEY", "paraphrases.model=m")
    arguments = ("paraphrase", f"instruction={INSTRUCTION}", *settings, "--dry-run")
    request = sapo(*arguments, "--json").document
    assert request["url"] == f"{server.url}/chat/completions"
    assert request["key"] == "Authorization: Bearer (the value of MY_KEY)"
    assert request["body"]["model"] == "m"
    assert INSTRUCTION in sapo(*arguments).out
    assert server.seen == []


def test_a_pool_of_the_bank_can_be_written_to_a_file(sapo, tmp_path):
    path = tmp_path / "copy.yaml"
    assert sapo("paraphrase", "task=mini_city", "paraphrases.count=3", "--write", path).code == 0
    assert len(yaml.safe_load(path.read_text(encoding="utf-8"))["prompts"]) == 3


# --- a model on this machine -------------------------------------------------------------------------------


def test_a_local_model_samples_by_its_seed(tiny_config):
    settings = ("paraphrases=local", "paraphrases.max_tokens=8")
    chat = chat_of(tiny_config(*settings))
    told: dict[int, Reply] = {}
    chat.ask(["hello", "hello"], told.__setitem__, seed=3)
    assert told[0].text != told[1].text
    chat.ask(["hello"], (later := {}).__setitem__, seed=4)
    assert later == {0: told[1]}
    assert all(reply.error is None and reply.tokens_out <= 8 for reply in told.values())
    assert chat.parameters == {"model": "tiny_llama", "temperature": 0.6, "max_tokens": 8, "seed": 0}
    same, again = ask(chat_of(tiny_config(*settings, "paraphrases.temperature=0")), "hello", "hello")
    assert same == again
    assert same.is_cut == (same.tokens_out == 8)
