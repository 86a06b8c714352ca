"""How planning, `sapo ls runs` and the analysis scale: `python tests/scale/measure.py [LARGEST]`.

Prints seconds and growth of peak memory for 10^2 … LARGEST stages (default 10^5), and for run folders. Every
row is a process of its own; what it imports and composes first is not counted. It asserts nothing: no test.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from made_up import write_run

STAGES_A_RUN = 50  # about: five tasks, six states, learned tasks tested with two prompts
SIZES = (100, 1_000, 10_000, 100_000)
RUNS = {"ls runs": (100, 1_000, 10_000), "analyze": (4, 16, 64)}
TASKS = ("mini_city", "mini_topic", "mini_price", "mini_tense", "mini_sort")


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of the work, and MiB by which the process's peak grew in it."""
    before, begun = _peak(), time.monotonic()
    work()
    return {"seconds": time.monotonic() - begun, "MiB": _peak() - before}


def _peak() -> float:
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes / 1024 / (1024 if sys.platform == "darwin" else 1)


def plan(n_stages: int, scratch: Path) -> dict[str, float]:
    """A plan of random runs of five tasks over seeds: nothing is stored, and little is shared."""
    from sapo.conf.load import load
    from sapo.experiments.jobs import Job
    from sapo.experiments.plan import plan_jobs

    seeds = max(1, n_stages // STAGES_A_RUN)
    small = ("model=tiny_llama", "sequence=mini_five_a", "policy=sapo", "engine.device=cpu")
    root = f"store.root='{scratch}'"
    jobs = [Job(config) for config in load([*small, root, f"seed=range({seeds})"])]
    plan_jobs([Job(config) for config in load([*small, root, "policy=static"])])  # reads the tasks once
    found: dict[str, float] = {}
    facts = measured(lambda: found.update(plan_jobs(jobs)))
    return {"stages": found["asked"], "runs": len(jobs), **facts}


def list_runs(n_runs: int, scratch: Path) -> dict[str, float]:
    """What `sapo ls runs` reads."""
    from sapo.cli.ls import runs

    write_runs(scratch, n_runs)
    return {"runs": n_runs, **measured(lambda: list(runs(scratch)))}


def analyze(n_runs: int, scratch: Path) -> dict[str, float]:
    """What `sapo analyze` does: matrices and figures of each run, then one table of all."""
    from sapo.analysis.report import analyze as analyze_runs
    from sapo.analysis.results import find_runs

    write_runs(scratch, n_runs)
    work = measured(
        lambda: analyze_runs(find_runs([str(scratch)], scratch), scratch / "out", "rougeL", "reference")
    )
    return {"runs": n_runs, **work}


def write_runs(root: Path, count: int) -> None:
    """Finished runs of five tasks, two policies and many seeds, with 200 test rows a task."""
    for number in range(count):
        policy, seed = ("static", "sapo")[number % 2], number // 2
        folder = write_run(
            root / "runs", f"{policy}-s{seed}", tasks=TASKS, n=200, shift=number % 2, policy=policy, seed=seed
        )
        (folder / "metrics.json").write_text('{"metrics": {"rougeL": {"reference": {"AP": 50.0}}}}')


WORKS = {"plan": plan, "ls runs": list_runs, "analyze": analyze}


def main() -> None:
    """One measurement with the arguments WORK SIZE, else all of them."""
    if len(sys.argv) == 3:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(WORKS[sys.argv[1]](int(sys.argv[2]), Path(scratch))))  # noqa: T201
        return
    largest = int(sys.argv[1]) if len(sys.argv) > 1 else SIZES[-1]
    jobs = [("plan", size) for size in SIZES if size <= largest]
    jobs += [(work, size) for work, sizes in RUNS.items() for size in sizes if size <= largest]
    for work, size in jobs:
        command = [sys.executable, __file__, work, str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        facts = json.loads(done.stdout.splitlines()[-1])
        shown = ", ".join(f"{name} {value:,.4g}" for name, value in facts.items())
        print(f"{work:<8} {shown}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
