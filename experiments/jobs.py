"""What a command asks for."""

from dataclasses import asdict, dataclass, field

from sapo.conf.schema import Config
from sapo.data.tasks import digest


@dataclass(frozen=True)
class Job:
    """A composed config with its key, made once. Equal configs have equal keys."""

    config: Config
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", digest(asdict(self.config)))

    def __str__(self) -> str:
        config = self.config
        groups = (config.sequence, config.model, config.method, config.policy)
        return " ".join([*(group.name for group in groups), f"seed {config.seed}"])
