"""Names that become names of files: of tasks, sequences, models, pools and runs."""

import re

from sapo.conf.schema import Config

LONGEST = 200  # bytes; file systems take 255, and endings are added
LONGEST_RUN = 150  # bytes; the folder of a run in an archive, `runs/ID`, may have 155
DIGEST = 8  # characters at a run's end that make it one run's own
# Devices on Windows, where a store on a shared path may be read too.
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)


def why_no_name(text: str) -> str | None:
    """Why `text` cannot name a file inside a given folder, or None if it can."""
    if not text or text != text.strip():
        return "it is empty, or begins or ends with a blank"
    if re.search(r"[/\\\x00-\x1f\x7f]", text):
        return "it holds a slash, a backslash or a control character"
    if text.startswith((".", "-", "~")):
        return "it begins with a dot, a hyphen or a tilde"
    if len(text.encode("utf-8", errors="replace")) > LONGEST:
        return f"it is longer than {LONGEST} bytes"
    if _RESERVED.fullmatch(text):
        return "the name is reserved"
    return None if text.isprintable() else "it holds characters that cannot be shown"


def shown(text: str) -> str:
    """A name for a message: on one line, and not too long."""
    return repr(text if len(text) <= 60 else f"{text[:57]}…")


def run_name(config: Config) -> str:
    """What people read of a run's id; the beginning of a digest follows it."""
    groups = (config.sequence, config.model, config.method, config.policy)
    return plain("-".join([*(group.name for group in groups), f"s{config.seed}"]))


def plain(text: str) -> str:
    """The text with `_` for what no id of a run or probe may hold."""
    return re.sub(r"[^\w.-]", "_", text)


def why_no_run(text: str) -> str | None:
    """Why `text` cannot be the id of a run or probe, or None if it can."""
    if plain(text) != text or text.startswith((".", "-")):
        return "an id has letters, digits, '.', '_' and '-', and begins with one of the first two"
    return why_no_name(text)
