"""The prompt pool of a task, as configured, and pools that are written to files."""

from pathlib import Path
from typing import Any

import yaml

from sapo.conf.errors import UserError
from sapo.conf.schema import ParaphrasesConfig
from sapo.data.files import read_yaml, user_path, write_result
from sapo.data.pool_checks import require_usable, scripts
from sapo.data.prompts import BANK, PromptPool, pool_of, read_pool
from sapo.data.remembering import remembered, stamp
from sapo.data.tasks import Task, digest


def load_pool(task: Task, config: ParaphrasesConfig) -> PromptPool:
    """The task's first `config.count` paraphrases, validated; for an empty instruction the original alone."""
    if not task.instruction.strip():
        return unchecked_pool(task, config)
    path = _pool_path(task, config)
    return _checked_pool(task, path, config.count, tuple(config.allow), stamp(path))


@remembered(64)
def _checked_pool(task: Task, path: Path, count: int, allow: tuple[str, ...], _stamp: object) -> PromptPool:
    """The first paraphrases of a pool file; `_stamp` tells a file that has changed since."""
    pool = read_pool(path, task).first(count)
    require_usable(pool, task, allow)
    return pool


def unchecked_pool(task: Task, config: ParaphrasesConfig) -> PromptPool:
    """The whole pool of a task as it stands in its file, the original alone for an empty instruction."""
    if not task.instruction.strip():
        return pool_of(task, [], "empty instruction")
    return read_pool(_pool_path(task, config), task)


def instruction_name(instruction: str) -> str:
    """What a task is called of which nothing but the instruction is given."""
    return f"instruction-{digest(instruction)[:8]}"


def written_path(task: Task, config: ParaphrasesConfig) -> Path:
    """Where `sapo paraphrase` keeps a task's pool: `paraphrases.file`, else NAME/TASK.yaml in its folder."""
    if config.source != "file" and config.file:
        return _in_folder(user_path(config.file), task)
    return user_path(config.folder) / config.name / f"{task.name}.yaml"


def write_pool(path: Path, pool: PromptPool, source: dict[str, Any]) -> None:
    """Writes a pool as YAML so that it is never half-written."""
    is_latin = next(iter(scripts(pool.original.text)), "LATIN") == "LATIN"  # others tell no one language
    content = {
        "task": pool.task,
        **({"language": pool.language} if pool.language == "zh" or is_latin else {}),
        "source": source,
        "original": pool.original.text,
        "prompts": [prompt.text for prompt in pool.paraphrases],
    }
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=10**6)
    write_result(path, text, "the prompt pool ")


def _pool_path(task: Task, config: ParaphrasesConfig) -> Path:
    """The file of the task's pool: the user's, the bank's, or one that was written; never asks anybody."""
    if config.source == "file":
        path = _in_folder(user_path(str(config.file)), task)
        if not path.is_file():
            raise UserError(f"paraphrases.file: no prompt pool {path}.")
        return path
    if config.source != "bank":
        path = written_path(task, config)
        of_instruction = path.with_name(f"{instruction_name(task.instruction)}.yaml")
        if found := [candidate for candidate in (path, of_instruction) if candidate.is_file()]:
            return found[0]
        raise UserError(
            f"No prompt pool {path}. A run never asks a model for paraphrases itself; write the pool first: "
            f"sapo paraphrase task={task.name} paraphrases={config.name} "
            "(instruction=TEXT in place of task= for data of your own)."
        )
    is_collection = (BANK / config.name).is_dir()  # other collections than the bank's own are in folders
    folder = BANK / config.name if is_collection else BANK
    named = folder / f"{task.name}.yaml"
    for path in sorted(folder.glob("*.yaml"), key=lambda path: (path != named, path)):
        if read_yaml(path)["original"].strip() == task.instruction.strip():
            return path
    which = f" '{config.name}'" if is_collection else ""
    other = f" ({named.name} is of another instruction)" if named.is_file() else ""
    raise UserError(
        f"The bank{which} has no paraphrases of task {task.name}{other}. Have a model write them "
        "(`sapo paraphrase instruction=TEXT paraphrases=… --write POOL.yaml`), or write POOL.yaml "
        "yourself, with `prompts:`, a list of texts; then add paraphrases.file=POOL.yaml. "
        "policy=static needs none."
    )


def _in_folder(given: Path, task: Task) -> Path:
    """The task's file in a folder; a file is every task's."""
    names = [given / f"{task.name}.{ending}" for ending in ("yaml", "yml", "json", "txt")]
    return next((path for path in names if path.is_file()), names[0]) if given.is_dir() else given
