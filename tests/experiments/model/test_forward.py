"""The shared prefix changes the work, never the numbers."""

from functools import cache, wraps

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM

from sapo.conf.load import load_one
from sapo.data.render import Rendered
from sapo.experiments.model.forward import (
    can_share_prefix,
    gathered_gradients,
    in_batches,
    nll_and_entropy,
    shared_prefix,
    target_logits,
    target_nll,
)
from sapo.experiments.model.generation import answer_and_nll
from sapo.experiments.model.load import load_model

HEAD = list(range(3, 33)) * 2
CASES = {
    "common prefix": [([*HEAD, 40, 41], [50, 51]), ([*HEAD, 42], [52]), ([*HEAD, 43, 44, 45], [53, 54, 55])],
    "one example": [([*HEAD, 40, 41], [50, 51])],
    "no common prefix": [([40, 41, 42], [50]), ([60, 61], [51, 52])],
    "an example equal to the prefix": [(HEAD, [50]), ([*HEAD, 44, 45], [51])],
    "equal prompts": [(HEAD, [50, 51]), (HEAD, [52])],
    "lengths far apart": [
        ([*HEAD, *range(40, 95)], [50, 51]),
        ([*HEAD, 42], [52]),
        ([*HEAD, *range(30, 90)], [53, 54, 55]),
        ([*HEAD, 43], [56, 57]),
    ],
    "long targets": [([*HEAD, 40], list(range(60, 90))), ([*HEAD, 41], [50])],
}
SHARED = {
    "common prefix": 60,
    "an example equal to the prefix": 59,  # not the token that predicts the target
    "equal prompts": 59,
    "lengths far apart": 60,
    "long targets": 60,
}
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def rendered(case: str) -> list[Rendered]:
    return [Rendered([*prompt, *target], len(prompt)) for prompt, target in CASES[case]]


@pytest.fixture(params=["tiny_llama", "tiny_qwen3"], scope="module")
def model(request):
    return load_model(load_one([f"model={request.param}"])).base


def prefix_of(model, batch, share=True):
    with torch.inference_mode():
        return shared_prefix(model, batch, share)


def plain_nll(model, example: Rendered) -> float:
    """The loss as anyone would write it: one unpadded sequence, full logits, shift by one."""
    with torch.inference_mode():
        log_p = torch.log_softmax(model(torch.tensor([example.input_ids])).logits[0], -1)
    places = range(example.target_start, len(example.input_ids))
    return -sum(log_p[place - 1, example.input_ids[place]].item() for place in places)


def generated(model, example: Rendered, stops) -> list[int]:
    """What Transformers' own `generate` answers to one example."""
    return _generated(model, tuple(example.prompt_ids), tuple(stops))


@cache
def _generated(model, prompt_ids: tuple[int, ...], stops: tuple[int, ...]) -> list[int]:
    ids = torch.tensor([prompt_ids])
    whole = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=list(stops),
        pad_token_id=0,
    )
    return [token for token in whole[0, ids.shape[1] :].tolist() if token not in stops]


@pytest.mark.parametrize("case", CASES)
def test_a_prefix_is_shared_where_there_is_one_and_it_is_long_enough(model, case):
    prefix = prefix_of(model, rendered(case))
    assert prefix.length == SHARED.get(case, 0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("share", [True, False])
def test_nll_equals_a_plain_computation(model, case, share):
    batch = rendered(case)
    with torch.inference_mode():
        logits, targets = target_logits(model, batch, prefix_of(model, batch, share))
        expected = [plain_nll(model, example) for example in batch]
    assert target_nll(logits, targets).sum(-1).tolist() == pytest.approx(expected, rel=1e-5)
    assert nll_and_entropy(logits, targets)[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_one_prefix_serves_many_batches(model):
    """Nothing that a batch reads is left in the prefix for the next one."""
    batch = rendered("common prefix")
    prefix = prefix_of(model, batch)
    with torch.inference_mode():
        once, again = (target_logits(model, batch, prefix)[0] for _ in range(2))
        alone = [target_nll(*target_logits(model, [example], prefix)).sum().item() for example in batch]
    assert torch.equal(once, again)
    assert alone == pytest.approx([plain_nll(model, example) for example in batch], rel=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("share", [True, False])
def test_answers_equal_plain_generate_and_nll_the_plain_computation(model, case, share):
    batch = rendered(case)
    stops = [7, 11]
    found = answer_and_nll(model, batch, 12, stops, prefix_of(model, batch, share))
    for example, (answer, _, nll) in zip(batch, found, strict=True):
        assert answer == generated(model, example, stops)
        assert nll == pytest.approx(plain_nll(model, example), rel=1e-5)


@pytest.mark.parametrize("n_agreed", [0, 1, 5, 11, 12, 15])
def test_a_target_that_the_model_would_say_is_its_answer(model, n_agreed):
    """Targets agree with the free answer up to a place, and differ from it afterwards."""
    free, batch = [], []
    for last in (40, 41, 42):
        prompt = [*HEAD, last]
        answer = generated(model, Rendered([*prompt, 50], len(prompt)), [])
        more = [answer[place] if place < min(n_agreed, 12) else 50 + last % 2 for place in range(16)]
        free.append(answer)
        batch.append(Rendered([*prompt, *more], len(prompt)))
    found = answer_and_nll(model, batch, 12, [], prefix_of(model, batch))
    assert [answer for answer, _, _ in found] == free
    assert [nll for _, _, nll in found] == pytest.approx([plain_nll(model, row) for row in batch], rel=1e-5)


def test_a_right_answer_is_read_and_said_in_one_pass(model, monkeypatch):
    prompt = [*HEAD, 40]
    answer = generated(model, Rendered([*prompt, 50], len(prompt)), [])
    stop = next(token for token in answer if token != answer[0])
    target = answer[: answer.index(stop) + 1]
    sizes = []
    forward = type(model).forward

    @wraps(forward)
    def note(self, *args, **kwargs):
        sizes.append(kwargs["input_ids"].shape[1])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", note)
    ((found, is_ended, _),) = answer_and_nll(model, [Rendered([*prompt, *target], len(prompt))], 12, [stop])
    assert (found, is_ended) == (target[:-1], True)
    assert sizes == [len(prompt) + len(target) - 1]


@pytest.mark.parametrize("share", [True, False])
def test_generation_stops_rows_one_by_one(model, share):
    """Stop tokens taken from what the model says, so that rows leave at different steps."""
    batch = [Rendered([*HEAD, 40 + i, 50], len(HEAD) + 1) for i in range(6)]
    prefix = prefix_of(model, batch, share)
    free = [answer for answer, _, _ in answer_and_nll(model, batch, 10, [], prefix)]
    stops = [free[0][2], free[1][5]]
    stopped = answer_and_nll(model, batch, 10, stops, prefix)
    for whole, (cut, is_ended, _) in zip(free, stopped, strict=True):
        assert is_ended == (len(cut) < 10)
        ends = [place for place, token in enumerate(whole) if token in stops]
        assert cut == whole[: ends[0] if ends else None]


def test_a_model_with_sliding_windows_answers_as_generate_does():
    torch.manual_seed(0)
    config = MistralConfig(
        **SIZES, num_key_value_heads=1, vocab_size=100, sliding_window=4, initializer_range=1.0
    )
    mistral = MistralForCausalLM(config).eval()
    batch = rendered("common prefix")
    assert prefix_of(mistral, batch).length == 0
    for example in batch:
        ((answer, _, nll),) = answer_and_nll(mistral, [example], 12, [7, 11])
        assert answer == generated(mistral, example, [7, 11])
        assert nll == pytest.approx(plain_nll(mistral, example), rel=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [1, 3])
def test_gradients_gathered_at_the_prefix_equal_the_plain_ones(model, case, size):
    """Several backward passes after one reading of the prefix, against whole examples at once."""
    batch = rendered(case)
    weight = model.get_input_embeddings().weight
    weight.requires_grad_(True)
    model.zero_grad()
    with gathered_gradients(shared_prefix(model, batch)) as prefix:
        for begin in range(0, len(batch), size):
            target_nll(*target_logits(model, batch[begin : begin + size], prefix)).sum().backward()
    gathered = weight.grad.clone()
    model.zero_grad()
    target_nll(*target_logits(model, batch)).sum().backward()
    plain = weight.grad.clone()
    model.zero_grad()
    weight.requires_grad_(False)
    assert plain.abs().sum() > 0
    assert (gathered - plain).norm() <= 1e-4 * plain.norm()


@pytest.mark.parametrize(
    ("logits", "targets", "expected"),
    [  # a uniform prediction of 8 words, beside a place without a target; a certain one
        (torch.zeros(1, 2, 8), torch.tensor([[-100, 3]]), torch.tensor(8.0).log().item()),
        (torch.tensor([[[0.0, -torch.inf]]]), torch.tensor([[0]]), 0.0),
    ],
)
def test_nll_and_entropy_by_hand(logits, targets, expected):
    for sums in nll_and_entropy(logits, targets):
        assert sums.tolist() == [pytest.approx(expected)]


def test_sliding_windows_are_not_shared():
    for window in (4, None):
        config = MistralConfig(**SIZES, num_key_value_heads=1, vocab_size=9, sliding_window=window)
        assert can_share_prefix(MistralForCausalLM(config)) is (window is None)


@settings(max_examples=25)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), limit=st.integers(1, 8))
def test_batches_that_do_not_fit_are_halved_until_they_do(lengths, limit):
    def work(batch):
        if len(batch) > limit:
            raise torch.OutOfMemoryError("too large")
        return [len(row.input_ids) for row in batch]

    assert in_batches([Rendered([0] * length, 0) for length in lengths], 200, 500, work) == lengths
