"""How well a model does a task: greedy answers with ROUGE-L and exact match, and the NLL of the targets."""

import re
from collections.abc import Sequence
from functools import lru_cache

import pandas as pd
from rouge_score.rouge_scorer import RougeScorer

from sapo.conf.schema import EvaluatorConfig
from sapo.data.render import Rendered
from sapo.data.tasks import Example
from sapo.experiments.forward import answer_and_nll, can_share_prefix, in_batches
from sapo.experiments.models import LanguageModel


def evaluate(
    language_model: LanguageModel,
    model,
    examples: Sequence[Example],
    rendered: Sequence[Rendered],
    config: EvaluatorConfig,
) -> pd.DataFrame:
    """A row an example: `prediction`, `target`, `rougeL`, `exact_match` (0-100), `nll` (nats a target token).

    `model` is the base model of `language_model`, or that with adapters.
    """
    share = can_share_prefix(language_model.base.config)
    stops = language_model.stop_ids()

    def work(batch: list[int]) -> list[tuple[list[int], float]]:
        return answer_and_nll(model, [rendered[i] for i in batch], config.max_new_tokens, stops, share)

    lengths = [len(r.input_ids) + config.max_new_tokens for r in rendered]
    found = dict(in_batches(lengths, config.batch_tokens, work))
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
