"""Jobs as files: overrides in YAML, and the `config.yaml` of a run, in the place of overrides."""

from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sapo.conf.errors import UserError
from sapo.conf.schema import settings

_SETTINGS = settings()
_GROUPS = {*(name for name in _SETTINGS if is_dataclass(_SETTINGS[name].type)), "experiment"}
_WHOLE = ("sequence", "model", "method", "trainer")  # a file that has all their settings is a run's
# Groups that set others' settings, all of which a run's file has.
_REACHING = ("experiment", "scale", "parity")
_NOT_OURS = ("sweep", "task", "paraphrases.folder", "store.root")


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
        values = _read(Path(text).expanduser())
        is_whole = all(isinstance(values.get(group), dict) and "name" in values[group] for group in _WHOLE)
        if is_whole and (reaching := given.intersection(_REACHING)):
            raise UserError(
                f"{text} has a value for every setting, so that {min(reaching)}= would change none: "
                "give the settings themselves."
            )
        for key, value in _of_run(Path(text), values) if is_whole else leaves(values):
            if key not in given and (key.partition(".")[0] not in given & _GROUPS):
                added = "+" if key.startswith("model.template_options.") else ""
                found.append(f"{added}{key}={_value(key, value, text)}")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_text(encoding="utf-8")
        values = OmegaConf.to_container(OmegaConf.create(content))  # which refuses a name given twice
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise ValueError("it holds no lines of KEY: VALUE")
        return values  # type: ignore[return-value]
    except FileNotFoundError as error:
        raise UserError(f"No job file {path}. A job file holds overrides as lines of KEY: VALUE.") from error
    except (OSError, ValueError, TypeError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        cause = " ".join(str(error).split())[:300]
        raise UserError(f"Cannot read the job file {path}, YAML of KEY: VALUE in UTF-8: {cause}") from error


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
    kind = _SETTINGS[key].type if key in _SETTINGS else None
    if isinstance(value, list):
        of_lists = str(kind).startswith("list") and not any(isinstance(item, list) for item in value)
        items = ",".join(
            _value(key, item, where) if isinstance(item, list) else _scalar(kind, item, key, where)
            for item in value
        )
        return f"[{items}]" if of_lists or key not in _SETTINGS else items
    return _scalar(kind, value, key, where)


def _scalar(kind: Any, value: Any, key: str, where: str) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    is_text = kind in (str, str | None, list[str])
    if is_text and not isinstance(value, str):  # 2024_01 would be 202401
        raise UserError(f"{where}: {key} is a text, and YAML reads a number: put it in quotes.")
    return QuotedString(value, Quote.single).with_quotes() if is_text else str(value)
