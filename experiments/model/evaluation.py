"""How well a model does a task: greedy answers with ROUGE-L, exact and label match, and the targets' NLL."""

import re
import string
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import groupby
from unicodedata import category, name

import pandas as pd
import torch
from peft import PeftModel
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sapo.conf.schema import Config
from sapo.data.render import Rendered
from sapo.data.tasks import Example
from sapo.experiments.model import forward, generation
from sapo.experiments.model.budgets import reading_tokens
from sapo.experiments.model.load import LanguageModel

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def evaluate(
    language_model: LanguageModel,
    model,
    examples: Sequence[Example],
    rendered: Sequence[Rendered],
    config: Config,
) -> pd.DataFrame:
    """A row an example: `prediction`, `target`, `rougeL`, `exact_match` (0-100), `nll` (nats a target token).

    `model` is the base model of `language_model`, or that with adapters: then `kl` (nats a target token) says
    how far training has moved it (`target_losses`); for the base model it is NaN. `is_unfinished` answers ran
    into `evaluator.max_new_tokens`. Without `evaluator.answers` predictions are empty and their scores NaN.
    """
    settings, n_tokens = config.evaluator, [len(each.target_ids) for each in rendered]
    table = pd.DataFrame(
        {
            "example": range(len(examples)),
            "prediction": "",
            "target": [example.target for example in examples],
            **dict.fromkeys(("rougeL", "exact_match", "nll", "kl"), float("nan")),
            "target_tokens": n_tokens,
            "is_shortened": [each.is_shortened for each in rendered],
            "is_unfinished": False,
        }
    )
    if not settings.answers or isinstance(model, PeftModel):
        table[["nll", "kl"]] = target_losses(language_model, model, rendered, config).div(n_tokens, axis=0)
    if settings.answers:
        found = _answers(language_model, model, rendered, config)
        texts = [decoded(language_model.tokenizer, ids, settings.clean_up_spaces) for ids, *_ in found]
        pairs = list(zip(texts, table["target"], strict=True))
        table["prediction"] = texts
        table["rougeL"] = [rouge_l(*pair, settings.scores) for pair in pairs]
        table["exact_match"] = [exact_match(*pair, settings.scores) for pair in pairs]
        table["nll"] = [nll / n for (*_, nll), n in zip(found, n_tokens, strict=True)]
        table["is_unfinished"] = [not is_ended for _, is_ended, _ in found]
    return table


@torch.inference_mode()
def _answers(
    language_model: LanguageModel, model, rendered: Sequence[Rendered], config: Config
) -> list[tuple[list[int], bool, float]]:
    """Token ids of each answer, whether it came to its end, and the target's summed NLL (nats)."""
    limit, stops = config.evaluator.max_new_tokens, language_model.stop_ids()
    prefix = forward.shared_prefix(model, rendered, config.trainer.shared_prefix)

    def work(batch: list[Rendered]) -> list[tuple[list[int], bool, float]]:
        return generation.answer_and_nll(model, batch, limit, stops, prefix)

    # As few batches as memory allows: prompts are read by length inside each, and padding is not computed.
    budget = reading_tokens(model, config.evaluator.batch_tokens)
    skip = 0 if generation.keeps_room(model.device) else prefix.length
    return forward.in_batches(rendered, budget, budget, work, skip - limit)


@torch.inference_mode()
def target_losses(
    language_model: LanguageModel, model, rendered: Sequence[Rendered], config: Config
) -> pd.DataFrame:
    """Summed over each example's target tokens, in nats: `nll`, and `kl` from the model without its adapters.

    `kl` is KL(untouched || trained) of the predictions of every target token, given the tokens before it:
    how far a state is from where it began, which forgetting is found to follow (Shenfeld et al. 2025, arXiv
    2509.04259, there on sampled answers). NaN for a model without adapters. What the untouched model predicts
    is kept for the states that are evaluated after this one, as far as `language_model.untouched` has room.
    """
    prefix = forward.shared_prefix(model, rendered, config.trainer.shared_prefix)

    @cache
    def untouched_prefix() -> forward.Prefix:
        return forward.shared_prefix(model, rendered, prefix.length > 0)

    def untouched(rows: list[Rendered]) -> list[Tensor]:
        ids = [tuple(row.input_ids) for row in rows]
        if all(map(language_model.untouched.__contains__, ids)):
            return [language_model.untouched[key] for key in ids]
        with model.disable_adapter():
            read, _ = forward.target_logits(model, rows, untouched_prefix())
        found = [logits[-len(row.target_ids) :] for row, logits in zip(rows, read, strict=True)]
        for row, logits in zip(rows, found, strict=True):
            language_model.untouched.put(row, logits)
        return found

    def work(rows: list[Rendered]) -> Sequence[Tensor]:
        logits, targets = forward.target_logits(model, rows, prefix)
        nll = forward.target_nll(logits, targets).sum(-1)
        kl = torch.full_like(nll, float("nan"))
        if isinstance(model, PeftModel):
            pairs = zip(untouched(rows), logits, strict=True)
            ends = ((before, after[-len(before) :]) for before, after in pairs)
            kl = torch.stack([forward.kl_divergence(*pair) for pair in ends])
        return torch.stack([nll, kl], 1).unbind()

    budget = reading_tokens(model, config.evaluator.batch_tokens)
    found = forward.in_batches(rendered, budget, forward.pass_tokens(model), work, prefix.length)
    # One wait for a GPU. Of few rows dealt over many devices, one may have none.
    sums = torch.stack(found).tolist() if found else []
    return pd.DataFrame(sums, columns=["nll", "kl"])


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], clean_up_spaces: bool = False) -> str:
    """An answer's text; with `clean_up_spaces`, as published, no space before punctuation (D48)."""
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return (tokenizer.clean_up_tokenization(text) if clean_up_spaces else text).strip()


def exact_match(prediction: str, target: str, scores: str = "strict") -> float:
    """100 if the answer is the target to the letter, apart from white space around and between words.

    `published` lower-cases both and drops punctuation, as Natural Instructions' evaluation does (D49).
    """
    if scores == "published":
        prediction, target = (text.lower().translate(_NO_PUNCTUATION) for text in (prediction, target))
    return 100.0 if prediction.split() == target.split() else 0.0


def label_match(prediction: str, target: str, labels: Sequence[str]) -> float | None:
    """100 if the answer names the target's label and no other, else 0; None for a task without labels."""
    if not labels:
        return None
    named = named_label(prediction, labels)
    return 100.0 if named is not None and named == named_label(target, labels) else 0.0


def label_matches(table: pd.DataFrame, labels: Sequence[str]) -> list[float | None]:
    """Label match of an evaluation's rows (`prediction`, `target`, `rougeL`); None without either."""
    rows = zip(table["prediction"], table["target"], table["rougeL"].notna(), strict=True)
    return [label_match(answer, target, labels) if is_there else None for answer, target, is_there in rows]


def mean_label_match(table: pd.DataFrame, labels: Sequence[str]) -> float | None:
    """Mean label match of an evaluation's rows; None for a task without labels, or without answers."""
    known = [score for score in label_matches(table, labels) if score is not None]
    return sum(known) / len(known) if known else None


def named_label(answer: str, labels: Sequence[str]) -> str | None:
    """The label that an answer names, if it names exactly one.

    The whole answer is a label, case, white space and punctuation around it apart; else the one label that
    stands in the answer as whole words. A label of one letter is only found in a longer answer as it is
    written, since "a" and "A" are words too. A longer label hides a shorter one inside it.
    """
    whole, pattern, by_group = _found_by(tuple(labels))
    if _bare(answer) in whole:
        return whole[_bare(answer)]
    found = {by_group[match.lastindex or 0] for match in pattern.finditer(" ".join(answer.split()))}
    return found.pop() if len(found) == 1 else None


@lru_cache(maxsize=64)
def _found_by(labels: tuple[str, ...]) -> tuple[dict[str, str], re.Pattern[str], list[str]]:
    """Labels by whole answers; what finds them as whole words; those of its groups, which count from 1."""
    by_group = ["", *sorted(labels, key=len, reverse=True)]
    parts = [f"((?{'i' * (len(label) > 1)}:{re.escape(label)}))" for label in by_group[1:]]
    # Chinese is written without spaces: its characters bound a word like punctuation does.
    letter = "[^\\W一-鿿]"
    pattern = re.compile(f"(?<!{letter})(?:{'|'.join(parts)})(?!{letter})")
    return {_bare(label): label for label in reversed(labels)}, pattern, by_group


def _bare(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'`*()[]")


def rouge_l(prediction: str, target: str, scores: str = "strict") -> float:
    """ROUGE-L F1 x 100 with Porter stemming, by Google's `rouge_score` (paper, Section 5.1).

    Texts in Latin script are scored as `rouge_score` does. Its tokenizer sees Latin letters and digits only;
    here other scripts' words are tokens too, and each of their characters where words are not spaced. A
    target without any token is scored by exact match. `published` is `rouge_score` alone: what is in other
    scripts does not count, and a target without a token scores 0 whatever the answer (D18, D50).
    """
    scorer = _scorer(scores)
    if scores == "strict" and not scorer._tokenizer.tokenize(target):
        return exact_match(prediction, target)
    return 100.0 * float(scorer.score(target, prediction)["rougeL"].fmeasure)


@lru_cache(maxsize=2)
def _scorer(scores: str) -> RougeScorer:
    own = AnyScript(use_stemmer=True) if scores == "strict" else None
    return RougeScorer(["rougeL"], use_stemmer=True, tokenizer=own)


class AnyScript(DefaultTokenizer):
    """ROUGE's tokens of Latin letters and digits, and those of other scripts between them."""

    def tokenize(self, text: str) -> list[str]:
        """The tokens in the order of the text."""
        if text.isascii():
            return list(super().tokenize(text))
        tokens: list[str] = []
        for is_other, group in groupby(text.lower(), _is_of_other_script):
            part = "".join(group)
            tokens += _UNSPACED.split(part) if is_other else super().tokenize(part)
        return [token for token in tokens if token]


# A character of a script written without spaces, kept by `split`: Thai, Lao, Burmese, Khmer, kana, Chinese.
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)
_GREEK = "\u0370"  # the first script after Latin and its accents


def _is_of_other_script(character: str) -> bool:
    """Whether a character is a letter, vowel sign or digit that ROUGE's tokenizer does not see."""
    is_latin = character < _GREEK or name(character, "").startswith("LATIN")
    return not is_latin and (category(character)[0] in "LM" or category(character) == "Nd")
