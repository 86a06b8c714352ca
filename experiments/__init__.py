"""What runs: models, pre-update scoring, policies, methods, training, evaluation, and the continual loop."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sapo.experiments.select import Selection, select_prompt

__all__ = ["Selection", "select_prompt"]


def __getattr__(name: str) -> Any:
    """`select_prompt` and `Selection`, imported when they are first asked for, since they bring PyTorch."""
    if name in __all__:
        from sapo.experiments import select

        return getattr(select, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
