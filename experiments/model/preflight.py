"""What of a model, its template, adapter and rows would make numbers wrong, found before any is computed."""

import inspect
import logging
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from sapo.conf.errors import UserError
from sapo.conf.layout import layout_of
from sapo.conf.schema import Config
from sapo.data.prompts import Prompt
from sapo.data.remembering import remembered, stamp
from sapo.data.render import CLOCK, MAX_TARGET_TOKENS, Renderer, rendering
from sapo.data.tasks import Task
from sapo.experiments.model.adapters import ALL_LINEAR, LINEAR
from sapo.experiments.model.evaluation import decoded
from sapo.experiments.model.fetch import model_folder
from sapo.experiments.model.identity import template_text
from sapo.experiments.model.load import load_renderer, read_model, stop_ids

Shown = tuple[Task, Sequence[Prompt]]  # a task and the prompts that it is shown under
_log = logging.getLogger(__name__)
known: dict[str, tuple[PreTrainedModel, Renderer]] = {}  # models on device `meta`, by `read_once`
# Different targets of a task that are read back: more show the same. Measured: 0.2 s on one core.
MOST_TARGETS = 2000


def preflight(
    config: Config, prompts: Sequence[Shown] = (), *, trains: bool = True, answers: bool = True
) -> None:
    """Checks a config's model, template, adapter and rows without reading any weight.

    `prompts` are the tasks with the prompts that they will be shown under; `trains` says whether an adapter
    is trained, `answers` whether answers are generated. UserError, with the way out, for what would make
    every number wrong; what else a user should know is logged as a warning, each line once a process.
    """
    key = read_once(config)
    model, renderer = known[key]
    answers = answers and config.evaluator.answers
    if answers and "past_key_values" not in inspect.signature(model.forward).parameters:
        raise UserError(
            f"Model {config.model.name}: {type(model).__name__} keeps no keys and values (past_key_values), "
            "from which answers are generated. `sapo select` can rank prompts for it; runs need another one."
        )
    if trains:
        require_targets(model, config.model.lora_targets)
    require_known_tokens(model, renderer, prompts)
    require_positions(model, renderer, prompts, config.evaluator.max_new_tokens if answers else 0)
    for note in notes_on(renderer, [task for task, _ in prompts]):
        _warn(note)
    for task, shown in prompts:
        require_shown(renderer, task, shown)
        if answers:
            for note in target_notes(task, key, config.evaluator.clean_up_spaces):
                _warn(note)


def read_once(config: Config) -> str:
    """Reads the model on device `meta` and its renderer, and returns the key under which `known` has them.

    The last ones are kept while their files stay, since many runs share them.
    """
    model = config.model
    files = stamp(model_folder(model), *([Path(model.tokenizer)] if model.tokenizer else []))
    template = template_text(model) if model.chat_template else None
    key = repr((model, rendering(config.data), files, template))
    if key not in known:
        known.clear()
        known[key] = (read_model(model, "auto", "meta"), load_renderer(config))
    return key


@lru_cache(maxsize=256)
def _warn(note: str) -> None:
    """A line on stderr, once."""
    _log.warning("%s", note)


def require_targets(model: PreTrainedModel, targets: Sequence[str]) -> None:
    """UserError unless every name in `model.lora_targets` means linear layers of the model alone."""
    if list(targets) == [ALL_LINEAR]:
        return
    modules = dict(model.named_modules())
    linear = {name.rpartition(".")[2] for name, module in modules.items() if isinstance(module, LINEAR)}
    for target in targets:
        found = [module for name, module in modules.items() if f".{name}".endswith(f".{target}")]
        others = [type(module).__name__ for module in found if not isinstance(module, LINEAR)]
        if found and not others:
            continue
        near = get_close_matches(target, linear, 1)
        reason = f"no layer of {type(model).__name__} is called {target}"
        reason += f" (did you mean {near[0]}?)" if near else ""
        if others:
            reason = f"{target} is {others[0]}, not a linear layer, and its adapter would be lost"
        raise UserError(
            f"model.lora_targets: {reason}. Its linear layers: {', '.join(sorted(linear))}. "
            f"[{ALL_LINEAR}] means all but the output layer."
        )


def notes_on(renderer: Renderer, tasks: Sequence[Task]) -> Iterator[str]:
    """What the user should know of chat template and layout; UserError if what is given is not written."""
    renderer.answer("text")
    if "strftime_now" in renderer.tokenizer.get_chat_template():
        yield f"The chat template writes the date: it is given {CLOCK:%d %B %Y} always."
    if renderer.end_of_turn is None:
        yield (
            "The chat template writes no end after an answer, so none is learned: answers may run on to "
            "evaluator.max_new_tokens. model.chat_template=FILE.jinja sets another template."
        )
    layout = layout_of(renderer.layout)
    for task in tasks:
        if task.suffix and not layout.reads("suffix"):
            yield f"data.layout has no suffix: that of {task.name} is left out ({task.suffix[:40]!r})."
    if layout.begins_with_input:
        yield (
            "data.layout has the input before the instruction: rows have no instruction in common to compute "
            "once, so that scoring and training take longer."
        )


def require_shown(renderer: Renderer, task: Task, prompts: Sequence[Prompt]) -> None:
    """UserError unless the prompts fit, and stand with the input in what the model reads."""
    examples = task.train or task.test
    for prompt in prompts:
        renderer.require_fits(task, prompt.text)
        if not examples:
            continue
        text = renderer.prompt_text(task, prompt.text, examples[0].input)
        for what, part in (("instruction", prompt.text), ("input", examples[0].input)):
            if part.strip() not in text:
                raise UserError(
                    f"Task {task.name}: the chat template leaves out the {what} ({part.strip()[:40]!r}): "
                    "the model would not read it. Set model.chat_template=FILE.jinja"
                    + (", or another data.layout." if renderer.layout else ".")
                )


@remembered(256)
def target_notes(task: Task, key: str, clean_up_spaces: bool) -> tuple[str, ...]:
    """What the user should know of targets that cannot be answered; UserError if none of the task's can.

    The model and its renderer are those that `known` has under the key.
    """
    model, renderer = known[key]
    stops = set(stop_ids(model, renderer))

    def read_back(target: str) -> str:
        """What an evaluation reads in the answer of a model that has learned the target to the token."""
        ids = list(renderer.tokenizer(renderer.answer(target), add_special_tokens=False)["input_ids"])
        end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
        return decoded(renderer.tokenizer, ids[:end], clean_up_spaces)

    targets = list(dict.fromkeys(example.target for example in (*task.test, *task.train)))[:MOST_TARGETS]
    lost = [target for target in targets if read_back(target).split() != target.split()]
    if not lost:
        return ()
    shown = f"{lost[0][:40]!r} comes back as {read_back(lost[0])[:60]!r}"
    if len(lost) == len(targets):
        raise UserError(
            f"Task {task.name}: no target can be answered: {shown}, through chat template and tokenizer. "
            "model.template_options={enable_thinking: false} or model.chat_template=FILE.jinja may help."
        )
    return (
        f"Task {task.name}: {len(lost)} of {len(targets)} different targets change through the tokenizer, so "
        f"that the right answer does not score 100: {shown}.",
    )


def require_known_tokens(model: PreTrainedModel, renderer: Renderer, prompts: Sequence[Shown]) -> None:
    """UserError if template, prompts or rows hold a token for which the model has no embedding."""
    embeddings: Any = model.get_input_embeddings()
    n_known = len(embeddings.weight)
    beyond = {token: text for text, token in renderer.tokenizer.get_vocab().items() if token >= n_known}
    if not beyond:
        return  # the usual case, in which no text needs to be read
    texts = [renderer.answer("text")]
    for task, shown in prompts:
        texts += [renderer.prompt_text(task, prompt.text, "") for prompt in shown]
        texts += [text for row in (*task.train, *task.test) for text in (row.input, row.target)]
    for ids in renderer.tokenizer(texts, add_special_tokens=False)["input_ids"]:
        if ids and max(ids) >= n_known:
            raise UserError(
                f"The tokenizer gives the token {beyond[max(ids)]!r} the number {max(ids)}, but the model "
                f"has {n_known} embeddings. Take the tokenizer that belongs to it (model.tokenizer=FOLDER)."
            )


def require_positions(
    model: PreTrainedModel, renderer: Renderer, prompts: Sequence[Shown], max_new_tokens: int
) -> None:
    """UserError if a model that learned an embedding a position has fewer of them than a row has tokens."""
    limit = getattr(model.config, "max_position_embeddings", None)
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)][1:]
    if limit is None or not any(limit <= table.num_embeddings <= limit + 2 for table in tables):
        return  # rotary and other computed positions have no end
    room = limit - max(max_new_tokens, MAX_TARGET_TOKENS)
    way = f"Set data.max_input_tokens={room}, or take another model."
    if room < 16:  # the least that the setting may be
        way = "That is no room for inputs and answers: take another model."
    for task, prompt in ((task, prompt) for task, shown in prompts for prompt in shown):
        rows = renderer.render(task, prompt.text, (*task.train, *task.test))
        ends = [max(len(row.input_ids), len(row.prompt_ids) + max_new_tokens) for row in rows]
        if max(ends, default=0) > limit:
            raise UserError(
                f"Task {task.name}: a row takes {max(ends)} tokens with its answer, and the model has "
                f"positions for {limit}. {way}"
            )
