"""Forward passes over rendered examples: logits at target positions only, the common prefix computed once.

All examples of a task under one prompt begin with the same tokens. Their keys and values are computed once a
batch and repeated over its rows; gradients flow through them. Shape letters: B rows, P prefix tokens,
L tokens after the prefix, T target tokens of the longest target, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from sapo.conf.errors import WorkError
from sapo.data.batches import by_tokens
from sapo.data.render import Rendered

IGNORED = -100
# Below this length, one more forward pass costs more than it saves.
SHORTEST_PREFIX = 8

Result = TypeVar("Result")


def can_share_prefix(config: PreTrainedConfig) -> bool:
    """Whether every layer of the model keeps a plain key-value cache, which can be repeated over a batch.

    Sliding-window, linear-attention and hybrid layers cannot.
    """
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


def target_logits(
    model: PreTrainedModel, batch: Sequence[Rendered], share_prefix: bool = True
) -> tuple[Tensor, Tensor]:
    """Logits (B, T, V) that predict the targets, and the targets (B, T), right-aligned, -100 before them."""
    sequences = [example.input_ids[:-1] for example in batch]  # nothing is predicted from the last token
    prefix = prefix_length(batch) if share_prefix else 0
    cache = prefix_cache(model, sequences[0][:prefix], len(batch)) if prefix else None
    ids, mask, positions = _pad_left([ids[prefix:] for ids in sequences], prefix, model.device)
    longest = max(len(example.target_ids) for example in batch)
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=longest,
    ).logits
    targets = torch.full((len(batch), longest), IGNORED)
    for row, example in enumerate(batch):
        targets[row, longest - len(example.target_ids) :] = torch.tensor(example.target_ids)
    return logits, targets.to(model.device)


def target_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood (B, T) of each target token in nats, 0 where there is none, in float32."""
    flat = functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(targets.shape)  # (B * T) -> (B, T)


def target_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Entropy (B, T) of the prediction at each target position in nats, 0 where there is none, in float32."""
    log_p = functional.log_softmax(logits.float(), dim=-1)
    return -(log_p.exp() * log_p).sum(-1) * (targets != IGNORED)


def prefix_length(batch: Sequence[Rendered]) -> int:
    """Tokens that all examples begin with, before the one that predicts a target; 0 if not worth it."""
    if len(batch) < 2:
        return 0
    return _worthwhile([example.prompt_ids for example in batch])


def _worthwhile(prompts: Sequence[list[int]]) -> int:
    first, last = min(prompts), max(prompts)  # what the extremes share, all share
    common = next(
        (i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first)
    )
    length = min(common, min(map(len, prompts)) - 1)
    return length if length >= SHORTEST_PREFIX else 0


def prefix_cache(model: PreTrainedModel, prefix: Sequence[int], rows: int) -> DynamicCache:
    """Keys and values of the prefix (1, P), repeated over the rows (B, P); differentiable."""
    ids = torch.tensor([list(prefix)], device=model.device)
    cache: DynamicCache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(rows)
    return cache


def _pad_left(
    sequences: Sequence[Sequence[int]], prefix: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (B, L), mask (B, P + L) and positions (B, L) of the sequences that follow a prefix."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros(len(sequences), longest, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = torch.tensor(sequence)
        mask[row, longest - len(sequence) :] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0) + prefix
    mask = torch.cat([torch.ones(len(sequences), prefix, dtype=torch.long), mask], dim=1)
    return ids.to(device), mask.to(device), positions.to(device)


@dataclass
class _Prefilled:
    """Prompts that a model has read: what comes next, and what it takes to go on."""

    logits: Tensor  # (B, V), predicting the first token after each prompt
    cache: Cache
    mask: Tensor  # (B, tokens so far)
    positions: Tensor  # (B, 1), of the last token read


def _prefill(model: PreTrainedModel, prompts: Sequence[list[int]], share_prefix: bool) -> _Prefilled:
    prefix = _worthwhile(prompts) if share_prefix and len(prompts) > 1 else 0
    cache = prefix_cache(model, prompts[0][:prefix], len(prompts)) if prefix else None
    ids, mask, positions = _pad_left([ids[prefix:] for ids in prompts], prefix, model.device)
    output = _step(model, ids, mask, positions, cache, logits_to_keep=1)
    return _Prefilled(output.logits[:, -1], output.past_key_values, mask, positions[:, -1:])


def _step(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    positions: Tensor,
    cache: Cache | None,
    logits_to_keep: int,
) -> Any:
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=logits_to_keep,
    )


@torch.inference_mode()
def answer_and_nll(
    model: PreTrainedModel,
    batch: Sequence[Rendered],
    max_new_tokens: int,
    stop_ids: Sequence[int],
    share_prefix: bool = True,
) -> list[tuple[list[int], float]]:
    """Greedy answer and summed target NLL (nats) of each example; the prompts are read once for both."""
    prefilled = _prefill(model, [example.prompt_ids for example in batch], share_prefix)
    nll = _targets_nll(model, prefilled, [example.target_ids for example in batch])
    answers = _decode(model, prefilled, max_new_tokens, stop_ids, share_prefix)
    return list(zip(answers, nll, strict=True))


def _targets_nll(
    model: PreTrainedModel, prefilled: _Prefilled, target_ids: Sequence[Sequence[int]]
) -> list[float]:
    """NLL of targets after their prompts; works on a copy of the cache, which generation goes on with."""
    longest = max(map(len, target_ids))
    targets = torch.full((len(target_ids), longest), IGNORED)
    for row, target in enumerate(target_ids):
        targets[row, : len(target)] = torch.tensor(target)
    targets = targets.to(model.device)
    logits = prefilled.logits.unsqueeze(1)  # (B, V) -> (B, 1, V)
    if longest > 1:
        ids = targets[:, :-1].clamp(min=0)
        mask = torch.cat([prefilled.mask, (targets[:, :-1] != IGNORED).long()], dim=1)
        positions = prefilled.positions + 1 + torch.arange(longest - 1, device=model.device)
        rest = _step(model, ids, mask, positions, copy.deepcopy(prefilled.cache), logits_to_keep=longest - 1)
        logits = torch.cat([logits, rest.logits], dim=1)  # (B, T, V)
    return target_nll(logits, targets).sum(-1).tolist()


def _decode(
    model: PreTrainedModel,
    prefilled: _Prefilled,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    can_drop_rows: bool,
) -> list[list[int]]:
    """Greedy tokens after the prompts; rows that have stopped leave the batch."""
    cache, mask, positions = prefilled.cache, prefilled.mask, prefilled.positions
    tokens = prefilled.logits.argmax(-1)  # (B, V) -> (B)
    stops = torch.tensor(list(stop_ids), device=model.device)
    answers: list[list[int]] = [[] for _ in range(len(tokens))]
    rows = torch.arange(len(tokens), device=model.device)
    is_running = torch.ones_like(tokens, dtype=torch.bool)
    for step in range(max_new_tokens):
        is_running &= ~torch.isin(tokens, stops)
        running = is_running.tolist()
        for row, token, goes_on in zip(rows.tolist(), tokens.tolist(), running, strict=True):
            if goes_on:
                answers[row].append(token)
        if not any(running) or step + 1 == max_new_tokens:
            break
        # Selecting rows copies the cache, so it is done only when a quarter of them has stopped.
        if can_drop_rows and running.count(False) * 4 >= len(running):
            keep = is_running.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            rows, tokens, mask, positions = rows[keep], tokens[keep], mask[keep], positions[keep]
            is_running = is_running[keep]
        ids = tokens.unsqueeze(1)  # (B) -> (B, 1)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        positions = positions + 1
        tokens = _step(model, ids, mask, positions, cache, logits_to_keep=1).logits[:, -1].argmax(-1)
    return answers


def in_batches(
    lengths: Sequence[int], budget: int, work: Callable[[list[int]], list[Result]]
) -> Iterator[tuple[int, Result]]:
    """Index and result of every item, worked on in batches under a token budget.

    A batch that does not fit in memory is halved; WorkError if a single item does not fit.
    """
    waiting = by_tokens(lengths, budget)
    while waiting:
        batch = waiting.pop(0)
        try:
            results = work(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise WorkError(
                    f"One example of {lengths[batch[0]]} tokens does not fit in memory."
                ) from error
            torch.cuda.empty_cache()
            half = len(batch) // 2
            waiting = [batch[:half], batch[half:], *waiting]
            continue
        yield from zip(batch, results, strict=True)
