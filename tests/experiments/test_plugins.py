"""Methods and policies from outside: those of docs/extend.md, as they stand there, and wrong ones."""

import json
import re
from pathlib import Path

import pytest
from tiny import SMALL

from sapo.conf import plugins
from sapo.conf.errors import UserError
from sapo.conf.load import choices, load_one
from sapo.data.benchmarks import load_task
from sapo.data.pools import load_pool
from sapo.experiments.methods import METHODS
from sapo.experiments.policies import POLICIES

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """The files of the page, in a folder that SAPO_CONF names."""
    monkeypatch.setenv("SAPO_CONF", str(tmp_path / "my"))
    text = PAGE.read_text(encoding="utf-8")
    for name, code in re.findall(r"`my/(\w+/\w+\.py)`.*?```python\n(.*?)```", text, re.DOTALL):
        path = tmp_path / "my" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")
    yield tmp_path / "my"
    for name in ("anchored", "wrong"):
        METHODS.pop(name, None)
        POLICIES.pop("shortest", None)


def test_the_page_is_short_and_its_method_and_policy_train(sapo, outside, tmp_path):
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) < 60
    assert "anchored" in choices("method")
    assert "shortest" in choices("policy")
    small = [*SMALL, "data.test_examples=2", f"store.root={tmp_path / 'store'}"]
    outer = ("method=anchored", "method.weight=0.5", "policy=shortest")
    (run,) = sapo("train", *small, *outer, "--json").document["runs"]
    assert (run["method"], run["policy"]) == ("anchored", "shortest")
    results = [*(tmp_path / "store/stages/train").glob("*/result.json")]
    # Nothing has moved before the first step.
    assert [json.loads(path.read_text())["penalties"][0] for path in results] == [0.0, 0.0]
    record = json.loads((Path(run["dir"]) / "run.json").read_text())
    for choice in record["choices"]:
        pool = load_pool(load_task(choice["task"], load_one(small)), load_one(small).paraphrases)
        lengths = {prompt.index: len(prompt.text) for prompt in pool.candidates(include_original=True)}
        assert lengths[choice["index"]] == min(lengths.values())


def test_changed_code_is_another_stage(outside):
    config = load_one(["method=anchored"]).method
    before = METHODS["anchored"].identity(config, is_first=True)
    assert (before["name"], before["weight"]) == ("anchored", 0.0)
    path = outside / "methods" / "anchored.py"
    path.write_text(path.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    METHODS.pop("anchored")
    assert METHODS["anchored"].identity(config, is_first=True) != before


def test_an_entry_point_of_an_installed_package(tmp_path, monkeypatch):
    facts = tmp_path / "far-1.5.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: far\nVersion: 1.5\n")
    (facts / "entry_points.txt").write_text("[sapo.methods]\nfar = far_method:Far\n")
    code = "from sapo.experiments.methods.sequential import Sequential\nclass Far(Sequential):\n    pass\n"
    (tmp_path / "far_method.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    plugins._entries.cache_clear()
    try:
        config = load_one(["method=far", "method.rank=4"]).method
        assert METHODS["far"].identity(config, is_first=True)["code"] == "far_method:Far 1.5"
    finally:
        METHODS.pop("far", None)
        plugins._entries.cache_clear()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nothing_there", "methods/wrong.py: method wrong cannot be loaded: ModuleNotFoundError"),
        ("", "has no attribute 'METHOD'"),
        ("METHOD = 3", "METHOD must be a class of sapo.experiments.methods.Method"),
    ],
)
def test_what_cannot_be_a_method_is_named(outside, code, said):
    (outside / "methods" / "wrong.py").write_text(code, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        METHODS["wrong"]
    assert said in str(raised.value)


def test_a_name_that_nobody_has(outside):
    with pytest.raises(UserError, match="Did you mean anchored"):
        load_one(["method=anchord"])
