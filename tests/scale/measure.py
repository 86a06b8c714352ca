"""How planning, `sapo ls runs` and the analysis scale: `python tests/scale/measure.py [LARGEST]`.

Prints seconds and growth of peak memory for 10^2 … LARGEST stages (default 10^5), and for run folders. Every
row is a process of its own; what it imports and composes first is not counted. It asserts nothing: no test.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from made_up import write_run

STAGES_A_RUN = 50  # about: five tasks, six states, learned tasks tested with two prompts
TASKS = ("mini_city", "mini_topic", "mini_price", "mini_tense", "mini_sort")


def took(work: Callable[[], object]) -> str:
    """Seconds of the work, and MiB by which the process's peak grew in it."""

    def peak() -> float:
        kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return kibibytes / 1024 / (1024 if sys.platform == "darwin" else 1)

    before, begun = peak(), time.monotonic()
    work()
    return f"{time.monotonic() - begun:.4g} seconds, {peak() - before:.4g} MiB"


def plan(n_stages: int, scratch: Path) -> str:
    """A plan of random runs of five tasks over seeds: nothing is stored, and little is shared."""
    from sapo.conf.load import load
    from sapo.experiments.jobs import Job
    from sapo.experiments.plan import plan_jobs

    small = ("model=tiny_llama", "sequence=mini_five_a", "engine.device=cpu", f"store.root='{scratch}'")
    seeds = f"seed=range({max(1, n_stages // STAGES_A_RUN)})"
    jobs = [Job(config) for config in load([*small, "policy=sapo", seeds])]
    plan_jobs([Job(config) for config in load([*small, "policy=static"])])  # reads the tasks once
    found: dict[str, int] = {}
    took_so = took(lambda: found.update(plan_jobs(jobs)))
    return f"{found['asked']} stages, {len(jobs)} runs: {took_so}"


def list_runs(n_runs: int, scratch: Path) -> str:
    """What `sapo ls runs` reads."""
    from sapo.cli.ls import runs

    write_runs(scratch, n_runs)
    return f"{n_runs} runs: {took(lambda: list(runs(scratch)))}"


def analyze(n_runs: int, scratch: Path) -> str:
    """What `sapo analyze` does: matrices and figures of each run, then one table of all."""
    from sapo.analysis import report
    from sapo.analysis.results import find_runs

    write_runs(scratch, n_runs)
    output, settings = scratch / "out", ("rougeL", "reference")
    work = took(lambda: report.analyze(find_runs([str(scratch)], scratch), output, *settings))
    return f"{n_runs} runs: {work}"


def write_runs(root: Path, count: int) -> None:
    """Finished runs of five tasks, two policies and many seeds, with 200 test rows a task."""
    for number in range(count):
        policy, seed = ("static", "sapo")[number % 2], number // 2
        facts = {"tasks": TASKS, "n": 200, "shift": number % 2, "policy": policy, "seed": seed}
        folder = write_run(root / "runs", f"{policy}-s{seed}", **facts)
        (folder / "metrics.json").write_text('{"metrics": {"rougeL": {"reference": {"AP": 50.0}}}}')


def measured(work: Callable[[int, Path], str], size: int) -> str:
    """The work's line, in a folder of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        return work(size, Path(scratch))


SIZES = {plan: (100, 1_000, 10_000, 100_000), list_runs: (100, 1_000, 10_000), analyze: (4, 16, 64)}

if __name__ == "__main__":
    largest = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
        for work, sizes in SIZES.items():
            for size in (size for size in sizes if size <= largest):
                print(f"{work.__name__:<9} {processes.apply(measured, (work, size))}", flush=True)  # noqa: T201
