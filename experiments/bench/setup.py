"""What a bench measures unless told otherwise: tasks and sizes."""

from collections.abc import Sequence
from pathlib import Path

from sapo.conf.errors import UserError
from sapo.conf.load import load
from sapo.conf.schema import Config

TASKS = ("NI195", "NI360", "NI363", "NI589", "NI1310", "NI488")
MINI_TASKS = ("mini_sentiment", "mini_price", "mini_topic", "mini_city", "mini_sort", "mini_odd")
# Sizes that two CPU cores do with a small model in some minutes; any of them can be overridden.
SIZES = (
    "scorer.examples=32",
    "data.train_examples=32",
    "data.test_examples=24",
    "data.max_input_tokens=1536",
    "trainer.epochs=1",
    "trainer.global_batch=32",
    "trainer.warmup_ratio=0",
    "trainer.checkpoint_steps=0",
    "evaluator.max_new_tokens=16",
)


def bench_configs(overrides: Sequence[str]) -> list[Config]:
    """A config for each task that is measured: `task=A,B`, else SuperNI tasks, or mini tasks without data.

    Raises UserError for a setting that the plain way does not have.
    """
    said = {override.split("=", 1)[0] for override in overrides}
    sizes = [size for size in SIZES if size.split("=", 1)[0] not in said]
    configs = load([*sizes, *overrides])
    if "task" not in said:
        root = configs[0].data.root
        has_data = bool(root) and (Path(root or "") / "SUPERNI" / "instructions.json").is_file()
        names = ",".join(TASKS if has_data else MINI_TASKS)
        configs = load([*sizes, *overrides, f"task={names}"])
    if any(config.task is None for config in configs):
        raise UserError("task: say which task is measured, as in task=NI195.")
    if any(config.trainer.schedule == "warmup_log_constant" for config in configs):
        raise UserError("trainer.schedule=warmup_log_constant: plain Transformers have no such schedule.")
    return configs
