"""Which wording of an instruction to train with: candidates ranked by their loss before the update.

For objects that a caller already has; nothing is written, and the model is left as it was found.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from scipy.stats import t as student
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sapo.conf.errors import UserError, unknown
from sapo.data.hygiene import distinct_rows
from sapo.data.own import examples_of, require_enough
from sapo.data.prompts import ORIGINAL, Prompt
from sapo.data.render import Renderer, user_turn
from sapo.data.subset import draw
from sapo.data.tasks import Example, Task, own_task
from sapo.experiments.model.adapters import plain
from sapo.experiments.model.budgets import reading_tokens
from sapo.experiments.model.forward import shared_prefix
from sapo.experiments.model.preflight import require_known_tokens, require_shown
from sapo.experiments.model.scoring import example_losses, require_finite

LEVEL = 0.05
TEST = "paired t-test over distinct examples"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """A difference of two prompts' losses in nats a token, with its 95 % interval and p-value."""

    estimate: float
    low: float
    high: float
    p: float

    @property
    def is_noise(self) -> bool:
        """Whether a difference of zero cannot be ruled out."""
        return self.p >= LEVEL

    def __str__(self) -> str:
        p = "p < 0.0001" if self.p < 1e-4 else f"p = {self.p:.2g}"
        # Adding 0 makes a rounded -0 a 0.
        estimate, low, high = (round(value, 3) + 0.0 for value in (self.estimate, self.low, self.high))
        return f"{estimate:+.3f} [{low:+.3f}, {high:+.3f}], {p}"


@dataclass(frozen=True)
class Selection:
    """The candidates of one instruction, ranked, and the one to train with.

    `ranking` has a row a candidate, best first: `rank`, `index` (-1: the original), `text`, `loss` (nats a
    token) with `loss_low` and `loss_high` (95 %), `difference` to the original with `difference_low`,
    `difference_high` and `p` (paired t over examples, Bonferroni over the paraphrases), `n_examples`,
    `n_tokens` (of the targets) and `prompt_tokens` (of the wording). `losses`: a row a candidate and example.
    """

    chosen: Prompt
    ranking: pd.DataFrame
    gain: Difference  # the choice minus the original, corrected for the number of paraphrases
    lead: Difference | None  # the choice minus the runner-up; None where nothing else could be chosen
    runner_up: Prompt | None
    losses: pd.DataFrame
    task: Task = field(repr=False)
    columns: tuple[str, str] | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_shortened(self) -> int:
        """Scored examples whose input was cut under at least one candidate."""
        return int(self.losses.loc[self.losses["is_shortened"], "example"].nunique())

    @property
    def n_distinct(self) -> int:
        """Scored examples that are no repetition of another."""
        return len(set(distinct_rows(self.task.train)))

    @property
    def verdict(self) -> list[str]:
        """Sentences for people: what was chosen, and which differences are noise."""
        return [_choice_in_words(self), *_lead_in_words(self)]

    def render(self, examples: Iterable[Any], index: int | None = None) -> list[dict[str, Any]]:
        """Examples, in any form that `select_prompt` takes, as TRL's conversational prompt and completion.

        Under the chosen wording, or under the candidate `index`.
        """
        return list(self.rendered(examples_of(examples, self.columns, self.task), index))

    def rendered(self, examples: Iterable[Example], index: int | None = None) -> Iterator[dict[str, Any]]:
        """The same, one at a time."""
        text = self.chosen.text if index is None else self._text(index)
        options = {"chat_template_kwargs": dict(self.template_options)} if self.template_options else {}
        for example in examples:
            turn = user_turn(self.task, text, example.input)
            yield {
                "prompt": [{"role": "user", "content": turn}],
                "completion": [{"role": "assistant", "content": example.target}],
                **options,
            }

    def _text(self, index: int) -> str:
        texts = dict(zip(self.ranking["index"], self.ranking["text"], strict=True))
        if index not in texts:
            raise UserError(f"No candidate {index}: there are {min(texts)} to {max(texts)}.")
        return str(texts[index])


def select_prompt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Iterable[Any],
    candidates: Sequence[str],
    *,
    original: str | None = None,
    columns: tuple[str, str] | None = None,
    separator: str | None = None,
    suffix: str = "",
    n_examples: int = 64,
    seed: int = 0,
    name: str = "of the examples",
    reduction: str = "token",
    include_original: bool = True,
    template_options: Mapping[str, Any] | None = None,
    max_input_tokens: int = 1536,
    batch_tokens: int | None = None,
    on_scored: Callable[[Prompt], None] | None = None,
) -> Selection:
    """Ranks wordings of an instruction by the loss that `model`, as it is now, has under each.

    Args:
        model: a causal language model of Transformers, or a PeftModel. It is neither moved nor changed;
            training mode and gradients are afterwards as they were.
        tokenizer: its tokenizer, with a chat template.
        examples: training examples: (input, target) pairs, dicts, or a dataset's split.
        candidates: the wordings; the first is the original, unless `original` gives it.
        columns: names of the input's and the target's column of dicts; guessed if not given.
        separator: the line before the input; `Text:` or its Chinese form if not given.
        suffix: output format that follows every input and is not varied.
        n_examples: how many examples are scored; all if there are no more.
        seed: decides with `name` and the number of examples which are drawn.
        name: the task's name; given it, the rows are those that `sapo train` and `sapo select` score.
        reduction: `token` (total loss over total target tokens) or `example` (mean of examples' means).
        include_original: whether the original can be chosen; it is scored in any case.
        template_options: switches of the chat template, such as `{"enable_thinking": False}`.
        max_input_tokens: longest prompt; the inputs of longer ones are cut, never the instruction.
        batch_tokens: tokens in one forward pass, padding included; what suits the device if not given.
        on_scored: called after each candidate.

    Raises UserError for what is wrong with examples, candidates or tokenizer, WorkError for a loss that is
    not finite.
    """
    prompts = _prompts(candidates, original)
    _require_usable(model, tokenizer, reduction)
    task = own_task(name, prompts[0].text, suffix)
    task = replace(task, separator=task.separator if separator is None else separator)
    drawn, n_rows = draw(examples_of(examples, columns, task), n_examples, "random", seed, name)
    require_enough(drawn, n_rows)
    task = replace(task, train=drawn)
    renderer = Renderer(tokenizer, dict(template_options or {}), max_input_tokens)
    require_shown(renderer, task, prompts)
    require_known_tokens(model, renderer, [(task, prompts)])
    budget = reading_tokens(model, batch_tokens)
    losses = _losses(model, renderer, task, prompts, budget, on_scored)
    return _selection(prompts, losses, renderer, task, columns, reduction, include_original)


def _require_usable(model: Any, tokenizer: PreTrainedTokenizerBase, reduction: str) -> None:
    adapter = getattr(model, "active_peft_config", None)
    if adapter is not None and adapter.is_prompt_learning:
        raise UserError(
            f"The adapter is of kind {adapter.peft_type}, which puts learned tokens before every prompt: the "
            "losses would be wrong. Adapters that change weights, such as LoRA, can be used."
        )
    if not tokenizer.chat_template:
        raise UserError("The tokenizer has no chat template; set tokenizer.chat_template.")
    if reduction not in ("token", "example"):
        raise unknown("reduction", reduction, ("token", "example"))


def _prompts(candidates: Sequence[str], original: str | None) -> list[Prompt]:
    """The candidates with the original first; UserError if there is nothing to choose from."""
    if isinstance(candidates, str):
        raise UserError("candidates is one text; give a list of wordings.")
    texts = list(candidates) if original is None else [original, *(c for c in candidates if c != original)]
    empty = [i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
    if empty:
        raise UserError(f"candidate {empty[0]} is empty or no text.")
    if len(texts) < 2:
        raise UserError("Give at least two wordings: the original instruction and a paraphrase of it.")
    return [Prompt(text, index) for index, text in enumerate(texts, start=ORIGINAL)]


def _losses(
    model: PreTrainedModel,
    renderer: Renderer,
    task: Task,
    prompts: Sequence[Prompt],
    budget: int,
    on_scored: Callable[[Prompt], None] | None,
) -> pd.DataFrame:
    """A row a prompt and example: `prompt`, `example`, `nll` summed over target tokens, `n_tokens`, …"""
    tables = []
    with _evaluating(model), torch.inference_mode():
        for prompt in prompts:
            rendered = renderer.render(task, prompt.text, task.train)
            table = example_losses(model, rendered, budget, shared_prefix(model, rendered))
            require_finite(table, task, prompt)
            tables.append(table.assign(prompt=prompt.index))
            if on_scored:
                on_scored(prompt)
    return pd.concat(tables, ignore_index=True)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


# --- statistics --------------------------------------------------------------------------------------------


def _selection(
    prompts: Sequence[Prompt],
    losses: pd.DataFrame,
    renderer: Renderer,
    task: Task,
    columns: tuple[str, str] | None,
    reduction: str,
    include_original: bool,
) -> Selection:
    indices = [prompt.index for prompt in prompts]
    means, residuals = _mean_losses(losses, indices, reduction, distinct_rows(task.train))
    order = sorted(range(len(prompts)), key=lambda i: (means[i], i))
    best, *others = [i for i in order if include_original or i]
    ranking = _ranking(prompts, order, means, residuals)
    ids = renderer.tokenizer(ranking["text"].tolist(), add_special_tokens=False)["input_ids"]
    n_tokens = losses.groupby("prompt")["n_tokens"].sum()
    return Selection(
        chosen=prompts[best],
        runner_up=prompts[others[0]] if others else None,
        ranking=ranking.assign(
            n_examples=len(task.train),
            n_tokens=ranking["index"].map(n_tokens),
            prompt_tokens=[len(wording) for wording in ids],
        ),
        gain=_difference(means, residuals, best, 0, len(prompts) - 1),
        # Uncorrected: for the winner against the runner-up this is valid though both were picked by the data
        # (Gutmann and Maymin 1987, "Is the selected population the best?").
        lead=_difference(means, residuals, best, others[0], 1) if others else None,
        losses=losses,
        task=task,
        columns=columns,
        template_options=renderer.template_options,
    )


def _ranking(prompts: Sequence[Prompt], order: Sequence[int], means: Array, residuals: Array) -> pd.DataFrame:
    rows = []
    for rank, i in enumerate(order, start=1):
        half = _half_width(residuals[i], 1)
        to_original = _difference(means, residuals, i, 0, len(prompts) - 1)
        rows.append(
            {
                "rank": rank,
                "index": prompts[i].index,
                "text": prompts[i].text,
                "loss": means[i],
                "loss_low": means[i] - half,
                "loss_high": means[i] + half,
                "difference": to_original.estimate,
                "difference_low": to_original.low,
                "difference_high": to_original.high,
                "p": to_original.p,
            }
        )
    return pd.DataFrame(rows)


def _mean_losses(
    losses: pd.DataFrame, indices: Sequence[int], reduction: str, groups: Sequence[int]
) -> tuple[Array, Array]:
    """Each prompt's loss (K), and what each distinct row adds to its error (K, m); rows of these sum to 0.

    A loss by `token` is a ratio of two sums over examples; it is linearized for its error. What equal rows
    add is summed, since they say the same thing again (Liang and Zeger 1986: errors of clustered data): a row
    that stands there k times is one observation of weight k.
    """
    by_prompt = [losses[losses["prompt"] == index].sort_values("example") for index in indices]
    nll = np.stack([table["nll"].to_numpy(float) for table in by_prompt])
    tokens = np.stack([table["n_tokens"].to_numpy(float) for table in by_prompt])
    if reduction == "example":
        nll, tokens = nll / tokens, np.ones_like(tokens)
    means = nll.sum(1) / tokens.sum(1)
    residuals = (nll - means[:, None] * tokens) / tokens.mean(1, keepdims=True)
    _, group = np.unique(groups, return_inverse=True)
    m = group.max() + 1
    summed = np.zeros((len(indices), m))
    np.add.at(summed, (slice(None), group), residuals)
    return means, summed * (m / len(group))


def _difference(means: Array, residuals: Array, first: int, second: int, comparisons: int) -> Difference:
    """The loss of `first` minus that of `second`; interval and p-value hold for all comparisons at once."""
    estimate = float(means[first] - means[second])
    difference = residuals[first] - residuals[second]
    error, half = _standard_error(difference), _half_width(difference, comparisons)
    if error == 0:
        p = 1.0 if estimate == 0 else 0.0
    else:
        p = min(1.0, comparisons * float(2 * student.sf(abs(estimate) / error, len(difference) - 1)))
    return Difference(estimate, estimate - half, estimate + half, p)


def _half_width(residuals: Array, comparisons: int) -> float:
    """Half of a 95 % t-interval, widened (Bonferroni) so that `comparisons` of them hold together."""
    quantile = student.ppf(1 - LEVEL / (2 * comparisons), len(residuals) - 1)
    return float(quantile * _standard_error(residuals))


def _standard_error(residuals: Array) -> float:
    n = len(residuals)
    return float(np.sqrt((residuals**2).sum() / (n * (n - 1))))


# --- words -------------------------------------------------------------------------------------------------


def _choice_in_words(selection: Selection) -> str:
    chosen, gain = selection.chosen, selection.gain
    if chosen.index == ORIGINAL:
        return "Keep the original: no paraphrase has a lower loss."
    found = f"{gain} (nats a token; {TEST}, Bonferroni over {len(selection.ranking) - 1} paraphrases)"
    if gain.is_noise:
        return (
            f"Prompt {chosen.index} comes first, but its difference to the original is within noise on "
            f"{selection.n_distinct} examples: {found}. More examples may tell."
        )
    side = "below" if gain.estimate < 0 else "above"
    return f"Train with prompt {chosen.index}: its loss is {side} the original's by more than noise: {found}."


def _lead_in_words(selection: Selection) -> Iterator[str]:
    if selection.runner_up is None or selection.lead is None:
        return
    chosen, second = _named(selection.chosen), _named(selection.runner_up)
    found = f"{selection.lead} ({TEST})"
    if selection.lead.is_noise:
        yield f"Its lead over the next, {second}, is within noise: {found}."
    else:
        yield f"{chosen.capitalize()} leads the next, {second}, by more than noise: {found}."


def _named(prompt: Prompt) -> str:
    return "the original" if prompt.index == ORIGINAL else f"prompt {prompt.index}"


# --- the present state of a model --------------------------------------------------------------------------


@contextmanager
def with_adapter(base: PreTrainedModel, folder: Path | None) -> Iterator[Any]:
    """The base model, with the PEFT adapter of a folder on it inside; UserError if it does not fit."""
    if folder is None:
        yield base
        return
    require_adapter(folder)
    with plain(base):
        yield _adapted(base, folder)


def require_adapter(folder: Path) -> None:
    """UserError unless a PEFT adapter lies in the folder; PEFT would look for missing weights on the hub."""
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"adapter={folder}: no adapter_config.json there, so it is no PEFT adapter's folder.")
    # An `adapter_model.bin` is a pickle, which can run code of whoever wrote it.
    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(
            f"adapter={folder}: no weights there: adapter_model.safetensors; other formats are not loaded. "
            "PEFT writes one with save_pretrained(FOLDER)."
        )


def _adapted(base: PreTrainedModel, folder: Path) -> Any:
    import warnings

    from peft import PeftModel

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = PeftModel.from_pretrained(base, str(folder))
    except (ValueError, TypeError, RuntimeError, OSError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[:2]
        raise UserError(
            f"adapter={folder} does not fit this model: {' '.join(map(str.strip, reason))}"
        ) from error
    missing = [str(w.message) for w in caught if "missing adapter keys" in str(w.message)]
    if missing:
        raise UserError(f"adapter={folder} does not fit this model: {missing[0][:200]}")
    return model
