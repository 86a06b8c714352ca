"""From overrides to configs: sweeps, legible refusals, a folder of one's own."""

import itertools

import pytest
from tiny import refusal as refusal_of

from sapo.conf import load as conf_load
from sapo.conf.errors import UserError, WorkError, unknown
from sapo.conf.load import load, load_one
from sapo.conf.names import run_name


def refusal(*overrides: str) -> str:
    return refusal_of(load, list(overrides))


# --- sweeps ------------------------------------------------------------------------------------------------


def test_no_overrides_are_one_run_with_the_defaults():
    (config,) = load([])
    names = (config.sequence.name, config.model.name, config.method.name, config.policy.name)
    assert names == ("mini_three", "smollm2_135m", "lorainc", "sapo")
    assert (config.paraphrases.name, config.paraphrases.source, config.seed) == ("bank", "bank", 0)


def test_comma_lists_and_ranges_expand_to_every_combination_in_order():
    configs = load(["policy=static,sapo", "seed=range(2)", "method.rank=4"])
    found = [(config.policy.name, config.seed, config.method.rank) for config in configs]
    assert found == [("static", 0, 4), ("static", 1, 4), ("sapo", 0, 4), ("sapo", 1, 4)]


def test_template_switches_can_be_added():
    config = load_one(["model=qwen3_8b", "+model.template_options.shout=true"])
    assert config.model.template_options == {"enable_thinking": False, "shout": True}


def test_environment_variables_set_the_folders(monkeypatch):
    monkeypatch.setenv("SAPO_STORE", "kept here")
    monkeypatch.setenv("SAPO_DATA", "data there")
    config = load_one([])
    assert (config.store.root, config.data.root) == ("kept here", "data there")
    assert load_one(["data.root=else/where", "store.root=s"]).data.root == "else/where"


def test_a_store_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_one(["store.root=~/kept"]).store.root == str(tmp_path / "kept")
    assert load_one(["data.root='~/tasks'"]).data.root == str(tmp_path / "tasks")
    monkeypatch.setenv("SAPO_STORE", "~/else")
    assert load_one([]).store.root == str(tmp_path / "else")
    assert "store.root" in refusal("store.root='~nobody-of-this-name/x'")


def test_a_pool_file_that_is_named_is_the_pool():
    for overrides in ([], ["paraphrases=terse"]):
        found = load_one([*overrides, "paraphrases.file=pool.yaml"]).paraphrases
        assert (found.source, found.name, found.file) == ("file", "file", "pool.yaml")
    # A file beside a paraphraser is where its paraphrases are kept.
    assert load_one(["paraphrases=local", "paraphrases.file=pool.yaml"]).paraphrases.source == "local"


def test_a_runs_id_is_no_longer_than_an_archive_can_name():
    name = f"model.name={'m' * (150 - len('mini_three--lorainc-sapo-s0-12345678'))}"
    assert len(run_name(load_one([name]))) + len("-12345678") == 150
    assert "would have 151 bytes; it may have 150" in refusal(f"{name}m")
    assert "would have 151 bytes" in refusal(name, "seed=10")


@pytest.mark.parametrize(
    ("first", "second", "third"),
    [
        ("1_2", "7e10", "0x1F"),
        ("true", "a[b]*?'x~#=é", "it's"),
        ("back\\slash\\", 'x"y', "a=b"),
        ("[runs]", "x(1)", "日本"),
    ],
)
def test_texts_are_taken_as_they_are_typed(first, second, third):
    config = load_one([f"store.root={first}", f"model.revision={second}", f"model.tokenizer={third}"])
    assert (config.store.root, config.model.revision, config.model.tokenizer) == (first, second, third)


def test_texts_in_lists_and_sweeps():
    assert load_one(["sequence.tasks=[1_2, NI195]"]).sequence.tasks == ["1_2", "NI195"]
    assert [c.model.revision for c in load(["model.revision=7e10,1_2,null"])] == ["7e10", "1_2", "null"]
    assert load_one(["task='1_2'", "store.root=run${seed}", "model.revision=null"]).store.root == "run0"
    assert [c.policy.name for c in load(["policy.name=choice(static,sapo)"])] == ["static", "sapo"]


# --- an experiment's sweep ---------------------------------------------------------------------------------


@pytest.fixture
def own_conf(tmp_path, monkeypatch):
    """A folder of one's own, with a model and an experiment; its name has a space."""
    folder = tmp_path / "my conf"
    (folder / "model").mkdir(parents=True)
    (folder / "experiment").mkdir()
    (folder / "model" / "mine.yaml").write_text("name: mine\nsource: tiny:llama\n", encoding="utf-8")
    (folder / "experiment" / "pair.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: mine\n"
        "sweep:\n  - policy=static,sapo\n  - seed=range(3)\nmethod:\n  rank: 2\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("SAPO_CONF", str(folder))
    return folder


def runs(*overrides: str) -> list[tuple[str, int]]:
    return [(config.policy.name, config.seed) for config in load(list(overrides))]


def test_an_experiment_expands_its_sweep_and_the_user_wins(own_conf):
    assert runs("experiment=pair") == [(policy, seed) for policy in ("static", "sapo") for seed in range(3)]
    assert runs("experiment=pair", "seed=7") == [("static", 7), ("sapo", 7)]
    assert runs("experiment=pair", "policy=random") == [("random", 0), ("random", 1), ("random", 2)]
    (config,) = load(["experiment=pair", "seed=0", "policy=sapo"])
    assert (config.method.rank, config.model.name) == (2, "mine")
    found = load(["experiment=pair", "seed=5,6", "policy=sapo", "method.rank=16", "model=tiny_llama"])
    assert [(c.seed, c.method.rank, c.model.name) for c in found] == [(n, 16, "tiny_llama") for n in (5, 6)]


# --- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("policy=sapoo", "Unknown policy 'sapoo'. Did you mean sapo"),
        ("experiment=table1_min", "Unknown experiment 'table1_min'. Did you mean table1_mini"),
        ("modle=tiny_llama", "Unknown setting modle. Did you mean model"),
        ("trainer.epoch=1", "Unknown setting trainer.epoch. Did you mean trainer.epochs"),
        ("lr=1", "Unknown setting lr. Did you mean trainer.learning_rate?"),
        ("trainer.batch_size=1", "Did you mean trainer.global_batch or"),
        ("lora_rank=1", "Did you mean method.rank?"),
        ("+new=1", "Unknown setting new."),
        ("~method", "~method: settings are neither added nor removed; write method=VALUE."),
        ("+sequence=trace", "write sequence=VALUE."),
        ("policy@other=sapo", "write policy=VALUE."),
        ("trainer.epochs=ten", "trainer.epochs: Value 'ten' of type 'str' could not be converted to Integer"),
        ("sequence.tasks=mini_city", "sequence.tasks: Invalid value assigned"),
        ("scorer.include_original=maybe", "scorer.include_original: Value 'maybe' is not a valid bool"),
        ("model.template_options.shout=true", "to add it, write +model.template_options.shout=VALUE"),
        ("seed", "missing EQUAL"),
        ("seed=a=b", "quote a value with special characters twice"),
        ("seed=range(0)", "seed=range(0): this sweep has no values."),
        ("seed=interval(0,1)", "sweep with a comma list, choice(…) or range(…)."),
        ("trainer.learning_rate=nan", "trainer.learning_rate=nan: must be a finite number"),
        ("method.dropout=1", "method.dropout=1.0: must be at least 0 and below 1"),
        ("data.delimiter=ab", "data.delimiter=ab: must be one character that is no letter"),
        ("paraphrases.allow=[nothing]", "paraphrases.allow=nothing: must be one of empty, size, labels"),
        ("data.root='~no such user/x'", "data.root='~no such user/x': there is no such user"),
    ],
)
def test_refusals_say_what_and_how_to_mend(override, said):
    message = refusal(override)
    assert said in message
    assert "\n" not in message.removeprefix("The configuration cannot run:\n")


def test_all_problems_are_named_at_once_and_each_once():
    data = ("data.layout=sytem", "data.separator='{en: 1}'")
    message = refusal("trainer.epochs=0", "method.rank=0", "policy.index=-5", "seed=0,1", *data)
    head, *of_data, rank, index, epochs = message.splitlines()
    assert [line.partition("=")[0] for line in of_data] == ["  - data.layout", "  - data.separator"]
    assert [head, rank, index, epochs] == [
        "The configuration cannot run:",
        "  - method.rank=0: must be at least 1",
        "  - policy.index=-5: must be at least -1",
        "  - trainer.epochs=0: must be at least 1",
    ]


@pytest.mark.parametrize("revision", ["7e10", "true"])
def test_a_number_for_a_text_in_an_own_file(own_conf, revision):
    file = own_conf / "model" / "mine.yaml"
    file.write_text(f"name: mine\nsource: tiny:llama\nrevision: {revision}\n", encoding="utf-8")
    said = "model.revision is a text, and YAML reads a number: put it in quotes."
    assert refusal("seed=0") == f"{file}: {said}"


def test_errors_know_their_exit_code():
    assert (UserError.exit_code, WorkError.exit_code) == (2, 1)
    numbered = str(unknown("target", "x", ["figure10", "figure2", "figure1"]))
    assert numbered.endswith("Known: figure1, figure2, figure10.")
    assert str(unknown("thing", "x", [])) == "Unknown thing 'x'. Known: none."


def test_a_long_list_of_known_names_is_cut():
    message = str(unknown("run", "run-1999x", [f"run-{i:04}" for i in range(2000)]))
    assert "Did you mean run-1999" in message
    assert message.endswith("run-0058, run-0059 and 1,940 more.")
    long = str(unknown("run", "x", [f"{i:090}" for i in range(2000)]))
    assert long.endswith("9 and 1,990 more.")


@pytest.mark.parametrize(
    "axes",
    [
        # Groups of which one writes into others, and numbers.
        {"method": "ewc,lorainc", "trainer": "mini,paper", "seed": "0,3", "scorer.examples": "4,5"},
        # A setting of a group that is swept too, and two settings of one group.
        {"policy": "fixed,random", "policy.index": "-1,3", "method.rank": "2,4", "method.alpha": "8,16"},
        {"policy": "static,sapo", "seed": "0,1", "store.root": "'runs/${policy.name}-${seed}'"},
    ],
)
def test_sweeps_put_together_from_parts_equal_configs_composed_one_by_one(axes):
    values = [each.split(",") for each in axes.values()]
    swept = load([f"{key}={each}" for key, each in axes.items()])
    combinations = list(itertools.product(*values))
    assert len(swept) == len(combinations)
    for place in {len(swept) // 2 - 1, 5 % len(swept), len(swept) - 1}:
        chosen = zip(axes, combinations[place], strict=True)
        assert swept[place] == load_one([f"{key}={value}" for key, value in chosen])


def test_a_sweep_composes_no_config_for_each_of_its_numbers(monkeypatch):
    composed, compose = [], conf_load._compose
    monkeypatch.setattr(conf_load, "_compose", lambda given: composed.append(given) or compose(given))
    assert [config.seed for config in load(["seed=range(50)", "policy=static"])] == [*range(50)]
    assert len(composed) == 1


def test_an_own_file_that_reaches_into_other_groups_is_composed_with_them(own_conf):
    (own_conf / "parity").mkdir()
    (own_conf / "parity" / "mine.yaml").write_text("defaults:\n  - reference\nname: mine\n", encoding="utf-8")
    found = [(c.parity.name, c.scorer.subset) for c in load(["parity=paper,mine", "policy=static"])]
    assert found == [("paper", "random"), ("mine", "first")]
    (own_conf / "method").mkdir()
    rank = "defaults:\n  - lorainc\nrank: ${trainer.epochs}\n"
    (own_conf / "method" / "mine.yaml").write_text(rank, encoding="utf-8")
    found_ranks = [config.method.rank for config in load(["method=mine", "trainer.epochs=3,5"])]
    assert found_ranks == [3, 5]
