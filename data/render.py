"""From a task, a prompt and an example to token ids, with the target's place known by construction."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sapo.conf.errors import UserError
from sapo.conf.layout import Layout, layout_of
from sapo.conf.schema import DataConfig
from sapo.data.tasks import SEPARATORS, Example, Task

MAX_TARGET_TOKENS = 128  # of the published code, beside the longest prompt
PLACEHOLDERS = ("{input}", "{INPUT}", "<<input>>", "<<INPUT>>")  # the first that no instruction has
PUBLISHED_MARK = "态度"  # "attitude": the published code takes a prompt that has it for Chinese
CLOCK = datetime(2024, 7, 26)
_SOME_TEXT = "text"  # some templates refuse an empty turn
_SOME_TURN = {"role": "user", "content": _SOME_TEXT}


@dataclass(frozen=True, slots=True)
class Rendered:
    """One example as token ids: `input_ids[target_start:]` is the target with the template's end of turn."""

    input_ids: list[int]
    target_start: int
    is_shortened: bool = False

    @property
    def prompt_ids(self) -> list[int]:
        """What a model is given to generate from."""
        return self.input_ids[: self.target_start]

    @property
    def target_ids(self) -> list[int]:
        """What a model is trained to give."""
        return self.input_ids[self.target_start :]


@dataclass(frozen=True)
class Renderer:
    """A tokenizer with its chat template's switches and a length limit.

    Braces in an instruction are only characters. `truncation` is `input`, or `end`, which cuts where the
    published code does; with `separator` `prompt` the prompt's text decides on it as in that code, else it is
    the task's. `layout` is `data.layout`.
    """

    tokenizer: PreTrainedTokenizerBase
    template_options: dict[str, Any]
    max_input_tokens: int
    truncation: str = "input"
    separator: str = "task"
    layout: str | None = None

    def render(
        self, task: Task, prompt: str, examples: Sequence[Example], for_test: bool = False
    ) -> list[Rendered]:
        """All examples under one prompt.

        An input that makes the prompt longer than `max_input_tokens` loses its end; instruction, suffix,
        template and target stay whole. Raises UserError where even an empty input does not fit, or where
        a target has no tokens. With truncation `end` whatever is too long is cut from its end, so that a
        training row can lose its target and a test prompt (`for_test`) its suffix.
        """
        if not examples:
            return []
        limit = self.max_input_tokens
        # No input that fits has more characters: longer ones are cut before anything of them is tokenized.
        inputs = [e.input if len(e.input) <= limit else e.input[: self._most_characters] for e in examples]
        prompts = [self.prompt_text(task, prompt, text) for text in inputs]
        rendered = []
        for example, given, text, ids in zip(examples, inputs, prompts, self._tokenize(prompts), strict=True):
            is_long = len(ids) > limit or len(given) < len(example.input)
            is_shortened = is_long and self.truncation == "input"
            if is_shortened:
                text, ids = self._shorten(task, prompt, given)
            answer = self.answer(example.target)
            (both,) = self._tokenize([text + answer])
            # A tokenizer that merges over the border would train on other prompt tokens than generation sees.
            target_ids = both[len(ids) :] if both[: len(ids)] == ids else self._tokenize([answer])[0]
            if not target_ids:
                raise UserError(f"Task {task.name}: an example has no target ({example.input[:60]!r}).")
            whole = Rendered([*ids, *target_ids], len(ids), is_shortened)
            rendered.append(self._cut(whole, for_test) if self.truncation == "end" else whole)
        return rendered

    @cached_property
    def _most_characters(self) -> int:
        """A token stands for at most as many characters as the longest in the vocabulary has."""
        return (self.max_input_tokens + MAX_TARGET_TOKENS) * max(map(len, self.tokenizer.get_vocab()))

    def _cut(self, whole: Rendered, for_test: bool) -> Rendered:
        """Cut at the end, as published: a test prompt at its limit, prompt and target together at theirs.

        A text that is cut is written out and read again there, and gets the tokenizer's own beginning of text
        before the template's (Llama-2; official file `src/uie_collator.py`, `decoder_call`).
        """
        limit = self.max_input_tokens + (0 if for_test else MAX_TARGET_TOKENS)
        own = self.tokenizer("")["input_ids"][:1]
        again = own if own == [self.tokenizer.bos_token_id] == whole.input_ids[:1] else []
        ids = [*again, *(whole.prompt_ids if for_test else whole.input_ids)]
        if len(ids) <= limit:
            return whole
        ids, start = ids[:limit], min(len(again) + whole.target_start, limit)
        return Rendered([*ids, *whole.target_ids] if for_test else ids, start, True)

    def messages(self, task: Task, prompt: str, text: str) -> list[dict[str, str]]:
        """The turns that the model answers."""
        if self.separator == "prompt":
            task = replace(task, separator=SEPARATORS["zh" if PUBLISHED_MARK in prompt else "en"])
        return turns_of(layout_of(self.layout), task, prompt, text)

    def asked(self, messages: list[dict[str, str]]) -> str:
        """Turns in the model's chat template, up to where the model's answer begins."""
        return self._template(messages, add_generation_prompt=True)

    def prompt_text(self, task: Task, prompt: str, text: str) -> str:
        """The same of an input under a prompt."""
        return self.asked(self.messages(task, prompt, text))

    def full_text(self, task: Task, prompt: str, example: Example) -> str:
        """Prompt, target and the template's end of turn as one text."""
        return self.prompt_text(task, prompt, example.input) + self.answer(example.target)

    def _template(self, messages: list[dict[str, str]], **options: Any) -> str:
        try:
            template = with_fixed_clock(self.tokenizer.get_chat_template())
            options = {"chat_template": template, **self.template_options, **options}
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options))
        except (TemplateError, TypeError, ValueError) as error:
            others = ", or a data.layout without system turn" if messages[0]["role"] == "system" else ""
            raise UserError(
                f"The chat template cannot write the turn {messages[-1]['content'][:60]!r}: {error}. "
                f"Set model.chat_template=FILE.jinja{others}."
            ) from error

    @cached_property
    def _some_prompt(self) -> str:
        return self._template([_SOME_TURN], add_generation_prompt=True)

    def answer(self, target: str) -> str:
        """What the template writes after the generation prompt for an assistant turn with this target."""
        whole = self._template([_SOME_TURN, {"role": "assistant", "content": target}])
        if not whole.startswith(self._some_prompt):
            raise UserError(
                "The chat template writes an answered turn differently from its generation prompt (which may "
                "open a block of thoughts), so the target's place is unknown. Set model.template_options, or "
                "model.chat_template=FILE.jinja to a template without."
            )
        return whole[len(self._some_prompt) :]

    @cached_property
    def end_of_turn(self) -> int | None:
        """The token by which the template ends an answer; None where it writes none."""
        whole = self._template([_SOME_TURN, {"role": "assistant", "content": _SOME_TEXT}])
        (ids,) = self._tokenize([whole.rpartition(_SOME_TEXT)[2]])
        controls = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        return next((token for token in ids if token in controls), None)

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        return list(self.tokenizer(texts, add_special_tokens=False)["input_ids"])

    def require_fits(self, task: Task, prompt: str) -> int:
        """Tokens of the prompt without an input; UserError if they are more than `max_input_tokens`."""
        (frame,) = self._tokenize([self.prompt_text(task, prompt, "")])
        if len(frame) > self.max_input_tokens:
            limit = f"data.max_input_tokens={self.max_input_tokens}. Raise it, or shorten the instruction"
            frame_of = f"Task {task.name}: instruction, suffix and chat template alone"
            raise UserError(f"{frame_of} take {len(frame)} tokens, more than {limit}.")
        return len(frame)

    def _shorten(self, task: Task, prompt: str, given: str) -> tuple[str, list[int]]:
        """The prompt with as much of the input's beginning as fits, and its token ids."""
        frame = self.require_fits(task, prompt)
        encoded = self.tokenizer(given, add_special_tokens=False, return_offsets_mapping=True)
        ends = [0, *(end for _, end in encoded["offset_mapping"])]
        keep = min(self.max_input_tokens - frame, len(ends) - 1)
        while True:  # ends: without any input the prompt is the frame, which fits
            text = self.prompt_text(task, prompt, given[: ends[keep]])
            (ids,) = self._tokenize([text])
            if len(ids) <= self.max_input_tokens:
                return text, ids
            keep = max(0, keep - (len(ids) - self.max_input_tokens))


def explained(
    renderer: Renderer, task: Task, prompt: str, example: Example, for_test: bool = False
) -> dict[str, Any]:
    """An example as a model sees it, token by token, as JSON values; `for_test` as in `Renderer.render`."""
    (rendered,) = renderer.render(task, prompt, [example], for_test)
    decode, ids = renderer.tokenizer.decode, rendered.input_ids
    return {
        "text": decode(ids) if rendered.is_shortened else renderer.full_text(task, prompt, example),
        "input_ids": ids,
        "target_start": rendered.target_start,
        "target_ids": rendered.target_ids,
        "tokens": [decode([token]) for token in ids],
        "shortened": rendered.is_shortened,
    }


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts that a tokenizer or its chat template takes for marks of its own wherever they stand."""
    template = str(tokenizer.chat_template)
    added = tokenizer.added_tokens_decoder.values()
    marks = [token.content for token in added if token.special or token.content in template]
    marks += re.findall(r"\[/?INST\]|<</?SYS>>", template)
    return sorted({mark for mark in marks if mark.strip()})


def rendering(data: DataConfig) -> tuple[int, str, str, str | None]:
    """What of a config says how rows are rendered, as `Renderer` takes it after the template's options."""
    return data.max_input_tokens, data.truncation, data.separator, data.layout


def turns_of(layout: Layout, task: Task, prompt: str, text: str) -> list[dict[str, str]]:
    """An input under a prompt as the turns that the model answers."""
    return layout.messages(instruction=prompt, input=text, suffix=task.suffix, separator=task.separator)


def as_sent(renderer: Renderer, task: Task, prompt: str) -> dict[str, Any]:
    """What production sends for the input that `placeholder` stands for: turns, and the template's text."""
    free = (name for name in PLACEHOLDERS if name not in prompt + task.suffix)
    placeholder = next(free, PLACEHOLDERS[-1])
    return {
        "placeholder": placeholder,
        "messages": renderer.messages(task, prompt, placeholder),
        "text": renderer.prompt_text(task, prompt, placeholder),
    }


def with_fixed_clock(template: str) -> str:
    """A chat template for which it is always `CLOCK`: what it writes would change from day to day."""
    if "strftime_now" not in template:
        return template
    codes = [*"aAwdbBmyYHIpMSfjUWcxXDFTRe", "-d", "-m", "-H", "-I", "-M", "-S", "-j"]
    texts = "".join(f" | replace('%{code}', '{CLOCK.strftime('%' + code)}')" for code in codes)
    return f"{{%- macro strftime_now(format) %}}{{{{ format{texts} }}}}{{%- endmacro %}}\n{template}"
