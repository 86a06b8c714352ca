"""What can be reproduced: each table and figure of the paper, its experiments, and how it is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

from sapo.conf.errors import UserError, unknown
from sapo.conf.load import load
from sapo.conf.schema import Config
from sapo.experiments.jobs import Job

SCALES = ("mini", "small", "paper")
ALL = "all"
CLAIMS = "claims"


@dataclass(frozen=True)
class Target:
    """A table or figure: the experiment `{experiment}_{scale}` runs it, and `drawing` shows it.

    A drawing is `scores` (AP, BWT and FWT of policies and pools), `pool_sizes` (these against the size of the
    pool), `timings`, `claims` (of runs and probes), or the figure that is drawn from probes. `small`, of the
    scales, is the paper's tasks on the small model.
    """

    experiment: str
    drawing: str
    scales: tuple[str, ...] = ("mini", "paper")

    @property
    def is_probe(self) -> bool:
        """Whether it is drawn from probes, for which more is measured than runs need."""
        return self.experiment == "probe"

    @property
    def gradients(self) -> bool:
        """Whether the probes need gradients."""
        return self.drawing == "figure4"


# Figures 5 to 14 show further models and sequences of the first three: the probe covers all of them.
_OF_PROBES = {
    "figure1": (1, 5, 6),
    "figure2": (2, 7, 8, 9, 10),
    "figure3": (3, 11, 12, 13, 14),
    "figure4": (4,),
}
TARGETS = {
    "table1": Target("table1", "scores", SCALES),
    "table2": Target("table2", "scores"),
    "table3": Target("table3", "scores"),
    "table10": Target("table10", "timings"),
    "table11": Target("table11", "scores"),
    "figure15": Target("figure15", "pool_sizes"),
    CLAIMS: Target("table1", CLAIMS, SCALES),
    **{
        f"figure{n}": Target("probe", drawing, SCALES) for drawing, shown in _OF_PROBES.items() for n in shown
    },
}

# What claims need of Table 1's runs: a second seed; one model and method, but every sequence and policy.
_CLAIM_RUNS = {
    "mini": ["seed=range(2)"],
    "small": [],
    "paper": [
        "model=llama2_7b_chat",
        "method=lorainc",
        "policy=static,random,sapo",
        "sequence=ni_seq_g1,ni_seq_g2,ni_seq_c1,ni_seq_c2,ni_seq_m1,ni_seq_m2,trace",
    ],
}


def targets_of(name: str, scale: str) -> list[str]:
    """The targets that a name means: itself, or for `all` every table and figure that has the scale.

    Each drawing of a probe is there once in `all`. Raises UserError for an unknown name or scale.
    """
    if name not in (*TARGETS, ALL):
        raise unknown("target", name, [*TARGETS, ALL])
    scales = SCALES if name == ALL else TARGETS[name].scales
    if scale not in scales:
        raise unknown("scale", scale, scales)
    if name != ALL:
        return [name]
    return [
        target
        for target, what in TARGETS.items()
        if scale in what.scales and target != CLAIMS and (not what.is_probe or target == what.drawing)
    ]


def jobs_of(name: str, scale: str, overrides: Sequence[str]) -> list[Job]:
    """The runs of a target at a scale that it has, each once; UserError for overrides that do not fit."""
    if any(override.startswith("experiment=") for override in overrides):
        raise UserError(f"{name} is an experiment itself: leave experiment=… out, or use sapo train.")
    if name != CLAIMS:
        return _distinct(load([f"experiment={TARGETS[name].experiment}_{scale}", *overrides]))
    # What claims rest on: a probe, the runs of Table 1, and those of rival explanations. `policy.index=…` is
    # of the probe's prompts, `policy=…` of the runs.
    of_runs = [each for each in overrides if not each.startswith("policy.")]
    of_probe = [each for each in overrides if not each.startswith("policy=")]
    of_runs = [f"experiment=table1_{scale}", *_replaced(_CLAIM_RUNS[scale], of_runs)]
    runs = load(of_runs)
    # A third of the learning rate; and SAPO's prompts for the untouched model.
    lower = f"trainer.learning_rate={runs[0].trainer.learning_rate / 3:.0e}"
    for rival in (["policy=static", lower], ["policy=static,sapo", "method=zero_shot"]):
        runs += load(_replaced(of_runs, rival))
    return _distinct(runs + load([f"experiment=probe_{scale}", *of_probe]))


def _replaced(overrides: Sequence[str], others: Sequence[str]) -> list[str]:
    """Both, without the overrides that others replace."""
    names = {other.split("=", 1)[0] for other in others}
    return [*(each for each in overrides if each.split("=", 1)[0] not in names), *others]


def _distinct(configs: Sequence[Config]) -> list[Job]:
    # A run that reads no paraphrases is the same run whatever the pool.
    distinct: dict[str, Job] = {}
    for config in configs:
        read = vars(config) | ({"paraphrases": None} if config.policy.name == "static" else {})
        distinct.setdefault(repr(read), Job(config))
    return list(distinct.values())


def probe_jobs(name: str, jobs: Sequence[Job]) -> list[Job]:
    """The runs of a target that probes are made of."""
    if name != CLAIMS:
        return list(jobs) if TARGETS[name].is_probe else []
    return [job for job in jobs if job.config.policy.name == "fixed"]


def require_gpu(scale: str, config: Config) -> None:
    """UserError if the paper's scale is asked for on a CPU."""
    from sapo.experiments.model.identity import device_of  # PyTorch, which a list of targets does not need

    if scale == "paper" and device_of(config).type == "cpu":
        raise UserError(
            "The paper's scale trains models of 7 to 14 billion parameters: it needs a GPU (80 GB for the "
            "largest), and PyTorch sees none here. Try --scale mini, or insist with --yes."
        )
