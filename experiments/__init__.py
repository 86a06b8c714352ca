"""What runs: models, pre-update scoring, policies, methods, training, evaluation, and the continual loop."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sapo.experiments.compare import compare_prompts
    from sapo.experiments.select import Selection, select_prompt

__all__ = ["Selection", "compare_prompts", "select_prompt"]


def __getattr__(name: str) -> Any:
    """What notebooks use, imported when it is first asked for, since it brings PyTorch."""
    if name in __all__:
        home = "compare" if name == "compare_prompts" else "select"
        return getattr(import_module(f"sapo.experiments.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
