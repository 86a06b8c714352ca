"""Which prompt to train with, and which to serve: a model trained under a few, each served under several.

All else is equal: rows, seed, method, steps. Everything is a stage, so that the same command goes on where it
was interrupted, and a second one shares what it has in common with the first.
"""

import asyncio
import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sapo.analysis.comparison import Comparison, leading_measures
from sapo.conf.errors import UserError, WorkError
from sapo.conf.load import load
from sapo.conf.schema import Config
from sapo.data.benchmarks import cut, load_own_task, load_task
from sapo.data.files import user_path
from sapo.data.hygiene import distinct_rows, row_findings
from sapo.data.losses import prompt_losses
from sapo.data.own import (
    DEFAULTS,
    Material,
    OwnExamples,
    gather,
    labels_of,
    write_jsonl,
    write_own_task,
)
from sapo.data.own_files import read_splits, splits_of
from sapo.data.pools import write_pool
from sapo.data.prompts import ORIGINAL, Prompt, PromptPool, pool_of
from sapo.data.render import control_tokens
from sapo.data.tasks import Example, Task, own_task
from sapo.experiments.continual import Engine, stages_asked
from sapo.experiments.engine.local import LocalEngine, ignore
from sapo.experiments.engine.store import Store, Stored
from sapo.experiments.model.evaluation import label_matches
from sapo.experiments.model.identity import looked_at_once
from sapo.experiments.model.load import load_tokenizer
from sapo.experiments.model.memory import require_memory
from sapo.experiments.model.preflight import preflight
from sapo.experiments.model.rows import TrainingTask
from sapo.experiments.plan import PlanEngine, Prices, total_range
from sapo.experiments.runs import Planned
from sapo.experiments.stages import BASE, Evaluate, Score, Train

UNTOUCHED = "untouched"  # the model before any training
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
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wordings:
    """The prompts that are trained with, one or several to draw from, and those that are served, by name.

    `losses` are the pre-update losses (nats a token) of all prompts by index.
    """

    trained: dict[str, tuple[Prompt, ...]]
    served: dict[str, tuple[Prompt, ...]]
    losses: dict[int, float]


@dataclass(frozen=True)
class Cell:
    """One evaluation: the model trained under `trained`, served `prompt` as `served`."""

    seed: int
    trained: str
    served: str
    prompt: Prompt
    task: Task
    stored: Stored | Planned


# --- what is compared --------------------------------------------------------------------------------------


def prepare(given: Mapping[str, str], configs: Sequence[Config]) -> Setting:
    """Rows, prompts and retention tasks of a comparison, checked; nothing is computed.

    Args:
        given: `data`, `instruction` and the like, as `sapo select` takes them.
        configs: Settings, one a seed.

    Raises:
        UserError: For what is wrong with rows, pool, tasks or model.
    """
    first = configs[0]
    if len({repr(replace(config, seed=0)) for config in configs}) > 1:
        raise UserError("sapo compare takes one value of every setting but the seed.")
    if first.scorer.name != "full":
        raise UserError(
            f"scorer={first.scorer.name}: a comparison needs the loss of every prompt: scorer=full."
        )
    material = gather(given, first)
    task, scored, notes = _rows(material, given, first)
    retained: list[Task] = []
    for name in first.compare.retain:
        path = user_path(name)  # a user's own task is named by its file
        is_own = name.endswith((".yaml", ".yml"))
        other = (
            cut(load_own_task(path.stem, path.parent, first.data.delimiter), first)
            if is_own
            else load_task(name, first)
        )
        retained.append(other)
        if other.test == task.test or other.name == task.name:
            raise UserError(f"compare.retain: {other.name} is the task that is trained; name others.")
    if (n_distinct := len(set(distinct_rows(task.test)))) < LEAST_TEST:
        raise UserError(
            f"{material.source}: {n_distinct} distinct test rows; a comparison needs at least {LEAST_TEST}."
        )
    if task.labels and len(targets := {example.target for example in task.test}) == 1:
        raise UserError(
            f"{material.source}: all {len(task.test)} test rows have the answer '{targets.pop()}', which a "
            "model that always gives it gets right: give test rows with others too."
        )
    found = row_findings(task.train, control_tokens(load_tokenizer(first.model)))
    notes = (*notes, *(finding.message for finding in found))
    pool, source = material.pool, material.source
    setting = Setting(tuple(configs), task, scored, pool, tuple(retained), source, notes)
    prompts = [*material.pool.candidates(include_original=True)]
    if first.compare.short:
        prompts.append(Prompt(first.compare.short, SHORT))
    preflight(
        first, [(task, prompts), *((other, [Prompt(other.instruction)]) for other in retained)], trains=True
    )
    if note := require_memory(first):
        setting = replace(setting, notes=(*notes, note))
    wordings_of(
        setting, dict.fromkeys(range(-1, len(material.pool.paraphrases)), 0.0)
    )  # refuses what is not there
    return setting


def _rows(
    material: Material, given: Mapping[str, str], config: Config
) -> tuple[Task, tuple[Example, ...], tuple[str, ...]]:
    """The task with the rows to train and test with, the scored rows, and what is to be said of them.

    The scored rows are those of `sapo select`. A benchmark and a test file bring test rows; else inputs that
    are not scored are drawn for the test, with all their repetitions.
    """
    scored, notes = material.task.train, list(material.task.notes)
    if config.task:
        task = load_task(config.task, config)
    else:
        limit = config.data.test_examples or MOST_TEST
        splits = read_splits(user_path(given["data"]), given["data"], config.data.delimiter)
        if "test" in splits:
            train = tuple(material.rows)
            renamed = labels_of(given.get("labels", ""))
            test = tuple(OwnExamples(splits["test"], material.columns, material.task, renamed))[:limit]
        else:
            rows, known = list(material.rows), {example.input for example in material.task.train}
            free = list(dict.fromkeys(example.input for example in rows if example.input not in known))
            size = min(len(rows) // TEST_SHARE, limit)
            if len(free) < min(size, LEAST_TEST):
                fewer = max(2, len(rows) - len(rows) // TEST_SHARE)
                raise UserError(
                    f"{material.source}: {len(known)} inputs are scored, and {len(free)} others are left to "
                    f"test; it takes {LEAST_TEST}. Score fewer rows, scorer.examples={fewer}, or give more."
                )
            draws = Random(f"test {config.seed} {material.task.name}")  # noqa: S311
            chosen = set(draws.sample(free, min(size, len(free))))
            train = tuple(example for example in rows if example.input not in chosen)
            test = tuple(example for example in rows if example.input in chosen)
            notes.append(
                f"{len(test)} of {material.n_rows} rows are kept for the test; none of them is scored"
            )
        task = replace(material.task, train=train[: config.data.train_examples], test=test)
    inputs = {example.input for example in task.train}
    if shared := sum(example.input in inputs for example in task.test):
        notes.append(f"{shared} of {len(task.test)} test rows stand in the training rows: they test memory")
    if repeated := len(task.test) - len(set(distinct_rows(task.test))):
        notes.append(f"{repeated} of {len(task.test)} test rows repeat others: intervals count distinct rows")
    return task, scored, tuple(notes)


def wordings_of(setting: Setting, losses: Mapping[int, float]) -> Wordings:
    """The prompts of the rows and columns that are asked for, given each prompt's loss; UserError for others.

    Prompts for `unseen` are drawn from those that no row trains with by name, and `mixed` leaves them out.
    """
    pool, compare, config = setting.pool, setting.configs[0].compare, setting.configs[0]
    every = pool.candidates(include_original=True)
    can_be_chosen = [p for p in every if config.scorer.include_original or p != pool.original]
    by_loss = sorted(can_be_chosen, key=lambda prompt: (losses[prompt.index], prompt.index))
    single = {
        "original": pool.original,
        "chosen": by_loss[0],
        "highest": by_loss[-1],
        "none": NO_INSTRUCTION,
        **{name: pool.at(int(name)) for name in compare.train if name.isdecimal()},
    }
    short = (
        Prompt(compare.short, SHORT) if compare.short else min(pool.paraphrases, key=lambda p: len(p.text))
    )
    named = {single[name] for name in compare.train if name in single} | {short, pool.original}
    free = [prompt for prompt in pool.paraphrases if prompt not in named]
    unseen: list[Prompt] = []
    if "unseen" in compare.serve:
        if len(free) < compare.unseen + ("mixed" in compare.train):
            raise UserError(
                f"compare.unseen={compare.unseen}: the pool of {pool.task} has {len(free)} prompts beside "
                "those that are trained with or served by name. Give more paraphrases, or fewer unseen."
            )
        draws = Random(f"unseen {config.seed} {pool.task}")  # noqa: S311
        unseen = sorted(draws.sample(free, compare.unseen), key=lambda prompt: prompt.index)
    mixed = tuple(prompt for prompt in every if prompt not in unseen)
    served = {
        "original": (pool.original,),
        "none": (NO_INSTRUCTION,),
        "short": (short,),
        "unseen": tuple(unseen),
    }
    return Wordings(
        {name: mixed if name == "mixed" else (single[name],) for name in dict.fromkeys(compare.train)},
        {name: served.get(name, ()) for name in dict.fromkeys(compare.serve)},
        dict(losses),
    )


# --- what is computed --------------------------------------------------------------------------------------


async def measure(setting: Setting, engine: Engine) -> tuple[Wordings, list[Cell]]:
    """Scores the pool, trains and evaluates; `Planned` stages stand in where nothing is computed."""
    first = setting.configs[0]
    candidates = setting.pool.candidates(include_original=True)
    scored = await engine.run(Score(first, BASE, setting.task, setting.scored, candidates))
    if isinstance(scored, Planned):  # to count: an order in which the original is neither first nor last
        losses = {prompt.index: abs(prompt.index + 0.5) for prompt in candidates} | {ORIGINAL: 1.0}
    else:
        table = prompt_losses(scored.examples(), first.scorer.reduction)
        losses = dict(zip(table["prompt"].tolist(), table["loss"].tolist(), strict=True))
    wordings = wordings_of(setting, losses)
    cells = await asyncio.gather(*(_of_seed(setting, wordings, config, engine) for config in setting.configs))
    return wordings, [cell for of_seed in cells for cell in of_seed]


async def _of_seed(setting: Setting, wordings: Wordings, config: Config, engine: Engine) -> list[Cell]:
    task = setting.task

    async def state_of(prompts: tuple[Prompt, ...]) -> str:
        return (await engine.run(Train(config, BASE, 0, (TrainingTask(task, prompts),)))).key

    keys = await asyncio.gather(*(state_of(prompts) for prompts in wordings.trained.values()))
    states = {UNTOUCHED: BASE, **dict(zip(wordings.trained, keys, strict=True))}
    # As it was trained: a mixture is served the original, and the untouched model nothing.
    own = {n: (setting.pool.original,) if len(each) > 1 else each for n, each in wordings.trained.items()}
    asked = [
        (name, column, prompt, task)
        for name in states
        for column, prompts in wordings.served.items()
        for prompt in (own.get(name, ()) if column == "trained" else prompts)
    ]
    asked += [(n, "retained", Prompt(other.instruction), other) for n in states for other in setting.retained]

    async def cell(name: str, column: str, prompt: Prompt, tested: Task) -> Cell:
        stored = await engine.run(Evaluate(config, states[name], tested, prompt))
        return Cell(config.seed, name, column, prompt, tested, stored)

    return list(await asyncio.gather(*(cell(*each) for each in asked)))


@dataclass(frozen=True)
class Cost:
    """Stages that are to do, and their least and most seconds: None where nothing was measured."""

    trainings: int
    evaluations: int
    seconds: tuple[float, float] | None
    notes: tuple[str, ...] = ()


def cost(setting: Setting, engine: LocalEngine) -> Cost:
    """What a comparison would compute, and how long it takes at the rates measured here."""
    planned, prices = PlanEngine(engine.store), Prices()
    asyncio.run(measure(setting, planned))
    to_do = list(planned.to_do.values())
    with looked_at_once():
        seconds = total_range([prices.cost(stage).seconds for stage in to_do])
    kinds = [stage.kind for stage in to_do]
    return Cost(kinds.count("train"), kinds.count("evaluate"), seconds, tuple(prices.notes))


def compare(
    setting: Setting, engine: LocalEngine, expect: Callable[[Counter[str]], object] = ignore
) -> tuple[Wordings, pd.DataFrame]:
    """Computes a comparison.

    Args:
        setting: What is compared.
        engine: Where stages are computed.
        expect: Told how many stages of each kind are asked for, at most.

    Returns:
        The prompts, and a row for every seed, state, served prompt and test example: see `answers`.
    """
    expect(stages_asked(partial(measure, setting)))
    with engine.store.at_work():
        ((wordings, cells),) = engine.complete([measure(setting, engine)])
        return wordings, pd.concat(answers(cells), ignore_index=True)


def answers(cells: Sequence[Cell]) -> Iterator[pd.DataFrame]:
    """A table an evaluation: `seed`, `trained`, `served`, `prompt` (index), `task`, `row` and the scores.

    `row` is the first test example with the same input and target; scores are `rougeL`, `exact_match`,
    `label_match` (0-100) and `nll` (nats a target token).
    """
    for cell in cells:
        if not isinstance(cell.stored, Stored):
            raise WorkError("A planned comparison has no answers.")
        table = cell.stored.examples()
        rows = distinct_rows(cell.task.test)
        yield pd.DataFrame(
            {
                "seed": cell.seed,
                "trained": cell.trained,
                "served": cell.served,
                "prompt": cell.prompt.index,
                "text": cell.prompt.text,
                "task": cell.task.name,
                "row": [rows[example] for example in table["example"]],
                "label_match": pd.array(label_matches(table, cell.task.labels), dtype="Float64"),
                **{name: table[name] for name in ("exact_match", "rougeL", "nll")},
            }
        )


def write_task(
    setting: Setting,
    given: Mapping[str, str],
    overrides: Sequence[str],
    trained: str,
    prompts: Sequence[Prompt],
    folder: Path,
) -> list[str]:
    """The commands that train for good under a row's prompts, and hand the adapter over.

    Own data gets a task's file and its pool in `folder`, which the first command names. `overrides` are those
    of the comparison; what only a comparison reads is left out.
    """
    config, pool = setting.configs[0], setting.pool
    write_pool(folder / "pool.yaml", pool, {"written by": "sapo compare"})
    if config.task:
        name = config.task
        where = [f"sequence.benchmark={config.sequence.benchmark}", f"data.root={config.data.root}"]
        where = [f"sequence.name={name}", *(where if config.sequence.benchmark != "mini" else where[:1])]
    else:
        instruction = "" if trained == "none" else setting.task.instruction
        name = write_own_task(given, instruction, folder)
        where = ["sequence=own", f"data.root={folder}"]
    policy = ["policy=paft"] if len(prompts) > 1 else ["policy=fixed", f"policy.index={prompts[0].index}"]
    if trained in ("original", "none"):
        policy = ["policy=static"]
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
        for split, found in splits_of(rows).items():
            pairs = ({"input": each.input, "target": each.target} for each in OwnExamples(found, columns))
            write_jsonl(folder / "rows" / f"{split}.jsonl", pairs)
        renamed = labels_of(labels)
        pool = pool_of(own_task("rows", prompts[0]), list(prompts[1:]), "a caller")
        write_pool(folder / "pool.yaml", pool, {"written by": "a caller"})
        given = {
            "data": str(folder / "rows"),
            "instruction": prompts[0],
            "labels": json.dumps(renamed) if renamed else "",
        }
        own = [
            f"model.path={folder / 'model'}",
            f"model.dtype={str(model.dtype).removeprefix('torch.')}",
            f"engine.device={model.device.type}",
            f"paraphrases.file={folder / 'pool.yaml'}",
            f"store.root={folder / 'store'}",
        ]
        setting = prepare(given, load([*DEFAULTS, *own, *settings]))
        wordings, answers = compare(setting, LocalEngine(Store(folder / "store")))
        return comparison_of(setting, wordings, answers)


def comparison_of(setting: Setting, wordings: Wordings, answers: pd.DataFrame) -> Comparison:
    """What the answers say."""
    texts = {name: [prompt.text for prompt in prompts] for name, prompts in wordings.trained.items()}
    measures = leading_measures(answers, [example.target for example in setting.task.test])
    config = setting.configs[0]
    return Comparison(setting.task.name, config.model.name, answers, texts, wordings.losses, measures)
