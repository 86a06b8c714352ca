"""Score, Train and Evaluate: what they are given, and the key under which their result is stored.

A stage's key is the SHA-256 of everything that can change its result and nothing else.
"""

from dataclasses import dataclass
from typing import Any

from sapo.conf.schema import Config, identity_values
from sapo.data.prompts import Prompt
from sapo.data.tasks import Example, Task, digest, examples_digest
from sapo.experiments.models import model_identity

# Raised when a change of the code changes what a stage computes.
VERSIONS = {"score": 1, "train": 1, "evaluate": 1}
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

    def identity(self) -> dict[str, Any]:
        """What can change the result."""
        return {
            **_identity(self.config, self.kind, self.state, self.task, self.examples),
            "prompts": [[prompt.index, prompt.text] for prompt in self.prompts],
            "scorer": self.config.scorer.name,
        }

    @property
    def rows(self) -> tuple[Example, ...]:
        """The examples it reads."""
        return self.examples


@dataclass(frozen=True)
class Train:
    """A state and one task, under one prompt, give the next state. `position` counts tasks from 0."""

    config: Config
    state: str
    position: int
    task: Task
    prompt: Prompt
    kind: str = "train"

    def identity(self) -> dict[str, Any]:
        """What can change the result."""
        return {
            **_identity(self.config, self.kind, self.state, self.task, self.task.train),
            "prompt": self.prompt.text,
            "position": self.position,
            "method": identity_values(self.config.method),
            "trainer": identity_values(self.config.trainer),
            "seed": self.config.seed,
        }

    @property
    def rows(self) -> tuple[Example, ...]:
        """The examples it reads."""
        return self.task.train


@dataclass(frozen=True)
class Evaluate:
    """Answers and NLL of a task's test examples under one prompt, in a state."""

    config: Config
    state: str
    task: Task
    prompt: Prompt
    kind: str = "evaluate"

    def identity(self) -> dict[str, Any]:
        """What can change the result."""
        return {
            **_identity(self.config, self.kind, self.state, self.task, self.task.test),
            "prompt": self.prompt.text,
            "evaluator": identity_values(self.config.evaluator),
        }

    @property
    def rows(self) -> tuple[Example, ...]:
        """The examples it reads."""
        return self.task.test


Stage = Score | Train | Evaluate


def stage_key(stage: Stage) -> str:
    """SHA-256 of the canonical JSON of the stage's identity."""
    return digest(stage.identity())


def _identity(config: Config, kind: str, state: str, task: Task, rows: tuple[Example, ...]) -> dict[str, Any]:
    return {
        "kind": kind,
        "version": VERSIONS[kind],
        "state": state,
        "model": model_identity(config),
        "task": {"suffix": task.suffix, "separator": task.separator, "examples": examples_digest(rows)},
        "data": identity_values(config.data),
    }
