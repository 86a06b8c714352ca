"""The YAML files: each composes and validates, sequences are the paper's, and every setting is declared."""

import csv
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from sapo.analysis import metrics
from sapo.conf.load import FOLDER, GROUPS, choices, load, load_one
from sapo.conf.schema import described, identity_values, settings

FILES = sorted(path.relative_to(FOLDER) for path in FOLDER.glob("**/*.yaml"))
MEMBERS = [(str(path.parent), path.stem) for path in FILES if path.parent.name]
# A member that cannot run as it is, and what makes it.
NEEDS = {("paraphrases", "file"): ["paraphrases.file=p.yaml"], ("sequence", "own"): ["sequence.tasks=[mine]"]}
PAPER = Path(metrics.__file__).parent / "paper"


def content_of(group: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / group / f"{name}.yaml").read_text(encoding="utf-8"))


# --- every file --------------------------------------------------------------------------------------------


def test_files_are_members_of_known_groups():
    assert {group for group, _ in MEMBERS} <= set(GROUPS)
    assert [path for path in FILES if not path.parent.name] == [Path("config.yaml")]
    for group in GROUPS:
        assert choices(group) == sorted(name for found, name in MEMBERS if found == group)


GROUPS_ALIKE = [group for group in GROUPS if group not in ("experiment", "evaluator", "scorer")]


@pytest.mark.parametrize("number", range(max(len(choices(group)) for group in GROUPS_ALIKE)))
def test_every_member_composes_and_validates(number):
    """A member of every group at once, until each has had its turn."""
    members = {group: choices(group)[number % len(choices(group))] for group in GROUPS_ALIKE}
    needs = [need for pair in members.items() for need in NEEDS.get(pair, [])]
    config = load_one([*(f"{group}={member}" for group, member in members.items()), *needs])
    assert {group: getattr(config, group).name for group in members} == members


@pytest.mark.parametrize("override", [f"{g}={m}" for g in ("evaluator", "scorer") for m in choices(g)])
def test_every_way_to_evaluate_and_score_composes(override):
    assert load_one([override, "policy=static"])


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment_composes_and_its_sweep_names_what_there_is(name):
    sweep = content_of("experiment", name).get("sweep", [])
    axes = {key: values for key, _, values in (item.partition("=") for item in sweep)}
    firsts = {key: 0 if each.startswith("range") else each.split(",")[0] for key, each in axes.items()}
    config = load_one([f"experiment={name}", *(f"{key}={value}" for key, value in firsts.items())])
    assert config.sweep == sweep
    for key, values in axes.items():
        assert {*values.split(",")} <= {*choices(key)} if key in GROUPS else key in settings()


def test_every_file_says_what_it_is_and_holds_no_path():
    for path in FILES:
        text = (FOLDER / path).read_text(encoding="utf-8")
        assert text.startswith("#"), f"{path} needs a first line that says what it is, for `sapo ls`"
        assert isinstance(yaml.safe_load(text), dict)
        assert ": /" not in text, f"{path} holds an absolute path"


# --- the paper's sequences ---------------------------------------------------------------------------------


def rows_of(name: str) -> list[dict[str, str]]:
    with (PAPER / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def tasks_of(cell: str) -> list[str]:
    return [f"NI{task}" if task.isdigit() else task for task in cell.split()]


@pytest.mark.parametrize("row", rows_of("sequences.csv"), ids=lambda row: row["sequence"])
def test_training_sequences_are_the_papers(row):
    name = row["sequence"].lower().replace("-", "_")
    content = content_of("sequence", name)
    tasks = tasks_of(row["tasks_in_order"])
    benchmark = "trace" if name == "trace" else "superni"
    assert content.get("sequence", content) == {"name": name, "benchmark": benchmark, "tasks": tasks}
    config = load_one([f"sequence={name}", "scale=paper"])
    assert config.data.train_examples == int(row["train_per_task"])
    assert config.scorer.examples == (1000 if name == "trace" else 250)


SIZES = {
    "mini": (48, 32, 512, 12, 3, 16),
    "small": (48, 32, 256, 48, 3, 16),
    "paper": (1000, None, 1536, 250, 10, 128),
    "own": (None, None, 1536, 64, 3, 128),
}


OWN = ["sequence=own", "sequence.tasks=[a]"]
TABLE1 = ["experiment=table1_paper", "model=tiny_llama", "sequence=ni_seq_g1", "method=ewc", "policy=sapo"]


@pytest.mark.parametrize(
    ("overrides", "scale", "trainer"),
    [
        ([], "mini", "mini"),
        (["sequence=trace"], "mini", "mini"),
        (["scale=small"], "small", "mini"),
        (OWN, "own", "mini"),
        (["sequence.benchmark=own"], "own", "mini"),
        ([*OWN, "scale=mini"], "mini", "mini"),
        ([*OWN, "trainer=paper"], "paper", "paper"),
        # One of the two brings the other of its name, unless that is named too.
        (["scale=paper"], "paper", "paper"),
        (["trainer=paper"], "paper", "paper"),
        (["trainer=paper", "scale=mini"], "mini", "paper"),
        (["scale=paper", "trainer=mini"], "paper", "mini"),
        ([*TABLE1, "seed=0"], "paper", "paper"),
    ],
)
def test_a_scale_is_how_much_and_a_trainer_is_how(overrides, scale, trainer):
    config = load_one(overrides)
    assert (config.scale.name, config.trainer.name) == (scale, trainer)
    data, trained = config.data, config.trainer
    sizes = (data.train_examples, data.test_examples, data.max_input_tokens)
    assert (*sizes, config.scorer.examples, trained.epochs, config.evaluator.max_new_tokens) == SIZES[scale]
    how = (trained.learning_rate, trained.global_batch, config.method.dropout)
    assert how == {"mini": (1e-3, 8, 0.0), "paper": (1e-4, 64, 0.1)}[trainer]


def test_a_value_that_is_given_wins_over_the_scale():
    config = load_one(["method=replay", "method.buffer=5", "scale=mini", "data.train_examples=null"])
    assert (config.method.buffer, config.data.train_examples, config.data.test_examples) == (5, None, 32)
    both = load(["trainer=mini,paper", "scorer.examples=7"])
    sizes = [(c.scale.name, c.data.train_examples, c.scorer.examples) for c in both]
    assert sizes == [("mini", 48, 7), ("paper", 1000, 7)]


def test_own_rows_are_taken_whole_beside_other_sequences_too():
    both = load(["sequence=own,mini_three", "sequence.tasks=[mini_city]", "data.test_examples=5"])
    sizes = [(c.sequence.name, c.data.train_examples, c.data.test_examples) for c in both]
    assert sizes == [("own", None, 5), ("mini_three", 48, 5)]


def test_probe_sequences_are_the_papers():
    for row in rows_of("probe_sequences.csv"):
        name = row["sequence"].lower().replace("-", "_")
        assert content_of("sequence", name) == {
            "name": name,
            "benchmark": "superni",
            "tasks": tasks_of(f"{row['trained_T1']} {row['current_T2']}"),
            "unseen": tasks_of(row["unseen_T3"]),
        }


# --- every setting -----------------------------------------------------------------------------------------


def test_every_setting_is_declared_identity_or_runtime_with_a_doc():
    missing = [
        key
        for key, field in settings().items()
        if not field.metadata.get("doc") or "identity" not in field.metadata
    ]
    assert missing == [], (
        f"{', '.join(missing)} in conf/schema.py: declare each as identity('what it is', default) if it can "
        "change what a stage computes, else as runtime('what it is', default)"
    )


def test_identity_values_leave_runtime_settings_out():
    trainer = load_one(["trainer=paper"]).trainer
    assert identity_values(trainer).keys() == {f.name for f in fields(trainer) if f.metadata["identity"]}
    assert identity_values(trainer)["learning_rate"] == 1e-4
    assert not {"name", "micro_batch_tokens", "report_to"} & identity_values(trainer).keys()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("method.rank", "LoRA rank of the adapter that is trained (at least 1)"),
        ("method.dropout", "LoRA dropout in training (at least 0 and below 1)"),
        ("scorer.subset", "random: drawn by the seed; first: the first rows (D7)"),
        ("sequence.benchmark", "Where its tasks are (one of superni, trace, mini, own)"),
        ("trainer.shared_prefix", str(settings()["trainer.shared_prefix"].metadata["doc"])),
    ],
)
def test_a_setting_is_described_with_its_limits(key, said):
    assert described(settings()[key]) == said


def test_a_new_method_or_policy_is_its_yaml_file():
    for group in ("method", "policy"):
        assert settings()[f"{group}.name"].metadata["choices"] == tuple(choices(group))
