"""What a stage is: a pure function of what it is given, whose result the store keeps under its key."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from sapo.conf.schema import Config, identity_values, with_settings
from sapo.data.prompts import Prompt
from sapo.data.tasks import Example, Task, digest
from sapo.experiments.engine.store import Store
from sapo.experiments.model.identity import model_identity
from sapo.experiments.model.load import LanguageModel

# Groups whose settings that cannot change a result say how every stage is computed.
_RUNTIME = ("engine", "trainer", "evaluator")

# A task, rows of it, a prompt, and how many times on average each row is read under that prompt.
Reading = tuple[Task, tuple[Example, ...], Prompt, float]


@dataclass(frozen=True)
class Stage(ABC):
    """A pure function of what it is given, whose result the store keeps under its key.

    `config` holds the settings that the stage reads: those named in `settings`, and the runtime ones. All
    others are as the schema has them, so that the work cannot depend on a setting that is not in the key.
    `state` is the key of the training that made the state of the model, or `base`.
    """

    config: Config
    state: str

    kind: ClassVar[str]
    verb: ClassVar[str]
    version: ClassVar[int] = 2  # raised when a change of the code changes what a stage computes
    settings: ClassVar[tuple[str, ...]]
    """Groups and settings of the config that can change the result."""

    def __post_init__(self) -> None:
        # These groups and settings of the config, and the runtime settings of `_RUNTIME`.
        narrow = with_settings(Config(), self.config, self.settings)
        for group in _RUNTIME:
            if group not in self.settings:
                whole = getattr(self.config, group)
                values = {f.name: getattr(whole, f.name) for f in fields(whole) if not f.metadata["identity"]}
                narrow = replace(narrow, **{group: replace(getattr(narrow, group), **values)})
        object.__setattr__(self, "config", narrow)

    @property
    @abstractmethod
    def readings(self) -> list[Reading]:
        """What it reads: rows of a task under a prompt, and how often."""

    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """What can change the result beside model, state and the settings of the data."""

    @abstractmethod
    def compute(self, store: Store, language_model: LanguageModel, folder: Path) -> dict[str, Any]:
        """Computes the result, writes its tables or weights to `folder`, and returns its facts."""

    def identity(self) -> dict[str, Any]:
        """Everything that can change the result."""
        return {
            "kind": self.kind,
            "version": self.version,
            "state": self.state,
            "model": model_identity(self.config),
            "data": identity_values(self.config.data),
            **self.inputs(),
        }

    @property
    def name(self) -> str:
        """The tasks that it works on, for people."""
        return "+".join(dict.fromkeys(task.name for task, *_ in self.readings))

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON of the identity."""
        return digest(self.identity())

    def __str__(self) -> str:
        """`training mini_city, prompt 3`."""
        prompts = {prompt.name for _, _, prompt, _ in self.readings}
        what = f"{len(prompts)} prompts" if len(prompts) > 1 else ", ".join(prompts)
        return f"{self.verb} {self.name}, {what}"

    def config_read(self) -> dict[str, Any]:
        """The groups of the config that it reads, as plain values."""
        groups = {name.split(".")[0] for name in (*self.settings, *_RUNTIME)}
        return {group: value for group, value in asdict(self.config).items() if group in groups}
