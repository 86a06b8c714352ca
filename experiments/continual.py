"""The continual loop: for each task choose a prompt, train, and evaluate every task.

A run is a short program whose slow steps are remembered: it asks the engine for stages, and the engine
computes those that are not in the store.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

import pandas as pd

from sapo.conf.schema import Config
from sapo.data.benchmarks import load_tasks
from sapo.data.losses import prompt_losses
from sapo.data.pools import load_pool
from sapo.data.prompts import Prompt, PromptPool, pool_of
from sapo.data.records import Candidate
from sapo.data.subset import subset
from sapo.data.tasks import Example, Task, short_name
from sapo.experiments.engine.store import Stored
from sapo.experiments.model.rows import TrainingTask
from sapo.experiments.policies import POLICIES, Offer
from sapo.experiments.runs import Choice, Evaluation, Planned, Run, State
from sapo.experiments.stages import BASE, Evaluate, Score, Stage, Train


class Engine(Protocol):
    """Answers stages: a plan's with a `Planned` one for each that it does not compute."""

    def run(self, stage: Stage) -> Awaitable[Stored]:
        """The finished stage, or its stand-in."""


class Counting(Counter[str]):
    """An engine that computes nothing, and counts by kind the stages that it is asked for."""

    async def run(self, stage: Stage) -> Planned:
        """A stand-in."""
        self[stage.kind] += 1
        return Planned(str(self.total()))


def stages_asked(work: Callable[[Engine], Coroutine[Any, Any, object]]) -> Counter[str]:
    """How many stages of each kind a work asks its engine for, at most.

    A task whose original instruction wins is tested once less than is counted.
    """
    asyncio.run(work(counting := Counting()))
    return counting


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
        choice = await choose_prompt(run.config, engine, state, task)
        trained = await engine.run(training(run, state, position, [choice]))
        state = run.add_state(trained, position + 1, run.choices)


async def _all_at_once(run: Run, engine: Engine) -> None:
    """`multitask`: one training on the union of all tasks, an upper bound."""
    choices = [await choose_prompt(run.config, engine, BASE, task) for task in run.tasks]
    trained = await engine.run(training(run, BASE, 0, choices))
    run.add_state(trained, len(run.tasks), run.choices)


async def _each_alone(run: Run, engine: Engine) -> None:
    """`single`: every task from the untouched model; each resulting model is evaluated on its own task."""
    for position, task in enumerate(run.tasks):
        choice = await choose_prompt(run.config, engine, BASE, task)
        trained = await engine.run(training(run, BASE, position, [choice]))
        run.add_state(trained, len(run.tasks), [choice], [task])


async def _none(run: Run, engine: Engine) -> None:
    """`zero_shot`: nothing is trained; the tasks are only evaluated with the prompts that are chosen."""
    for task in run.tasks:
        run.choices.append(await choose_prompt(run.config, engine, BASE, task))
    run.add_state(None, len(run.tasks), run.choices)


# What trains in another order than one task after another.
ORDERS = {"multitask": _all_at_once, "single": _each_alone, "zero_shot": _none}


def pool_for(task: Task, config: Config) -> PromptPool:
    """The task's prompt pool; the original alone where the policy needs no paraphrases."""
    is_last = task.short_name == short_name(config.sequence.tasks[-1])
    if not POLICIES[config.policy.name].needs_pool(config.policy, is_last):
        return pool_of(task, [], "not needed")
    return load_pool(task, config.paraphrases)


async def choose_prompt(config: Config, engine: Engine, state: str, task: Task) -> Choice:
    """The policy's choice from the pool, after scoring it in the present state if the policy needs losses."""
    pool, policy = pool_for(task, config), POLICIES[config.policy.name]
    if not pool.paraphrases:
        return Choice(task.name, pool.original)
    paraphrases = tuple(prompt.text for prompt in pool.paraphrases)
    candidates = pool.candidates(config.scorer.include_original)
    if not policy.needs_losses:
        prompt = policy.choose(Offer(config.policy, pool, candidates, config.seed, {}))
        return Choice(task.name, prompt, drawn=candidates if policy.draws else (), paraphrases=paraphrases)
    # The original is always scored, so that every result can say what it would have cost; in a race it would
    # knock out others without being able to win, so there only what can be chosen is scored.
    scored_too = pool.candidates(config.scorer.include_original or config.scorer.name != "race")
    scored = await engine.run(Score(config, state, task, scored_examples(task, config), scored_too))
    if isinstance(scored, Planned):
        stand_in = f"{task.instruction} [chosen by {config.policy.name} from {scored.key}]"
        return Choice(task.name, Prompt(stand_in), paraphrases=paraphrases)
    texts = {prompt.index: prompt.text for prompt in scored_too}
    losses = prompt_losses(scored.examples(), config.scorer.reduction)
    rows = losses.rename(columns={"prompt": "index"}).to_dict("records")
    table = tuple(Candidate(text=texts[row["index"]], **row) for row in rows)
    prompt = policy.choose(Offer(config.policy, pool, candidates, config.seed, by_prompt(losses)))
    return Choice(task.name, prompt, table, paraphrases=paraphrases, scored=scored)


def scored_examples(task: Task, config: Config) -> tuple[Example, ...]:
    """The training examples of a task that its prompts are scored on."""
    return subset(task, config.scorer.examples, config.scorer.subset, config.seed)


def by_prompt(losses: pd.DataFrame) -> dict[int, float]:
    """The loss of each prompt that was scored to the end, by its index, from a table of `prompt_losses`."""
    complete = losses[losses["is_complete"]]
    return dict(zip(complete["prompt"].tolist(), complete["loss"].tolist(), strict=True))


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
        columns = {"trained": prompt}
        if run.config.evaluator.common_prompt and prompt.text != original.text:
            columns["common"] = original
        for column, asked in columns.items():
            stored = await engine.run(Evaluate(run.config, state.key, task, asked))
            evaluations.append(Evaluation(state.after, task, asked, column, stored))
    return evaluations
