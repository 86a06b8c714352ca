"""Score, Train, Evaluate and Gradient: what they are given, and the key under which their result is stored.

A stage's key is the SHA-256 of everything that can change its result and nothing else.
"""

from dataclasses import dataclass
from typing import Any

from sapo.conf.schema import Config, identity_values
from sapo.data.prompts import Prompt
from sapo.data.tasks import Example, Task, digest, examples_digest
from sapo.experiments.methods import method_identity
from sapo.experiments.model.identity import model_identity
from sapo.experiments.model.lessons import Lesson

# Raised when a change of the code changes what a stage computes.
VERSIONS = {"score": 1, "train": 2, "evaluate": 1, "gradient": 1}
BASE = "base"


@dataclass(frozen=True)
class Score:
    """NLL of a task's scored examples under each prompt, in the state before training on it."""

    config: Config
    state: str
    task: Task
    examples: tuple[Example, ...]
    prompts: tuple[Prompt, ...]
    kind: str = "score"

    @property
    def name(self) -> str:
        """What is scored, for people."""
        return self.task.name

    def identity(self) -> dict[str, Any]:
        """What can change the result."""
        return {
            **_identity(self.config, self.kind, self.state),
            "task": _frame(self.task, self.examples),
            "prompts": [[prompt.index, prompt.text] for prompt in self.prompts],
            "scorer": _scorer_identity(self.config),
        }

    @property
    def rows(self) -> tuple[Example, ...]:
        """The examples it reads."""
        return self.examples


@dataclass(frozen=True)
class Train:
    """A state and what is learned give the next state. `position` counts the run's trainings from 0.

    Nearly always one lesson, a task under one prompt; several are learned together.
    """

    config: Config
    state: str
    position: int
    lessons: tuple[Lesson, ...]
    kind: str = "train"

    @property
    def task(self) -> Task:
        """The task; the first of several."""
        return self.lessons[0].task

    @property
    def name(self) -> str:
        """What is learned, for people: the tasks' names."""
        return "+".join(lesson.task.name for lesson in self.lessons)

    def identity(self) -> dict[str, Any]:
        """What can change the result."""
        config = self.config
        draws = any(len(lesson.prompts) > 1 for lesson in self.lessons)
        return {
            **_identity(config, self.kind, self.state),
            "lessons": [
                {
                    "task": _frame(lesson.task, lesson.task.train),
                    "prompts": [prompt.text for prompt in lesson.prompts],
                }
                for lesson in self.lessons
            ],
            "position": self.position,
            "method": method_identity(config.method, is_first=self.state == BASE),
            "trainer": identity_values(config.trainer),
            "seed": config.seed,
            **({"redraw": config.policy.redraw} if draws else {}),
        }

    @property
    def rows(self) -> tuple[Example, ...]:
        """The examples it reads."""
        return tuple(example for lesson in self.lessons for example in lesson.task.train)


@dataclass(frozen=True)
class Evaluate:
    """Answers and NLL of a task's test examples under one prompt, in a state."""

    config: Config
    state: str
    task: Task
    prompt: Prompt
    kind: str = "evaluate"

    @property
    def name(self) -> str:
        """What is evaluated, for people."""
        return self.task.name

    def identity(self) -> dict[str, Any]:
        """What can change the result."""
        return {
            **_identity(self.config, self.kind, self.state),
            "task": _frame(self.task, self.task.test),
            "prompt": self.prompt.text,
            "evaluator": identity_values(self.config.evaluator),
        }

    @property
    def rows(self) -> tuple[Example, ...]:
        """The examples it reads."""
        return self.task.test


@dataclass(frozen=True)
class Gradient:
    """Gradient of a fresh adapter at a task's scored examples under one prompt, in a state."""

    config: Config
    state: str
    task: Task
    examples: tuple[Example, ...]
    prompt: Prompt
    kind: str = "gradient"

    @property
    def name(self) -> str:
        """What the gradient is of, for people."""
        return self.task.name

    def identity(self) -> dict[str, Any]:
        """What can change the result."""
        method = self.config.method
        return {
            **_identity(self.config, self.kind, self.state),
            "task": _frame(self.task, self.examples),
            "prompt": self.prompt.text,
            "adapter": {"rank": method.rank, "alpha": method.alpha},
            "seed": self.config.seed,
        }

    @property
    def rows(self) -> tuple[Example, ...]:
        """The examples it reads."""
        return self.examples


Stage = Score | Train | Evaluate | Gradient


def stage_key(stage: Stage) -> str:
    """SHA-256 of the canonical JSON of the stage's identity."""
    return digest(stage.identity())


def _identity(config: Config, kind: str, state: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "version": VERSIONS[kind],
        "state": state,
        "model": model_identity(config),
        "data": identity_values(config.data),
    }


def _scorer_identity(config: Config) -> dict[str, Any]:
    """What of the scorer can change its result; a race also depends on its order and on the reduction."""
    identity = identity_values(config.scorer)
    if config.scorer.name == "race":
        identity |= {"reduction": config.scorer.reduction, "seed": config.seed}
    else:
        del identity["confidence"]
    return identity


def _frame(task: Task, rows: tuple[Example, ...]) -> dict[str, str]:
    return {"suffix": task.suffix, "separator": task.separator, "examples": examples_digest(rows)}
