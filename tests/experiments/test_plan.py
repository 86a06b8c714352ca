"""What a plan says a stage leaves on disk."""

import pytest

from sapo.data.mini import generate
from sapo.experiments.model.rows import TrainingTask
from sapo.experiments.plan import stage_bytes
from sapo.experiments.stages import BASE, Train


@pytest.mark.parametrize(
    ("method", "adapters"),
    [("lorainc", 5), ("olora", 5), ("inscl", 5), ("replay", 5), ("sequential", 1), ("ewc", 3)],
)
def test_the_fifth_training_keeps_as_many_adapters_as_its_method(tiny_config, method, adapters):
    def size(name: str, position: int) -> int:
        return stage_bytes(Train(tiny_config(f"method={name}", "method.rank=8"), BASE, position, tasks))

    task = generate("mini_city", 4, 2, 0)
    tasks = (TrainingTask(task, ()),)
    one = size("sequential", 1) - size("sequential", 0)
    assert one == 0  # one adapter, wherever the task stands
    adapter = size("lorainc", 1) - size("lorainc", 0)
    assert size(method, 4) - size("sequential", 0) == (adapters - 1) * adapter
