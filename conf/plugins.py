"""Methods and policies from outside: an entry point of an installed package, or a file beside one's own YAML.

`SAPO_CONF/methods/NAME.py` holds `METHOD`, `SAPO_CONF/policies/NAME.py` holds `POLICY`; the entry points of
`sapo.methods` and `sapo.policies` name such an object.
"""

import hashlib
import os
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from sapo.conf.errors import UserError

_FOLDERS = {"method": "methods", "policy": "policies"}


def plugin_names(group: str) -> list[str]:
    """The names of what comes from outside; nothing is loaded."""
    return sorted({*_files(group), *_entries(group)}) if group in _FOLDERS else []


def load_plugin(group: str, name: str) -> tuple[Any, str]:
    """The object of that name, and what tells its code from another: the file's SHA-256, or the version."""
    file, entry = _files(group).get(name), _entries(group).get(name)
    where = str(file or (entry and f"the entry point {entry.value}"))
    try:
        if file:
            spec = spec_from_file_location(f"sapo_{group}_{name}", file)
            module = module_from_spec(spec)  # type: ignore[arg-type]
            spec.loader.exec_module(module)  # type: ignore[union-attr]
            return getattr(module, group.upper()), hashlib.sha256(file.read_bytes()).hexdigest()
        if entry:
            return entry.load(), f"{entry.value} {entry.dist.version if entry.dist else ''}"
    except Exception as error:  # whatever a foreign module raises
        cause = f"{type(error).__name__}: {error}"
        raise UserError(f"{where}: {group} {name} cannot be loaded: {cause}") from error
    raise KeyError(name)


def _files(group: str) -> dict[str, Path]:
    folder = Path(os.environ.get("SAPO_CONF") or "/nowhere") / _FOLDERS[group]
    return {path.stem: path for path in folder.glob("[!_.]*.py")}


@cache
def _entries(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=f"sapo.{_FOLDERS[group]}")}
