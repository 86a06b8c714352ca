"""`sapo paraphrase` against a real OpenAI-compatible server: `transformers serve` with the small model."""

import json

import pytest
from servers import serving

from sapo.conf.errors import UserError
from sapo.conf.load import load_one
from sapo.data.pool_checks import check_pool
from sapo.data.pools import instruction_name
from sapo.data.prompts import read_pool
from sapo.data.tasks import own_task
from sapo.experiments.model.fetch import model_folder

INSTRUCTION = "Name the city that is mentioned in the text, and say in which country it lies."


@pytest.fixture(scope="module")
def model():
    try:
        return model_folder(load_one(["model=smollm2_135m"]).model)
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    """The address of a server of the small model, which ends with the tests."""
    with serving(tmp_path_factory.mktemp("server"), model) as url:
        yield url


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
    document = json.loads(done.stdout)
    refused = sum(row["count"] for row in document["rejected"])
    assert document["failed"] == []
    assert refused + len(document["accepted"]) == document["requests"]
    assert document["tokens"]["in"] > 100 * document["requests"]
    assert 0 < document["tokens"]["out"] <= 24 * document["requests"]
    assert document["complete"] == (done.returncode == 0) == (len(document["accepted"]) == 2)
    assert all(row["reason"] and "example" in row for row in document["rejected"])
    assert done.stderr.count("rejected: ") == refused
    path = workplace / "pool.yaml"
    if document["accepted"]:
        task = own_task(instruction_name(INSTRUCTION), INSTRUCTION)
        pool = read_pool(path, task)
        assert [prompt.text for prompt in pool.paraphrases] == document["accepted"]
        assert check_pool(pool, task) == []
        path.unlink()
    assert not list(workplace.glob("*.yaml*"))
    other = start("paraphrase", *asked, "paraphrases.model=other/model", "--write", "other.yaml")
    assert (other.returncode, other.stdout) == (1, "")
    assert "answered 400" in other.stderr
    assert "other/model" in other.stderr
    assert not list(workplace.glob("*.yaml*"))
