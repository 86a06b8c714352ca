"""Answers kept in memory for objects that never change, and for files as long as they have not changed."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

Asked = TypeVar("Asked", bound=Callable[..., Any])


def remembered(size: int) -> Callable[[Asked], Asked]:
    """Decorates a function of an immutable object and hashable values: its last `size` answers are kept.

    The object is told by its identity: to hash a task by what it holds takes as long as most answers do. It
    is held with its answer, so that no other object can get its id.
    """

    def decorate(function: Asked) -> Asked:
        held: OrderedDict[tuple[Any, ...], tuple[Any, Any]] = OrderedDict()

        @wraps(function)
        def answer(subject: Any, *args: Any) -> Any:
            found = held.get(key := (id(subject), *args))
            if found is None:
                found = held[key] = (subject, function(subject, *args))
                if len(held) > size:
                    held.popitem(last=False)
            return found[1]

        return answer  # type: ignore[return-value]

    return decorate


def while_unchanged(files: Callable[..., Iterable[Path]]) -> Callable[[Asked], Asked]:
    """Decorates a function of hashable values: its last answers are kept until their `files` change."""

    def decorate(function: Asked) -> Asked:
        kept = lru_cache(64)(lambda _stamp, *args: function(*args))
        return wraps(function)(lambda *args: kept(stamp(*files(*args)), *args))  # type: ignore[return-value]

    return decorate


def stamp(*paths: Path) -> tuple[tuple[str, int, int, int], ...]:
    """What changes when a file is written again: size, time of the last change and inode, of each path.

    The inode tells a file that took the place of one of the same size and time. Of a folder, of every file in
    it; nothing of a path that is not there.
    """
    files = (file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]))
    facts = ((str(file), file.stat()) for file in files if file.is_file())
    return tuple((name, found.st_size, found.st_mtime_ns, found.st_ino) for name, found in facts)
