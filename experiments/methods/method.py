"""What every continual-learning method does around the training of one task."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from peft import PeftModel
from torch import Tensor

from sapo.conf.schema import Config, MethodConfig
from sapo.data.render import Renderer
from sapo.data.tasks import Example
from sapo.experiments.model.adapters import FOLDER
from sapo.experiments.model.lessons import Lesson
from sapo.experiments.model.load import LanguageModel

KEPT = "kept"


@dataclass(frozen=True)
class Context:
    """One training: what is learned, from which state, with what.

    `previous` is the folder that the training before left, None for the first; `position` counts the
    trainings before this one; `seed` is this training's own.
    """

    config: Config
    language_model: LanguageModel
    lessons: tuple[Lesson, ...]
    previous: Path | None
    position: int
    seed: int

    @cached_property
    def renderer(self) -> Renderer:
        """How the model sees examples."""
        data = self.config.data
        return self.language_model.renderer(data.max_input_tokens, data.truncation, data.separator)


class Method(ABC):
    """A continual-learning method: made anew for each training, its memory is what it saved in the last one.

    The steps come in this order: `replayed`, with the untouched base model; `start`; `penalty`, in every
    optimizer step; `save`.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    """Settings of the method's config that it reads beside rank, alpha and dropout."""
    keeps: ClassVar[bool] = False
    """Whether it keeps more between tasks than the adapter."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @property
    def config(self) -> MethodConfig:
        """The method's settings."""
        return self.context.config.method

    @property
    def targets(self) -> list[str]:
        """Modules that get an adapter."""
        return list(self.context.config.model.lora_targets)

    @property
    def previous_adapter(self) -> Path | None:
        """The adapter that the training before left."""
        return self.context.previous and self.context.previous / FOLDER

    def replayed(self) -> Sequence[tuple[Lesson, Example]]:
        """Examples of earlier tasks that are trained on too, each with its own task frame and prompt."""
        return ()

    @abstractmethod
    def start(self) -> PeftModel:
        """The model to train. In evaluation mode its logits are those of the last state, to the bit."""

    def penalty(self, model: PeftModel) -> Tensor | None:
        """Added to the loss of each optimizer step; None where there is nothing to add."""
        del model
        return None

    @abstractmethod
    def save(self, model: PeftModel, folder: Path) -> None:
        """Writes `adapter/`, one ordinary PEFT adapter that on the base is the trained model, and `kept/`."""
