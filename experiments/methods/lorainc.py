"""LoraInc: a new adapter for each task; earlier ones frozen, all of them active (paper, Section 5.1).

Adapters of earlier tasks are kept as one adapter of their summed rank, which is exact: see `concatenate`.
"""

from peft import PeftModel

from sapo.experiments.methods.method import Method
from sapo.experiments.model.adapters import with_new_adapter


class LoraInc(Method):
    """Trains a fresh adapter beside the frozen ones."""

    @classmethod
    def stored_adapters(cls, position: int) -> int:
        """The adapters of earlier tasks are kept with the new one."""
        return position + 1

    def start(self) -> PeftModel:
        """The base with all earlier adapters, frozen, and a new one."""
        return with_new_adapter(self.context.language_model.base, self.previous_adapter, self.context.config)
