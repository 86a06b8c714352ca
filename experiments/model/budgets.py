"""How many tokens a batch has unless its setting says so: what keeps a device busy and its memory holds.

Estimates for decoder-only transformers. A batch that does not fit all the same is computed in halves.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from sapo.conf.errors import WorkError

# On a CPU larger batches are hardly faster, and these take about the memory of padded batches of 8 with all
# logits, or less (measured by tests/scale/bench.py; docs/performance.md has the figures).
CPU_TRAINING, CPU_READING = 2048, 4096
LARGEST = 65_536  # assumed to keep any GPU busy
# What a forward pass costs beside its tokens, since weights are read and kernels started. On a CPU so many
# tokens (SmolLM2-135M, one core). On a GPU kernels of a layer take 0.85 ms to start, in which it could do so
# many operations at the rate of its long passes (Qwen3-8B's shape on an H200; docs/performance.md has both).
CPU_PASS, LAYER_OPERATIONS = 40, 5.6e11
SHARE = 0.8  # of what is free: estimates err; assumed
# Activations that a layer keeps for the backward pass, in hidden and intermediate sizes a token, counted in a
# Llama layer: attention, norms with their float32 copies, and the inputs of LoRA, which dropout copies; gate,
# up, and their product.
HIDDEN_KEPT, INTERMEDIATE_KEPT = 24, 6
# Of a target token and a word of the vocabulary: bfloat16 (2), float32 (4), its gradient (4).
LOGIT_BYTES = 10
# What devices without an exception of their own say when no memory is left.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator:",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


class DoesNotFitError(WorkError):
    """One example alone, of so many tokens, does not fit in memory."""

    def __init__(self, n_tokens: int) -> None:
        super().__init__(f"One example of {n_tokens} tokens does not fit in memory.")


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device, the CPU included, had no memory left."""
    has_mark = isinstance(error, RuntimeError) and any(mark in str(error) for mark in _OUT_OF_MEMORY)
    return has_mark or isinstance(error, torch.OutOfMemoryError | MemoryError)


@contextmanager
def one_example(n_tokens: int) -> Iterator[None]:
    """Around what is done with one example of so many tokens; DoesNotFitError where memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DoesNotFitError(n_tokens) from error


def training_tokens(model: PreTrainedModel, asked: int | None) -> int:
    """Tokens of a micro-batch: as many as are `asked` for, else what suits the model's device."""
    if asked or model.device.type != "cuda":
        return asked or CPU_TRAINING
    config = model.config.get_text_config()
    kept = config.num_hidden_layers * layer_elements(config) * model.dtype.itemsize
    return _fitting(model.device, kept + LOGIT_BYTES * config.vocab_size)


def reading_tokens(model: PreTrainedModel, asked: int | None) -> int:
    """Tokens of a batch of scoring or evaluation: as many as are `asked` for, else what suits the device."""
    if asked or model.device.type != "cuda":
        return asked or CPU_READING
    config = model.config.get_text_config()
    _, heads, head_size, _ = _shape(config)
    # Keys and values of all layers, twice while batches are joined; one layer's activations; logits.
    cache = 2 * 2 * config.num_hidden_layers * heads * head_size
    elements = cache + layer_elements(config) + config.vocab_size
    return _fitting(model.device, elements * model.dtype.itemsize)


def _fitting(device: torch.device, bytes_a_token: int) -> int:
    """Tokens that fit in what a GPU has free, with what PyTorch has taken from it and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, min(LARGEST, int(SHARE * free) // int(bytes_a_token)))


def pass_tokens(device: torch.device, layer_weights: float) -> int:
    """What one more forward pass costs, as a number of tokens, by the weights that a layer has."""
    if device.type == "cpu":
        return CPU_PASS
    return round(LAYER_OPERATIONS / (2 * max(1.0, layer_weights)))  # a token: one product and sum a weight


def layer_weights(config: PreTrainedConfig) -> float:
    """Weights of a layer that a token meets, with gated networks, as Llama and Qwen have them."""
    n_heads, heads, size, width = _shape(config)
    attention = 2 * config.hidden_size * size * (n_heads + heads)
    width = getattr(config, "moe_intermediate_size", None) or width
    experts = getattr(config, "num_experts_per_tok", None) or 1
    return float(attention + 3 * config.hidden_size * width * experts)


def layer_elements(config: PreTrainedConfig) -> int:
    """Activations of a layer, a token."""
    return int(HIDDEN_KEPT * config.hidden_size + INTERMEDIATE_KEPT * _shape(config)[-1])


def _shape(config: PreTrainedConfig) -> tuple[int, int, int, int]:
    """Heads, those of keys and values, a head's size, and the widest layer's width; not all are named."""
    n_heads = getattr(config, "num_attention_heads", None) or 1  # recurrent models have none
    size = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    width = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    width = int(max(width) if isinstance(width, list | tuple) else width)
    return n_heads, getattr(config, "num_key_value_heads", None) or n_heads, size, width
