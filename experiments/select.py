"""Which prompt to train with: the paraphrases of an instruction ranked by their loss before the update.

`select_prompt` takes objects that a caller already has, `select` settings and files as `sapo select` does.
Nothing is written, and a model is left as it was found.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from peft import PeftModel
from safetensors import SafetensorError
from scipy.stats import t as student
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sapo.conf.errors import UserError, unknown
from sapo.conf.schema import Config, EvaluatorConfig, ScorerConfig
from sapo.data.files import read_json
from sapo.data.hygiene import distinct_rows, row_findings
from sapo.data.own import Material, examples_of, gather, require_enough
from sapo.data.prompts import ORIGINAL, Prompt
from sapo.data.render import Renderer, as_sent, control_tokens
from sapo.data.subset import draw
from sapo.data.tasks import SEPARATORS, Example, Task, own_task
from sapo.experiments.engine.local import ignore
from sapo.experiments.model.adapters import WEIGHTS, plain
from sapo.experiments.model.fetch import model_folder
from sapo.experiments.model.load import load_model
from sapo.experiments.model.preflight import preflight, require_known_tokens, require_shown
from sapo.experiments.model.scoring import pool_losses
from sapo.experiments.policies import by_loss

LEVEL = 0.05
REDUCTIONS = ("token", "example")  # that of the published code cannot be tested row by row
TEST = "paired t-test over distinct examples"


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
    `n_tokens` (of the targets) and `prompt_tokens` (of the prompt). `losses`: a row a candidate and example.
    """

    chosen: Prompt
    ranking: pd.DataFrame
    gain: Difference  # the choice minus the original, corrected for the number of paraphrases
    lead: Difference | None  # the choice minus the runner-up; None where nothing else could be chosen
    runner_up: Prompt | None
    losses: pd.DataFrame
    task: Task = field(repr=False)
    columns: tuple[str, str] | None
    renderer: Renderer = field(repr=False)
    findings: tuple[str, ...] = ()  # what is amiss in the rows, where they were checked

    @property
    def sent(self) -> dict[str, Any]:
        """What to send in production: see `as_sent`."""
        return as_sent(self.renderer, self.task, self.chosen.text)

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
        gain, lead, second = self.gain, self.lead, self.runner_up
        name, others = _named(self.chosen), len(self.ranking) - 1
        found = f"{gain} (nats a token; {TEST}, Bonferroni over {others} paraphrases)"
        if self.chosen.index == ORIGINAL:
            first = "Keep the original: no paraphrase has a lower loss."
        elif gain.is_noise:
            first = (
                f"{name.capitalize()} comes first, but its difference to the original is within noise on "
                f"{self.n_distinct} distinct examples: {found}. More examples may tell."
            )
        else:
            side = "below" if gain.estimate < 0 else "above"
            first = f"Train with {name}: its loss is {side} the original's by more than noise: {found}."
        if second is None or lead is None or second.index == ORIGINAL:  # of which the first sentence speaks
            return [first]
        corrected = f", Bonferroni over {others} paraphrases" if self.chosen.index == ORIGINAL else ""
        found = f"{lead} ({TEST}{corrected})"
        if lead.is_noise:
            return [first, f"Its lead over the next, {_named(second)}, is within noise: {found}."]
        return [first, f"{name.capitalize()} leads the next, {_named(second)}, by more than noise: {found}."]

    def render(self, examples: Any, index: int | None = None) -> list[dict[str, Any]]:
        """Examples, as `select_prompt` takes them, as TRL's prompt and completion: turns of a conversation.

        Under the chosen prompt, or under the candidate `index`.
        """
        return list(self.rendered(examples_of(examples, self.columns, self.task), index))

    def rendered(self, examples: Iterable[Example], index: int | None = None) -> Iterator[dict[str, Any]]:
        """The same, one at a time."""
        texts = dict(zip(self.ranking["index"], self.ranking["text"], strict=True))
        index = self.chosen.index if index is None else index
        if index not in texts:
            raise UserError(f"No candidate {index}: there are {min(texts)} to {max(texts)}.")
        options, renderer = dict(self.renderer.template_options), self.renderer
        is_own = renderer.layout or self.task.separator not in SEPARATORS.values()
        for example in examples:
            yield {
                "prompt": renderer.messages(self.task, str(texts[index]), example.input),
                "completion": [{"role": "assistant", "content": example.target}],
                **({"chat_template_kwargs": options} if options else {}),
                # In a layout of the user's the input could not be told when the rows are read again.
                **({"input": example.input} if is_own else {}),
            }


def select_prompt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Any,
    candidates: Sequence[str],
    *,
    original: str | None = None,
    columns: tuple[str, str] | None = None,
    separator: str | None = None,
    suffix: str = "",
    layout: str | None = None,
    n_examples: int = 64,
    seed: int = 0,
    name: str = "of the examples",
    reduction: str = "token",
    include_original: bool = True,
    template_options: Mapping[str, Any] | None = None,
    max_input_tokens: int = 1536,
    batch_tokens: int | None = None,
    on_scored: Callable[[Prompt], object] = ignore,
) -> Selection:
    """Ranks prompts for one instruction by the loss that `model`, as it is now, has under each.

    Args:
        model: a causal language model of Transformers, or a PeftModel. It is neither moved nor changed;
            training mode and gradients are afterwards as they were.
        tokenizer: its tokenizer, with a chat template.
        examples: training examples: (input, target) pairs, dicts, a data frame, a dataset, or a dictionary of
            such splits, whose training rows are taken.
        candidates: the prompts; the first is the original, unless `original` gives it.
        columns: names of the input's and the target's column of dicts; guessed if not given.
        separator: the line before the input; `Text:` or its Chinese form if not given.
        suffix: output format that follows every input and is not varied.
        layout: how a row is sent, as `data.layout` says it: `plain`, `system`, or a text with
            `{instruction}`, `{input}` and `{suffix}`.
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
    task = own_task(name, prompts[0].text, suffix)
    task = replace(task, separator=task.separator if separator is None else separator)
    drawn, n_rows = draw(examples_of(examples, columns, task), n_examples, "random", seed, name)
    require_enough(drawn, n_rows)
    task = replace(task, train=drawn)
    renderer = Renderer(tokenizer, dict(template_options or {}), max_input_tokens, layout=layout)
    scorer = ScorerConfig(reduction=reduction, include_original=include_original)
    config = Config(scorer=scorer, evaluator=EvaluatorConfig(batch_tokens=batch_tokens))
    return _ranked(model, renderer, task, prompts, columns, config, on_scored)


def _prompts(candidates: Sequence[str], original: str | None) -> list[Prompt]:
    """The candidates with the original first; UserError if there is nothing to choose from."""
    if isinstance(candidates, str):
        raise UserError("candidates is one text; give a list of prompts.")
    texts = list(candidates) if original is None else [original, *(c for c in candidates if c != original)]
    if empty := [i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]:
        raise UserError(f"candidate {empty[0]} is empty or no text.")
    if len(texts) < 2:
        raise UserError("Give at least two prompts: the original instruction and a paraphrase of it.")
    return [Prompt(text, index) for index, text in enumerate(texts, start=ORIGINAL)]


def select(
    given: Mapping[str, str],
    config: Config,
    tell: Callable[[str], object] = ignore,
    on_scored: Callable[[Prompt], object] = ignore,
    expect: Callable[[int], object] = ignore,
) -> tuple[Material, Selection]:
    """Ranks the prompts of an instruction or a task on rows and model that settings name.

    `given` holds `data`, `instruction` and the like, as in `data.own.ARGUMENTS`; nothing beside
    `config.task`. `tell` gets lines for people, `expect` how many prompts are scored, `on_scored` each of
    them. Returns what was read, and the ranking. UserError for what is wrong with rows, pool, model or
    adapter, and for settings of runs that a ranking would silently not follow.
    """
    scorer, data = config.scorer, config.data
    for name, value, possible, why in (
        ("scorer", scorer.name, ("full",), "scores every prompt on all rows drawn"),
        ("data.truncation", data.truncation, ("input",), "shortens inputs only"),
        ("scorer.reduction", scorer.reduction, REDUCTIONS, "takes token or example"),
    ):
        if value not in possible:
            raise UserError(f"{name}={value}: `sapo select` {why}.")
    if data.separator == "prompt":
        raise UserError(
            "data.separator=prompt: `sapo select` takes the task's own line, or one that is said."
        )
    material = gather(given, config)
    if more := material.pool.left_out:
        used = len(material.pool.paraphrases)
        tell(f"sapo: {used:,} of {used + more:,} paraphrases of the pool are used (paraphrases.count)")
    adapter = Path(given["adapter"]).expanduser() if given.get("adapter") else None
    if adapter and (base := _other_base(adapter, config)):
        here = model_folder(config.model)
        tell(f"sapo: the adapter in {adapter} says it was trained on {base}; it is used on {here}.")
    task, every = material.task, material.pool.candidates(include_original=True)
    prompts = _prompts([prompt.text for prompt in every], None)  # an empty instruction has no paraphrases
    preflight(config, [(task, prompts)], trains=False, answers=False)
    tell("Loading the model …")
    expect(len(prompts))
    language_model = load_model(config)
    renderer = language_model.renderer(data)
    with with_adapter(language_model.base, adapter) as model:
        selection = _ranked(model, renderer, task, prompts, material.columns, config, on_scored)
    found = row_findings(material.rows, control_tokens(language_model.tokenizer))
    return material, replace(selection, findings=tuple(finding.message for finding in found))


def as_json(material: Material, selection: Selection, config: Config, adapter: str | None) -> dict[str, Any]:
    """What was read and how it was ranked, as JSON values."""
    columns, lead, second = material.columns, selection.lead, selection.runner_up
    return {
        "task": material.task.name,
        "model": config.model.name,
        "adapter": adapter,
        "chosen": {"index": selection.chosen.index, "text": selection.chosen.text},
        "layout": config.data.layout,
        "sent": selection.sent,
        "candidates": selection.ranking.to_dict("records"),
        "difference_to_original": asdict(selection.gain),
        "lead": {**asdict(lead), "over": second.index} if lead and second else None,
        "is_noise": {"to_original": selection.gain.is_noise, "lead": lead.is_noise if lead else None},
        "verdict": selection.verdict,
        "data": {
            "source": material.source,
            "columns": {"input": columns[0], "target": columns[1]} if columns else None,
            "rows": material.n_rows,
            "scored": len(selection.task.train),
            "distinct": selection.n_distinct,
            "shortened": selection.n_shortened,
            "notes": list(material.task.notes),
            "findings": list(selection.findings),
        },
        "pool": material.pool.source,
        "reduction": config.scorer.reduction,
        "seed": config.seed,
    }


def _ranked(
    model: Any,
    renderer: Renderer,
    task: Task,
    prompts: Sequence[Prompt],
    columns: tuple[str, str] | None,
    config: Config,
    on_scored: Callable[[Prompt], object],
) -> Selection:
    """The prompts, the original first, ranked on the task's rows.

    They are scored as by a run; modules are afterwards in the mode that they had.
    """
    adapter = getattr(model, "active_peft_config", None)
    if adapter is not None and adapter.is_prompt_learning:
        raise UserError(
            f"The adapter is of kind {adapter.peft_type}, which puts learned tokens before every prompt: the "
            "losses would be wrong. Adapters that change weights, such as LoRA, can be used."
        )
    if not renderer.tokenizer.chat_template:
        raise UserError("The tokenizer has no chat template; set tokenizer.chat_template.")
    if config.scorer.reduction not in REDUCTIONS:
        raise unknown("reduction", config.scorer.reduction, REDUCTIONS)
    require_shown(renderer, task, prompts)
    require_known_tokens(model, renderer, [(task, prompts)])
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    tables = []
    try:
        for prompt in prompts:
            rendered = renderer.render(task, prompt.text, task.train)
            tables.append(pool_losses(model, task, [prompt], [rendered], config))
            on_scored(prompt)
    finally:
        for module, mode in modes:
            module.training = mode
    losses = pd.concat(tables, ignore_index=True)
    ranking, differences = _statistics(losses, prompts, task, renderer, config.scorer)
    return Selection(
        ranking=ranking, losses=losses, task=task, columns=columns, renderer=renderer, **differences
    )


# --- statistics --------------------------------------------------------------------------------------------


def _statistics(
    losses: pd.DataFrame, prompts: Sequence[Prompt], task: Task, renderer: Renderer, scorer: ScorerConfig
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The ranking, and the fields of a selection that say what was chosen by how much.

    A loss by `token` is a ratio of two sums over examples; it is linearized for its error. What equal rows
    add is summed, since they say the same thing again (Liang and Zeger 1986: errors of clustered data): a row
    that stands there k times is one observation of weight k.
    """
    nll, tokens = (losses.pivot(index="example", columns="prompt", values=of) for of in ("nll", "n_tokens"))
    n_tokens = tokens.sum()
    if scorer.reduction == "example":
        nll, tokens = nll / tokens, tokens / tokens
    means = nll.sum() / tokens.sum()
    # What each distinct row adds to the error of each prompt's mean; these sum to 0.
    groups = np.array(distinct_rows(task.train))  # a list of small numbers could be taken for columns
    errors = ((nll - means * tokens) / tokens.mean()).groupby(groups).sum()
    errors *= len(errors) / len(nll)

    def differences(other: int, comparisons: int) -> pd.DataFrame:
        return _tested(means - means[other], errors.sub(errors[other], axis=0), comparisons)

    n_paraphrases, by_index = len(prompts) - 1, means.to_dict()
    best, *others = by_loss(prompts if scorer.include_original else prompts[1:], by_index)
    second, lead = (others[0] if others else None), None
    if second:
        # Of two paraphrases uncorrected, which is valid though both were picked (Gutmann and Maymin 1987, "Is
        # the selected population the best?"). Where one is the original, it is the same difference as in the
        # ranking, and corrected as that is.
        comparisons = n_paraphrases if ORIGINAL in (best.index, second.index) else 1
        lead = Difference(*differences(second.index, comparisons).loc[best.index])
    ranked = by_loss(prompts, by_index)
    order, texts = [prompt.index for prompt in ranked], [prompt.text for prompt in ranked]
    to_original = differences(ORIGINAL, n_paraphrases)
    own, found = _tested(means, errors, 1).loc[order], to_original.loc[order]
    ranking = pd.DataFrame(
        {
            "rank": range(1, len(order) + 1),
            "index": order,
            "text": texts,
            "loss": own["estimate"],
            "loss_low": own["low"],
            "loss_high": own["high"],
            "difference": found["estimate"],
            "difference_low": found["low"],
            "difference_high": found["high"],
            "p": found["p"],
            "n_examples": len(task.train),
            "n_tokens": n_tokens[order],
            "prompt_tokens": list(map(len, renderer.tokenizer(texts, add_special_tokens=False)["input_ids"])),
        }
    ).reset_index(drop=True)
    gain = Difference(*to_original.loc[best.index])
    return ranking, {"chosen": best, "runner_up": second, "gain": gain, "lead": lead}


def _tested(estimates: pd.Series, errors: pd.DataFrame, comparisons: int) -> pd.DataFrame:
    """Estimates with t-intervals and p-values, which hold for all comparisons at once (Bonferroni)."""
    n = len(errors)
    error = np.sqrt((errors**2).sum() / (n * (n - 1)))
    half = student.ppf(1 - LEVEL / (2 * comparisons), n - 1) * error
    p = pd.Series(comparisons * 2 * student.sf(estimates.abs() / error, n - 1), estimates.index)
    bounds = {"low": estimates - half, "high": estimates + half}
    return pd.DataFrame({"estimate": estimates, **bounds, "p": p.clip(upper=1.0).fillna(1.0)})


def _named(prompt: Prompt) -> str:
    return "the original" if prompt.index == ORIGINAL else f"prompt {prompt.index}"


# --- the present state of a model --------------------------------------------------------------------------


@contextmanager
def with_adapter(base: PreTrainedModel, folder: Path | None) -> Iterator[Any]:
    """The base model, with the PEFT adapter of a folder on it inside; UserError if it does not fit."""
    if folder is None:
        yield base
        return
    _adapter_facts(folder)
    with plain(base):
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model = PeftModel.from_pretrained(base, str(folder))
        except (ValueError, TypeError, RuntimeError, OSError, KeyError, SafetensorError) as error:
            reason = " ".join(map(str.strip, str(error).strip().splitlines()[:2]))
            raise UserError(f"adapter={folder} does not fit this model: {reason}") from error
        for warning in caught:
            if "missing adapter keys" in str(warning.message):
                raise UserError(f"adapter={folder} does not fit this model: {str(warning.message)[:200]}")
        yield model


def _adapter_facts(folder: Path) -> dict[str, Any]:
    """What a PEFT adapter says of itself; UserError unless it is whole: PEFT would look on the hub for it."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise UserError(f"adapter={folder}: no adapter_config.json there, so it is no PEFT adapter's folder.")
    # An `adapter_model.bin` is a pickle, which can run code of whoever wrote it.
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"adapter={folder}: no weights there: {WEIGHTS}; other formats are not loaded. "
            "PEFT writes one with save_pretrained(FOLDER)."
        )
    facts = read_json(path)
    if not isinstance(facts, dict):
        raise UserError(f"adapter={folder}: {path} is no JSON object.")
    return facts


def _other_base(folder: Path, config: Config) -> str | None:
    """The model that an adapter says it was trained on if it is another, as one of like shapes would fit."""
    base, named = _adapter_facts(folder).get("base_model_name_or_path"), config.model.source.partition(":")[2]
    is_this = not base or base == named or Path(base).resolve() == model_folder(config.model).resolve()
    return None if is_this else base
