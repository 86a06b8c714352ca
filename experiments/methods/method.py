"""What every continual-learning method does around the training of one task."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftModel
from torch import Tensor

from sapo.conf.schema import Config, MethodConfig
from sapo.data.tasks import Example
from sapo.experiments.model import adapters
from sapo.experiments.model.adapters import EARLIER, FOLDER
from sapo.experiments.model.load import LanguageModel
from sapo.experiments.model.rows import TrainingTask

KEPT = "kept"


@dataclass(frozen=True)
class Context:
    """One training: what is learned, from which state, with what.

    `previous` is the folder that the training before left, None for the first; `position` counts the
    trainings before this one; `seed` is this training's own.
    """

    config: Config
    language_model: LanguageModel
    tasks: tuple[TrainingTask, ...]
    previous: Path | None
    position: int
    seed: int


class Method(ABC):
    """A continual-learning method: made anew for each training, its memory is what it saved in the last one.

    The steps come in this order: `replayed`, with the untouched base model; `start`; `penalty`, in every
    optimizer step; `save`.
    """

    reads: ClassVar[tuple[str, ...]] = ()  # settings of its config, beside rank, alpha and dropout
    keeps: ClassVar[bool] = False  # whether it keeps more between tasks than the adapter
    replays: ClassVar[bool] = False  # whether it trains on `method.buffer` rows of earlier tasks, too
    code: ClassVar[str] = ""  # what tells a method from outside from another: its stages are then its own

    def __init__(self, context: Context) -> None:
        self.context = context

    @classmethod
    def identity(cls, config: MethodConfig, is_first: bool) -> dict[str, Any]:
        """The settings that can change what a training leaves.

        The first training of a method that keeps nothing but its adapter is plain LoRA, whatever its name:
        such methods share it.
        """
        adapter = {"rank": config.rank, "alpha": config.alpha, "dropout": config.dropout}
        if is_first and not cls.keeps and not cls.code:
            return {"name": "lora", **adapter}
        own = {name: getattr(config, name) for name in cls.reads} | ({"code": cls.code} if cls.code else {})
        return {"name": config.name, **adapter, **own}

    @classmethod
    def label(cls, config: MethodConfig) -> str:
        """What the method is called in tables."""
        return config.name

    @classmethod
    def note(cls, config: MethodConfig) -> str | None:  # noqa: ARG003
        """What a reader of the results must know of the method; None if its name says it."""
        return None

    @classmethod  # noqa: B027
    def require_ready(cls, config: Config) -> None:
        """UserError before anything runs, if something that the method needs is not there."""

    @classmethod
    def stored_adapters(cls, position: int) -> int:  # noqa: ARG003
        """How many adapters of the method's rank the values that it stores after a training would fill."""
        return 1

    @property
    def config(self) -> MethodConfig:
        """The method's settings."""
        return self.context.config.method

    @property
    def previous_adapter(self) -> Path | None:
        """The adapter that the training before left."""
        return self.context.previous and self.context.previous / FOLDER

    def replayed(self) -> Sequence[tuple[TrainingTask, Example]]:
        """Examples of earlier tasks that are trained on too, each with its own task and prompts."""
        return ()

    @abstractmethod
    def start(self) -> PeftModel:
        """The model to train. In evaluation mode its logits are those of the last state, to the bit."""

    def penalty(self, model: PeftModel) -> Tensor | None:  # noqa: ARG002
        """Added to the loss of each optimizer step, a scalar; None where there is nothing to add."""
        return None

    def save(self, model: PeftModel, folder: Path) -> None:
        """Writes `adapter/`, one ordinary PEFT adapter that on the base is the trained model, and `kept/`."""
        earlier, weights = adapters.adapter_tensors(model, EARLIER), adapters.trained_weights(model)
        if earlier:  # the frozen adapters of earlier tasks
            weights = adapters.concatenate(earlier, weights)
        adapters.save_adapter(self.context.config, weights, folder / FOLDER)
