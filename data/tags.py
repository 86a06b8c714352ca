"""Tags of training rows in a file: `sapo paraphrase --tags FILE` writes it, `method.tags=FILE` reads it.

JSON lines: `{"writer": MODEL, "question": SHA-256}` first, then `{"document": SHA-256, "tags": [TEXT, …]}`
for each row; null where the model's answer held no tags. Written line by line: no answer is ever lost.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapo.conf.errors import UserError
from sapo.data.remembering import while_unchanged
from sapo.data.tasks import Example


@dataclass(frozen=True)
class Tags:
    """Who wrote the tags in answer to which question, and the tags by the SHA-256 of a row's document."""

    writer: str
    question: str
    tags: dict[str, list[str] | None]

    @property
    def content(self) -> list[Any]:
        """All that can change a choice of rows by these tags."""
        return [self.writer, self.question, sorted(self.tags.items())]


def document(instruction: str, row: Example) -> str:
    """The text of a row that tags are about: its task's instruction and its input."""
    return f"{instruction}\n\n{row.input}"


def read_tags(file: str | Path | None) -> Tags:
    """The tags in a file; UserError if it is not such a file, or none is named."""
    if file is None:
        raise UserError("method.unit=instance needs tags: method.tags=FILE.")
    return _read(Path(file).expanduser())


@while_unchanged(lambda path: [path])
def _read(path: Path) -> Tags:
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # a killed process may leave a line half-written
        head = json.loads(lines[0])
        tags = Tags(head["writer"], head["question"], {})
        for entry in map(json.loads, lines[1:]):
            if not all(isinstance(tag, str) for tag in entry["tags"] or ()):
                raise TypeError(f"tags of {entry['document']}")
            tags.tags[entry["document"]] = entry["tags"] and list(entry["tags"])
        return tags
    except OSError as error:
        raise UserError(
            f"method.tags: cannot read {path} ({error.strerror or error}). Write it with "
            f"`sapo paraphrase --tags {path} sequence=NAME paraphrases=openai|local …`."
        ) from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{path} holds no tags as `sapo paraphrase --tags` writes them: {error}") from error
