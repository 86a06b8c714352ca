"""What can be reproduced, and the experiment that does it at each scale."""

from sapo.conf.errors import UserError, unknown

TARGETS = {"table1": {"mini": "table1_mini", "paper": "table1_paper"}}


def overrides_of(target: str, scale: str, overrides: list[str]) -> list[str]:
    """The overrides that run a target at a scale; UserError for an unknown target or scale."""
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    if scale not in TARGETS[target]:
        raise unknown(f"scale of {target}", scale, TARGETS[target])
    if any(override.startswith("experiment=") for override in overrides):
        raise UserError(f"{target} is an experiment itself: leave experiment=… out, or use sapo train.")
    return [f"experiment={TARGETS[target][scale]}", *overrides]


def require_gpu(scale: str, device_type: str) -> None:
    """UserError if the paper's scale is asked for on a CPU."""
    if scale == "paper" and device_type == "cpu":
        raise UserError(
            "The paper's scale trains models of 7 to 14 billion parameters: it needs a GPU (80 GB for the "
            "largest), and PyTorch sees none here. Try --scale mini, or insist with --yes."
        )
