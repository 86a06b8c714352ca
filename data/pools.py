"""The prompt pool of a task, as configured."""

from pathlib import Path

from sapo.conf.errors import UserError
from sapo.conf.schema import ParaphrasesConfig
from sapo.data.pool_checks import require_valid
from sapo.data.prompts import BANK, PromptPool, pool_of, read_pool
from sapo.data.tasks import Task


def load_pool(task: Task, config: ParaphrasesConfig) -> PromptPool:
    """The task's prompt pool as configured, validated, cut to `config.count` paraphrases.

    A task with an empty instruction has nothing to paraphrase: its pool is the original alone. Raises
    UserError where there is no pool for the task, or it is not valid.
    """
    pool = unchecked_pool(task, config)
    if task.instruction.strip():
        require_valid(pool, task)
    return pool.first(config.count)


def unchecked_pool(task: Task, config: ParaphrasesConfig) -> PromptPool:
    """The whole pool of a task as it stands in its file, the original alone for an empty instruction."""
    if not task.instruction.strip():
        return pool_of(task, [], "empty instruction")
    return read_pool(_pool_path(task, config), task)


def _pool_path(task: Task, config: ParaphrasesConfig) -> Path:
    if config.name == "file":
        given = Path(str(config.file))
        path = given / f"{task.name}.yaml" if given.is_dir() else given
        if not path.is_file():
            raise UserError(f"paraphrases.file: no prompt pool {path}.")
        return path
    path = BANK / f"{task.name}.yaml"
    if not path.is_file():
        raise UserError(
            f"The bank has no paraphrases of task {task.name}. Write them to a YAML file with `prompts:` "
            "(a list) and pass paraphrases=file paraphrases.file=POOL.yaml, or use policy=static."
        )
    return path
