"""What runs: models, pre-update scoring, policies, methods, training, evaluation, and the continual loop."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sapo.experiments.compare import compare_prompts
    from sapo.experiments.select import Selection, select_prompt

# PyTorch reads this when it is imported, which nothing outside this package does; a user's own setting stays.
# Its threads wait for each other by spinning: where another process has one's core, the others burn theirs
# for nothing. A short spin, then sleep, costs little on an idle machine (docs/performance.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__all__ = ["Selection", "compare_prompts", "select_prompt"]


def __getattr__(name: str) -> Any:
    """What notebooks use, imported when it is first asked for, since it brings PyTorch."""
    if name in __all__:
        home = "compare" if name == "compare_prompts" else "select"
        return getattr(import_module(f"sapo.experiments.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
