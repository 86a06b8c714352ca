"""What an exported state is: the stored one, to the bit as an adapter, and to rounding as a merged model."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import LARGE_STEPS, SMALL
from trainings import run_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from sapo.conf.errors import UserError, WorkError
from sapo.conf.load import load_one
from sapo.experiments import export as exporting
from sapo.experiments.engine.store import Store
from sapo.experiments.export import TOLERANCE, export, exportable, merge_into
from sapo.experiments.model.adapters import FOLDER, WEIGHTS
from sapo.experiments.model.fetch import model_folder
from sapo.experiments.model.load import load_model
from sapo.experiments.reevaluation import open_run
from sapo.experiments.stages import in_state

IDS = torch.arange(3, 60).unsqueeze(0)
SETTINGS = (*SMALL, *LARGE_STEPS, "sequence.tasks=[mini_sentiment,mini_city]", "evaluator.max_new_tokens=1")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("export"))


def finish(store, *overrides):
    """A finished run, opened again from its folder."""
    return open_run(run_folder([*SETTINGS, *overrides], store.root))


@pytest.fixture(scope="module")
def lorainc(store):
    return finish(store, "policy=fixed", "policy.index=1")


def logits(model):
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits.float()


def stored_logits(run, store, key):
    with in_state(load_model(run.config), store, key) as model:
        return logits(model)


def plain_base(run):
    return AutoModelForCausalLM.from_pretrained(model_folder(run.config.model), dtype=torch.float32)


@pytest.fixture
def saved(lorainc, tmp_path):
    """`saved(base)`: a folder with that model and the run's tokenizer."""

    def save(base):
        base.save_pretrained(tmp_path / "base")
        load_model(lorainc.config).tokenizer.save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return save


# --- the adapter -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "after"), [("last", 2), ("mini_sentiment", 1)])
def test_an_adapter_gives_the_logits_of_the_stored_state_to_the_bit(lorainc, store, tmp_path, state, after):
    assert export(exportable(lorainc, state), tmp_path / "out", merge=False, card="# Card\n") is None
    keys = [each.key for each in lorainc.record.states]
    expected, before = (stored_logits(lorainc, store, keys[n]) for n in (after, after - 1))
    assert (expected - before).abs().max() > 0.1
    opened = PeftModel.from_pretrained(plain_base(lorainc), str(tmp_path / "out"))
    assert torch.equal(logits(opened), expected)
    assert opened.peft_config["default"].r == 8 * after
    by_itself = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "out"), dtype=torch.float32)
    assert torch.equal(logits(by_itself), expected)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model_folder(lorainc.config.model).resolve())
    assert (config["task_type"], config["inference_mode"]) == ("CAUSAL_LM", True)
    assert (tmp_path / "out" / "README.md").read_text() == "# Card\n"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert tokenizer.chat_template == load_model(lorainc.config).tokenizer.chat_template
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jinja", ".md", ".safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_hub_model_is_named_by_its_repository_and_revision():
    pinned = load_one(["model=qwen3_0_6b", "model.revision=abc"])
    assert exporting.base_of(pinned) == ("Qwen/Qwen3-0.6B", "abc")
    with pytest.raises(UserError, match=r"no config.json in elsewhere"):
        exporting.base_of(load_one(["model=qwen3_0_6b", "model.path=elsewhere"]))


# --- merged ------------------------------------------------------------------------------------------------


def test_a_merged_model_gives_the_logits_of_the_stored_state(lorainc, store, tmp_path):
    difference = export(exportable(lorainc, "last"), tmp_path / "out", merge=True, card="# Card")
    expected = stored_logits(lorainc, store, lorainc.record.states[-1].key)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert merged.dtype == torch.float32
    largest = (logits(merged) - expected).abs().max() / expected.abs().max()
    assert largest <= TOLERANCE
    assert 0 < difference <= TOLERANCE
    then = load_file(model_folder(lorainc.config.model) / "model.safetensors")
    now = load_file(tmp_path / "out" / "model.safetensors")
    assert now.keys() == then.keys()
    changed = {key.split(".")[-2] for key in now if not torch.equal(now[key], then[key])}
    assert changed == {"q_proj", "v_proj"}
    texts = [path.read_text() for path in (tmp_path / "out").iterdir() if path.suffix in {".json", ".md"}]
    assert not any(str(model_folder(lorainc.config.model)) in text for text in texts)


def test_the_template_in_use_is_written_and_weights_are_rounded_once(lorainc, store, tmp_path, saved):
    base = plain_base(lorainc).to(torch.bfloat16)
    setting = f"model.path='{saved(base)}'"
    source = exportable(
        finish(store, setting, "model.chat_template=llama2", "sequence.tasks=[mini_city]"), "last"
    )
    export(source, tmp_path / "out", merge=True, card="# Card")
    assert "[INST]" in AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    now, adapter = load_file(tmp_path / "out" / "model.safetensors"), load_file(source.adapter / WEIGHTS)
    for key, weight in base.state_dict().items():
        name = f"base_model.model.{key.removesuffix('.weight')}"
        if f"{name}.lora_A.weight" in adapter:
            change = adapter[f"{name}.lora_B.weight"] @ adapter[f"{name}.lora_A.weight"] * (32 / 8)
            weight = (weight.float() + change).to(torch.bfloat16)
        assert torch.equal(now[key], weight), key


def test_weights_that_the_embedding_shares_are_not_merged_into():
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 8)
    heads = dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 1)
    base = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, **heads, tie_word_embeddings=True))
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"]))
    with pytest.raises(UserError, match="lm_head shares its weights with the token embedding"):
        merge_into(base, adapted)


def test_a_merge_that_changes_the_answers_is_refused(lorainc, store, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "merge_into", lambda base, _: exporting.unwrap(base))
    with pytest.raises(WorkError, match="logits differ from the adapter's by"):
        export(exportable(lorainc, "last"), tmp_path / "out", merge=True, card="# Card")
    assert list(tmp_path.iterdir()) == []


# --- which state -------------------------------------------------------------------------------------------


def test_learned_tasks_are_what_was_trained_in_order(lorainc):
    source = exportable(lorainc, "2")
    assert [learned["task"] for learned in source.learned] == list(lorainc.record.tasks[:2])
    for learned in source.learned:
        assert learned["instruction"] == lorainc.record.prompts[learned["task"]]
        assert (learned["separator"], learned["drawn"]) == ("Text:", None)
        assert learned["suffix"].startswith("Directly output only")


def test_single_has_a_state_a_task(store):
    run = finish(store, "method=single", "policy=static")
    with pytest.raises(UserError, match=r"Say --state TASK, one of: mini_sentiment, mini_city\."):
        exportable(run, "last")
    for task, state in zip(list(run.record.tasks), run.record.states[1:], strict=True):
        source = exportable(run, task)
        assert [learned["task"] for learned in source.learned] == [task] == list(source.state.tasks)
        assert source.trained.key == state.key


def test_multitask_learns_all_at_once_and_paft_keeps_what_it_drew_from(store):
    run = finish(store, "method=multitask", "policy=paft")
    for wanted in ("last", "2", "mini_city"):
        source = exportable(run, wanted)
        assert [learned["task"] for learned in source.learned] == list(run.record.tasks)
        assert all(len(learned["drawn"]) == 4 for learned in source.learned)
    with pytest.raises(UserError, match=r"has the states last, 2 \(trained tasks\)"):
        exportable(run, "1")


def test_what_has_no_adapter_is_not_exported(lorainc, store):
    with pytest.raises(UserError, match=r"trained nothing \(method zero_shot\)"):
        exportable(finish(store, "method=zero_shot", "policy=static"), "last")
    with pytest.raises(UserError, match=r"untouched model has no adapter.*sapo show model tiny_llama"):
        exportable(lorainc, "0")
    for wanted in ("3", "mini_order", "²"):
        with pytest.raises(UserError, match=r"has the states last, 1, 2 \(trained tasks\)"):
            exportable(lorainc, wanted)


# --- what is amiss -----------------------------------------------------------------------------------------


@pytest.fixture
def own(store, lorainc, tmp_path):
    """A copy of the run and its store that a test may damage."""
    shutil.copytree(store.root, tmp_path / "store")
    return open_run(tmp_path / "store" / "runs" / lorainc.record.id)


@pytest.mark.parametrize("after", [1, 2])
def test_a_training_that_is_gone(own, after):
    (own.store.root / "stages" / "train" / own.record.states[after].key / "manifest.json").unlink()
    sequence = r"sequence=mini_three 'sequence.tasks=\[mini_sentiment,mini_city\]'"
    again = rf"sapo train {sequence} model=tiny_llama method=lorainc policy=fixed seed=0"
    with pytest.raises(UserError, match=rf"State {after} of run .* is not in the store .*{again}"):
        exportable(own, "last")


def test_changed_weights_are_noticed(own):
    path = exportable(own, "last").adapter / WEIGHTS
    save_file({key: value + 1 for key, value in load_file(path).items()}, path)
    with pytest.raises(WorkError, match=rf"Damaged: .*{FOLDER}.{WEIGHTS} is not what was stored"):
        exportable(replace(own, store=Store(own.store.root)), "last")


def test_another_base_model_is_noticed(store, lorainc, saved):
    base = plain_base(lorainc)
    run = finish(store, f"model.path='{saved(base)}'", "policy=static", "sequence.tasks=[mini_city]")
    with torch.no_grad():
        base.lm_head.weight.add_(1)
    saved(base)
    with pytest.raises(UserError, match=r"The weights of model tiny_llama .* changed since run"):
        exportable(run, "last")


def test_a_failure_leaves_nothing(lorainc, tmp_path, monkeypatch):
    source, empty = exportable(lorainc, "last"), tmp_path / "empty"
    empty.mkdir()
    export(source, empty, merge=False, card="# Card")
    assert (empty / "README.md").is_file()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting.LoraConfig, "from_pretrained", full_disk)
    with pytest.raises(WorkError, match=r"left nothing: .*No space left"):
        export(source, tmp_path / "new", merge=False, card="# Card")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
