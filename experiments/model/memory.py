"""What a training needs of a device's memory, estimated before it begins, and what the device has."""

import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.filesize import decimal

from sapo.conf.errors import UserError
from sapo.conf.schema import Config
from sapo.data.render import MAX_TARGET_TOKENS
from sapo.experiments.model import preflight
from sapo.experiments.model.adapters import ALL_LINEAR, LINEAR
from sapo.experiments.model.budgets import LOGIT_BYTES, layer_elements, layer_weights
from sapo.experiments.model.fetch import model_folder
from sapo.experiments.model.identity import device_of, dtype_of

_BYTES = {"float32": 4, "bfloat16": 2}
_NF4 = 0.516  # bytes of a 4-bit weight with its share of the scales, which are quantized too
_ADAPTER_BYTES = 4  # adapters, their gradients, and each of AdamW's two moments are float32
_CONTEXT = 1e9  # what CUDA and its libraries take; assumed
# A decoder of B billion parameters that is not here: layers x width, within a tenth for Llama 2 7B, 13B and
# Qwen3 8B, 14B; layers; activations that a layer keeps, in widths; words of the vocabulary.
_LAYERS_TIMES_WIDTH, _LAYERS, _WIDTHS_KEPT, _VOCABULARY = 36_500, 36, 42, 150_000
_CGROUP = Path("/sys/fs/cgroup/memory.max")


class Sizes(NamedTuple):
    """Parameters of a model, in embeddings and output layer and in all else; what a layer keeps of a token.

    `met` has those of a layer that a token meets, which are fewer where a layer has experts.
    `adapted` has the rows and columns of all matrices that get an adapter: parameters of one of rank 1.
    """

    embedded: float
    others: float
    layers: float
    met: float
    width: float
    kept: float
    vocabulary: int
    adapted: float


class Memory(NamedTuple):
    """Bytes that a training takes at least, its longest row alone in a micro-batch: all is their sum."""

    weights: float
    adapters: float
    other: float
    activations: float


def sizes_of(config: Config) -> Sizes | None:
    """Exact where the model is here, else from its number of parameters; None if that is not known."""
    model = config.model
    try:
        model_folder(model)
        return _read_sizes(preflight.read_once(config), tuple(model.lora_targets))
    except UserError:
        if model.parameters <= 0:
            return None
    across = _LAYERS_TIMES_WIDTH * model.parameters ** (2 / 3)
    width = across / _LAYERS
    embedded, others = model.embeddings * 1e9, (model.parameters - model.embeddings) * 1e9
    adapted = 2 * len(model.lora_targets) * across
    met = others / _LAYERS
    return Sizes(embedded, others, _LAYERS, met, width, _WIDTHS_KEPT * width, _VOCABULARY, adapted)


@lru_cache(maxsize=64)
def _read_sizes(key: str, targets: tuple[str, ...]) -> Sizes:
    base: Any = preflight.known[key][0]
    output = base.get_output_embeddings()
    ends = {id(module.weight): module.weight for module in (base.get_input_embeddings(), output) if module}
    embedded = sum(weight.numel() for weight in ends.values())
    linear = [(name.rpartition(".")[2], m) for name, m in base.named_modules() if isinstance(m, LINEAR)]
    is_all = targets == (ALL_LINEAR,)
    adapted = [m.weight.shape for name, m in linear if m is not output and (is_all or name in targets)]
    text = base.config.get_text_config()
    return Sizes(
        embedded=embedded,
        others=sum(parameter.numel() for parameter in base.parameters()) - embedded,
        layers=text.num_hidden_layers,
        met=layer_weights(text),
        width=text.hidden_size,
        kept=layer_elements(text),
        vocabulary=text.vocab_size,
        adapted=sum(map(sum, adapted)),
    )


def adapter_bytes(config: Config) -> float:
    """An adapter of the method's rank; 0 for a model of which nothing is known."""
    sizes = sizes_of(config)
    return config.method.rank * sizes.adapted * _ADAPTER_BYTES if sizes else 0.0


def training_memory(config: Config, earlier: int = 0) -> Memory | None:
    """What a config's training takes, beside as many adapters as are kept of `earlier` tasks.

    None if the model's size is not known.
    """
    if (sizes := sizes_of(config)) is None:
        return None
    kept, itemsize = sizes.layers * sizes.kept, _BYTES[dtype_of(config)]
    if config.trainer.gradient_checkpointing:  # what enters each layer, and one layer computed again
        kept = sizes.layers * sizes.width + sizes.kept
    tokens = config.data.max_input_tokens + MAX_TARGET_TOKENS
    return Memory(
        weights=sizes.others * (_NF4 if config.model.load == "nf4" else itemsize) + sizes.embedded * itemsize,
        adapters=adapter_bytes(config) * (4 + earlier),
        other=_CONTEXT if device_of(config).type == "cuda" else 0.0,
        activations=tokens * kept * itemsize + MAX_TARGET_TOKENS * sizes.vocabulary * LOGIT_BYTES,
    )


def device_memory(config: Config) -> float:
    """Bytes that the config's device has in all; of a CPU, what this process may have."""
    device = device_of(config)
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    has = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = _CGROUP.read_text(encoding="ascii").strip() if _CGROUP.is_file() else "max"
    return min(has, float(limit)) if limit.isdecimal() else has


def ways_to_fit(config: Config, room: float, earlier: int = 0) -> list[str]:
    """The settings that would make the training fit, those that change least first; empty if none does."""
    checkpointing, nf4 = "trainer.gradient_checkpointing=true", "model.load=nf4"
    for ways in ([checkpointing], [nf4], [checkpointing, nf4]):
        other = replace(
            config,
            trainer=replace(config.trainer, gradient_checkpointing=checkpointing in ways),
            model=replace(config.model, load="nf4" if nf4 in ways else config.model.load),
        )
        memory = training_memory(other, earlier)
        if memory and sum(memory) <= room:
            return ways
    return []


def require_memory(config: Config, earlier: int = 0) -> str:
    """A line where the longest rows may not fit on the device; UserError if not even the weights do."""
    memory, room = training_memory(config, earlier), device_memory(config)
    if memory is None or sum(memory) <= room:
        return ""
    ways = " ".join(ways_to_fit(config, room, earlier))
    way = f"{ways} would fit" if ways else "it takes a smaller model, or a larger device"
    has = f"of the {decimal(round(room))} of this device: {way}."
    fixed = memory.weights + memory.adapters + memory.other
    if fixed > room:
        raise UserError(
            f"Model {config.model.name} cannot be trained here: weights, adapters and optimizer take "
            f"{decimal(round(fixed))} {has}"
        )
    return (
        f"Model {config.model.name}: a training may take {decimal(round(sum(memory)))} with its longest rows "
        f"(data.max_input_tokens={config.data.max_input_tokens}), {has}"
    )
