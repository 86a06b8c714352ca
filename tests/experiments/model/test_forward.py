"""The shared prefix changes the work, never the numbers."""

from functools import cache, wraps

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainings import plain_nll
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
    "many rows": [([*HEAD, last], [50]) for last in range(40, 46)],
}
SHARED = {
    "common prefix": 60,
    "an example equal to the prefix": 59,  # not the token that predicts the target
    "equal prompts": 59,
    "lengths far apart": 60,
    "long targets": 60,
    "many rows": 60,
}
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "vocab_size": 100, "initializer_range": 1.0}


def rendered(case: str) -> list[Rendered]:
    return [Rendered([*prompt, *target], len(prompt)) for prompt, target in CASES[case]]


@pytest.fixture(params=["tiny_llama", "tiny_qwen3"], scope="module")
def model(request):
    return load_model(load_one([f"model={request.param}"])).base


def prefix_of(model, batch, share=True):
    with torch.inference_mode():
        return shared_prefix(model, batch, share)


def plainly(model, batch):
    with torch.inference_mode():
        return pytest.approx([plain_nll(model, example).item() for example in batch], rel=1e-5)


@cache
def generated(model, prompt_ids: tuple[int, ...], stops: tuple[int, ...] = ()) -> list[int]:
    """What Transformers' own `generate` answers to one prompt."""
    ids = torch.tensor([prompt_ids])
    options = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": list(stops), "pad_token_id": 0}
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return [token for token in whole[0, ids.shape[1] :].tolist() if token not in stops]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("share", [True, False])
def test_nll_equals_a_plain_computation_again_and_again_in_any_batch(model, case, share):
    """Nothing that a batch reads is left in the prefix for the next one."""
    batch = rendered(case)
    prefix = prefix_of(model, batch, share)
    assert prefix.length == (SHARED.get(case, 0) if share else 0)
    with torch.inference_mode():
        (logits, targets), (again, _) = (target_logits(model, batch, prefix) for _ in range(2))
        alone = [target_nll(*target_logits(model, [example], prefix)).sum().item() for example in batch]
    assert torch.equal(logits, again)
    for nll in (target_nll(logits, targets).sum(-1), nll_and_entropy(logits, targets)[0]):
        assert nll.tolist() == plainly(model, batch)
    assert alone == plainly(model, batch)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("share", [True, False])
def test_answers_equal_plain_generate_and_nll_the_plain_computation(model, case, share):
    """Stop tokens are taken from what the model says, so that rows leave at different steps."""
    batch = rendered(case)
    free = [generated(model, tuple(example.prompt_ids)) for example in batch]
    stops = (free[0][2], free[-1][5])
    found = answer_and_nll(model, batch, 12, stops, prefix_of(model, batch, share))
    assert [nll for *_, nll in found] == plainly(model, batch)
    for example, (answer, is_ended, _) in zip(batch, found, strict=True):
        assert answer == generated(model, tuple(example.prompt_ids), stops)
        assert is_ended == (len(answer) < 12)


@pytest.mark.parametrize("n_agreed", [0, 1, 5, 11, 12, 15])
def test_a_target_that_the_model_would_say_is_its_answer(model, n_agreed):
    """Targets agree with the free answer up to a place, and differ from it afterwards."""
    prompts = [(*HEAD, last) for last in (40, 41, 42)]
    free = [generated(model, prompt) for prompt in prompts]
    targets = [[*answer[:n_agreed], *[50 + i % 2] * 16][:16] for i, answer in enumerate(free)]
    batch = [Rendered([*prompt, *target], 61) for prompt, target in zip(prompts, targets, strict=True)]
    found = answer_and_nll(model, batch, 12, [], prefix_of(model, batch))
    assert [answer for answer, *_ in found] == free
    assert [nll for *_, nll in found] == plainly(model, batch)


def test_a_right_answer_is_read_and_said_in_one_pass(model, monkeypatch):
    prompt = [*HEAD, 40]
    answer = generated(model, tuple(prompt))
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


def test_a_model_with_sliding_windows_answers_as_generate_does():
    torch.manual_seed(0)
    config = MistralConfig(**SIZES, sliding_window=4)
    mistral = MistralForCausalLM(config).eval()
    batch = rendered("common prefix")
    assert prefix_of(mistral, batch).length == 0
    for example in batch:
        ((answer, _, nll),) = answer_and_nll(mistral, [example], 12, [7, 11])
        assert answer == generated(mistral, tuple(example.prompt_ids), (7, 11))
        assert [nll] == plainly(mistral, [example])
    whole = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None))
    assert (can_share_prefix(mistral), can_share_prefix(whole)) == (False, True)


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


@settings(max_examples=25)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), limit=st.integers(1, 8))
def test_batches_that_do_not_fit_are_halved_until_they_do(lengths, limit):
    def work(batch):
        if len(batch) > limit:
            raise torch.OutOfMemoryError("too large")
        return [len(row.input_ids) for row in batch]

    assert in_batches([Rendered([0] * length, 0) for length in lengths], 200, 500, work) == lengths
