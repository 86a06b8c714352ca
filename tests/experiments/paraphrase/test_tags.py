"""`sapo paraphrase --tags FILE`: tags of a sequence's rows from a model, written beforehand."""

from threading import Thread

import pytest
from stand_in import Scripted

from sapo.conf.errors import UserError
from sapo.data.tags import read_tags
from sapo.experiments.paraphrase import tags as module
from sapo.experiments.paraphrase.tags import tags_in, write_tags


@pytest.mark.parametrize(
    ("answer", "tags"),
    [
        ('["Sentiment Analysis", "tweets"]', ["sentiment analysis", "tweets"]),
        ('Here you are:\n```json\n["a-b", "A b", "2 c!"]\n```\nDone.', ["a b", "c"]),
        ("<think>[\"no\"] or ['not']</think>['yes']", ["yes"]),
        ('["one", "two", "thr', ["one", "two"]),
        ("I cannot do that.", None),
        ("[]", None),
        ("[1, 2]", None),
        ("", None),
    ],
)
def test_tags_are_read_from_sloppy_answers(answer, tags):
    assert tags_in(answer) == tags


TAG = '["a tag"]'


@pytest.fixture
def chat(monkeypatch):
    chat = Scripted(TAG)
    temperatures = []
    monkeypatch.setattr(
        module, "chat_of", lambda config: temperatures.append(config.paraphrases.temperature) or chat
    )
    yield chat
    assert set(temperatures) == {0.0}


@pytest.fixture
def write(tiny_config, tmp_path):
    config = tiny_config("sequence.tasks=[mini_city,mini_price]", "paraphrases=openai")
    path = tmp_path / "new" / "tags.jsonl"
    return lambda: write_tags(config, path, lambda *_: None)


def test_every_row_is_asked_for_once_and_failures_are_asked_for_again(write, chat, tmp_path):
    chat.answers = [*[TAG] * 13, None]
    first = write()
    assert (first["rows"], first["asked"], first["tagged"]) == (16, 16, 13)
    assert first["failed"] == [{"error": "no answer", "count": 3}]
    chat.answers = [TAG]
    second = write()
    assert (second["asked"], second["tagged"], second["failed"]) == (3, 16, [])
    assert len(set(chat.asked)) == 16
    assert chat.asked[16:] == chat.asked[13:16]
    assert write()["asked"] == 0
    tags = read_tags(tmp_path / "new" / "tags.jsonl")
    assert (tags.writer, len(tags.tags)) == ("scripted", 16)


def test_a_line_that_was_half_written_costs_its_own_tags_only(write, chat, tmp_path):
    write()
    path = tmp_path / "new" / "tags.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert (write()["asked"], path.read_bytes()) == (1, whole)


def test_answers_without_a_list_are_counted_and_not_asked_again(write, chat):
    chat.answers = ["I cannot."]
    assert (write()["no_list"], write()["asked"]) == (16, 0)


def test_tags_of_another_model_are_not_mixed_in(write, chat):
    write()
    chat.name = "other"
    with pytest.raises(UserError, match="has tags of scripted"):
        write()


@pytest.mark.parametrize("content", ["notes of mine", "notes\nof mine"])
def test_a_file_of_something_else_is_left_as_it_is(write, chat, tmp_path, content):
    (tmp_path / "new").mkdir()
    path = tmp_path / "new" / "tags.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="holds no tags"):
        write()
    assert path.read_text() == content


def test_two_at_once_ask_for_each_row_once(write, chat, caplog):
    """The second waits until the first is done, and asks for what is missing then: nothing."""
    done = []
    chat.beside, chat.log = Thread(target=lambda: done.append(write())), caplog
    first = write()
    chat.beside.join(30)
    assert (first["asked"], [found["asked"] for found in done]) == (16, [0])


def test_the_command_says_what_it_wrote(sapo, chat, tmp_path):
    few = ("sequence=mini_three", "sequence.tasks=[mini_city]", "data.train_examples=2", "paraphrases=openai")
    command = ("paraphrase", "--tags", tmp_path / "tags.jsonl", *few)
    done = sapo(*command)
    assert (done.code, done.out.split(":")[0]) == (0, "2 of 2 rows have tags of scripted")
    assert "[2/2] rows" in done.err
    assert sapo(*command, "--json").document["asked"] == 0
