"""How well a model does a task: greedy answers with ROUGE-L and exact match, and the NLL of the targets."""

import re
from collections.abc import Sequence
from functools import lru_cache

import pandas as pd
from rouge_score.rouge_scorer import RougeScorer

from sapo.conf.schema import EvaluatorConfig
from sapo.data.render import Rendered
from sapo.data.tasks import Example
from sapo.experiments.forward import can_share_prefix, generate, in_batches
from sapo.experiments.models import LanguageModel
from sapo.experiments.scoring import example_losses


def evaluate(
    language_model: LanguageModel,
    model,
    examples: Sequence[Example],
    rendered: Sequence[Rendered],
    config: EvaluatorConfig,
) -> pd.DataFrame:
    """A row an example: `prediction`, `target`, `rougeL` and `exact_match` (0-100), `nll` (nats a target token).

    `model` is the base model of `language_model`, or that with adapters.
    """
    share = can_share_prefix(language_model.base.config)
    losses = example_losses(model, rendered, config.batch_tokens, share)
    answers = answer(language_model, model, rendered, config, share)
    return pd.DataFrame(
        [
            {
                "example": i,
                "prediction": answers[i],
                "target": example.target,
                "rougeL": rouge_l(answers[i], example.target),
                "exact_match": exact_match(answers[i], example.target),
                "nll": losses["nll"][i] / losses["n_tokens"][i],
                "target_tokens": losses["n_tokens"][i],
                "is_shortened": rendered[i].is_shortened,
            }
            for i, example in enumerate(examples)
        ]
    )


def answer(
    language_model: LanguageModel, model, rendered: Sequence[Rendered], config: EvaluatorConfig, share: bool
) -> list[str]:
    """Greedy answers as stripped text."""
    prompts = [r.prompt_ids for r in rendered]
    stops = language_model.stop_ids()

    def work(batch: list[int]) -> list[list[int]]:
        return generate(model, [prompts[i] for i in batch], config.max_new_tokens, stops, share)

    lengths = [len(prompt) + config.max_new_tokens for prompt in prompts]
    ids = dict(in_batches(lengths, config.batch_tokens, work))
    decode = language_model.tokenizer.decode
    return [decode(ids[i], skip_special_tokens=True).strip() for i in range(len(prompts))]


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
