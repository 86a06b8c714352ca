"""Rendering: what a model sees of an example, token by token, on three chat templates."""

import re
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import refusal
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sapo.conf.errors import UserError
from sapo.conf.layout import layout_of
from sapo.conf.load import load_one
from sapo.data.benchmarks import load_task
from sapo.data.render import Renderer, as_sent, turns_of
from sapo.data.tasks import Example, Task, own_task, with_separator
from sapo.experiments.model.fetch import model_folder, tiny_tokenizer
from sapo.experiments.model.load import load_tokenizer

TASK = Task("mood", "Name the {mood}.", "Answer:", (), (), ("good", "bad"))
EXAMPLE = Example("so happy", "good")
TINY = Renderer(tiny_tokenizer(), {}, 100_000)  # a token a byte

# The very tokens of TASK and EXAMPLE; a change of any of them changes what models are trained on.
SMOLLM2_TEXT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nName the {mood}.\n\nText:\nso happy\n\nAnswer:<|im_end|>\n"
    "<|im_start|>assistant\ngood<|im_end|>\n"
)
QWEN3_TEXT = (
    "<|im_start|>user\nName the {mood}.\n\nText:\nso happy\n\nAnswer:<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\ngood<|im_end|>\n"
)
LLAMA2_TEXT = "<s>[INST] Name the {mood}.\n\nText:\nso happy\n\nAnswer: [/INST] good </s>"
# fmt: off
GOLDEN = {  # text, tokens of the prompt, tokens of the target
    "smollm2": (
        SMOLLM2_TEXT,
        [
            1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407,
            19712, 8182, 2, 198,  # the system turn
            1, 4093, 198, 5820, 260, 1662, 93, 528, 19181, 198, 198, 8060, 42, 198, 559, 5587, 198, 198,
            21350, 42, 2, 198,  # the user's
            1, 520, 9531, 198,
        ],
        [12018, 2, 198],  # good <|im_end|> newline
    ),
    "qwen3": (
        QWEN3_TEXT,
        [
            151644, 872, 198, 675, 279, 314, 76, 1386, 92, 382, 1178, 510, 704, 6247, 271, 16141, 25,
            151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271,  # assistant, and an empty think block
        ],
        [18536, 151645, 198],
    ),
    "llama2": (
        LLAMA2_TEXT,
        [
            1, 733, 16289, 28793, 6620, 272, 371, 28719, 1004, 2051, 13, 13, 1874, 28747, 13, 667, 4610, 13,
            13, 2820, 16981, 28747, 733, 28748, 16289, 28793,
        ],
        [1179, 28705, 2],  # good, a space, </s>
    ),
}
# fmt: on


@pytest.fixture(scope="module")
def smollm2():
    try:
        model_folder(load_one([]).model)
    except UserError as error:
        pytest.skip(str(error))
    return renderer_of("model=smollm2_135m")


@pytest.fixture(scope="module")
def qwen3(tokenizers):
    return renderer_of("model=qwen3_8b", f"model.tokenizer='{tokenizers / 'qwen3'}'")


@pytest.fixture(scope="module")
def llama2(tokenizers):
    return renderer_of("model=llama2_7b_chat", f"model.tokenizer='{tokenizers / 'llama2'}'")


@pytest.fixture(params=GOLDEN)
def real(request):
    """Each real tokenizer in turn."""
    return request.getfixturevalue(request.param)


def renderer_of(*overrides: str, limit: int = 512) -> Renderer:
    model = load_one(list(overrides)).model
    return Renderer(load_tokenizer(model), dict(model.template_options), limit)


def limited(renderer: Renderer, limit: int) -> Renderer:
    return replace(renderer, max_input_tokens=limit)


def ids_of(renderer: Renderer, text: str) -> list[int]:
    return list(renderer.tokenizer(text, add_special_tokens=False)["input_ids"])


def conversation(renderer: Renderer, task: Task, example: Example) -> str:
    """The two-message conversation as the chat template itself writes it."""
    messages = [
        *turns_of(layout_of(None), task, task.instruction, example.input),
        {"role": "assistant", "content": example.target},
    ]
    return renderer.tokenizer.apply_chat_template(messages, tokenize=False, **renderer.template_options)


# --- golden values -----------------------------------------------------------------------------------------

LAYOUTS = {
    None: [("user", "Say {x}.\n\nText:\na\nb\n\nAnswer:")],
    "plain": [("user", "Say {x}.\n\na\nb\n\nAnswer:")],
    "system": [("system", "Say {x}."), ("user", "a\nb\n\nAnswer:")],
    r"{input}\n--\n{instruction} {suffix}": [("user", "a\nb\n--\nSay {x}. Answer:")],
    "{{ instruction | upper }}: {{ input }}{% if suffix %} ({{ suffix }}){% endif %}": [
        ("user", "SAY {X}.: a\nb (Answer:)")
    ],
    "{system: 'Be brief. {instruction}', user: '{separator} {input}'}": [
        ("system", "Be brief. Say {x}."),
        ("user", "Text: a\nb"),
    ],
    '{"text": "{input}", "do": "{instruction}"}': [("user", '{"text": "a\nb", "do": "Say {x}."}')],
    "{# 1 #} {}\r\n{instruction}{#{input}": [("user", "{# 1 #} {}\r\nSay {x}.{#a\nb")],  # no Jinja
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_turns(layout):
    turns = turns_of(layout_of(layout), TASK, "Say {x}.", "a\nb")
    assert turns == [{"role": role, "content": text} for role, text in LAYOUTS[layout]]
    # Nothing follows the input where there is no suffix, as in the published code.
    shorter = turns_of(layout_of(layout), replace(TASK, suffix=""), "Say {x}.", "a\nb")
    turns[-1]["content"] = re.sub(r"\s*\(?Answer:\)?$", "", turns[-1]["content"])
    assert shorter == turns


def test_an_instruction_that_is_empty_makes_no_system_turn():
    assert [turn["role"] for turn in turns_of(layout_of("system"), TASK, "", "a")] == ["user"]


def test_what_is_sent_is_what_is_rendered(real):
    for layout in LAYOUTS:
        renderer = replace(real, layout=layout)
        for task in (TASK, own_task("t", "Fill {input}.", "Answer:"))[: 1 if "upper" in str(layout) else 2]:
            sent = as_sent(renderer, task, task.instruction)
            (row,) = renderer.render(task, task.instruction, [Example("so happy", "good")])
            text = sent["text"].replace(sent["placeholder"], "so happy")
            assert ids_of(renderer, text) == row.prompt_ids
            assert sent["placeholder"] == ("{INPUT}" if "{input}" in task.instruction else "{input}")


NO_LAYOUTS = [
    ("sytem", "data.layout=sytem: it does not hold the input. Say plain, system"),
    ("{input}", "it does not hold the instruction"),
    ("{instruction} {text}", "there is no part 'text'"),
    ("{instruction} {input} {1}", "there is no part '1'"),  # nor {none}, which are values of Jinja's
    ("{{ instruction }} {{ input", "(Jinja)"),
    ("{{ instruction }} {{ input.x.y }} {{ no }}", "there is no part 'no'"),
    ("{user: '{input}', system: '{instruction}'}", "it takes system, then user"),
    ("{system: {instruction}, user: {input}}", "cannot be read. Put each text in quotes"),
]


@pytest.mark.parametrize(("layout", "message"), NO_LAYOUTS)
def test_layouts_that_cannot_be(layout, message):
    assert message in refusal(load_one, ["task=mini_city", f"data.layout={layout}"])


def test_a_layout_that_fails_on_a_row_is_named():
    with pytest.raises(UserError, match=r"data\.layout: .*\(Jinja\)"):
        turns_of(layout_of("{{ instruction }} {{ input / 2 }}"), TASK, "Do.", "a")


def test_a_row_is_shortened_under_any_layout():
    for layout in LAYOUTS:
        renderer = replace(TINY, max_input_tokens=80, layout=layout)
        (row,) = renderer.render(TASK, "Do.", [Example("word " * 100, "good")])
        assert row.is_shortened
        assert len(row.prompt_ids) <= 80
        text = renderer.tokenizer.decode(row.prompt_ids)
        assert "do." in text.lower()
        assert ("Answer:" in text) == layout_of(layout).reads("suffix")


def test_every_token_of_a_row(request, real):
    """Qwen3 has an empty think block, Llama 2 our template."""
    text, prompt_ids, target_ids = GOLDEN[request.node.callspec.params["real"]]
    assert real.full_text(TASK, TASK.instruction, EXAMPLE) == text
    (rendered,) = real.render(TASK, TASK.instruction, [EXAMPLE])
    assert (rendered.prompt_ids, rendered.target_ids) == (prompt_ids, target_ids)
    assert rendered.input_ids[rendered.target_start :] == target_ids
    assert not rendered.is_shortened


def test_blanks_are_stripped_as_by_metas_template(llama2):
    blanks = Task("mood", "\n Name the {mood}.", "Answer: ", (), ())
    assert llama2.full_text(blanks, blanks.instruction, Example("so happy", " good\n")) == LLAMA2_TEXT


# --- for every template ------------------------------------------------------------------------------------

EXAMPLES = [
    EXAMPLE,
    Example("a {brace} and {0}\n\ttabs, 漢字 and émoji 🙂", "two words"),
    Example("", "B"),
    Example("ends with a colon:", "42.5%"),
]


def test_text_and_tokens_are_those_of_the_conversation_and_of_generation(real):
    for example, rendered in zip(EXAMPLES, real.render(TASK, TASK.instruction, EXAMPLES), strict=True):
        text = conversation(real, TASK, example)
        assert real.full_text(TASK, TASK.instruction, example) == text
        assert rendered.input_ids == ids_of(real, text)
        assert rendered.prompt_ids == ids_of(real, real.prompt_text(TASK, TASK.instruction, example.input))
        assert real.render(TASK, TASK.instruction, [example]) == [rendered]
    assert real.render(TASK, TASK.instruction, []) == []


# --- too long ----------------------------------------------------------------------------------------------


def test_a_long_input_is_shortened_and_nothing_else(real):
    long = Example(" ".join(f"word{number}" for number in range(400)), "a target of several words")
    renderer = limited(real, 100)
    whole, short = renderer.render(TASK, TASK.instruction, [EXAMPLE, long])
    assert (whole.is_shortened, short.is_shortened) == (False, True)
    assert 90 <= len(short.prompt_ids) <= 100
    assert short.target_ids == real.render(TASK, TASK.instruction, [Example("", long.target)])[0].target_ids
    framed = r"Name the \{mood}\.\n\nText:\n(.+)\n\nAnswer:"
    (kept,) = re.findall(framed, real.tokenizer.decode(short.prompt_ids))
    assert long.input.startswith(kept)


@pytest.mark.parametrize(
    ("text", "room", "kept"),
    [
        ("abcdefghij", 10, "abcdefghij"),
        ("abcdefghij", 4, "abcd"),
        ("abcdefghij", 0, ""),
        ("aéé", 3, "aé"),  # é takes two tokens of a byte each
        ("aéé", 4, "aé"),
        ("aéé", 2, "a"),
    ],
)
def test_what_is_kept_with_a_token_a_byte(text, room, kept):
    frame = len("user\nDo.\n\nText:\n\n\nAnswer:\nassistant\n") + 3  # and three special tokens
    renderer = limited(TINY, frame + room)
    (rendered,) = renderer.render(TASK, "Do.", [Example(text, "x")])
    assert f"\n\nText:\n{kept}\n\nAnswer:" in renderer.tokenizer.decode(rendered.input_ids)
    assert rendered.is_shortened == (kept != text)


def test_an_instruction_that_does_not_fit_is_refused(real):
    said = refusal(limited(real, 50).render, TASK, "Think. " * 100, [EXAMPLE])
    assert "more than data.max_input_tokens=50" in said


def test_an_empty_target_is_the_end_of_the_turn(real):
    (rendered,) = real.render(TASK, TASK.instruction, [Example("so happy", "")])
    assert real.tokenizer.eos_token_id in rendered.target_ids
    assert real.tokenizer.decode(rendered.target_ids, skip_special_tokens=True).strip() == ""


@pytest.mark.parametrize(
    ("after", "target", "message"),
    [
        ("", "", "mood: an example has no target ('so happy')"),
        ("{% if add_generation_prompt %}>{% endif %}", "", "target's place is unknown"),
        ("{% if add_generation_prompt %}>{% endif %}", "good", "target's place is unknown"),
    ],
)
def test_templates_that_leave_nothing_to_learn_are_refused(after, target, message):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}" + after
    assert message in refusal(Renderer(tokenizer, {}, 512).render, TASK, "Do.", [Example("so happy", target)])


def test_a_vast_input_costs_what_its_beginning_costs(real):
    renderer, vast = limited(real, 100), "In the year 1905, word after word. " * 2_000_000
    tracemalloc.start()
    try:
        (rendered,) = renderer.render(TASK, TASK.instruction, [Example(vast, "good")])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(vast) / 2  # most of it the table of Qwen3's tokens
    (of_less,) = renderer.render(TASK, TASK.instruction, [Example(vast[:5000], "good")])
    assert rendered == of_less
    assert rendered.is_shortened


# --- any text ----------------------------------------------------------------------------------------------

TEXTS = st.text(max_size=40)


@given(instruction=TEXTS, suffix=TEXTS, text=TEXTS, target=TEXTS)
def test_tokens_read_back_as_the_text(instruction, suffix, text, target):
    task = Task("any", instruction, suffix, (), ())
    (rendered,) = TINY.render(task, instruction, [Example(text, target)])
    decode: Callable[[list[int]], str] = TINY.tokenizer.decode
    assert decode(rendered.prompt_ids) == TINY.prompt_text(task, instruction, text)
    assert decode(rendered.target_ids) == target + "<|im_end|>\n"


@given(text=TEXTS, room=st.integers(0, 60))
def test_what_is_kept_is_a_beginning_that_fits(text, room):
    frame = len(TINY.render(TASK, "Do.", [Example("", "x")])[0].prompt_ids)
    (rendered,) = limited(TINY, frame + room).render(TASK, "Do.", [Example(text, "x")])
    before, after = TINY.prompt_text(TASK, "Do.", "|||").split("|||")
    kept = TINY.tokenizer.decode(rendered.prompt_ids).removeprefix(before).removesuffix(after)
    assert text.startswith(kept)
    assert len(rendered.prompt_ids) <= frame + room
    assert rendered.is_shortened == (len(text.encode()) > room) == (kept != text)


@given(text=st.text(alphabet="ab .é漢\n", max_size=400), limit=st.integers(40, 60))
def test_what_is_cut_before_it_is_tokenized_would_be_cut_anyway(text, limit):
    renderer, whole = limited(TINY, limit), limited(TINY, limit)
    whole.__dict__["_most_characters"] = 10**9
    renderer.__dict__["_most_characters"] = limit  # a token of the tiny tokenizer is one byte
    example = [Example(text, "x")]
    assert renderer.render(TASK, "Do.", example) == whole.render(TASK, "Do.", example)


# --- cut where the published code cuts ----------------------------------------------------------------------


def test_truncation_at_the_end_cuts_targets_in_training_and_the_suffix_in_tests():
    limit = 120
    whole = limited(TINY, 10_000)
    published = replace(TINY, max_input_tokens=limit, truncation="end")
    examples = [Example("word " * n, "good") for n in (2, 60, 400)]
    full = whole.render(TASK, TASK.instruction, examples)
    for expected, found in zip(full, published.render(TASK, TASK.instruction, examples), strict=True):
        assert found.input_ids == expected.input_ids[: limit + 128]
        assert found.target_ids == expected.input_ids[: limit + 128][expected.target_start :]
        assert found.is_shortened == (len(expected.input_ids) > limit + 128)
    tested = published.render(TASK, TASK.instruction, examples, for_test=True)
    for expected, found in zip(full, tested, strict=True):
        assert found.prompt_ids == expected.prompt_ids[:limit]
        assert found.target_ids == expected.target_ids
        assert found.is_shortened == (expected.target_start > limit)
    assert [len(rendered.target_ids) > 0 for rendered in published.render(TASK, "x", examples)][-1] is False


def test_a_llama2_row_that_is_cut_begins_twice_and_no_other(llama2):
    example = Example("word " * 50, "good")
    (whole,) = llama2.render(TASK, TASK.instruction, [example])
    size = len(whole.input_ids)
    for limit, is_cut in ((size - 128, True), (size - 127, False)):
        published = Renderer(llama2.tokenizer, llama2.template_options, limit, "end")
        (found,) = published.render(TASK, TASK.instruction, [example])
        assert found.is_shortened == is_cut
        assert found.input_ids == ([1, *whole.input_ids][:size] if is_cut else whole.input_ids)
        assert found.target_start == whole.target_start + is_cut
    (tested,) = Renderer(llama2.tokenizer, {}, 40, "end").render(TASK, "x", [example], for_test=True)
    assert tested.prompt_ids[:3] == [1, 1, 733]
    assert len(tested.prompt_ids) == 40


def test_the_line_before_an_input_can_be_said():
    for setting, lines in (
        ("Input:", {"en": "Input:", "zh": "Input:"}),
        ('{en: "Eingabe:", zh: "输入："}', {"en": "Eingabe:", "zh": "输入："}),
    ):
        config = load_one(["task=mini_city", f"data.separator={setting}"])
        assert load_task("mini_city", config).separator == lines["en"]
        chinese = with_separator(own_task("t", "判断文本的态度。"), config.data.separator)
        assert chinese.separator == lines["zh"]
    for setting, message in (
        ("{zh: x}", "data.separator has no line for en, the language of mini_city"),
        ("{de: x}", "'de' is not en"),
        ("{en: Text:}", "Put each text in quotes"),
        ("tasks", "be task, prompt, or the line itself"),
    ):
        given = ["task=mini_city", f"data.separator={setting}"]
        assert message in refusal(lambda given: load_task("mini_city", load_one(given)), given)


@pytest.mark.parametrize(
    ("separator", "prompt", "line"),
    [
        ("task", "这条文字是什么意思？", "文本:"),
        ("prompt", "这条文字是什么意思？", "Text:"),
        ("prompt", "判断态度。", "文本:"),
    ],
)
def test_the_published_code_has_the_prompt_choose_the_separator(separator, prompt, line):
    task = own_task("stance", "判断文本的态度，输出A或者B。")
    renderer = replace(TINY, separator=separator)
    assert f"\n\n{line}\n支持" in renderer.prompt_text(task, prompt, "支持")


@pytest.mark.parametrize(
    ("instruction", "language"),
    [
        ("判断文本的态度，输出A或者B。", "zh"),
        ("고객 메시지의 주제를 고르세요.", "en"),
        ("次の文章の話題を選んでください。", "en"),
        ("고객 메시지(顧客相談內容記錄)의 주제", "en"),
        ("Определите тему обращения.", "en"),
        ("Translate 你好 into English.", "en"),
        ("", "en"),
    ],
)
def test_the_chinese_separator_is_for_chinese(instruction, language):
    task = own_task("t", instruction)
    assert (task.language, task.separator) == (language, {"zh": "文本:", "en": "Text:"}[language])


def test_a_tokenizer_that_merges_over_the_border_trains_on_the_tokens_that_answers_are_made_of():
    """A merge of the last character of the prompt with the first of the target: both stay apart."""
    plain = tiny_tokenizer()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*alphabet, "\u010ag"])}  # a newline and g
    merging = Tokenizer(models.BPE(vocab=vocabulary, merges=[("\u010a", "g")]))
    merging.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own = PreTrainedTokenizerFast(tokenizer_object=merging, **plain.special_tokens_map)
    own.chat_template = plain.chat_template
    renderer = Renderer(own, {}, 100)
    (row,) = renderer.render(TASK, "Say.", [EXAMPLE])
    text = renderer.prompt_text(TASK, "Say.", EXAMPLE.input)
    whole = own(text + "good<|im_end|>\n", add_special_tokens=False)["input_ids"]
    assert vocabulary["\u010ag"] in whole  # the two would be one token
    assert row.prompt_ids == own(text, add_special_tokens=False)["input_ids"]
    assert row.target_ids == own("good<|im_end|>\n", add_special_tokens=False)["input_ids"]
