"""The model card holds texts of data and models as texts, whatever they contain."""

import json

from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from sapo.analysis.model_card import code, fenced, model_card
from sapo.analysis.results import load_run

NASTY = "```\n# Not a heading | <b>x</b> [a](b) {input} 中文 `\u2028"
TASK = {
    "task": "task195_sentiment",
    "instruction": NASTY,
    "suffix": "",
    "placeholder": "{INPUT}",
    "messages": [{"role": "user", "content": f"{NASTY}\n\n文本:\n{{INPUT}}"}],
    "text": f"<|im_start|>user\n{NASTY}\n\n文本:\n{{INPUT}}<|im_end|>\n",
}


def card_of(run_folder, **changes):
    model, method = {"weights": "hub:Qwen", "dtype": "bfloat16"}, {"rank": 8, "alpha": 32, "dropout": 0}
    facts = {
        "comparable": {"train": {"task195_sentiment": "t" * 64}, "data": {}},
        "identity": {"model": model, "method": method, "trainer": {"epochs": 1}},
        "environment": {"python": "3.11", "packages": {"torch": "2.13"}, "device": "cpu"},
    }
    name = "Qwen/Qwen3-0.6B"
    exported = {
        "run": "a_run",
        "kind": "adapter",
        "state": {"after": 1, "key": "k" * 64},
        "rank": 8,
        "base": {"model": "qwen|3", "load": name, "revision": "abc", "source": f"hub:{name}"},
        "is_on_hub": True,
        "template_options": {"enable_thinking": False},
        "max_new_tokens": 128,
        "tasks": [TASK | {"drawn": ["One.", "Two."]}],
        "tested": [TASK["task"]],
        "definition": "gem",
    }
    return model_card(load_run(run_folder("a_run", notes=["a <note>"], **facts)), exported | changes)


def test_a_prompt_stays_as_it_is_and_ends_no_block(run_folder):
    card = card_of(run_folder)
    start = card.index("````json\n") + len("````json\n")
    read = json.loads(card[start : card.index("\n````", start)])
    assert read == {name: value for name, value in TASK.items() if name != "task"}
    assert "\n# Not a heading" not in card
    assert "qwen\\|3" not in card  # a hub model is called by its repository


def test_a_hub_model_is_loaded_by_name_and_revision_with_the_template_s_switches(run_folder):
    card = card_of(run_folder)
    assert ModelCard(card).data.library_name == "peft"
    for part in (
        "base_model: Qwen/Qwen3-0.6B\n",
        "A LoRA adapter of rank 8 for Qwen/Qwen3-0.6B, trained on task195_sentiment.\n",
        'from_pretrained("Qwen/Qwen3-0.6B", revision="abc", dtype="auto")',
        "add_generation_prompt=True, enable_thinking=False",
        "by definition `gem`: Lopez-Paz",
        "Training drew from 2 prompts",
        '[\n "One.",\n "Two."\n]',
        "- a &lt;note>",
    ):
        assert part in card


def test_scores_are_those_of_the_state_and_absent_ones_are_dashes(run_folder):
    card = card_of(run_folder)
    row = next(line for line in card.splitlines() if line.startswith("| task195_sentiment"))
    name, rouge, _, labels, _, n = (cell.strip() for cell in row.strip("|").split("|"))
    assert (name, labels, n) == ("task195_sentiment", "-", "20")  # made-up runs have no label match
    assert 60 < float(rouge) < 80
    assert "label match" not in card.split("| score |")[1]


@given(st.text(alphabet="`a\n"))
def test_no_text_ends_its_code(text):
    opening, *inside, closing = fenced(text, "json").split("\n")
    assert opening == f"{closing}json"
    assert not any(line.startswith(closing) for line in inside)
    assert closing not in text
    fence = code(text)[: len(code(text)) - len(code(text).lstrip("`"))]
    assert fence not in text
