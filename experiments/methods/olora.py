"""O-LoRA: LoraInc, with the new adapter's inputs kept off those of earlier ones (Wang et al., EMNLP 2023).

The penalty is the sum of absolute entries of A_earlier A_newᵀ over all modules, as in the published codes
(cmnfriend/O-LoRA, src/uie_trainer_lora.py; TRACE, model/Regular/O_LoRA.py); the article writes squares. With
rank r, t - 1 earlier tasks and a module's d_in inputs: A_earlier (r (t - 1), d_in), A_new (r, d_in), their
product (r (t - 1), r), the penalty a scalar in float32.
"""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from sapo.conf.errors import WorkError
from sapo.experiments.methods.lorainc import LoraInc
from sapo.experiments.model.adapters import CURRENT, EARLIER


class OLora(LoraInc):
    """Trains a fresh adapter beside the frozen ones, orthogonal to them."""

    reads = ("weight", "penalty_factor")

    def penalty(self, model: PeftModel) -> Tensor | None:
        """weight · penalty_factor · overlap; None for the first task and where that factor is 0.

        Gradients flow into the new A only. WorkError if nothing overlaps: no earlier adapters are there.
        """
        strength = self.config.weight * self.config.penalty_factor
        if self.previous_adapter is None or strength == 0:
            return None
        layers: list[Any] = [module.lora_A for module in model.modules() if isinstance(module, LoraLayer)]
        pairs = [(layer[EARLIER].weight.detach().float(), layer[CURRENT].weight.float()) for layer in layers]
        total = torch.stack([(earlier @ new.T).abs().sum() for earlier, new in pairs]).sum()
        if total == 0:
            raise WorkError(f"{self.config.name}: the adapters of earlier tasks are zero or did not load.")
        return strength * total
