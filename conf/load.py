"""From Hydra overrides to validated configs, one for each run that they describe."""

import os
from dataclasses import fields, is_dataclass
from itertools import product
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sapo.conf.errors import UserError, unknown
from sapo.conf.schema import Config
from sapo.conf.validate import problems

FOLDER = Path(__file__).parent
GROUPS = (
    "experiment",
    "sequence",
    "model",
    "method",
    "policy",
    "paraphrases",
    "scorer",
    "evaluator",
    "trainer",
    "engine",
    "parity",
)


def load(overrides: list[str]) -> list[Config]:
    """Composes and validates one config for each combination of the overrides' comma lists and ranges.

    `experiment=NAME` adds that experiment's own sweep. Raises UserError naming every problem at once.
    """
    _check_choices(overrides)
    configs = [_compose(combination) for combination in _expand(overrides)]
    # An experiment's sweep comes first, so that what the user says wins over it.
    swept = [
        config
        for overall in configs
        for config in ([overall] if not overall.sweep else _load_sweep(overall.sweep, overrides))
    ]
    found = sorted({problem for config in swept for problem in problems(config)})
    if found:
        raise UserError("The configuration cannot run:\n" + "\n".join(f"  - {problem}" for problem in found))
    return swept


def load_one(overrides: list[str]) -> Config:
    """The one config that the overrides describe; UserError if they describe several."""
    configs = load(overrides)
    if len(configs) != 1:
        raise UserError(f"These overrides describe {len(configs)} runs; this command takes one.")
    return configs[0]


def choices(group: str) -> list[str]:
    """Names of the YAML files of a config group, the user's own (SAPO_CONF) included."""
    folders = [FOLDER / group, *(folder / group for folder in _own_folders())]
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def _load_sweep(sweep: list[str], overrides: list[str]) -> list[Config]:
    said = {override.split("=", 1)[0] for override in overrides}
    mine = [item for item in sweep if item.split("=", 1)[0] not in said]
    return [_compose(combination) for combination in _expand([*overrides, *mine])]


def _expand(overrides: list[str]) -> list[list[str]]:
    """Every combination of swept values: `seed=range(2)`, `policy=static,sapo`."""
    axes = []
    for override in _parse(overrides):
        if override.is_sweep_override():
            key = override.get_key_element()
            axes.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            axes.append([override.input_line])
    return [list(combination) for combination in product(*axes)]


def _parse(overrides: list[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise UserError(f"Cannot read the overrides {' '.join(overrides)}: {_cause(error)}") from error


def _check_choices(overrides: list[str]) -> None:
    """Unknown names of group members get suggestions before Hydra's long message would."""
    for override in _parse(overrides):
        if override.key_or_group not in GROUPS or override.is_delete():
            continue
        values = override.sweep_string_iterator() if override.is_sweep_override() else [override.value()]
        for value in values:
            if str(value) not in (known := choices(override.key_or_group)):
                raise unknown(override.key_or_group, str(value), known)


def _compose(overrides: list[str]) -> Config:
    ConfigStore.instance().store(name="schema", node=Config)
    search = [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in _own_folders())}]"]
    try:
        with initialize_config_dir(str(FOLDER), version_base="1.3"):
            composed = compose("config", overrides=[*overrides, *(search if _own_folders() else [])])
        _refuse_leftovers(composed)
        return OmegaConf.to_object(composed)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"The configuration does not fit: {_cause(error)}") from error


def _refuse_leftovers(composed: DictConfig) -> None:
    """Missing values, and keys that a `+new=…` override added beside the schema, which would vanish silently."""
    missing = OmegaConf.missing_keys(composed)
    if missing:
        raise UserError(f"No value for {', '.join(sorted(missing))}. Choose a member of that group.")
    extra = _extra_keys(composed, Config)
    if extra:
        raise UserError(f"Unknown setting {', '.join(extra)}: `sapo show config` lists all that there are.")


def _extra_keys(node: DictConfig, schema: type, where: str = "") -> list[str]:
    known = {f.name: f.type for f in fields(schema)}
    extra = [f"{where}{key}" for key in node if key not in known]
    for name, kind in known.items():
        if isinstance(kind, type) and is_dataclass(kind):
            extra += _extra_keys(node[name], kind, f"{where}{name}.")
    return extra


def _cause(error: BaseException) -> str:
    """The useful text of a Hydra error stands in its innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().replace("\n", "; ")


def _own_folders() -> list[Path]:
    own = os.environ.get("SAPO_CONF")
    return [Path(own).resolve()] if own else []
