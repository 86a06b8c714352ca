"""The continual loop: for each task choose a prompt, train, and evaluate every task.

A run is a short program whose slow steps are remembered: it asks the engine for stages, and the engine
computes those that are not in the store.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sapo.conf.schema import Config
from sapo.data.benchmarks import load_tasks
from sapo.data.pools import load_pool
from sapo.data.prompts import Prompt, PromptPool, pool_of
from sapo.data.tasks import Task
from sapo.experiments.engine.stages import BASE, Evaluate, Score, Stage, Train
from sapo.experiments.engine.store import Stored
from sapo.experiments.policies import choose, needs_losses
from sapo.experiments.scoring import prompt_losses, subset


class Engine(Protocol):
    """Answers stages; a `Planned` one stands for a stage that a plan did not compute."""

    async def run(self, stage: Stage) -> "Stored | Planned":
        """The finished stage, or its stand-in."""
        ...


@dataclass(frozen=True)
class Planned:
    """A stage that is to do: it has a key, and no result."""

    key: str


@dataclass(frozen=True)
class Choice:
    """The prompt that a policy chose for a task, and what it chose from."""

    task: str
    prompt: Prompt
    candidates: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Evaluation:
    """A task evaluated under a prompt after `after` trained tasks."""

    after: int
    task: str
    prompt: Prompt
    stored: Stored | Planned


@dataclass(frozen=True)
class Run:
    """What came out of one sequence under one configuration."""

    config: Config
    tasks: list[Task]
    unseen: list[Task]
    choices: list[Choice] = field(default_factory=list)
    trained: list[Stored | Planned] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def prompts(self) -> dict[str, Prompt]:
        """The prompt that each task was trained with."""
        return {choice.task: choice.prompt for choice in self.choices}


async def run_sequence(config: Config, engine: Engine) -> Run:
    """Trains a sequence of tasks and evaluates all of them before and after each.

    Learned tasks are evaluated with the prompt that they were trained with, the others with their original
    instruction (paper, Section 5.1).
    """
    tasks, unseen = load_tasks(config)
    pools = {task.name: pool_for(task, config) for task in tasks}
    run = Run(config, tasks, unseen)
    prompts = {task.name: Prompt(task.instruction) for task in (*tasks, *unseen)}
    state = BASE
    states = [(state, dict(prompts))]
    for position, task in enumerate(tasks):
        choice = await choose_prompt(config, engine, state, task, pools[task.name])
        prompts[task.name] = choice.prompt
        trained = await engine.run(Train(config, state, position, task, choice.prompt))
        state = trained.key
        run.choices.append(choice)
        run.trained.append(trained)
        states.append((state, dict(prompts)))
    # Evaluated only now that every state is stored: a failure here loses no training.
    rows = (_evaluate_all(run, engine, key, after, texts) for after, (key, texts) in enumerate(states))
    for row in await asyncio.gather(*rows):
        run.evaluations.extend(row)
    return run


async def run_all(configs: Sequence[Config], engine: Engine) -> list[Run]:
    """Runs many sequences on one engine; stages that they share are computed once."""
    return list(await asyncio.gather(*(run_sequence(config, engine) for config in configs)))


def pool_for(task: Task, config: Config) -> PromptPool:
    """The task's prompt pool; the original alone where the policy needs no paraphrases."""
    if config.policy.name == "static" or (config.policy.name == "fixed" and config.policy.index == -1):
        return pool_of(task, [], "not needed")
    return load_pool(task, config.paraphrases)


async def choose_prompt(config: Config, engine: Engine, state: str, task: Task, pool: PromptPool) -> Choice:
    """Asks the policy, after scoring the pool in the present state if the policy needs it."""
    include_original = config.scorer.include_original
    if not needs_losses(config.policy) or not pool.paraphrases:
        return Choice(task.name, choose_unscored(config, pool))
    examples = subset(task, config.scorer.examples, config.scorer.subset, config.seed)
    # The original is always scored, so that every result can say what it would have cost.
    scored = await engine.run(Score(config, state, task, examples, pool.candidates(include_original=True)))
    if isinstance(scored, Planned):
        return Choice(task.name, Prompt(f"{task.instruction} [chosen by {scored.key}]"))
    losses = prompt_losses(scored.examples(), config.scorer.reduction)
    by_index = dict(zip(losses["prompt"].tolist(), losses["loss"].tolist(), strict=True))
    texts = {prompt.index: prompt.text for prompt in pool.candidates(include_original=True)}
    candidates = [
        {
            "index": row.prompt,
            "text": texts[row.prompt],
            "loss": row.loss,
            "n_examples": row.n_examples,
            "n_tokens": row.n_tokens,
        }
        for row in losses.itertuples()
    ]
    return Choice(task.name, choose(config.policy, pool, include_original, config.seed, by_index), candidates)


def choose_unscored(config: Config, pool: PromptPool) -> Prompt:
    """The choice of a policy that looks at no loss; the original where there is nothing else."""
    if not pool.paraphrases:
        return pool.original
    return choose(config.policy, pool, config.scorer.include_original, config.seed)


async def _evaluate_all(
    run: Run, engine: Engine, state: str, after: int, prompts: dict[str, Prompt]
) -> list[Evaluation]:
    row = []
    for task in (*run.tasks, *run.unseen):
        stored = await engine.run(Evaluate(run.config, state, task, prompts[task.name]))
        row.append(Evaluation(after, task.name, prompts[task.name], stored))
    return row
