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
from sapo.data.losses import prompt_losses
from sapo.data.pools import load_pool
from sapo.data.prompts import Prompt, PromptPool, pool_of
from sapo.data.subset import subset
from sapo.data.tasks import Task, short_name
from sapo.experiments.engine.store import Stored
from sapo.experiments.model.rows import TrainingTask
from sapo.experiments.policies import choose, needs_losses
from sapo.experiments.stages import BASE, Evaluate, Score, Stage, Train


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
    """The prompt that a policy chose for a task, and what it chose from.

    `drawn` are the prompts that training draws from, for a policy that never settles on one: the task is then
    tested with `prompt`. `scored` is the stage that measured the candidates' losses, for a policy that reads
    them.
    """

    task: str
    prompt: Prompt
    candidates: list[dict[str, Any]] | None = None
    drawn: tuple[Prompt, ...] = ()
    scored: Stored | Planned | None = None


@dataclass(frozen=True)
class State:
    """A state of the model on the way: the key of the training that made it, after `after` tasks.

    `prompts` are the learned tasks' prompts, by task; `tested` are the tasks that it is tested on.
    """

    after: int
    key: str
    prompts: dict[str, Prompt]
    tested: tuple[Task, ...]


@dataclass(frozen=True)
class Evaluation:
    """A task evaluated under a prompt after `after` trained tasks.

    `column` is `trained`: learned tasks under the prompt they were trained with; or `common`: a learned task
    under its original instruction, where that is another prompt.
    """

    after: int
    task: str
    prompt: Prompt
    column: str
    stored: Stored | Planned


@dataclass(frozen=True)
class Run:
    """What came out of one sequence under one configuration."""

    config: Config
    tasks: list[Task]
    unseen: list[Task]
    choices: list[Choice] = field(default_factory=list)
    trained: list[Stored | Planned] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def prompts(self) -> dict[str, Prompt]:
        """The prompt that each task was trained with."""
        return {choice.task: choice.prompt for choice in self.choices}

    def reach(self, key: str, after: int, learned: Sequence[Choice], tested: Sequence[Task] = ()) -> None:
        """Notes a state to test: on all tasks if not said otherwise."""
        prompts = {choice.task: choice.prompt for choice in learned}
        self.states.append(State(after, key, prompts, tuple(tested) or (*self.tasks, *self.unseen)))


async def run_sequence(config: Config, engine: Engine) -> Run:
    """Trains the tasks of a sequence and evaluates before and after.

    Learned tasks are evaluated with the prompt that they were trained with, the others with their original
    instruction (paper, Section 5.1).
    """
    run = Run(config, *load_tasks(config))
    run.reach(BASE, 0, [])
    await COURSES.get(config.method.name, one_after_another)(run, engine)
    # Evaluated only now that every state is stored: a failure here loses no training.
    for row in await asyncio.gather(*(_evaluate_all(run, engine, state) for state in run.states)):
        run.evaluations.extend(row)
    return run


async def one_after_another(run: Run, engine: Engine) -> None:
    """Each task goes on from the state that the last one left."""
    state = BASE
    for position, task in enumerate(run.tasks):
        choice = await _choose(run, engine, state, task)
        state = await _train(run, engine, state, position, [choice])
        run.reach(state, position + 1, run.choices)


async def _all_at_once(run: Run, engine: Engine) -> None:
    """`multitask`: one training on the union of all tasks, an upper bound."""
    choices = [await _choose(run, engine, BASE, task) for task in run.tasks]
    state = await _train(run, engine, BASE, 0, choices)
    run.reach(state, len(run.tasks), run.choices)


async def _each_alone(run: Run, engine: Engine) -> None:
    """`single`: every task from the untouched model; each resulting model is tested on its own task."""
    for position, task in enumerate(run.tasks):
        choice = await _choose(run, engine, BASE, task)
        state = await _train(run, engine, BASE, position, [choice])
        run.reach(state, len(run.tasks), [choice], [task])


async def _none(run: Run, engine: Engine) -> None:
    """`zero_shot`: nothing is trained; the tasks are only tested with the prompts that are chosen."""
    for task in run.tasks:
        await _choose(run, engine, BASE, task)
    run.reach(BASE, len(run.tasks), run.choices)


COURSES = {"multitask": _all_at_once, "single": _each_alone, "zero_shot": _none}


async def _choose(run: Run, engine: Engine, state: str, task: Task) -> Choice:
    """Chooses the prompt of a task in a state, and notes it."""
    choice = await choose_prompt(run.config, engine, state, task, pool_for(task, run.config))
    run.choices.append(choice)
    return choice


async def _train(run: Run, engine: Engine, state: str, position: int, choices: Sequence[Choice]) -> str:
    """Trains the chosen tasks together from a state and returns the next state's key."""
    tasks = {task.name: task for task in run.tasks}
    learned = (TrainingTask(tasks[choice.task], choice.drawn or (choice.prompt,)) for choice in choices)
    stored = await engine.run(Train(run.config, state, position, tuple(learned)))
    run.trained.append(stored)
    return stored.key


def pool_for(task: Task, config: Config) -> PromptPool:
    """The task's prompt pool; the original alone where the policy needs no paraphrases."""
    policy = config.policy
    is_spared = policy.last_only and task.short_name != short_name(config.sequence.tasks[-1])
    if policy.name == "static" or (policy.name == "fixed" and (policy.index == -1 or is_spared)):
        return pool_of(task, [], "not needed")
    return load_pool(task, config.paraphrases)


async def choose_prompt(config: Config, engine: Engine, state: str, task: Task, pool: PromptPool) -> Choice:
    """Asks the policy, after scoring the pool in the present state if the policy needs it."""
    include_original = config.scorer.include_original
    if config.policy.name == "paft" and pool.paraphrases:
        return Choice(task.name, pool.original, drawn=pool.candidates(include_original))
    if not needs_losses(config.policy) or not pool.paraphrases:
        return Choice(task.name, choose_unscored(config, pool))
    examples = subset(task, config.scorer.examples, config.scorer.subset, config.seed)
    # The original is always scored, so that every result can say what it would have cost; in a race it would
    # knock out others without being able to win, so there only what can be chosen is scored.
    scored_too = include_original or config.scorer.name != "race"
    scored = await engine.run(Score(config, state, task, examples, pool.candidates(scored_too)))
    if isinstance(scored, Planned):
        stand_in = f"{task.instruction} [chosen by {config.policy.name} from {scored.key}]"
        return Choice(task.name, Prompt(stand_in))
    losses = prompt_losses(scored.examples(), config.scorer.reduction)
    complete = losses[losses["is_complete"]]
    by_index = dict(zip(complete["prompt"].tolist(), complete["loss"].tolist(), strict=True))
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
    chosen = choose(config.policy, pool, include_original, config.seed, by_index)
    return Choice(task.name, chosen, candidates, scored=scored)


def choose_unscored(config: Config, pool: PromptPool) -> Prompt:
    """The choice of a policy that looks at no loss; the original where there is nothing else."""
    if not pool.paraphrases:
        return pool.original
    return choose(config.policy, pool, config.scorer.include_original, config.seed)


async def _evaluate_all(run: Run, engine: Engine, state: State) -> list[Evaluation]:
    row = []
    for task in state.tested:
        original = Prompt(task.instruction)
        prompt = state.prompts.get(task.name, original)
        wishes = [(prompt, "trained")]
        if run.config.evaluator.common_prompt and prompt.text != original.text:
            wishes.append((original, "common"))
        for text, column in wishes:
            stored = await engine.run(Evaluate(run.config, state.key, task, text))
            row.append(Evaluation(state.after, task.name, text, column, stored))
    return row
