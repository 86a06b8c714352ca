"""Forward passes over rendered examples: logits at target positions only, the common prefix computed once.

All examples of a task under one prompt begin with the same tokens. Their keys and values are computed once
and stand before every batch's own; gradients flow through them. Shape letters: B rows, P prefix tokens,
L tokens after the prefix, T target tokens of the longest target, V vocabulary, H key-value heads, D a head's
size.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from sapo.data.batches import by_tokens
from sapo.data.render import Rendered
from sapo.experiments.model import budgets
from sapo.experiments.model.budgets import DoesNotFitError, is_out_of_memory, one_example

IGNORED = -100
AT_ONCE = 2**27  # numbers of a vocabulary's predictions in float32 on a GPU: 512 MiB, thrice while used

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


def pass_tokens(model: Any) -> int:
    """What one more forward pass of the model costs, as a number of tokens."""
    if model.device.type == "cpu":  # where it does not depend on the weights
        return budgets.CPU_PASS
    return budgets.pass_tokens(model.device, budgets.layer_weights(model.config.get_text_config()))


def takes_positions(model: Any) -> bool:
    """Whether the model can be told where each token stands, and keeps nothing else of what it has read.

    Others (ALiBi, recurrent and state-space models) count the padding of a batch too, so that rows which go
    on from a padded beginning would come out differently.
    """
    if hasattr(model.config, "is_decoder") and hasattr(model.config, "add_cross_attention"):
        return False  # an encoder made to read one way: RoBERTa's positions do not begin at 0
    return not model._is_stateful and len(accepted(model, position_ids=None, past_key_values=None)) == 2


def accepted(model: Any, **options: Any) -> dict[str, Any]:
    """Those of the options that the model's forward takes."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    names = inspect.signature(type(inner).forward).parameters
    return {name: value for name, value in options.items() if name in names}


def can_share_prefix(model: Any) -> bool:
    """Whether every layer of the model keeps all keys and values, so that they can be repeated and masked.

    Sliding-window, linear-attention and hybrid layers do not.
    """
    layers = DynamicCache(config=model.config).layers
    return takes_positions(model) and all(type(layer) is DynamicLayer for layer in layers)


class PrefixLayer(DynamicLayer):
    """One layer's keys and values of rows that begin with the same tokens; these are held once."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.prefix = keys, values  # (1, H, P, D)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Takes in new keys and values (B, H, L, D); all of them with the prefix (B, H, P + L so far, D)."""
        super().update(key_states, value_states)
        return self.whole()

    def whole(self) -> tuple[Tensor, Tensor]:
        """All keys and values so far, the prefix's in every row."""
        pairs: Any = zip(self.prefix, (self.keys, self.values), strict=True)
        keys, values = (torch.cat([once.expand(len(own), -1, -1, -1), own], dim=-2) for once, own in pairs)
        return keys, values

    def get_seq_length(self) -> int:
        """Tokens so far, those of the prefix included."""
        return int(self.prefix[0].shape[-2] + super().get_seq_length())


@dataclass(frozen=True)
class Prefix:
    """The tokens that all examples begin with, as a model has read them; there may be none."""

    layers: Sequence[tuple[Tensor, Tensor]] = ()  # keys and values (1, H, P, D)

    @property
    def length(self) -> int:
        """How many tokens."""
        return int(self.layers[0][0].shape[-2]) if self.layers else 0

    def cache(self) -> Cache | None:
        """A new cache for a batch that goes on from here; the prefix itself is not changed."""
        return Cache(layers=[PrefixLayer(*pair) for pair in self.layers]) if self.layers else None


NO_PREFIX = Prefix()


def shared_prefix(model: PreTrainedModel, examples: Sequence[Rendered], wanted: bool = True) -> Prefix:
    """What all examples begin with, read once; differentiable.

    Nothing if it is not `wanted`, if the model's cache cannot be repeated, or if sharing saves less than one
    more forward pass costs. DoesNotFitError if it alone does not.
    """
    length = prefix_length(examples) if wanted else 0
    if length * (len(examples) - 1) <= pass_tokens(model) or not can_share_prefix(model):
        return NO_PREFIX
    ids = on_device(torch.tensor([examples[0].input_ids[:length]]), model.device)
    with one_example(min(len(example.input_ids) for example in examples)):
        layers = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values.layers
    return Prefix([(layer.keys, layer.values) for layer in layers])


def prefix_length(examples: Sequence[Rendered]) -> int:
    """Tokens that all examples begin with, before the one that predicts a target; 0 for a single example."""
    if len(examples) < 2:
        return 0
    prompts = [example.prompt_ids for example in examples]
    first, last = min(prompts), max(prompts)  # what the extremes share, all share
    pairs = enumerate(zip(first, last, strict=False))
    common = next((i for i, (a, b) in pairs if a != b), len(first))
    return min(common, min(map(len, prompts)) - 1)


@contextmanager
def gathered_gradients(prefix: Prefix) -> Iterator[Prefix]:
    """The prefix for several backward passes: their gradients add up at it, and go through it at the end."""
    tensors = [tensor for pair in prefix.layers for tensor in pair]
    leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
    yield Prefix(list(zip(leaves[::2], leaves[1::2], strict=True)))
    if gradients := [leaf.grad for leaf in leaves if leaf.requires_grad]:
        torch.autograd.backward([tensor for tensor in tensors if tensor.requires_grad], gradients)


def target_logits(
    model: PreTrainedModel, batch: Sequence[Rendered], prefix: Prefix = NO_PREFIX
) -> tuple[Tensor, Tensor]:
    """Logits (B, T, V) that predict the targets, and the targets (B, T), right-aligned, -100 before them."""
    targets = on_device(padded([example.target_ids for example in batch], IGNORED), model.device)
    longest = targets.shape[1]
    if not can_share_prefix(model):
        return _logits_padded_right(model, batch, longest), targets
    is_padded = len({len(example.input_ids) for example in batch}) > 1
    # Nothing is predicted from the last token.
    ids, mask, positions = pad_left(
        [e.input_ids[prefix.length : -1] for e in batch], prefix.length, model.device
    )
    logits = model(
        input_ids=ids,
        # A mask that hides nothing would be read to see that, for which the processor waits for a GPU.
        attention_mask=mask if prefix.length or is_padded else None,
        position_ids=positions,
        past_key_values=prefix.cache(),
        use_cache=prefix.length > 0,
        logits_to_keep=last_places(ids, longest),
    ).logits
    return logits, targets


def _logits_padded_right(model: Any, batch: Sequence[Rendered], longest: int) -> Tensor:
    """Logits (B, T, V) before each row's last T tokens, by any model: padding after a row cannot reach it."""
    ids = padded([example.input_ids[:-1] for example in batch], side="right")
    lengths = torch.tensor([[len(example.input_ids) - 1] for example in batch])  # (B, 1)
    mask = (torch.arange(ids.shape[1]) < lengths).long()
    first = max(0, int(lengths.min()) - longest)
    only = accepted(model, logits_to_keep=torch.arange(first, ids.shape[1], device=model.device))
    logits = model(
        input_ids=on_device(ids, model.device),
        attention_mask=on_device(mask, model.device),
        use_cache=False,
        **only,
    ).logits
    logits = logits if only else logits[:, first:]
    places = (lengths - longest + torch.arange(longest) - first).clamp(min=0)  # (B, T)
    places = on_device(places, model.device)
    return logits.gather(1, places[:, :, None].expand(-1, -1, logits.shape[-1]))


def padded(rows: Sequence[Sequence[int]], fill: int = 0, side: str = "left") -> Tensor:
    """Rows of token ids as one tensor (B, longest row), filled up on one side."""
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], True, fill, side)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU's tensor there; a GPU is not waited for, which a plain copy would do."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def last_places(ids: Tensor, count: int) -> Tensor:
    """Where the last tokens of ids (B, L) stand, for `logits_to_keep`.

    A number would make the model take a view of each row's end, which the matrix product with the vocabulary
    goes through row by row.
    """
    return torch.arange(ids.shape[1] - count, ids.shape[1], device=ids.device)


def pad_left(
    sequences: Sequence[Sequence[int]], prefix: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (B, L), mask (B, P + L) and positions (B, L) of the sequences that follow a prefix."""
    ids, mask = padded(sequences), padded([[1] * len(sequence) for sequence in sequences])
    positions = (mask.cumsum(-1) - 1).clamp(min=0) + prefix
    mask = torch.cat([torch.ones(len(sequences), prefix, dtype=torch.long), mask], dim=1)
    return on_device(ids, device), on_device(mask, device), on_device(positions, device)


def target_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood (B, T) of each target token in nats, 0 where there is none, in float32."""
    flat = functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(targets.shape)  # (B * T) -> (B, T)


def nll_and_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sums (B) over each row's target tokens: their NLL, and the entropy of their prediction; nats, float32.

    Some rows at a time, since log-probabilities of the whole vocabulary take memory: on a CPU one, on a GPU
    as many as keep it busy.
    """
    at_once = 1 if logits.device.type == "cpu" else max(1, AT_ONCE // logits[0].numel())
    nlls, entropies = [], []
    for rows, target in zip(logits.split(at_once), targets.split(at_once), strict=True):
        log_p = functional.log_softmax(rows.float(), dim=-1)  # (rows, T, V)
        nlls += [
            functional.nll_loss(*pair, ignore_index=IGNORED, reduction="sum")
            for pair in zip(log_p, target, strict=True)
        ]
        entropies.append((torch.special.entr(log_p.exp()).sum(-1) * (target != IGNORED)).sum(-1))
    return torch.stack(nlls), torch.cat(entropies)


def kl_divergence(before: Tensor, after: Tensor) -> Tensor:
    """KL(before || after) of the predictions (T, V), summed over the tokens; in nats and float32."""
    log_p, log_q = (functional.log_softmax(logits.float(), dim=-1) for logits in (before, after))
    return functional.kl_div(log_q, log_p, log_target=True, reduction="sum")


def in_batches(
    rows: Sequence[Rendered],
    budget: int,
    overhead: int,
    work: Callable[[list[Rendered]], Sequence[Result]],
    skip: int = 0,
) -> list[Result]:
    """The result of every row, worked on in batches as `by_tokens` makes them.

    `skip` tokens of each row are the prefix, which was read before. Where a batch does not fit in memory, it
    and all that are left are halved, which is said in the log; DoesNotFitError if a single row does not.
    """
    waiting = by_tokens([len(row.input_ids) - skip for row in rows], budget, overhead)
    found: dict[int, Result] = {}
    while waiting:
        batch = waiting[0]
        try:
            found.update(zip(batch, work([rows[i] for i in batch]), strict=True))
            waiting = waiting[1:]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise DoesNotFitError(len(rows[batch[0]].input_ids)) from error
            torch.cuda.empty_cache()
            _log.warning("A batch of %d examples does not fit in memory: on with halves.", len(batch))
            halves = [(whole, len(whole) // 2) for whole in waiting]
            waiting = [half for whole, middle in halves for half in (whole[:middle], whole[middle:]) if half]
    return [found[i] for i in range(len(rows))]
