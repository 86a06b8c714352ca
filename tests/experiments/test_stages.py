"""A stage's key changes with what can change its result, and with nothing else."""

from dataclasses import replace

import pytest

from sapo.conf.load import load_one
from sapo.conf.schema import Config, MethodConfig, ModelConfig, PolicyConfig, TrainerConfig, settings
from sapo.data.mini import generate
from sapo.data.prompts import Prompt
from sapo.data.tasks import Example, Task
from sapo.experiments.model import identity
from sapo.experiments.model.rows import TrainingTask
from sapo.experiments.stages import BASE, Evaluate, Gradient, Score, Train

# What each kind of stage reads of the configuration; everything else must leave its key alone.
MODEL = {
    "model.source", "model.tokenizer", "model.chat_template", "model.template_options", "model.dtype",
    "model.lora_targets", "model.load",
}  # fmt: skip
DATA = {"data.layout", "data.max_input_tokens", "data.truncation", "data.separator", "data.label_blanks"}
OPTIMIZATION = ("seeding", "step_count", "epochs", "learning_rate", "schedule", "warmup_ratio")
OPTIMIZATION += ("weight_decay", "max_grad_norm", "global_batch")
READS = {
    "score": MODEL | DATA | {"scorer.name", "scorer.state"},
    "train": MODEL
    | {"method.name", "method.rank", "method.alpha", "method.dropout", "seed"}
    | {f"trainer.{name}" for name in OPTIMIZATION}
    | DATA,
    "evaluate": MODEL
    | DATA
    | {f"evaluator.{name}" for name in ("answers", "max_new_tokens", "clean_up_spaces", "scores")},
    "gradient": MODEL | DATA | {"method.rank", "method.alpha", "seed"},
}
OTHER_VALUES = {
    "model.source": "tiny:qwen3",
    "model.chat_template": "llama2",
    "model.template_options": {"enable_thinking": False},
    "model.dtype": "bfloat16",
    "model.lora_targets": ["q_proj"],
    "engine.device": "cuda",
    "data.separator": "prompt",
    "data.layout": "plain",
}
GOLDEN = {
    "score": "88b050e9e2bff388",
    "train": "2b20670c0f539d8a",
    "evaluate": "d87879e19c8144a3",
    "gradient": "4645b88727709deb",
}


TASK = generate("mini_city", 8, 4, 0)
PROMPTS = (Prompt("a", 0), Prompt("b", 1))


def stages(config, task=TASK, prompts=PROMPTS, state="a" * 64):
    """A stage of each kind; all but the scoring read the first prompt alone."""
    return {
        "score": Score(config, state, task, task.train[:4], prompts),
        "train": Train(config, state, 1, (TrainingTask(task, prompts[:1]),)),
        "evaluate": Evaluate(config, state, task, prompts[0]),
        "gradient": Gradient(config, state, task, task.train[:4], prompts[0]),
    }


def keys(config, **changes):
    return {kind: stage.key for kind, stage in stages(config, **changes).items()}


def changed(config: Config, key: str, tokenizer) -> Config:
    """The config with another value of one setting."""
    section, _, name = key.rpartition(".")
    holder = getattr(config, section) if section else config
    old = getattr(holder, name)
    if key in OTHER_VALUES:
        new = OTHER_VALUES[key]
    elif key in {"model.tokenizer", "model.path"}:
        new = str(tokenizer)
    elif choices := settings()[key].metadata.get("choices"):
        new = next(choice for choice in choices if choice != old)
    elif isinstance(old, bool):
        new = not old
    elif isinstance(old, int | float):
        new = old / 2 if isinstance(old, float) and old else old + 1
    elif isinstance(old, list):
        new = [*old, "another"]
    else:
        new = f"{old}-another"
    assert new != old
    other = replace(holder, **{name: new})
    return replace(config, **{section: other}) if section else other


def leaves() -> list[str]:
    names = settings()
    groups = {name.split(".")[0] for name in names if "." in name}
    return [name for name in names if name not in groups]


@pytest.fixture(scope="module")
def config():
    """Composed once: there are many settings."""
    few = ["data.train_examples=8", "data.test_examples=4"]
    return load_one(["model=tiny_llama", *few, "engine.device=cpu"])


@pytest.mark.parametrize("key", leaves())
def test_every_setting_changes_exactly_the_keys_of_the_stages_that_read_it(config, tmp_path, key):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    before, after = keys(config), keys(changed(config, key, tmp_path))
    reads = {kind for kind, names in READS.items() if key in names or key == "model.path"}
    assert {kind for kind in READS if before[kind] != after[kind]} == reads


ROWS = (Example("other", "row"),)
EVERY = set(READS)


@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        ({"state": "f" * 64}, EVERY),
        ({"prompts": (Prompt("other", 0), Prompt("b", 1))}, EVERY),
        ({"prompts": (Prompt("a", 7), Prompt("b", 1))}, {"score"}),  # the place in its pool
        ({"prompts": (Prompt("a", 0),)}, {"score"}),
        ({"task": replace(TASK, suffix="Other.")}, EVERY),
        ({"task": replace(TASK, train=ROWS)}, EVERY - {"evaluate"}),
        ({"task": replace(TASK, test=ROWS)}, {"evaluate"}),
        ({"task": replace(TASK, train=TASK.train[:4])}, {"train"}),
    ],
)
def test_state_prompts_rows_and_task_frame_are_part_of_the_keys_of_stages_that_read_them(
    config, changes, reads
):
    before, after = keys(config), keys(config, **changes)
    assert {kind for kind in READS if before[kind] != after[kind]} == reads


def test_drawn_prompts_and_how_often_they_are_drawn_are_part_of_the_key(config):
    train = stages(config)["train"]
    drawn = replace(train, tasks=(replace(train.tasks[0], prompts=PROMPTS),))
    often = replace(drawn, config=replace(drawn.config, policy=PolicyConfig("paft", redraw=4)))
    assert len({stage.key for stage in (train, drawn, often)}) == 3


def test_a_stage_holds_no_setting_that_it_does_not_hash_but_how_it_is_computed(tiny_config):
    config = tiny_config("trainer.epochs=3", "evaluator.batch_tokens=64", "engine.device=cpu", "seed=7")
    evaluate = stages(config)["evaluate"].config
    assert (evaluate.trainer.epochs, evaluate.seed, evaluate.store.root) == (10, 0, "runs")  # the schema's
    assert (evaluate.evaluator.batch_tokens, evaluate.engine.device) == (64, "cpu")
    assert evaluate.trainer.shared_prefix == config.trainer.shared_prefix


def test_earlier_adapters_that_count_less_do_so_by_their_rank(tiny_config):
    """`scorer.state=shrunk` divides a task's rank by that of all adapters."""
    ranks = [tiny_config("scorer.state=shrunk", f"method.rank={rank}") for rank in (2, 4)]
    assert len({keys(config)["score"] for config in ranks}) == 2


def test_the_first_training_of_methods_that_keep_only_an_adapter_is_one(tiny_config):
    plain = ("lorainc", "sequential", "single", "multitask", "olora")
    for state, kinds in ((BASE, 1), ("a" * 64, 5)):
        configs = (tiny_config(f"method={name}", "method.weight=1") for name in plain)
        assert len({keys(config, state=state)["train"] for config in configs}) == kinds


def test_keys_stay_what_they_were(monkeypatch):
    """If these change, all that people have stored is computed again: raise a version on purpose only."""
    monkeypatch.setattr(identity, "folder_digest", lambda folder: "of its files")
    config = Config(
        model=ModelConfig("tiny_llama", "tiny:llama", dtype="float32"),
        method=MethodConfig("lorainc"),
        trainer=TrainerConfig("golden"),
    )
    rows = (Example("two and two", "four"),)
    task = Task("sums", "Add.", "Answer:", rows, rows)
    prompt = Prompt("Add.")
    golden = {
        "score": Score(config, BASE, task, rows, (prompt,)),
        "train": Train(config, BASE, 0, (TrainingTask(task, (prompt,)),)),
        "evaluate": Evaluate(config, BASE, task, prompt),
        "gradient": Gradient(config, BASE, task, rows, prompt),
    }
    assert {kind: stage.key[:16] for kind, stage in golden.items()} == GOLDEN
