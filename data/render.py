"""From a task, a prompt and an example to token ids, with the target's place known by construction."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from sapo.conf.errors import UserError
from sapo.data.tasks import Example, Task

MAX_TARGET_TOKENS = 128  # of the published code, beside the longest prompt
_EMPTY_TURN = {"role": "user", "content": ""}


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

    The text is built by concatenation, so braces in an instruction are only characters. `truncation` is
    `input`, or `end`, which cuts where the published code does.
    """

    tokenizer: PreTrainedTokenizerBase
    template_options: dict[str, Any]
    max_input_tokens: int
    truncation: str = "input"

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
        prompts = [self.prompt_text(task, prompt, example.input) for example in examples]
        inputs = self._tokenize(prompts)
        rendered = []
        for example, text, ids in zip(examples, prompts, inputs, strict=True):
            is_shortened = len(ids) > self.max_input_tokens and self.truncation == "input"
            if is_shortened:
                text, ids = self._shorten(task, prompt, example)
            target_ids = self._target_ids(text, ids, task, example)
            whole = Rendered([*ids, *target_ids], len(ids), is_shortened)
            rendered.append(self._cut(whole, for_test) if self.truncation == "end" else whole)
        return rendered

    def _cut(self, whole: Rendered, for_test: bool) -> Rendered:
        """Cut at the end, as published: a test prompt at its limit, prompt and target together at theirs."""
        if for_test:
            ids = whole.prompt_ids[: self.max_input_tokens]
            return Rendered([*ids, *whole.target_ids], len(ids), len(ids) < whole.target_start)
        ids = whole.input_ids[: self.max_input_tokens + MAX_TARGET_TOKENS]
        return Rendered(ids, min(whole.target_start, len(ids)), len(ids) < len(whole.input_ids))

    def prompt_text(self, task: Task, prompt: str, text: str) -> str:
        """The user turn in the model's chat template, up to where the model's answer begins."""
        turn = user_turn(task, prompt, text)
        return self._template([{"role": "user", "content": turn}], add_generation_prompt=True)

    def full_text(self, task: Task, prompt: str, example: Example) -> str:
        """Prompt, target and the template's end of turn as one text."""
        start = self.prompt_text(task, prompt, example.input)
        return start + self._answer(example.target)

    def _template(self, messages: list[dict[str, str]], **options: Any) -> str:
        return str(
            self.tokenizer.apply_chat_template(messages, tokenize=False, **self.template_options, **options)
        )

    @cached_property
    def _empty_prompt(self) -> str:
        return self._template([_EMPTY_TURN], add_generation_prompt=True)

    def _answer(self, target: str) -> str:
        """What the template writes after the generation prompt for an assistant turn with this target."""
        whole = self._template([_EMPTY_TURN, {"role": "assistant", "content": target}])
        if not whole.startswith(self._empty_prompt):
            raise UserError(
                "The chat template writes an answered turn differently from its generation prompt, so the "
                "target's place is unknown. Set model.template_options or model.chat_template."
            )
        return whole[len(self._empty_prompt) :]

    def _target_ids(self, text: str, prompt_ids: list[int], task: Task, example: Example) -> list[int]:
        answer = self._answer(example.target)
        (whole,) = self._tokenize([text + answer])
        n = len(prompt_ids)
        # A tokenizer that merges over the border would train on other prompt tokens than generation sees.
        target_ids = whole[n:] if whole[:n] == prompt_ids else self._tokenize([answer])[0]
        if not target_ids:
            raise UserError(f"Task {task.name}: an example has no target ({example.input[:60]!r}).")
        return target_ids

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        return list(self.tokenizer(texts, add_special_tokens=False)["input_ids"])

    def require_fits(self, task: Task, prompt: str) -> int:
        """Tokens of the prompt without an input; UserError if they are more than `max_input_tokens`."""
        (frame,) = self._tokenize([self.prompt_text(task, prompt, "")])
        if len(frame) > self.max_input_tokens:
            raise UserError(
                f"Task {task.name}: instruction, suffix and chat template alone take {len(frame)} tokens, "
                f"more than data.max_input_tokens={self.max_input_tokens}. Raise it, "
                "or shorten the instruction."
            )
        return len(frame)

    def _shorten(self, task: Task, prompt: str, example: Example) -> tuple[str, list[int]]:
        """The prompt with as much of the input's beginning as fits, and its token ids."""
        frame = self.require_fits(task, prompt)
        encoded = self.tokenizer(example.input, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        keep = min(self.max_input_tokens - frame, len(offsets))
        while True:  # ends: without any input the prompt is the frame, which fits
            text = self.prompt_text(task, prompt, example.input[: offsets[keep - 1][1] if keep else 0])
            (ids,) = self._tokenize([text])
            if len(ids) <= self.max_input_tokens:
                return text, ids
            keep = max(0, keep - (len(ids) - self.max_input_tokens))


def user_turn(task: Task, prompt: str, text: str) -> str:
    """Instruction, input and output-format suffix as one user turn (official file `src/uie_collator.py`)."""
    return prompt + "\n\n" + task.separator + "\n" + text + "\n\n" + task.suffix
