"""From Hydra overrides to validated configs, one for each run that they describe."""

import difflib
import hashlib
import os
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl  # private: hence hydra-core<1.4
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, OmegaConfBaseException

from sapo.conf.errors import UserError, unknown
from sapo.conf.job_files import TEXTS, leaves, require_text, settings_in, with_job_files
from sapo.conf.models import model_called, model_in, model_on_hub
from sapo.conf.plugins import plugin_names
from sapo.conf.schema import Config, settings
from sapo.conf.validate import problems

FOLDER = Path(__file__).parent
GROUPS = (
    *("experiment", "sequence", "model", "method", "policy", "paraphrases"),
    *("scorer", "evaluator", "trainer", "scale", "engine", "parity"),
)
PAIR = ("trainer", "scale")  # who names one of them gets the other of that name, unless it is named too
_SETTINGS = settings()
_FOR_HYDRA = re.compile(r"^(?:choice|range|glob|sort|shuffle|str)\(.*\)$|^(['\"]).*\1$|\$\{", re.DOTALL)
_OPEN = "model.template_options."  # switches that only the chat template knows
_OWN = "benchmark: own"  # in the file of a sequence of users' own tasks
# What Hydra would say on a command line of its own: a fifth of what composing takes.
_WITHOUT = [f"~hydra/{group}" for group in ("job_logging", "hydra_logging", "output", "help", "hydra_help")]
_CALLED: set[str] = set()  # members of the group of models that stand for folders and repositories
ConfigStore.instance().store(name="schema", node=Config)


def load(overrides: list[str]) -> list[Config]:
    """Composes and validates one config for each combination of the overrides' comma lists and ranges.

    `experiment=NAME` adds that experiment's own sweep; a job file, FILE.yaml, stands for the overrides in it.
    Raises UserError naming every problem at once.
    """
    _check_own_files()
    overrides = with_job_files(overrides)
    for group in ("method", "policy"):  # from outside, and without a YAML file
        for name in {*plugin_names(group)} - {path.stem for path in _choice_files(group)}:
            ConfigStore.instance().store(group=group, name=name, node={"name": name})
    overrides = _with_models([_with_text(override) for override in overrides])
    # Unknown settings and group members get suggestions before Hydra's long messages would.
    known = {*_SETTINGS, *GROUPS}
    for override in _parse(overrides):
        key, is_switch = override.key_or_group, override.key_or_group.startswith(_OPEN)
        if key not in known and not is_switch:
            near = _near(key)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UserError(f"Unknown setting {key}.{hint} `sapo show config` lists all that there are.")
        if override.is_delete() or override.package is not None or (override.is_add() and not is_switch):
            line = override.input_line
            raise UserError(f"{line}: settings are neither added nor removed; write {key}=VALUE.")
        names = _swept(override) if override.is_sweep_override() else [str(override.value())]
        for name in names if key in GROUPS else ():
            if name not in (members := choices(key)) and name not in _CALLED:
                raise unknown(key, name, members)
    experiments = [axis for axis in _axes(overrides) if axis[0].startswith("experiment=")]
    others = [override for override in overrides if not override.startswith("experiment=")]
    configs = [config for chosen in product(*experiments) for config in _compose_all([*chosen, *others])]
    found = sorted({problem for config in configs for problem in problems(config)})
    if found:
        raise UserError("The configuration cannot run:\n" + "\n".join(f"  - {problem}" for problem in found))
    return [settled(config) for config in configs]


def settled(config: Config) -> Config:
    """The config with the ~ of folders expanded; the bank gives way to a pool file that is named."""
    store = replace(config.store, root=str(Path(config.store.root).expanduser()))
    root, paraphrases = config.data.root, config.paraphrases
    data = replace(config.data, root=root and str(Path(root).expanduser()))
    if paraphrases.file and paraphrases.source == "bank":
        paraphrases = replace(paraphrases, source="file", name="file")
    return replace(config, store=store, data=data, paraphrases=paraphrases)


def load_one(overrides: list[str]) -> Config:
    """The one config that the overrides describe; UserError if they describe several."""
    configs = load(overrides)
    if len(configs) != 1:
        raise UserError(f"These overrides describe {len(configs)} runs; this command takes one.")
    return configs[0]


def choices(group: str) -> list[str]:
    """Names of the YAML files of a config group, the user's own (SAPO_CONF) included."""
    return sorted({*(path.stem for path in _choice_files(group)), *plugin_names(group)})


def description(group: str, name: str) -> str:
    """The first comment line of a group member's YAML file; empty if it has none."""
    _check_own_files()
    path = next((path for path in _choice_files(group) if path.stem == name), None)
    if path is None:
        return "from outside (docs/extend.md)"
    comments = [line.removeprefix("#").strip() for line in _text_of(path).splitlines() if line[:1] == "#"]
    return next((comment for comment in comments if not comment.startswith("@package")), "")


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _choice_files(group: str) -> list[Path]:
    return [path for folder in (FOLDER, _own_folder()) if folder for path in (folder / group).glob("*.yaml")]


def _compose_all(overrides: list[str]) -> list[Config]:
    """The config of every combination of the overrides' sweeps and the experiment's; overrides win.

    Composing takes a tenth of a second. So what only decides its own part of the config is not composed with
    every value of the others: of a group each member once, and a whole number is put in its place.
    """
    compose_once = cache(_compose)
    axes = _axes(overrides)
    given = {override.partition("=")[0] for override in overrides}
    sweep = compose_once(tuple(axis[0] for axis in axes)).sweep
    axes += _axes([item for item in sweep if item.partition("=")[0] not in given])
    apart = _apart(axes)
    configs = []
    for combination in product(*axes):
        plain = [axes[place][0] if place in apart else value for place, value in enumerate(combination)]
        config = compose_once(tuple(plain))
        for place, key in apart.items():
            group, _, setting = key.partition(".")
            if key in GROUPS:
                alone = compose_once((*plain[:place], combination[place], *plain[place + 1 :]))
                value: Any = getattr(alone, group)
            else:
                value = int(combination[place].partition("=")[2])
            if setting:
                value = replace(getattr(config, group), **{setting: value})
            config = replace(config, **{group: value})
        configs.append(config)
    return configs


def _apart(axes: list[list[str]]) -> dict[int, str]:
    """The axes that decide a group or a number alone, and nothing else: their keys by place, groups first.

    A group's member may reach beyond its group, by `@package` or with defaults of its own, and any value may
    be made of another part's: `runs/${seed}`.
    """
    texts = (*(value for axis in axes for value in axis), *(_text_of(path) for path in _own_files()))
    if any("${" in text for text in texts):
        return {}
    groups, numbers = {}, {}
    for place, axis in enumerate(axes):
        key, values = axis[0].partition("=")[0], {value.partition("=")[2] for value in axis}
        if len(axis) > 1 and key in GROUPS and key not in PAIR:
            files = [_text_of(path) for path in _choice_files(key) if path.stem in values]
            if not any(word in text for text in files for word in ("@package", "defaults:", _OWN)):
                groups[place] = key
        is_number = key in _SETTINGS and _SETTINGS[key].type is int
        if len(axis) > 1 and is_number and all(re.fullmatch(r"-?[0-9]+", value) for value in values):
            numbers[place] = key
    return groups | numbers


def _axes(overrides: list[str]) -> list[list[str]]:
    """The values of each override, as overrides without sweeps."""
    return [
        [f"{override.get_key_element()}={value}" for value in _swept(override)]
        if override.is_sweep_override()
        else [str(override.input_line)]
        for override in _parse(overrides)
    ]


def _with_text(override: str) -> str:
    """The override with the value of a text setting in quotes, so that Hydra takes it as it is typed.

    Unquoted, `1_2` would be a number, and `a[b]` an error. What is quoted already, a comma list, `choice(…)`,
    `null` and `${…}` are left to Hydra.
    """
    key, _, value = override.partition("=")
    kind = _SETTINGS[key].type if key in _SETTINGS else None
    if key == "model" and re.search(r"[^\w,]", value):
        kind = str  # a folder or OWNER/NAME
    if override == "model.lora_targets=all-linear":
        return "model.lora_targets=['all-linear']"
    if override.startswith(f"+{_OPEN}"):
        return f"+{override}"  # whether or not the model's folder has told of this switch already

    def quoted(text: str) -> str:
        return QuotedString(text.strip(), Quote.single).with_quotes()

    if value in ("", "null", "???") or _FOR_HYDRA.search(value):
        return override
    is_plain = not re.search(r"[][(){}'\"]", value.removeprefix("[").removesuffix("]"))
    if kind == list[str] and is_plain and value[0] == "[" and value[-1] == "]" and value[1:-1].strip():
        return f"{key}=[{','.join(map(quoted, value[1:-1].split(',')))}]"
    if kind not in TEXTS:
        return override
    is_sweep = is_plain and value[0] != "[" and "," in value
    return f"{key}={','.join(map(quoted, value.split(','))) if is_sweep else quoted(value)}"


def _with_models(overrides: list[str]) -> list[str]:
    """The overrides with a member of the group `model` for each folder or OWNER/NAME that names a model.

    Where no `model=` does, `model.path=` and `model.source=` say what the model is: nothing is then left of
    the default model.
    """
    given = dict(override.partition("=")[::2] for override in overrides)
    key = next((key for key in ("model", "model.path", "model.source") if key in given), None)
    if key is None or given[key] in ("", "null", "???") or "${" in given[key]:
        return overrides
    (parsed,) = _parse([f"{key}={given[key]}"])
    is_sweep = parsed.is_sweep_override() and bool(_swept(parsed))
    found = list(parsed.sweep_iterator()) if is_sweep else [parsed.value()]
    revision, known = given.get("model.revision", "").strip("'") or None, choices("model")
    members = []
    for text in (value.text if isinstance(value, QuotedString) else str(value) for value in found):
        kind, _, name = text.partition(":") if key == "model.source" else ("path", "", text)
        if key == "model":
            called = None if text in known else model_called(text, revision)
            if called is None and text not in known:
                raise unknown("model", text, known)
        elif kind == "path":
            called = model_in(name)
        else:
            called = model_on_hub(name, revision) if kind == "hub" and name.count("/") == 1 else None
        if called:
            text = "called_" + hashlib.sha256(repr(called).encode()).hexdigest()[:16]
            ConfigStore.instance().store(group="model", name=text, node=called)
            _CALLED.add(text)
        members.append(text)
    if not _CALLED.intersection(members):
        return overrides
    replaced = f"model={','.join(members)}"
    return [replaced if override.partition("=")[0] == key else override for override in overrides]


def _parse(overrides: list[str]) -> list[Override]:
    parsed = []
    for override in overrides:
        try:
            parsed += OverridesParser.create().parse_overrides([override])
        except HydraException as error:
            if "=" not in override and os.path.exists(override):
                way = f"Rows are data={override}, a model's folder is model={override}."
                raise UserError(f"{override} is neither a setting nor a job file (.yaml). {way}") from error
            way = "Write KEY=VALUE, and quote a value with special characters twice: 'KEY=\"VALUE\"'."
            raise UserError(f"Cannot read the override {override}: {_cause(error)}. {way}") from error
    return parsed


def _swept(override: Override) -> list[str]:
    """The values of a comma list, `choice(…)` or `range(…)`."""
    try:
        values = list(override.sweep_string_iterator())
    except HydraException as error:
        raise UserError(f"{override.input_line}: sweep with a comma list, choice(…) or range(…).") from error
    if not values:
        raise UserError(f"{override.input_line}: this sweep has no values.")
    return values


def _check_own_files() -> None:
    """UserError naming a YAML file of the user's that cannot be read, or has a number for a text."""
    for path in _own_files():
        values = settings_in(path)
        where = "" if "@package _global_" in _text_of(path) else f"{path.parent.name}."
        for key, value in leaves(values, where):
            if key in _SETTINGS and _SETTINGS[key].type in TEXTS:
                require_text(key, value, path)


def _near(key: str) -> list[str]:
    """The settings and groups that a name may stand for, the likeliest first: by letters, words, initials."""
    group, _, last = key.rpartition(".")

    def likeness(name: str) -> float:
        where, _, own = name.rpartition(".")
        words = own.split("_")
        ratio = difflib.SequenceMatcher(None, last, own).ratio()
        is_meant = last == "".join(word[0] for word in words) or (len(last) > 3 and last in words)
        shared = 0.5 * len({*words} & {*last.split("_")}) / len(words)
        return max(ratio, 0.9 * is_meant) + shared + (0.2 if where == group else 0.0)

    likely = {name: likeness(name) for name in {*_SETTINGS, *GROUPS}}
    best = max(likely.values())
    names = [name for name in likely if likely[name] > max(0.75, best - 0.25)]
    return sorted(names, key=lambda name: (-likely[name], name))[:3]


def _compose(overrides: Sequence[str]) -> Config:
    """The config of overrides without sweeps.

    A trainer that is named alone brings the scale of its name, and the other way round. Where none of the two
    is named, own rows are taken whole: the default sizes are a demonstration's.
    """
    named = dict(override.partition("=")[::2] for override in overrides)
    files = [path for path in _choice_files("sequence") if path.stem == named.get("sequence")]
    benchmark = named.get("sequence.benchmark", "").strip("'")
    is_own = benchmark == "own" or any(_OWN in _text_of(path) for path in files)
    brought = ["scale=own"] if is_own and not {*PAIR, "experiment"} & named.keys() else []
    for one, other in (PAIR, PAIR[::-1]):
        if one in named and other not in named and named[one] in choices(other):
            brought = [f"{other}={named[one]}"]
    members = [override for override in (*overrides, *brought) if override.partition("=")[0] in GROUPS]
    values = [override for override in overrides if override.partition("=")[0] not in GROUPS]
    stamps = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_ino) for path in _own_files())
    try:
        composed = deepcopy(_members_composed(tuple(members), _own_folder(), stamps))
        ConfigLoaderImpl._apply_overrides_to_config(_parse(values), composed)
        missing = OmegaConf.missing_keys(composed)
        if missing:
            raise UserError(f"No value for {', '.join(sorted(missing))}.")
        return OmegaConf.to_object(composed)  # type: ignore[return-value]
    except RecursionError as error:
        raise UserError("The configuration does not fit: a value in a YAML file holds itself.") from error
    # Hydra lets through what its readers of YAML and of defaults lists raise.
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(f"The configuration does not fit: {_cause(error)}") from error


@lru_cache(maxsize=64)
def _members_composed(members: tuple[str, ...], own: Path | None, _stamps: Any) -> DictConfig:
    """The config of members of groups, before values are given: what takes Hydra a tenth of a second."""
    path = QuotedString(f"file://{own}", Quote.single).with_quotes()
    search = [f"hydra.searchpath=[{path}]"] if own else []
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        return compose("config", overrides=[*members, *search, *_WITHOUT])


def _cause(error: BaseException) -> str:
    """The useful text of a Hydra error stands in its innermost cause; OmegaConf's begins with the key."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ConfigAttributeError) and str(error.full_key).startswith(_OPEN):
        return f"{error.full_key}: the model has no such switch; to add it, write +{error.full_key}=VALUE"
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {str(error).strip().splitlines()[0]}"
    # Runs of blanks stood before the caret that points into the line above.
    return " ".join(str(error).strip().split("\nSee ")[0].replace("\n", "; ").split())


def _own_folder() -> Path | None:
    own = os.environ.get("SAPO_CONF")
    if own and not Path(own).is_dir():
        raise UserError(f"SAPO_CONF={own} is no folder. Set it to one that holds groups: model/mine.yaml.")
    return Path(own).resolve() if own else None


def _own_files() -> list[Path]:
    return sorted(folder.glob("*/*.yaml")) if (folder := _own_folder()) else []
