"""LoraInc: a new adapter for each task; earlier ones frozen, all of them active (paper, Section 5.1).

Adapters of earlier tasks are kept as one adapter of their summed rank, which is exact: see `concatenate`.
"""

from pathlib import Path

from peft import PeftModel, get_peft_model

from sapo.conf.errors import WorkError
from sapo.experiments.methods.method import Method
from sapo.experiments.model.adapters import (
    CURRENT,
    FOLDER,
    adapter_tensors,
    concatenate,
    load_adapter,
    lora_config,
    save_adapter,
    trainable_parameters,
)

EARLIER = "earlier"


class LoraInc(Method):
    """Trains a fresh adapter beside the frozen ones."""

    def start(self) -> PeftModel:
        """The base with all earlier adapters, frozen, and a new one whose B is zero: no logit changes."""
        base = self.context.language_model.base
        new = lora_config(self.config, self.targets)
        if self.previous_adapter is None:
            return get_peft_model(base, new, adapter_name=CURRENT)
        model = load_adapter(base, self.previous_adapter, name=EARLIER)
        model.add_adapter(CURRENT, new)
        model.base_model.set_adapter([EARLIER, CURRENT])  # type: ignore[operator]
        # PEFT makes everything trainable that it activates.
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(f".{CURRENT}." in key)
        expected = sum(value.numel() for value in adapter_tensors(model, CURRENT).values())
        if trainable_parameters(model) != expected:
            raise WorkError(f"{self.config.name} would train other weights than the new adapter's.")
        return model

    def save(self, model: PeftModel, folder: Path) -> None:
        """All adapters so far as one ordinary PEFT adapter."""
        weights = adapter_tensors(model, CURRENT)
        rank = self.config.rank
        if EARLIER in model.peft_config:
            weights = concatenate(adapter_tensors(model, EARLIER), weights)
            rank += model.peft_config[EARLIER].r  # type: ignore[attr-defined]
        save_adapter(self.config, self.targets, rank, weights, folder / FOLDER)
