"""`sapo paraphrase --tags FILE` says what it wrote, and goes on where it was."""

from sapo.experiments.paraphrase import tags
from sapo.experiments.paraphrase.chat import Reply


class Chat:
    """A model that answers one tag."""

    name = "some/tagger"

    def ask(self, texts, *, on_reply, **_):
        for place in range(len(texts)):
            on_reply(place, Reply('["a tag"]'))


def test_tags_are_written_once(sapo, tmp_path, monkeypatch):
    monkeypatch.setattr(tags, "chat_of", lambda config: Chat())
    few = ("sequence=mini_three", "sequence.tasks=[mini_city]", "data.train_examples=2", "paraphrases=openai")
    command = ("paraphrase", "--tags", str(tmp_path / "tags.jsonl"), *few)
    done = sapo(*command)
    assert (done.code, done.out.split(":")[0]) == (0, "2 of 2 rows have tags of some/tagger")
    assert "[2/2] rows" in done.err
    assert sapo(*command, "--json").document["asked"] == 0
