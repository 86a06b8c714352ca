"""The continual loop: for each task choose a prompt, train, and evaluate every task.

A run is a short program whose slow steps are remembered: it asks the engine for stages, and the engine
computes those that are not in the store.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Protocol

from sapo.conf.schema import Config
from sapo.data.benchmarks import load_tasks
from sapo.data.losses import prompt_losses
from sapo.data.pools import load_pool
from sapo.data.prompts import Prompt, PromptPool, pool_of
from sapo.data.subset import subset
from sapo.data.tasks import Task, short_name
from sapo.experiments.engine.store import Stored
from sapo.experiments.model.rows import TrainingTask
from sapo.experiments.policies import POLICIES, Offer
from sapo.experiments.runs import Choice, Evaluation, Planned, Run, State
from sapo.experiments.stages import BASE, Evaluate, Score, Stage, Train


class Engine(Protocol):
    """Answers stages; a `Planned` one stands for a stage that a plan did not compute."""

    def run(self, stage: Stage) -> Awaitable[Stored | Planned]:
        """The finished stage, or its stand-in."""
        ...


class CountingEngine:
    """An engine that computes nothing and counts what it is asked for."""

    def __init__(self) -> None:
        self.asked = 0

    async def run(self, stage: Stage) -> Planned:
        """A stand-in for the stage."""
        del stage
        self.asked += 1
        return Planned(str(self.asked))


async def run_sequence(config: Config, engine: Engine) -> Run:
    """Trains the tasks of a sequence and evaluates before and after.

    Learned tasks are evaluated with the prompt that they were trained with, the others with their original
    instruction (paper, Section 5.1).
    """
    run = Run(config, *load_tasks(config))
    run.add_state(None, 0, [])
    await ORDERS.get(config.method.name, one_after_another)(run, engine)
    # Evaluated only now that every state is stored: a failure here loses no training.
    for row in await asyncio.gather(*(evaluate(run, engine, state) for state in run.states)):
        run.evaluations.extend(row)
    return run


async def one_after_another(run: Run, engine: Engine) -> None:
    """Each task goes on from the state that the last one left (paper, Algorithm 1)."""
    state = BASE
    for position, task in enumerate(run.tasks):
        pool = pool_for(task, run.config)
        choice = await choose_prompt(run.config, engine, state, task, pool)
        trained = await engine.run(training(run, state, position, [choice]))
        state = run.add_state(trained, position + 1, run.choices)


async def _all_at_once(run: Run, engine: Engine) -> None:
    """`multitask`: one training on the union of all tasks, an upper bound."""
    choices = [await choose_prompt(run.config, engine, BASE, t, pool_for(t, run.config)) for t in run.tasks]
    trained = await engine.run(training(run, BASE, 0, choices))
    run.add_state(trained, len(run.tasks), run.choices)


async def _each_alone(run: Run, engine: Engine) -> None:
    """`single`: every task from the untouched model; each resulting model is evaluated on its own task."""
    for position, task in enumerate(run.tasks):
        choice = await choose_prompt(run.config, engine, BASE, task, pool_for(task, run.config))
        trained = await engine.run(training(run, BASE, position, [choice]))
        run.add_state(trained, len(run.tasks), [choice], [task])


async def _none(run: Run, engine: Engine) -> None:
    """`zero_shot`: nothing is trained; the tasks are only evaluated with the prompts that are chosen."""
    for task in run.tasks:
        run.choices.append(await choose_prompt(run.config, engine, BASE, task, pool_for(task, run.config)))
    run.add_state(None, len(run.tasks), run.choices)


# What trains in another order than one task after another.
ORDERS = {"multitask": _all_at_once, "single": _each_alone, "zero_shot": _none}


def pool_for(task: Task, config: Config) -> PromptPool:
    """The task's prompt pool; the original alone where the policy needs no paraphrases."""
    is_last = task.short_name == short_name(config.sequence.tasks[-1])
    if not POLICIES[config.policy.name].needs_pool(config.policy, is_last):
        return pool_of(task, [], "not needed")
    return load_pool(task, config.paraphrases)


async def choose_prompt(config: Config, engine: Engine, state: str, task: Task, pool: PromptPool) -> Choice:
    """The policy's choice, after scoring the pool in the present state if the policy needs losses."""
    policy, original = POLICIES[config.policy.name], pool.original
    paraphrases = tuple(prompt.text for prompt in pool.paraphrases)
    if not paraphrases:
        return Choice(task.name, original)
    candidates = pool.candidates(config.scorer.include_original)
    if not policy.needs_losses:
        prompt = policy.choose(Offer(config.policy, pool, candidates, config.seed, {}))
        return Choice(task.name, prompt, drawn=candidates if policy.draws else (), paraphrases=paraphrases)
    examples = subset(task, config.scorer.examples, config.scorer.subset, config.seed)
    # The original is always scored, so that every result can say what it would have cost; in a race it would
    # knock out others without being able to win, so there only what can be chosen is scored.
    scored_too = pool.candidates(config.scorer.include_original or config.scorer.name != "race")
    scored = await engine.run(Score(config, state, task, examples, scored_too))
    if isinstance(scored, Planned):
        stand_in = f"{task.instruction} [chosen by {config.policy.name} from {scored.key}]"
        return Choice(task.name, Prompt(stand_in), paraphrases=paraphrases)
    losses = prompt_losses(scored.examples(), config.scorer.reduction)
    texts = {prompt.index: prompt.text for prompt in pool.candidates(include_original=True)}
    table = [
        {
            "index": row.prompt,
            "text": texts[row.prompt],
            "loss": row.loss,
            "n_examples": row.n_examples,
            "n_tokens": row.n_tokens,
        }
        for row in losses.itertuples()
    ]
    complete = losses[losses["is_complete"]]
    by_index = dict(zip(complete["prompt"].tolist(), complete["loss"].tolist(), strict=True))
    prompt = policy.choose(Offer(config.policy, pool, candidates, config.seed, by_index))
    return Choice(task.name, prompt, table, paraphrases=paraphrases, scored=scored)


def training(run: Run, state: str, position: int, choices: Sequence[Choice]) -> Train:
    """The training of the chosen tasks together, from a state."""
    run.choices.extend(choices)
    tasks = {task.name: task for task in run.tasks}
    learned = (TrainingTask(tasks[choice.task], choice.drawn or (choice.prompt,)) for choice in choices)
    return Train(run.config, state, position, tuple(learned))


async def evaluate(run: Run, engine: Engine, state: State) -> list[Evaluation]:
    """Evaluates a state on its tasks: a learned one also under its original instruction, if that differs."""
    evaluations = []
    for task in state.tasks:
        original = Prompt(task.instruction)
        prompt = state.prompts.get(task.name, original)
        prompts = [(prompt, "trained")]
        if run.config.evaluator.common_prompt and prompt.text != original.text:
            prompts.append((original, "common"))
        for asked, column in prompts:
            stored = await engine.run(Evaluate(run.config, state.key, task, asked))
            evaluations.append(Evaluation(state.after, task.name, asked, column, stored))
    return evaluations
