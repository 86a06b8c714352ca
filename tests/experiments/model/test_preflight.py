"""What would make numbers wrong is found, and named, before anything is computed."""

import json
import re
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import refusal

from sapo.conf.errors import UserError
from sapo.data.mini import generate
from sapo.data.prompts import Prompt
from sapo.data.render import Renderer
from sapo.data.tasks import Example
from sapo.experiments.model import preflight as module
from sapo.experiments.model.load import load_model, load_renderer, read_model
from sapo.experiments.model.preflight import preflight

TASK = generate("mini_topic", 3, 3, 0)
SHOWN = [(TASK, [Prompt(TASK.instruction)])]
SIZES = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2}
END = "{% if message['role'] == 'user' %}<|im_end|>\n{% endif %}"
TURN = "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHAT = f"{{% for message in messages %}}{TURN}{{% endfor %}}{HEADER}"


@pytest.fixture(autouse=True)
def warned(monkeypatch):
    """The lines that a user is told."""
    lines: list[str] = []
    monkeypatch.setattr(module, "_warn", lines.append)
    return lines


@pytest.fixture
def config(tiny_config, tiny_folder):
    """A config of the copied model."""

    def made(*lora_targets, **changes):
        config = tiny_config()
        config.model.path = str(tiny_folder)
        config.model.lora_targets = list(lora_targets) or config.model.lora_targets
        for name, value in changes.items():
            setattr(config.data, name, value)
        return config

    return made


def refused(config, shown=SHOWN, **work) -> str:
    return refusal(preflight, config, shown, **work)


def put(folder, kind, **sizes):
    """Another architecture in place of the tiny Llama."""
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    config = getattr(transformers, f"{kind}Config")(**sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


# --- weights -----------------------------------------------------------------------------------------------


def save(tensors, folder):
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda tensors: {f"_orig_mod.{key}": value for key, value in tensors.items()},
            ("missing lm_head.weight", "unexpected _orig_mod.lm_head.weight"),
        ),
        (lambda tensors: tensors.pop("lm_head.weight") is None or tensors, ("missing lm_head.weight.",)),
        (lambda tensors: tensors | {"model.norm.weight": torch.ones(16)}, ("mismatched model.norm.weight",)),
    ],
)
def test_weights_of_other_names_or_shapes_are_refused_before_and_at_loading(
    config, tiny_folder, change, named
):
    save(change(load_file(tiny_folder / "model.safetensors")), tiny_folder)
    message = refused(config(), trains=False, answers=False)
    assert all(part in message for part in named)
    with pytest.raises(UserError, match="would be drawn at random"):
        load_model(config())


def test_a_tied_head_may_be_absent(config, tiny_folder, edit_json):
    tensors = load_file(tiny_folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save(tensors, tiny_folder)
    edit_json(tiny_folder / "config.json", tie_word_embeddings=True)
    preflight(config(), SHOWN)
    base = load_model(config()).base
    assert torch.equal(base.lm_head.weight, tensors["model.embed_tokens.weight"])


def test_a_folder_with_an_adapter_is_no_base_model(config, tiny_folder):
    (tiny_folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "other"}))
    assert "holds an adapter" in refused(config())


# --- adapter -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        ("q_proj,v_prj", "no layer of LlamaForCausalLM is called v_prj (did you mean v_proj?)"),
        ("nonesuch", "no layer of LlamaForCausalLM is called nonesuch."),
        ("q_proj,embed_tokens", "embed_tokens is Embedding, not a linear layer"),
        ("self_attn", "self_attn is LlamaAttention, not a linear layer"),
        ("q_proj,all-linear", "no layer of LlamaForCausalLM is called all-linear"),
    ],
)
def test_every_lora_target_is_a_linear_layer(config, warned, targets, reason):
    assert reason in refused(config(*targets.split(",")))
    preflight(config(*targets.split(",")), SHOWN, trains=False)
    for fitting in (["all-linear"], ["lm_head"], ["layers.0.self_attn.q_proj", "down_proj"]):
        preflight(config(*fitting), SHOWN)
    assert warned == []


def test_fused_experts_are_no_linear_layers(config, tiny_folder):
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    put(tiny_folder, "Qwen3Moe", **SIZES, **experts, intermediate_size=64, num_attention_heads=4)
    preflight(config(), SHOWN)
    assert "is called gate_up_proj" in refused(config("gate_up_proj"))
    assert "experts is Qwen3MoeExperts, not a linear layer" in refused(config("experts"))


def test_a_model_that_keeps_no_keys_and_values_can_only_be_scored(config, tiny_folder):
    put(tiny_folder, "Rwkv", **SIZES, attention_hidden_size=32)
    assert "RwkvForCausalLM keeps no keys and values" in refused(config(), trains=False)
    preflight(config(), SHOWN, trains=False, answers=False)


# --- chat template -----------------------------------------------------------------------------------------


def template(old: str, new: str) -> str:
    assert old in CHAT
    return CHAT.replace(old, new)


PARTS = (
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
)
CONTENT = "{{ message['content'] }}"
THINKING = "{{ '<think>\n\n</think>\n\n' if message['role'] == 'assistant' }}"


@pytest.mark.parametrize(
    ("text", "layout", "message"),
    [
        (template(CONTENT, PARTS), None, "leaves out the instruction"),
        (template("content'] }}", "content'] if message['role'] == 'assistant' }}"), None, "instruction"),
        (template("content'] }}", "content'] if message['role'] == 'user' }}"), None, "no target can be"),
        (template("content'] }}", "content'][:40] }}"), None, "leaves out the in"),
        (template("assistant\n", "assistant\n<think>\n"), None, "open a block of thoughts"),
        (template(CONTENT, THINKING + CONTENT), None, "answered: 'sports' comes back as '<think>"),
        ("{{ raise_exception('no turns') }}", None, "no turns"),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}" + CHAT, "system",
         "or a data.layout without system turn"),
        (template("in messages", "in messages if message.role != 'system'"), "system", "another data.layout"),
    ],
)  # fmt: skip
def test_templates_that_lose_what_they_are_given(config, tiny_folder, tmp_path, text, layout, message):
    (tiny_folder / "chat_template.jinja").write_text(text)
    task = replace(TASK, train=(Example(TASK.train[0].input, "sports"),), test=())
    shown = [(task, [Prompt(task.instruction)])]
    said = refused(config(layout=layout), shown)
    assert message in said
    assert "model.chat_template=FILE.jinja" in said
    mended, way_out = config(layout=layout), tmp_path / "way-out.jinja"
    way_out.write_text(CHAT)
    mended.model.chat_template = str(way_out)
    preflight(mended, shown)


@pytest.mark.parametrize(
    ("text", "layout", "said"),
    [
        ("{% for message in messages %}{% if not message['content'] | trim %}{{ raise_exception('empty') }}"
         "{% endif %}{% endfor %}" + CHAT, None, []),
        (template("content'] }}", "content'] | trim }}"), None, []),
        (template("content'] }}", "content'].split('</think>')[-1] }}"), None, []),
        (template("<|im_end|>\n", END), None, ["writes no end after an answer"]),
        (CHAT, "system", []),
        (CHAT, "{instruction} {input}", ["data.layout has no suffix: that of mini_topic is left out"]),
        (CHAT, "{input} {instruction} {suffix}", ["the input before the instruction: rows have no"]),
    ],
)  # fmt: skip
def test_templates_and_layouts_that_are_taken_and_what_they_cost(
    config, tiny_folder, warned, text, layout, said
):
    (tiny_folder / "chat_template.jinja").write_text(text)
    preflight(config(layout=layout), SHOWN)
    assert [part in line for part, line in zip(said, warned, strict=True)] == [True] * len(said)


def test_a_template_with_several_forms_and_no_default_needs_one(config, tiny_folder, edit_json):
    (tiny_folder / "chat_template.jinja").unlink()
    named = [{"name": "rag", "template": CHAT}, {"name": "tool_use", "template": CHAT}]
    edit_json(tiny_folder / "tokenizer_config.json", chat_template=named)
    assert "no default" in refused(config())


def test_a_clock_in_a_template_stands_still_and_changes_nothing_else(config, tiny_folder, warned):
    forms = {"%d %b %Y": "26 Jul 2024", "%H:%M:%S": "00:00:00", "%-d. %B": "26. July"}
    clock = "{{% set now = strftime_now('{}') if strftime_now is defined %}}Today: {{{{ now }}}}\n"
    (tiny_folder / "chat_template.jinja").write_text(clock.format("%d %b %Y") + CHAT)
    preflight(config(), SHOWN)
    assert warned == ["The chat template writes the date: it is given 26 July 2024 always."]
    tokenizer = load_renderer(config()).tokenizer

    def written(text):
        tokenizer.chat_template = text
        return Renderer(tokenizer, {}, 100).prompt_text(TASK, "Which topic?", "text")

    for form, shown in forms.items():
        assert written(clock.format(form) + CHAT) == f"Today: {shown}\n{written(CHAT)}"
    for text in (f"\n  {CHAT}", f"{{%- if true -%}}\n x {{%- endif %}}{CHAT}"):
        assert written(f"{text}{{# strftime_now #}}") == written(text)


# --- tokens ------------------------------------------------------------------------------------------------


def test_what_the_template_writes_after_an_answer_ends_it(config, tiny_folder, edit_json):
    edit_json(tiny_folder / "tokenizer_config.json", eos_token="<|pad|>")  # noqa: S106
    for name in ("config.json", "generation_config.json"):
        edit_json(tiny_folder / name, eos_token_id=258)
    model = load_model(config())
    end = model.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert list(model.stop_ids()) == [end, 258]
    assert model.renderer(config().data).render(TASK, "Which?", TASK.test)[0].target_ids[-2] == end


@pytest.mark.parametrize("where", ["template", "prompt", "input", "nowhere"])
def test_a_token_beyond_the_embeddings_is_named_where_it_is_used(config, tiny_folder, edit_json, where):
    kinds = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = json.loads((tiny_folder / "tokenizer.json").read_text())["added_tokens"]
    added.append({"id": 259, "content": "<|turn|>", **kinds, "special": True})
    edit_json(tiny_folder / "tokenizer.json", added_tokens=added)
    if where == "template":
        (tiny_folder / "chat_template.jinja").write_text(f"<|turn|>{CHAT}")
    row = Example("a <|turn|> b" if where == "input" else "a b", "sports")
    prompts = [Prompt("Which?"), Prompt("Which <|turn|>?" if where == "prompt" else "What?")]
    shown = [(replace(TASK, test=(*TASK.test, row)), prompts)]
    if where == "nowhere":
        preflight(config(), shown)
    else:
        assert "'<|turn|>' the number 259, but the model has 259 embeddings" in refused(config(), shown)


def test_targets_that_a_tokenizer_changes_are_counted(config, tiny_folder, warned, edit_json):
    edit_json(tiny_folder / "tokenizer.json", normalizer={"type": "NFKC"})
    task = replace(TASK, train=(Example("x", "plain"), Example("y", "ﬁne")), test=())
    preflight(config(), [(task, [Prompt("Which?")])])
    (line,) = warned
    assert "1 of 2 different targets change" in line
    assert "'ﬁne' comes back as 'fine'" in line


def test_losses_are_not_refused_for_what_only_answers_need(config, tiny_folder):
    (tiny_folder / "chat_template.jinja").write_text(template(CONTENT, THINKING + CONTENT))
    preflight(config(), SHOWN, answers=False)


def test_a_model_without_rotary_positions_can_be_read(config, tiny_folder):
    put(tiny_folder, "Mpt", d_model=32, n_layers=2, n_heads=4, max_seq_len=512, vocab_size=259)
    preflight(config("Wqkv"), SHOWN)
    assert read_model(config().model, "auto", "meta").device.type == "meta"


@pytest.mark.parametrize(
    ("kind", "said"), [("T5", "encoder"), ("Bert", "both directions"), ("ViT", "writes no text")]
)
def test_models_that_do_not_go_on_writing_are_refused_in_a_sentence(config, tiny_folder, kind, said):
    getattr(transformers, f"{kind}Config")().save_pretrained(tiny_folder)
    assert re.fullmatch(rf"Model tiny_llama \(\w+\) .*{said}[^.]*\.", refused(config()))


@pytest.mark.parametrize(("n_positions", "fits"), [(96, False), (1024, True)])
def test_rows_longer_than_the_learned_positions_are_refused(config, tiny_folder, n_positions, fits):
    put(tiny_folder, "GPT2", n_embd=32, n_layer=2, n_head=4, n_positions=n_positions, vocab_size=259)
    settings = config("c_attn", max_input_tokens=600)
    if fits:
        preflight(settings, SHOWN)
    else:
        assert "the model has positions for 96. That is no room for inputs and answers" in refused(settings)
