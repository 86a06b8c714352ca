"""JSON and YAML as users write them: read safely, every fault named with its file and place."""

import json
from pathlib import Path
from typing import Any

import yaml

from sapo.conf.errors import UserError


def read_json(path: Path, mend: str = "") -> Any:
    """A JSON file's content; UserError names the file and the position of what is wrong.

    `mend` is added where there is no such file.
    """
    text = _text(path, mend)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: a number has too many digits, or lists are nested too deeply.") from error


def read_yaml(path: Path, what: str = "file") -> Any:
    """A YAML file's content, plain values only; UserError names the file and what is wrong."""
    text = _text(path)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"Cannot read the {what} {path}: {' '.join(str(error).split())}") from error
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        # What the YAML reader lets through: a date that does not exist, `!!int x`, nesting without end.
        raise UserError(f"Cannot read the {what} {path}: a value in it is not what its type says.") from error


def is_text(value: Any) -> bool:
    """Whether a value is a text that can be written: JSON and YAML can spell half of a surrogate pair."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(path: Path, mend: str = "") -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"No file {path}." + (f" {mend}" if mend else "")) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: byte {error.start}.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
