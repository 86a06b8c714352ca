"""How well a model does a task: greedy answers with ROUGE-L, exact and label match, and the targets' NLL."""

import re
from collections.abc import Sequence
from functools import lru_cache

import pandas as pd
import torch
from rouge_score.rouge_scorer import RougeScorer

from sapo.conf.schema import Config
from sapo.data.render import Rendered
from sapo.data.tasks import Example
from sapo.experiments.model.budgets import reading_tokens
from sapo.experiments.model.forward import in_batches, shared_prefix
from sapo.experiments.model.generation import answer_and_nll
from sapo.experiments.model.load import LanguageModel


def evaluate(
    language_model: LanguageModel,
    model,
    examples: Sequence[Example],
    rendered: Sequence[Rendered],
    config: Config,
) -> pd.DataFrame:
    """A row an example: `prediction`, `target`, `rougeL`, `exact_match` (0-100), `nll` (nats a target token).

    `model` is the base model of `language_model`, or that with adapters.
    """
    with torch.inference_mode():
        prefix = shared_prefix(model, rendered) if config.trainer.shared_prefix else None
    longest = config.evaluator.max_new_tokens
    stops = language_model.stop_ids()

    def work(batch: list[int]) -> list[tuple[list[int], float]]:
        return answer_and_nll(model, [rendered[i] for i in batch], longest, stops, prefix)

    skip = prefix.length if prefix else 0
    lengths = [len(r.input_ids) - skip + longest for r in rendered]
    # As few batches as memory allows: prompts are read by length inside each, and padding is not computed.
    budget = reading_tokens(model, config.evaluator.batch_tokens)
    found = dict(in_batches(lengths, budget, budget, work, skip))
    decode = language_model.tokenizer.decode
    rows = []
    for i, example in enumerate(examples):
        ids, nll = found[i]
        prediction = str(decode(ids, skip_special_tokens=True)).strip()
        n_tokens = len(rendered[i].target_ids)
        rows.append(
            {
                "example": i,
                "prediction": prediction,
                "target": example.target,
                "rougeL": rouge_l(prediction, example.target),
                "exact_match": exact_match(prediction, example.target),
                "nll": nll / n_tokens,
                "target_tokens": n_tokens,
                "is_shortened": rendered[i].is_shortened,
            }
        )
    return pd.DataFrame(rows)


def exact_match(prediction: str, target: str) -> float:
    """100 if the answer is the target to the letter, apart from white space around and between words."""
    return 100.0 if prediction.split() == target.split() else 0.0


def label_match(prediction: str, target: str, labels: Sequence[str]) -> float | None:
    """100 if the answer names the target's label and no other, else 0; None for a task without labels.

    A target that is none of the labels matches nothing.
    """
    if not labels:
        return None
    named = named_label(prediction, labels)
    return 100.0 if named is not None and named == named_label(target, labels) else 0.0


def mean_label_match(table: pd.DataFrame, labels: Sequence[str]) -> float | None:
    """Mean label match of an evaluation's rows (`prediction`, `target`); None for a task without labels."""
    answers = zip(table["prediction"], table["target"], strict=True)
    scores = [label_match(prediction, target, labels) for prediction, target in answers]
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None


def named_label(answer: str, labels: Sequence[str]) -> str | None:
    """The label that an answer names, if it names exactly one.

    The whole answer is a label, case, white space and punctuation around it apart; else the one label that
    stands in the answer as whole words. A label of one letter is only found in a longer answer as it is
    written, since "a" and "A" are words too. A longer label hides a shorter one inside it.
    """
    whole = {_bare(label): label for label in reversed(labels)}
    if _bare(answer) in whole:
        return whole[_bare(answer)]
    pattern, by_group = _label_pattern(tuple(labels))
    found = {by_group[match.lastindex or 0] for match in pattern.finditer(" ".join(answer.split()))}
    return found.pop() if len(found) == 1 else None


@lru_cache(maxsize=64)
def _label_pattern(labels: tuple[str, ...]) -> tuple[re.Pattern[str], list[str]]:
    """What finds labels as whole words, and the label of each of its groups, which count from 1."""
    by_length = sorted(labels, key=len, reverse=True)
    parts = [
        f"({re.escape(label)})" if len(label) == 1 else f"((?i:{re.escape(label)}))" for label in by_length
    ]
    # Chinese is written without spaces: its characters bound a word like punctuation does.
    letter = "[^\\W一-鿿]"
    return re.compile(f"(?<!{letter})(?:{'|'.join(parts)})(?!{letter})"), ["", *by_length]


def _bare(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'`*()[]")


def rouge_l(prediction: str, target: str) -> float:
    """ROUGE-L F1 x 100 with Porter stemming, by Google's `rouge_score` (paper, Section 5.1).

    ROUGE's tokenizer sees Latin letters and digits only. A target with none of them would score 0 whatever
    the answer; it is scored by exact match.
    """
    if not re.search(r"[a-z0-9]", target.lower()):
        return exact_match(prediction, target)
    return 100.0 * float(_scorer().score(target, prediction)["rougeL"].fmeasure)


@lru_cache(maxsize=1)
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)
