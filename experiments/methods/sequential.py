"""Sequential fine-tuning: one adapter, trained on through all tasks; the plain floor."""

from pathlib import Path

from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from sapo.conf.schema import MethodConfig
from sapo.experiments.adapters import CURRENT, adapter_tensors, load_adapter, lora_config, save_adapter


class Sequential:
    """Trains the same adapter on, task after task."""

    def __init__(self, config: MethodConfig, targets: list[str]) -> None:
        self.config = config
        self.targets = targets

    def start(self, base: PreTrainedModel, previous: Path | None) -> PeftModel:
        """The base with the adapter as the last task left it, trainable; a fresh one for the first task."""
        if previous is None:
            return get_peft_model(base, lora_config(self.config, self.targets), adapter_name=CURRENT)
        return load_adapter(base, previous, trainable=True, name=CURRENT)

    def save(self, model: PeftModel, folder: Path) -> None:
        """The adapter."""
        weights = adapter_tensors(model, CURRENT)
        save_adapter(self.config, self.targets, self.config.rank, weights, folder)
