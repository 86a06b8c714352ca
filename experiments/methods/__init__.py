"""Continual-learning methods: how weights change from task to task, and what is kept between tasks.

One file a method; `method.py` says what each of them does around a training. A new one is a file here, a line
in `METHODS`, and a YAML file in `conf/method/`.
"""

from sapo.conf.errors import UserError
from sapo.conf.plugins import load_plugin
from sapo.conf.schema import Config
from sapo.experiments.methods.ewc import EWC
from sapo.experiments.methods.inscl import InsCL
from sapo.experiments.methods.lorainc import LoraInc
from sapo.experiments.methods.method import Context, Method
from sapo.experiments.methods.olora import OLora
from sapo.experiments.methods.replay import Replay
from sapo.experiments.methods.sequential import Sequential

__all__ = ["METHODS", "Context", "Method", "earlier_adapters"]


class _Methods(dict[str, type[Method]]):
    def __missing__(self, name: str) -> type[Method]:
        """One from outside, loaded when it is first asked for."""
        found, code = load_plugin("method", name)
        if not (isinstance(found, type) and issubclass(found, Method)):
            raise UserError(f"method {name}: METHOD must be a class of sapo.experiments.methods.Method.")
        self[name] = type(found.__name__, (found,), {"code": code, "__doc__": found.__doc__})
        return self[name]


METHODS = _Methods(
    {
        "lorainc": LoraInc,
        "olora": OLora,
        "ewc": EWC,
        "inscl": InsCL,
        "replay": Replay,
        **dict.fromkeys(("sequential", "single", "multitask", "zero_shot"), Sequential),
    }
)


def earlier_adapters(config: Config) -> int:
    """How many adapters of its rank the last training of a config's sequence holds beside its own."""
    return METHODS[config.method.name].stored_adapters(len(config.sequence.tasks) - 1) - 1
