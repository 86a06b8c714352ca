"""Continual-learning methods: how weights change from task to task, and what is kept between tasks.

A method is a class with three steps, each given the folder that its own `save` wrote after the task before:
`start` makes the model that a task is trained on, `save` writes what is kept, and `load` opens it for scoring
and evaluation.
"""

from pathlib import Path
from typing import Protocol

from peft import PeftModel
from transformers import PreTrainedModel

from sapo.conf.schema import Config
from sapo.experiments.methods.lorainc import LoraInc
from sapo.experiments.methods.sequential import Sequential


class Method(Protocol):
    """What a continual-learning method does around the training of one task."""

    def start(self, base: PreTrainedModel, previous: Path | None) -> PeftModel:
        """The model to train: `previous` is the folder saved after the last task, None for the first."""
        ...

    def save(self, model: PeftModel, folder: Path) -> None:
        """Writes one ordinary PEFT adapter that, on the base model, is the trained model."""
        ...


METHODS: dict[str, type[LoraInc] | type[Sequential]] = {"lorainc": LoraInc, "sequential": Sequential}


def method_of(config: Config) -> Method:
    """The configured method."""
    return METHODS[config.method.name](config.method, list(config.model.lora_targets))
