"""Continual-learning methods: how weights change from task to task, and what is kept between tasks.

One file a method; `method.py` says what each of them does around a training.
"""

from typing import Any

from sapo.conf.schema import MethodConfig
from sapo.experiments.methods.ewc import EWC
from sapo.experiments.methods.inscl import RULES, InsCL, inscl_label
from sapo.experiments.methods.lorainc import LoraInc
from sapo.experiments.methods.method import Context, Method
from sapo.experiments.methods.olora import OLora
from sapo.experiments.methods.replay import Replay
from sapo.experiments.methods.sequential import Sequential

__all__ = ["METHODS", "Context", "Method", "method_identity", "method_label", "method_note", "method_of"]

METHODS: dict[str, type[Method]] = {
    "lorainc": LoraInc,
    "olora": OLora,
    "ewc": EWC,
    "inscl": InsCL,
    "replay": Replay,
    "sequential": Sequential,
    "single": Sequential,
    "multitask": Sequential,
}


def method_of(context: Context) -> Method:
    """The configured method, for one training."""
    return METHODS[context.config.method.name](context)


def method_identity(method: MethodConfig, is_first: bool) -> dict[str, Any]:
    """The settings that can change what a training leaves.

    The first training of a method that keeps nothing but its adapter is plain LoRA, whatever its name: such
    methods share it.
    """
    kind = METHODS[method.name]
    adapter = {"rank": method.rank, "alpha": method.alpha, "dropout": method.dropout}
    if is_first and not kind.keeps:
        return {"name": "lora", **adapter}
    return {"name": method.name, **adapter, **{name: getattr(method, name) for name in kind.reads}}


def method_label(method: MethodConfig) -> str:
    """What the method is called in tables: its name, and for InsCL which of its variants it is."""
    return inscl_label(method) if method.name == "inscl" else method.name


def method_note(method: MethodConfig) -> str | None:
    """What a reader of the results must know of the method; None if its name says it."""
    if method.name != "inscl":
        return None
    every = " All rows kept are replayed, so distances decide nothing." if method.access == "buffer" else ""
    return f"{inscl_label(method)}: quotas by distance, {RULES[method.unit]}.{every}"
