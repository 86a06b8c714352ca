"""Which prompt to train with, and which to serve: a model trained under a few, each served under several.

All else is equal: rows, seed, method, steps. Everything is a stage, so that the same command goes on where it
was interrupted, and a second one shares what it has in common with the first.
"""

import asyncio
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sapo.analysis.comparison import RETAINED, UNTOUCHED, Comparison, leading_measures
from sapo.conf.errors import UserError
from sapo.conf.load import load
from sapo.conf.schema import Config
from sapo.data import benchmarks, own, own_files, pools
from sapo.data.files import user_path
from sapo.data.hygiene import distinct_rows, row_findings
from sapo.data.losses import prompt_losses
from sapo.data.prompts import ORIGINAL, Prompt, PromptPool, pool_of
from sapo.data.render import control_tokens
from sapo.data.tasks import Example, Task, own_task
from sapo.experiments.continual import Engine, by_prompt, stages_asked
from sapo.experiments.costs import priced, total_range
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store
from sapo.experiments.model.evaluation import label_matches
from sapo.experiments.model.load import load_tokenizer
from sapo.experiments.model.memory import require_memory
from sapo.experiments.model.preflight import preflight
from sapo.experiments.model.rows import TrainingTask
from sapo.experiments.plan import PlanEngine
from sapo.experiments.policies import by_loss
from sapo.experiments.runs import Planned
from sapo.experiments.stages import BASE, Evaluate, Score, Train

NO_INSTRUCTION, SHORT = Prompt("", -2), -3  # beside the pool's indices and the original's
# A third of the rows where there is no test file: differences need test rows more than training does.
TEST_SHARE = 3
MOST_TEST = 200
LEAST_TEST = 12  # distinct rows; with fewer a sign test of 5 comparisons can hardly come out


@dataclass(frozen=True)
class Setting:
    """What is compared, before anything is computed.

    `configs` differ in their seed only; the first one's decides which rows are scored and tested, and which
    prompts are held out, for all of them. `notes` are lines for people.
    """

    configs: tuple[Config, ...]
    task: Task
    scored: tuple[Example, ...]
    pool: PromptPool
    retained: tuple[Task, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wordings:
    """The prompts that are trained with, one or several to draw from, and those that are served, by name.

    `losses` are the pre-update losses (nats a token) of all prompts by index.
    """

    trained: dict[str, tuple[Prompt, ...]]
    served: dict[str, tuple[Prompt, ...]]
    losses: Mapping[int, float]


# --- what is compared --------------------------------------------------------------------------------------


def prepare(given: Mapping[str, str], configs: Sequence[Config]) -> Setting:
    """Rows, prompts and retention tasks of a comparison, checked; nothing is computed.

    `given` are `data`, `instruction` and the like, as `sapo select` takes them; `configs` settings, one a
    seed. UserError for what is wrong with rows, pool, tasks or model.
    """
    first = configs[0]
    if len({repr(replace(config, seed=0)) for config in configs}) > 1:
        raise UserError("sapo compare takes one value of every setting but the seed.")
    if first.scorer.name != "full":
        raise UserError(
            f"scorer={first.scorer.name}: a comparison needs the loss of every prompt: scorer=full."
        )
    material = own.gather(given, first)
    source, pool = material.source, material.pool
    task, notes = _rows(material, given, first)
    retained = tuple(_retained(name, task, first) for name in first.compare.retain)
    if (n_distinct := len(set(distinct_rows(task.test)))) < LEAST_TEST:
        raise UserError(
            f"{source}: {n_distinct} distinct test rows; a comparison needs at least {LEAST_TEST}."
        )
    if task.labels and len(targets := {example.target for example in task.test}) == 1:
        raise UserError(
            f"{source}: all {len(task.test)} test rows have the answer '{targets.pop()}', which a model that "
            "always gives it gets right: give test rows with others too."
        )
    found = row_findings(task.train, control_tokens(load_tokenizer(first.model)))
    notes += [finding.message for finding in found]
    short = [Prompt(first.compare.short, SHORT)] if first.compare.short else []
    shown = (task, [*pool.candidates(include_original=True), *short])
    preflight(first, [shown, *((other, [Prompt(other.instruction)]) for other in retained)], trains=True)
    if note := require_memory(first):
        notes.append(note)
    setting = Setting(tuple(configs), task, material.task.train, pool, retained, tuple(notes))
    wordings_of(setting, dict.fromkeys(range(-1, len(pool.paraphrases)), 0.0))  # refuses what is not there
    return setting


def _retained(name: str, trained: Task, config: Config) -> Task:
    """A task on which forgetting is measured; a user's own is named by its file."""
    path = user_path(name)
    if name.endswith((".yaml", ".yml")):
        task = benchmarks.cut(benchmarks.load_own_task(path.stem, path.parent, config.data.delimiter), config)
    else:
        task = benchmarks.load_task(name, config)
    if task.test == trained.test or task.name == trained.name:
        raise UserError(f"compare.retain: {task.name} is the task that is trained; name others.")
    return task


def _rows(material: own.Material, given: Mapping[str, str], config: Config) -> tuple[Task, list[str]]:
    """The task with the rows to train and test with, and what is to be said of them.

    The scored rows are those of `sapo select`. A benchmark and a test file bring test rows; else inputs that
    are not scored are drawn for the test, with all their repetitions.
    """
    task, notes, data = material.task, list(material.task.notes), config.data
    if config.task:
        task = benchmarks.load_task(config.task, config)
    else:
        train, limit = tuple(material.rows), data.test_examples or MOST_TEST
        splits = own_files.read_splits(user_path(given["data"]), given["data"], data.delimiter)
        if "test" in splits:
            renamed = own.labels_of(given.get("labels", ""))
            test = tuple(own.OwnExamples(splits["test"], material.columns, task, renamed))[:limit]
        else:
            known = {example.input for example in task.train}
            free = list(dict.fromkeys(example.input for example in train if example.input not in known))
            size = min(len(train) // TEST_SHARE, limit)
            if len(free) < min(size, LEAST_TEST):
                fewer = max(2, len(train) - len(train) // TEST_SHARE)
                raise UserError(
                    f"{material.source}: {len(known)} inputs are scored, and {len(free)} others are left to "
                    f"test; it takes {LEAST_TEST}. Score fewer rows, scorer.examples={fewer}, or give more."
                )
            draws = Random(f"test {config.seed} {task.name}")  # noqa: S311
            chosen = set(draws.sample(free, min(size, len(free))))
            test = tuple(example for example in train if example.input in chosen)
            train = tuple(example for example in train if example.input not in chosen)
            notes.append(
                f"{len(test)} of {material.n_rows} rows are kept for the test; none of them is scored"
            )
        task = replace(task, train=train[: data.train_examples], test=test)
    inputs, n_test = {example.input for example in task.train}, len(task.test)
    if shared := sum(example.input in inputs for example in task.test):
        notes.append(f"{shared} of {n_test} test rows stand in the training rows: they test memory")
    if repeated := n_test - len(set(distinct_rows(task.test))):
        notes.append(f"{repeated} of {n_test} test rows repeat others: intervals count distinct rows")
    return task, notes


def wordings_of(setting: Setting, losses: Mapping[int, float]) -> Wordings:
    """The prompts of the rows and columns that are asked for, given each prompt's loss; UserError for others.

    Prompts for `unseen` are drawn from those that no row trains with by name, and `mixed` leaves them out.
    """
    pool, config = setting.pool, setting.configs[0]
    train, serve, n_unseen = config.compare.train, config.compare.serve, config.compare.unseen
    ranked = by_loss(pool.candidates(config.scorer.include_original), losses)
    single = {
        "original": pool.original,
        "chosen": ranked[0],
        "highest": ranked[-1],
        "none": NO_INSTRUCTION,
        **{name: pool.at(int(name)) for name in train if name.isdecimal()},
    }
    said = config.compare.short
    short = Prompt(said, SHORT) if said else min(pool.paraphrases, key=lambda prompt: len(prompt.text))
    named = {single[name] for name in train if name in single} | {short, pool.original}
    free = [prompt for prompt in pool.paraphrases if prompt not in named]
    unseen: list[Prompt] = []
    if "unseen" in serve:
        if len(free) < n_unseen + ("mixed" in train):
            raise UserError(
                f"compare.unseen={n_unseen}: the pool of {pool.task} has {len(free)} prompts beside those "
                "that are trained with or served by name. Give more paraphrases, or fewer unseen."
            )
        draws = Random(f"unseen {config.seed} {pool.task}")  # noqa: S311
        unseen = sorted(draws.sample(free, n_unseen), key=lambda prompt: prompt.index)
    mixed = tuple(p for p in pool.candidates(include_original=True) if p not in unseen)
    served: dict[str, tuple[Prompt, ...]] = {
        "trained": (),  # which each row has its own of
        "original": (pool.original,),
        "none": (NO_INSTRUCTION,),
        "short": (short,),
        "unseen": tuple(unseen),
    }
    trained = {name: mixed if name == "mixed" else (single[name],) for name in train}
    return Wordings(trained, {name: served[name] for name in serve}, losses)


# --- what is computed --------------------------------------------------------------------------------------


async def measure(setting: Setting, engine: Engine) -> tuple[Wordings, list[pd.DataFrame]]:
    """Scores the pool, trains and evaluates: a table an evaluation, as `compare` joins them.

    None where stages are planned only: then an order of the prompts is assumed in which the original is
    neither first nor last.
    """
    first, candidates = setting.configs[0], setting.pool.candidates(include_original=True)
    scored = await engine.run(Score(first, BASE, setting.task, setting.scored, candidates))
    losses = {prompt.index: abs(prompt.index + 0.5) for prompt in candidates} | {ORIGINAL: 1.0}
    if not isinstance(scored, Planned):
        losses = by_prompt(prompt_losses(scored.examples(), first.scorer.reduction))
    wordings = wordings_of(setting, losses)
    of_seeds = await asyncio.gather(*(_of_seed(setting, wordings, each, engine) for each in setting.configs))
    return wordings, [table for tables in of_seeds for table in tables]


async def _of_seed(
    setting: Setting, wordings: Wordings, config: Config, engine: Engine
) -> list[pd.DataFrame]:
    task = setting.task

    async def state_of(prompts: tuple[Prompt, ...]) -> str:
        return (await engine.run(Train(config, BASE, 0, (TrainingTask(task, prompts),)))).key

    async def answers(name: str, column: str, prompt: Prompt, tested: Task) -> list[pd.DataFrame]:
        stored = await engine.run(Evaluate(config, states[name], tested, prompt))
        if isinstance(stored, Planned):
            return []
        table, rows = stored.examples(), distinct_rows(tested.test)
        facts: dict[str, Any] = {"seed": config.seed, "trained": name, "served": column}
        facts |= {"prompt": prompt.index, "text": prompt.text, "task": tested.name}
        facts["row"] = [rows[i] for i in table["example"]]
        matches = pd.array(label_matches(table, tested.labels), dtype="Float64")
        return [table[["exact_match", "rougeL", "nll"]].assign(**facts, label_match=matches)]

    original, trained = (setting.pool.original,), wordings.trained
    keys = await asyncio.gather(*map(state_of, trained.values()))
    states = {UNTOUCHED: BASE, **dict(zip(trained, keys, strict=True))}
    # As it was trained: a mixture is served the original, and the untouched model nothing.
    as_trained = {name: original if len(each) > 1 else each for name, each in trained.items()}
    asked = [
        (name, column, prompt, task)
        for name in states
        for column, prompts in wordings.served.items()
        for prompt in (as_trained.get(name, ()) if column == "trained" else prompts)
    ]
    asked += [(n, RETAINED, Prompt(other.instruction), other) for n in states for other in setting.retained]
    return [table for found in await asyncio.gather(*(answers(*each) for each in asked)) for table in found]


def cost(setting: Setting, engine: LocalEngine) -> dict[str, Any]:
    """What a comparison would compute, and its least and most seconds, None where nothing was measured."""
    planned = PlanEngine(engine.store)
    asyncio.run(measure(setting, planned))
    costs, notes = priced(planned.to_do.values())
    kinds = [each.stage.kind for each in costs]
    counts = {"trainings": kinds.count("train"), "evaluations": kinds.count("evaluate")}
    return {**counts, "seconds": total_range(each.seconds for each in costs), "notes": notes}


def compare(setting: Setting, engine: LocalEngine) -> tuple[Wordings, Comparison]:
    """Computes a comparison.

    Returns the prompts, and what the answers say. These have a row for every seed, state, served prompt and
    test example: `seed`, `trained`, `served`, `prompt` (index), `text`, `task`, `row` (the first test example
    with the same input and target) and the scores `rougeL`, `exact_match`, `label_match` (0-100) and `nll`
    (nats a target token).
    """
    engine.expect(stages_asked(partial(measure, setting)))
    with engine.store.at_work():
        ((wordings, tables),) = engine.complete([measure(setting, engine)])
    answers, task = pd.concat(tables, ignore_index=True), setting.task
    texts = {name: [prompt.text for prompt in prompts] for name, prompts in wordings.trained.items()}
    measures = leading_measures(answers, [example.target for example in task.test])
    model = setting.configs[0].model.name
    return wordings, Comparison(task.name, model, answers, texts, dict(wordings.losses), measures)


def write_task(
    setting: Setting,
    given: Mapping[str, str],
    overrides: Sequence[str],
    prompts: Sequence[Prompt],
    folder: Path,
) -> list[str]:
    """The commands that train for good under a row's prompts, and hand the adapter over.

    Own data gets a task's file and its pool in `folder`, which the first command names. `overrides` are those
    of the comparison; what only a comparison reads is left out.
    """
    config = setting.configs[0]
    pools.write_pool(folder / "pool.yaml", setting.pool, {"written by": "sapo compare"})
    if name := config.task:
        where = [f"sequence.name={name}", f"sequence.benchmark={config.sequence.benchmark}"]
        where += [f"data.root={config.data.root}"] if config.sequence.benchmark != "mini" else []
    else:
        instruction = "" if NO_INSTRUCTION in prompts else setting.task.instruction
        name = own.write_own_task(given, instruction, folder)
        where = ["sequence=own", f"data.root={folder}"]
    index = prompts[0].index
    policy = ["policy=static"] if index < 0 else ["policy=fixed", f"policy.index={index}"]
    policy = ["policy=paft"] if len(prompts) > 1 else policy
    ours = ("task=", "seed=", "compare.", "paraphrases", "scorer.", "sequence")
    kept = [override for override in overrides if not override.startswith(ours)]
    kept += [f"paraphrases.file={folder / 'pool.yaml'}", "data.train_examples=null"]
    return [
        shlex.join(["sapo", "train", *where, f"sequence.tasks=[{name}]", *policy, *dict.fromkeys(kept)]),
        "sapo export RUN --to FOLDER",
    ]


# --- from Python -------------------------------------------------------------------------------------------


def compare_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    prompts: Sequence[str],
    *,
    labels: Sequence[str] | Mapping[str, str] = (),
    columns: tuple[str, str] | None = None,
    settings: Sequence[str] = (),
) -> Comparison:
    """Compares prompts for a model that a caller has, as `sapo compare` does; the model is left as it is.

    A copy of the model is written to a temporary folder, and read from there.

    Args:
        model: a causal language model of Transformers; merge an adapter into it first.
        tokenizer: its tokenizer, with a chat template.
        rows: (input, target) pairs, dicts, a data frame, a dataset, or a dictionary of such splits. Without a
            test split a third of the rows is kept for the test.
        prompts: the original instruction, then its paraphrases.
        labels: the answers that there are, for a classification; or the answer of what stands in the rows.
        columns: names of the input's and the target's column of dicts; guessed if not given.
        settings: overrides as on the command line: `["seed=range(3)", "compare.train=[original,chosen]"]`.

    Returns:
        `.table`, `.retained`, `.verdict`, `.chosen`, `.plot()`.

    Raises:
        UserError: For what is wrong with rows, prompts, model or settings.
    """
    if isinstance(model, PeftModel):
        raise UserError("The model has an adapter: give model.merge_and_unload(), or what it adapts.")
    with TemporaryDirectory(prefix="sapo-compare-") as scratch:
        folder = Path(scratch)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        (folder / "rows").mkdir()
        for split, found in own_files.splits_of(rows).items():
            own.write_jsonl(folder / "rows" / f"{split}.jsonl", map(asdict, own.OwnExamples(found, columns)))
        pool = pool_of(own_task("rows", prompts[0]), list(prompts[1:]), "a caller")
        pools.write_pool(folder / "pool.yaml", pool, {"written by": "a caller"})
        renamed = own.labels_of(labels)
        given = {"data": str(folder / "rows"), "labels": json.dumps(renamed) if renamed else ""}
        mine = [
            f"model.path={folder / 'model'}",
            f"model.dtype={str(model.dtype).removeprefix('torch.')}",
            f"engine.device={model.device.type}",
            f"paraphrases.file={folder / 'pool.yaml'}",
            f"store.root={folder / 'store'}",
        ]
        setting = prepare(given, load([*own.DEFAULTS, *mine, *settings]))
        return compare(setting, LocalEngine(Store(folder / "store")))[1]
