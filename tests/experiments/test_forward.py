"""The shared prefix changes the work, never the numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MistralConfig

from sapo.conf.errors import WorkError
from sapo.conf.load import load_one
from sapo.data.render import Rendered
from sapo.experiments.forward import (
    answer_and_nll,
    can_share_prefix,
    in_batches,
    prefix_length,
    target_entropy,
    target_logits,
    target_nll,
)
from sapo.experiments.models import load_model

HEAD = list(range(3, 33))
CASES = {
    "common prefix": [([*HEAD, 40, 41], [50, 51]), ([*HEAD, 42], [52]), ([*HEAD, 43, 44, 45], [53, 54, 55])],
    "one example": [([*HEAD, 40, 41], [50, 51])],
    "no common prefix": [([40, 41, 42], [50]), ([60, 61], [51, 52])],
    "an example equal to the prefix": [(HEAD, [50]), ([*HEAD, 44, 45], [51])],
    "equal prompts": [(HEAD, [50, 51]), (HEAD, [52])],
    "long targets": [([*HEAD, 40], list(range(60, 90))), ([*HEAD, 41], [50])],
}


def rendered(case: str) -> list[Rendered]:
    return [Rendered([*prompt, *target], len(prompt)) for prompt, target in CASES[case]]


@pytest.fixture(params=["tiny_llama", "tiny_qwen3"])
def model(request):
    return load_model(load_one([f"model={request.param}"])).base


def plain_nll(model, example: Rendered) -> float:
    """The loss as anyone would write it: one unpadded sequence, full logits, shift by one."""
    logits = model(torch.tensor([example.input_ids])).logits[0]
    log_p = torch.log_softmax(logits, -1)
    places = range(example.target_start, len(example.input_ids))
    return -sum(log_p[place - 1, example.input_ids[place]].item() for place in places)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("share", [True, False])
def test_nll_equals_a_plain_computation(model, case, share):
    batch = rendered(case)
    with torch.inference_mode():
        nll = target_nll(*target_logits(model, batch, share)).sum(-1)
        expected = [plain_nll(model, example) for example in batch]
    assert nll.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("share", [True, False])
def test_answers_equal_plain_generate_and_nll_the_plain_computation(model, case, share):
    batch = rendered(case)
    stops = [7, 11]
    found = answer_and_nll(model, batch, 12, stops, share)
    for example, (answer, nll) in zip(batch, found, strict=True):
        ids = torch.tensor([example.prompt_ids])
        mask = torch.ones_like(ids)
        whole = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=12, eos_token_id=stops, pad_token_id=0
        )
        expected = [token for token in whole[0, ids.shape[1] :].tolist() if token not in stops]
        assert answer == expected
        with torch.inference_mode():
            assert nll == pytest.approx(plain_nll(model, example), rel=1e-5)


def test_generation_stops_rows_one_by_one(model):
    """Stop tokens taken from what the model says, so that rows leave at different steps."""
    batch = [Rendered([*HEAD, 40 + i, 50], len(HEAD) + 1) for i in range(6)]
    free = [answer for answer, _ in answer_and_nll(model, batch, 10, [])]
    stops = [free[0][2], free[1][5]]
    stopped = [answer for answer, _ in answer_and_nll(model, batch, 10, stops)]
    for whole, cut in zip(free, stopped, strict=True):
        ends = [place for place, token in enumerate(whole) if token in stops]
        assert cut == whole[: ends[0] if ends else None]


@pytest.mark.parametrize("case", CASES)
def test_gradients_through_the_prefix_equal_the_plain_ones(model, case):
    weight = model.get_input_embeddings().weight
    weight.requires_grad_(True)
    gradients = []
    for share in (True, False):
        model.zero_grad()
        target_nll(*target_logits(model, rendered(case), share)).sum().backward()
        gradients.append(weight.grad.clone())
    weight.requires_grad_(False)
    assert gradients[0].abs().sum() > 0
    assert (gradients[0] - gradients[1]).norm() <= 1e-4 * gradients[1].norm()


def test_entropy_of_a_uniform_prediction_is_log_v():
    logits, targets = torch.zeros(1, 2, 8), torch.tensor([[-100, 3]])
    assert target_entropy(logits, targets).tolist() == [[0.0, pytest.approx(torch.tensor(8.0).log().item())]]


def test_prefix_stops_before_the_token_that_predicts_the_target():
    assert prefix_length(rendered("equal prompts")) == len(HEAD) - 1
    assert prefix_length(rendered("no common prefix")) == 0
    assert prefix_length(rendered("one example")) == 0


def test_sliding_windows_are_not_shared():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    assert not can_share_prefix(MistralConfig(**sizes, num_key_value_heads=1, sliding_window=4))
    assert can_share_prefix(MistralConfig(**sizes, num_key_value_heads=1, sliding_window=None))


@settings(max_examples=50)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), limit=st.integers(1, 8))
def test_batches_that_do_not_fit_are_halved_until_they_do(lengths, limit):
    def work(batch):
        if len(batch) > limit:
            raise torch.OutOfMemoryError("too large")
        return [lengths[i] for i in batch]

    assert dict(in_batches(lengths, 200, work)) == dict(enumerate(lengths))


def test_one_example_that_does_not_fit_is_named():
    def work(batch):
        raise torch.OutOfMemoryError("too large")

    with pytest.raises(WorkError, match="33 tokens does not fit"):
        list(in_batches([33], 10, work))
