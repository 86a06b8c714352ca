"""Settings in files: a job's overrides in YAML or the `config.yaml` of a run, and members of groups."""

from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sapo.conf.errors import UserError
from sapo.conf.schema import settings

_SETTINGS = settings()
_GROUPS = {*(name for name in _SETTINGS if is_dataclass(_SETTINGS[name].type)), "experiment"}
_WHOLE = ("sequence", "model", "method", "trainer")  # a file that has all their settings is a run's
# Groups that set others' settings, all of which a run's file has.
_REACHING = ("experiment", "scale", "parity")
_NOT_OURS = ("sweep", "task", "paraphrases.folder", "store.root")
TEXTS = (str, str | None)  # types of settings that are texts
_BROKEN = (OSError, ValueError, LookupError, TypeError, RecursionError, YAMLError, OmegaConfBaseException)


def with_job_files(arguments: Sequence[str]) -> list[str]:
    """The arguments with the overrides of each job file, `FILE.yaml` without `=`, in its place.

    What is given beside a file wins over it, a group over all of the file's settings of that group. Raises
    UserError naming a file that is not there, or what in it is wrong.
    """
    paths = [text for text in arguments if "=" not in text and text.endswith((".yaml", ".yml"))]
    given = {text.partition("=")[0] for text in arguments if text not in paths}
    found: list[str] = []
    for text in arguments:
        if text not in paths:
            found.append(text)
            continue
        path = Path(text).expanduser()
        values = settings_in(path, "the job file ")
        is_whole = all(isinstance(values.get(group), dict) and "name" in values[group] for group in _WHOLE)
        if is_whole and (reaching := given.intersection(_REACHING)):
            why = f"{min(reaching)}= would change none: give the settings themselves"
            raise UserError(f"{text} has a value for every setting, so that {why}.")
        for key, value in _of_run(path, values) if is_whole else leaves(values):
            if key not in given and key.partition(".")[0] not in given & _GROUPS:
                added = "+" if key.startswith("model.template_options.") else ""
                found.append(f"{added}{key}={_value(key, value, text)}")
    return found


def settings_in(path: Path, what: str = "") -> dict[str, Any]:
    """The nested settings in a YAML file; UserError if it cannot be read, or holds something else."""
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        if not isinstance(content, dict | None) or not all(isinstance(key, str) for key in content or ()):
            raise ValueError("it holds no settings, which are lines of KEY: VALUE.")
        # Refuses a name given twice, and a value that holds itself.
        return OmegaConf.to_container(OmegaConf.create(text))  # type: ignore[return-value]
    except FileNotFoundError as error:
        raise UserError(f"No job file {path}. A job file holds overrides as lines of KEY: VALUE.") from error
    except _BROKEN as error:
        cause = " ".join(str(error).split())[:500]
        raise UserError(f"Cannot read {what}{path}, which must be YAML in UTF-8: {cause}") from error


def leaves(values: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the value of each setting in nested ones."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", value


def _of_run(path: Path, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A run's settings; its store is the one that it lies in, and data that has gone is looked for anew."""
    for key, value in leaves(values):
        if key == "data.root" and value and not Path(value).is_dir():
            continue
        if key not in _NOT_OURS:
            yield key, value
    folder = path.expanduser().absolute().parent
    if folder.parent.name == "runs" and (folder / "run.json").is_file():
        yield "store.root", str(folder.parent.parent)


def _value(key: str, value: Any, where: str) -> str:
    """The value as an override has it: a list is a sweep, but for a setting that is a list itself."""
    if isinstance(value, list):
        is_list = key not in _SETTINGS or str(_SETTINGS[key].type).startswith("list")
        is_sweep = not is_list or (key in _SETTINGS and any(isinstance(item, list) for item in value))
        items = ",".join(_value(key, item, where) for item in value)
        return items if is_sweep else f"[{items}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if key not in _SETTINGS or _SETTINGS[key].type not in (*TEXTS, list[str]):
        return str(value)
    require_text(key, value, where)
    return QuotedString(str(value), Quote.single).with_quotes()


def require_text(key: str, value: Any, where: object) -> None:
    """UserError for a number in a file that stands where a text is meant."""
    if isinstance(value, int | float):  # 2024_01 would be 202401, and 7e10 70000000000.0
        raise UserError(f"{where}: {key} is a text, and YAML reads a number: put it in quotes.")
