"""Fixtures that write made-up runs and probes."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from made_up import write_probe, write_run
from matplotlib.figure import Figure

from sapo.analysis.probes import statistics
from sapo.analysis.probes.results import ProbeResult, load_probe


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    """Files of figures hold no picture, and few subsets are drawn: most of what an analysis takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda _, file, **options: file.write(options["format"].encode()))
        patch.setattr(statistics, "SUBSETS", 10)
        yield


@pytest.fixture
def no_heat_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrices and heat maps of single runs have tests of their own."""
    summary = {"metrics": {}, "metrics_common": None, "files": []}
    monkeypatch.setattr("sapo.analysis.report.summarize_run", lambda *_: summary)


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """`run_folder(name, **changes)` writes a run under tmp_path."""
    return partial(write_run, tmp_path)


@pytest.fixture
def probe_folder(tmp_path: Path) -> Callable[..., Path]:
    """`probe_folder(name, **changes)` writes a probe and its runs under tmp_path."""
    return partial(write_probe, tmp_path)


@pytest.fixture(scope="session")
def stored_probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole probe of 21 prompts and ten tasks that tests read and leave as it is."""
    return write_probe(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def mini_probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe of six prompts and five tasks, named as those of the generated benchmark."""
    tasks = ("mini_reverse_words", "mini_last_word")
    unseen = ("mini_first_letter", "mini_count_vowels", "mini_sort_numbers")
    facts = {"sequence": "mini_probe", "n_prompts": 6}
    return write_probe(tmp_path_factory.mktemp("mini"), tasks=tasks, unseen=unseen, **facts)


@pytest.fixture(scope="session")
def whole(stored_probe: Path) -> ProbeResult:
    """The stored probe, read; tests that change its tables copy them first."""
    return load_probe(stored_probe)
