"""Forward passes over rendered examples: logits at target positions only, the common prefix computed once.

All examples of a task under one prompt begin with the same tokens. Their keys and values are computed once a
batch and repeated over its rows; gradients flow through them. Shape letters: B rows, P prefix tokens,
L tokens after the prefix, T target tokens of the longest target, V vocabulary.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
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
    """Tokens that all examples begin with, short of the token that predicts the first target; 0 if not worth it."""
    if len(batch) < 2:
        return 0
    return _worthwhile([example.prompt_ids for example in batch])


def _worthwhile(prompts: Sequence[Sequence[int]]) -> int:
    common = len(os.path.commonprefix(list(prompts)))  # type: ignore[arg-type]
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


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Sequence[int],
    share_prefix: bool = True,
) -> list[list[int]]:
    """Greedy continuations of the prompts, the stop token not included.

    Equal to `model.generate(do_sample=False)` token by token; a row leaves the batch when it has stopped.
    """
    prefix = _worthwhile(prompts) if share_prefix and len(prompts) > 1 else 0
    cache = prefix_cache(model, prompts[0][:prefix], len(prompts)) if prefix else None
    ids, mask, positions = _pad_left([ids[prefix:] for ids in prompts], prefix, model.device)
    stops = torch.tensor(list(stop_ids), device=model.device)
    answers: list[list[int]] = [[] for _ in prompts]
    rows = torch.arange(len(prompts), device=model.device)
    is_running = torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    for _ in range(max_new_tokens):
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        tokens = output.logits[:, -1].argmax(-1)  # (B, 1, V) -> (B)
        is_running &= ~torch.isin(tokens, stops)
        running = is_running.tolist()
        for row, token, goes_on in zip(rows.tolist(), tokens.tolist(), running, strict=True):
            if goes_on:
                answers[row].append(token)
        if not any(running):
            break
        # Selecting rows copies the cache, so it is done only when a quarter of them has stopped.
        if running.count(False) * 4 >= len(running):
            keep = is_running.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            rows, tokens, mask, positions = rows[keep], tokens[keep], mask[keep], positions[keep]
            is_running = is_running[keep]
        ids = tokens.unsqueeze(1)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        positions = positions[:, -1:] + 1
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
