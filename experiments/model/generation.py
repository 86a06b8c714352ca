"""Greedy answers, and the loss of the targets, from one reading of the prompts.

Shape letters as in `forward`: B rows, L tokens, T target tokens of the longest target, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from sapo.data.batches import by_tokens
from sapo.data.render import Rendered
from sapo.experiments.model import forward
from sapo.experiments.model.forward import IGNORED, NO_PREFIX, Prefix

# Target tokens in one piece: enough to keep a processor busy, and few enough that their logits are small
# (128 of a vocabulary of 49,152 in float32 are 25 MB). Assumed, not measured.
TARGETS_AT_ONCE = 128


def keeps_room(device: torch.device) -> bool:
    """Whether rows hold the prefix each and room for their answers, so that a step copies nothing of either.

    On a GPU: copying takes about as long there as the step itself. On a CPU a step is bound by computing, and
    the memory is worth more.
    """
    return device.type != "cpu"


class _RoomyLayer(DynamicLayer):
    """One layer's keys and values (B, H, L, D), followed by room for what is still to come."""

    def __init__(self, keys: Tensor, values: Tensor, room: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.length = keys.shape[-2]
        self.keys: Tensor = functional.pad(keys, (0, 0, 0, room))
        self.values: Tensor = functional.pad(values, (0, 0, 0, room))

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes new keys and values in their place; all of them up to there."""
        begin, self.length = self.length, self.length + key_states.shape[-2]
        self.keys[:, :, begin : self.length] = key_states
        self.values[:, :, begin : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self.length


@dataclass
class _Reading:
    """A model part-way through the rows of a batch."""

    model: PreTrainedModel
    cache: Cache | None
    mask: Tensor  # (B, tokens so far)
    positions: Tensor  # (B, 1), of the last token read
    tokens: Tensor  # (B, 1), the next of each answer

    def read(self, ids: Tensor, mask: Tensor, positions: Tensor, keep: int) -> Tensor:
        """Reads ids (B, L) where the mask is 1, and returns the last logits (B, keep, V)."""
        self.mask = torch.cat([self.mask, mask], dim=1)
        places = {"position_ids": positions, "logits_to_keep": forward.last_places(ids, keep)}
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
            **forward.accepted(self.model, **places),
        )
        self.cache = output.past_key_values
        return output.logits[:, -keep:]  # models without logits_to_keep give all

    def places(self, count: int) -> Tensor:
        """Positions (B, count) of the tokens that follow the prompt."""
        return self.positions + 1 + torch.arange(count, device=self.positions.device)

    def step(self) -> None:
        """Reads the token that each answer has come to."""
        self.positions = self.positions + 1
        self.tokens = self.read(self.tokens, torch.ones_like(self.tokens), self.positions, 1).argmax(-1)

    def make_room(self, steps: int) -> None:
        """Has so many steps write their keys and values in place, one layer after another."""
        layers: list[Any] = self.cache.layers if self.cache is not None else []
        for number, layer in enumerate(layers):
            is_shared = isinstance(layer, forward.PrefixLayer)
            keys, values = layer.whole() if is_shared else (layer.keys, layer.values)
            layers[number] = _RoomyLayer(keys, values, steps)

    def select(self, rows: Sequence[int]) -> None:
        """Goes on with these rows only."""
        chosen = forward.on_device(torch.tensor(rows), self.mask.device)
        if self.cache is not None:
            self.cache.batch_select_indices(chosen)
        self.mask, self.positions, self.tokens = (t[chosen] for t in (self.mask, self.positions, self.tokens))


@torch.inference_mode()
def answer_and_nll(
    model: PreTrainedModel,
    batch: Sequence[Rendered],
    max_new_tokens: int,
    stop_ids: Sequence[int],
    prefix: Prefix = NO_PREFIX,
) -> list[tuple[list[int], bool, float]]:
    """Each example's greedy answer, whether it came to its end, and the target's summed NLL (nats).

    The prompts are read once for both, in parts of like length; all answers are generated together, since a
    pass costs as much as many tokens.
    """
    if not forward.takes_positions(model) and len(batch) > 1:  # padding would be counted
        return [answer_and_nll(model, [row], max_new_tokens, stop_ids)[0] for row in batch]
    keeps_all, parts = forward.can_share_prefix(model), [list(range(len(batch)))]
    if keeps_all:
        lengths = [len(example.input_ids) - prefix.length for example in batch]
        parts = by_tokens(lengths, sum(lengths), forward.pass_tokens(model))
    read = [_read(model, [batch[i] for i in part], prefix) for part in parts]
    readings, begun, nll = zip(*read, strict=True)
    reading = _joined(readings, prefix.length)
    if keeps_all and keeps_room(model.device):
        reading.make_room(max_new_tokens)
    answers = _decode(reading, list(chain(*begun)), max_new_tokens, set(stop_ids), keeps_all)
    rows = [(*answer, loss) for answer, loss in zip(answers, chain(*nll), strict=True)]
    found = dict(zip(chain(*parts), rows, strict=True))
    return [found[i] for i in range(len(batch))]


def _read(
    model: PreTrainedModel, batch: Sequence[Rendered], prefix: Prefix
) -> tuple[_Reading, list[list[int]], list[float]]:
    """The prompts read; how each answer begins; the summed NLL of each target.

    The targets are read for their NLL anyway, and the prediction after each of their tokens shows how much of
    them the model would have answered itself. Answers go on from there: a right answer takes no more passes.
    """
    targets = forward.padded([example.target_ids for example in batch], IGNORED, "right")
    targets = forward.on_device(targets, model.device)
    keeps_all, skip = forward.can_share_prefix(model), prefix.length
    # Other caches cannot leave out what they have read, and some cannot go on with several tokens.
    width = max(1, TARGETS_AT_ONCE // len(batch)) if keeps_all else 0
    begun = targets[:, : min(width, targets.shape[1] - 1)]  # (B, W), read with the prompts
    ids, mask, positions = forward.pad_left([e.prompt_ids[skip:] for e in batch], skip, model.device)
    reading = _Reading(model, prefix.cache(), mask[:, :skip], positions[:, -1:], ids)
    logits = reading.read(
        torch.cat([ids, begun.clamp(min=0)], dim=1),
        torch.cat([mask[:, skip:], (begun != IGNORED).long()], dim=1),
        torch.cat([positions, reading.places(begun.shape[1])], dim=1),
        begun.shape[1] + 1,
    )
    if keeps_all:
        counts, losses = _read_targets(reading, logits, targets, width)
        return reading, [e.target_ids[:count] for e, count in zip(batch, counts, strict=True)], losses
    reading.tokens = logits.argmax(-1)
    nll = forward.target_nll(*forward.target_logits(model, batch)).sum(-1)
    return reading, [[] for _ in batch], nll.tolist()


def _joined(parts: Sequence[_Reading], skip: int) -> _Reading:
    """The rows of all parts in one reading, padded between the prefix of `skip` tokens and the rest."""
    first = parts[0]
    if len(parts) == 1:
        return first
    caches = [part.cache for part in parts if part.cache is not None]
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        keys, values = ([getattr(layer, name) for layer in layers] for name in ("keys", "values"))
        for layer in layers:
            layer.keys = layer.values = None  # so that only one layer is in memory twice
        layers[0].keys, layers[0].values = (_padded_cat(tensors, 2) for tensors in (keys, values))
    shared = torch.cat([part.mask[:, :skip] for part in parts])
    first.mask = torch.cat([shared, _padded_cat([part.mask[:, skip:] for part in parts], 1)], dim=1)
    first.positions = torch.cat([part.positions for part in parts])
    first.tokens = torch.cat([part.tokens for part in parts])
    return first


def _padded_cat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """The rows of all tensors, their dimension `dim` (tokens) filled up with zeros in front."""
    longest = max(tensor.shape[dim] for tensor in tensors)
    after = [0] * (2 * (tensors[0].dim() - dim - 1))  # `pad` begins with the last dimension
    return torch.cat([functional.pad(t, [*after, longest - t.shape[dim], 0]) for t in tensors])


def _read_targets(
    reading: _Reading, logits: Tensor, targets: Tensor, width: int
) -> tuple[list[int], list[float]]:
    """How many tokens of each target that the model would have answered, and the summed NLL of each target.

    The logits (B, W + 1, V) are those of the W tokens that were read with the prompts. The others are read
    `width` at a time, since logits of the whole vocabulary take memory. The reading goes on after each
    beginning: the rest of the target stays in the cache and is masked.
    """
    n_read, places = logits.shape[1], reading.places(targets.shape[1])
    nll = forward.target_nll(logits, targets[:, :n_read]).sum(-1)
    predicted = [logits.argmax(-1)]
    while n_read < targets.shape[1]:
        ids, at = (tensor[:, n_read - 1 : n_read - 1 + width] for tensor in (targets[:, :-1], places))
        logits = reading.read(ids.clamp(min=0), (ids != IGNORED).long(), at[:, : ids.shape[1]], ids.shape[1])
        nll += forward.target_nll(logits, targets[:, n_read : n_read + ids.shape[1]]).sum(-1)
        predicted.append(logits.argmax(-1))
        n_read += ids.shape[1]
    predictions = torch.cat(predicted, dim=1)  # (B, T)
    is_right = (predictions[:, :-1] == targets[:, :-1]).long().cumprod(1)  # (B, T - 1), until one is wrong
    n_right = is_right.sum(1, keepdim=True)  # (B, 1)
    n_prompt = reading.mask.shape[1] - is_right.shape[1]
    reading.mask = torch.cat([reading.mask[:, :n_prompt], is_right], dim=1)
    reading.positions = reading.positions + n_right
    reading.tokens = predictions.gather(1, n_right)
    # Numbers of tokens are exact in float32: one wait for a GPU brings both.
    found = torch.stack([n_right.flatten().float(), nll], 1).tolist()
    return [int(count) for count, _ in found], [loss for _, loss in found]


def _decode(
    reading: _Reading,
    answers: list[list[int]],
    max_new_tokens: int,
    stops: set[int],
    can_drop_rows: bool,
) -> list[tuple[list[int], bool]]:
    """The answers, token by token, and whether they ended; rows that have stopped leave the batch."""
    rows = list(range(len(answers)))
    while True:
        for row, token in zip(rows, reading.tokens.flatten().tolist(), strict=True):
            answers[row].append(token)
        so_far = [answers[row] for row in rows]
        running = [i for i, a in enumerate(so_far) if len(a) < max_new_tokens and stops.isdisjoint(a)]
        if not running:
            break
        # Selecting rows copies the cache, so it is done only when a quarter of them has stopped.
        if can_drop_rows and 4 * len(running) <= 3 * len(rows):
            reading.select(running)
            rows = [rows[place] for place in running]
        reading.step()
    texts = [list(takewhile(lambda token: token not in stops, each[:max_new_tokens])) for each in answers]
    ends = [min(len(answer), max_new_tokens) for answer in answers]
    return [(text, len(text) < end) for text, end in zip(texts, ends, strict=True)]
