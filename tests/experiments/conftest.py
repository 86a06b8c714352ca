"""What tests of trainings share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainings import learn

from sapo.experiments import costs
from sapo.experiments.model import training


@pytest.fixture(autouse=True)
def _nothing_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rates of this machine's user."""
    monkeypatch.setattr(costs, "cache_folder", lambda: tmp_path / "cache")


class KillError(Exception):
    """In the place of a kill."""


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`killed(step, method, scratch, …)`: `learn`, dead before a step."""

    def until(step: int, *args: Any, **kwargs: Any) -> None:
        def dies(*given: Any, batch: Any = training.global_batch) -> Any:
            if given[-1] == step:
                raise KillError
            return batch(*given)

        with monkeypatch.context() as patch:
            patch.setattr(training, "global_batch", dies)
            with pytest.raises(KillError):
                learn(*args, **kwargs)

    return until
