"""A config as YAML that explains itself."""

from dataclasses import fields, is_dataclass
from typing import Any

import yaml

from sapo.conf.schema import described


def commented_yaml(config: Any, indent: str = "") -> str:
    """The config's fields as YAML, each with its doc as a comment; read back, it is the same config."""
    lines = []
    for field in fields(config):
        value = getattr(config, field.name)
        doc = described(field)
        if is_dataclass(value):
            lines.append(f"{indent}{field.name}:  # {doc}\n{commented_yaml(value, indent + '  ')}")
        else:
            lines.append(f"{indent}{field.name}: {_scalar(value)}  # {doc}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("...\n").strip()
