"""LoRA adapters on disk and on a base model, and their exact concatenation."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sapo.conf.errors import WorkError
from sapo.conf.schema import Config

FOLDER = "adapter"
WEIGHTS = "adapter_model.safetensors"
CURRENT = "current"  # the adapter in training
EARLIER = "earlier"  # the frozen adapters of earlier tasks, as one
ALL_LINEAR = "all-linear"  # PEFT's name for every linear layer but the output layer
LINEAR = (nn.Linear, Conv1D)


def lora_config(config: Config) -> LoraConfig:
    """PEFT's configuration of the adapter that the config's method trains."""
    method, targets = config.method, list(config.model.lora_targets)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=method.rank,
        lora_alpha=method.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=method.dropout,
        target_modules=ALL_LINEAR if targets == [ALL_LINEAR] else sorted(targets),
        bias="none",
    )


def with_new_adapter(base: PreTrainedModel, earlier: Path | None, config: Config) -> PeftModel:
    """The base with the adapter saved in `earlier`, frozen, and a new one whose B is zero."""
    if earlier is None:
        return get_peft_model(base, lora_config(config), adapter_name=CURRENT)
    model = load_adapter(base, earlier, name=EARLIER)
    model.add_adapter(CURRENT, lora_config(config))
    model.base_model.set_adapter([EARLIER, CURRENT])  # type: ignore[operator]
    # PEFT makes everything trainable that it activates.
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(f".{CURRENT}." in key)
    return model


def load_adapter(
    base: PreTrainedModel, folder: Path, *, trainable: bool = False, name: str = "default"
) -> PeftModel:
    """A base model with the adapter saved in `folder`; WorkError if a weight of it did not arrive."""
    model = PeftModel.from_pretrained(base, str(folder), adapter_name=name, is_trainable=trainable)
    saved, loaded = load_file(folder / WEIGHTS), adapter_tensors(model, name)
    there = [key for key in saved if key in loaded and torch.equal(loaded[key].cpu(), saved[key])]
    if not len(there) == len(saved) == len(loaded):
        wrong = sorted({*saved, *loaded} - {*there})
        raise WorkError(f"The adapter in {folder} did not load: {wrong[:3]}.")
    return model


def save_adapter(config: Config, weights: dict[str, Tensor], folder: Path) -> None:
    """Writes an ordinary PEFT adapter of the weights' rank; its scale stays the method's alpha / rank."""
    own: Any = lora_config(config)
    rank = next(len(value) for key, value in weights.items() if "lora_A" in key)
    own.lora_alpha = own.lora_alpha / own.r * rank
    own.r, own.inference_mode = rank, True
    if isinstance(own.target_modules, set):  # whose order is another in every process
        own.target_modules = sorted(own.target_modules)
    folder.mkdir(parents=True)
    own.save_pretrained(str(folder))
    save_file({key: value.detach().cpu().contiguous() for key, value in weights.items()}, folder / WEIGHTS)


def adapter_tensors(model: PeftModel, name: str) -> dict[str, Tensor]:
    """The LoRA weights of one adapter by the names that PEFT saves them under."""
    mark = f".{name}.weight"
    return {
        key.replace(mark, ".weight"): value
        for key, value in model.state_dict().items()
        if "lora_" in key and key.endswith(mark)
    }


def trained_weights(model: PeftModel) -> dict[str, Tensor]:
    """The parameters in training, A (r, d_in), B (d_out, r), by saved names; WorkError if they are others."""
    mark = f".{CURRENT}.weight"
    found = {key: p for key, p in model.named_parameters() if p.requires_grad}
    for key in found:
        if "lora_" not in key or not key.endswith(mark):
            raise WorkError(f"model.lora_targets: {key} would be trained, and is no linear layer's adapter.")
    return {key.replace(mark, ".weight"): p for key, p in found.items()}


def concatenate(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two adapters of one scale as one of their summed rank, exactly: B1 A1 + B2 A2 = [B1 B2] [A1; A2]."""
    if first.keys() != second.keys():
        raise WorkError("Adapters of different modules cannot be concatenated.")
    pairs = {key: [first[key], second[key]] for key in first}
    return {key: torch.cat(pair, dim=int("lora_B" in key)).contiguous() for key, pair in pairs.items()}


@contextmanager
def plain(base: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The base model; whatever adapters were put on it inside are taken off again."""
    try:
        yield base
    finally:
        unwrap(base)
        if any(getattr(module, "gradient_checkpointing", False) for module in base.modules()):
            base.gradient_checkpointing_disable()


def unwrap(base: PreTrainedModel) -> None:
    """Puts the plain layers back where PEFT has wrapped them."""
    for name, module in list(base.named_modules()):
        if hasattr(module, "base_layer"):
            base.set_submodule(name, module.get_base_layer())
    for leftover in ("peft_config", "_hf_peft_config_loaded", "active_adapter"):
        base.__dict__.pop(leftover, None)
