"""Sequential fine-tuning: one adapter, trained on through all tasks; the plain floor.

`single` and `multitask` are the same training, asked for from the untouched model each time: for each task
alone, and for all tasks at once. `zero_shot` is none at all.
"""

from peft import PeftModel

from sapo.experiments.methods.method import Method
from sapo.experiments.model.adapters import CURRENT, load_adapter, with_new_adapter


class Sequential(Method):
    """Trains the same adapter on, task after task."""

    def start(self) -> PeftModel:
        """The base with the adapter as the last task left it, trainable; a fresh one for the first task."""
        base = self.context.language_model.base
        if self.previous_adapter is None:
            return with_new_adapter(base, None, self.context.config)
        return load_adapter(base, self.previous_adapter, trainable=True, name=CURRENT)
